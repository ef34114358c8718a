// A whole bundle. Parts of a small one are changed, what depends on them is made right again (sizes, places, digests), it is
// signed again and read as a device reads it: opened, verified whole, every unit decoded. Input: edits of 6 bytes: part,
// operation, u16 place, u16 value.
#include <algorithm>

#include "base/digest/sha256.h"
#include "runtime-min/unit_source.h"
#include "verify/testing/tiny_bundle.h"

namespace moepack::fuzz {
namespace {

constexpr size_t kEditBytes = 6, kMostEdits = 64;

struct Edit {
  uint8_t part = 0, operation = 0;
  uint16_t place = 0, value = 0;
};

enum Part : uint8_t { kFile, kManifest, kChunk, kChunkRecord, kFirstBlob };

uint64_t Align(uint64_t at) { return (at + kBundleAlignment - 1) / kBundleAlignment * kBundleAlignment; }

void Apply(const Edit& edit, Bytes* bytes) {
  if (bytes->empty()) return;
  const size_t at = edit.place % bytes->size();
  const auto place = bytes->begin() + static_cast<std::ptrdiff_t>(at);
  switch (edit.operation % 5) {
    case 0:
      *place ^= static_cast<uint8_t>(edit.value);
      break;
    case 1:
      *place = static_cast<uint8_t>(edit.value);
      break;
    case 2:
      bytes->insert(place, static_cast<uint8_t>(edit.value));
      break;
    case 3:
      bytes->erase(place, place + static_cast<std::ptrdiff_t>(std::min<size_t>(edit.value % 16 + 1, bytes->size() - at)));
      break;
    default: {
      const Bytes copied(place, place + static_cast<std::ptrdiff_t>(std::min<size_t>(8, bytes->size() - at)));
      bytes->insert(bytes->begin() + static_cast<std::ptrdiff_t>(edit.value % bytes->size()), copied.begin(), copied.end());
    }
  }
}

class Mutant {
 public:
  Mutant() {
    const Bytes file = testing::MakeTinyBundle();
    const auto bundle = testing::OpenBytes(file);
    if (!bundle.ok()) __builtin_trap();
    manifest_ = (*bundle)->manifest();
    dense_ = (*bundle)->dense();
    experts_ = (*bundle)->experts();
    for (const BlobRef& blob : manifest_.blobs) {
      const auto begin = file.begin() + static_cast<std::ptrdiff_t>(blob.offset);
      blobs_.emplace_back(begin, begin + static_cast<std::ptrdiff_t>(blob.bytes));
    }
    chunks_begin_ = dense_.units[0].chunks[0].offset;
    area_.assign(file.begin() + static_cast<std::ptrdiff_t>(chunks_begin_), file.end());
  }

  // The bundle with every edit but those of the file.
  Bytes Make(const std::vector<Edit>& edits) {
    EditChunks(edits);
    Bytes rest, manifest;
    uint64_t chunks_begin = chunks_begin_;
    for (int round = 0; round < 4; ++round) {  // until the manifest's length, which decides all places, stays
      rest = Place(edits, manifest.size(), &chunks_begin);
      manifest = EditedManifest(edits);
    }
    Envelope envelope;
    envelope.manifest_bytes = manifest.size();
    envelope.signatures = {testing::SignWith(testing::MakeTestKey(1), SignedMessage(KeyRole::kRelease, manifest))};
    Bytes file = SerializeEnvelope(envelope);
    file.insert(file.end(), manifest.begin(), manifest.end());
    file.resize(Align(file.size()), 0);
    file.insert(file.end(), rest.begin(), rest.end());
    return file;
  }

 private:
  std::vector<ChunkRef*> Chunks() {
    std::vector<ChunkRef*> all;
    const auto add = [&](std::vector<Unit>& units) {
      for (Unit& unit : units) {
        for (ChunkRef& chunk : unit.chunks) all.push_back(&chunk);
      }
    };
    add(dense_.units);
    for (ExpertTable& table : experts_) add(table.units);
    return all;
  }

  void EditChunks(const std::vector<Edit>& edits) {
    const std::vector<ChunkRef*> chunks = Chunks();
    for (const Edit& edit : edits) {
      ChunkRef& chunk = *chunks[edit.place % chunks.size()];
      if (edit.part == kChunk) area_[chunk.offset - chunks_begin_ + edit.value % chunk.stored_bytes] ^= edit.operation | 1;
      if (edit.part != kChunkRecord) continue;
      if (edit.operation % 3 == 0) chunk.encoding = static_cast<Encoding>(edit.value % 4);
      if (edit.operation % 3 == 1) chunk.stored_bytes = std::clamp<uint64_t>(edit.value, 1, chunk.stored_bytes);
      if (edit.operation % 3 == 2) chunk.plain_bytes = edit.value;
    }
    for (ChunkRef* chunk : chunks) {
      const ByteSpan stored = ByteSpan(area_).subspan(chunk->offset - chunks_begin_, chunk->stored_bytes);
      chunk->stored_digest = Sha256(stored);
      if (chunk->encoding == Encoding::kRaw) chunk->plain_digest = chunk->stored_digest;
    }
  }

  // The file behind a manifest of so many bytes.
  Bytes Place(const std::vector<Edit>& edits, uint64_t manifest_bytes, uint64_t* chunks_begin) {
    const uint64_t first = Align(kEnvelopeBytes + manifest_bytes);
    DenseTable dense = dense_;
    std::vector<ExpertTable> experts = experts_;
    const auto move = [&](std::vector<Unit>& units) {
      for (Unit& unit : units) {
        for (ChunkRef& chunk : unit.chunks) chunk.offset += *chunks_begin - chunks_begin_;
      }
    };
    move(dense.units);
    for (ExpertTable& table : experts) move(table.units);
    Bytes file;
    for (size_t i = 0; i < blobs_.size(); ++i) {
      BlobRef& blob = manifest_.blobs[i];
      Bytes bytes = blob.kind == BlobKind::kDenseTable    ? SerializeDenseTable(dense)
                    : blob.kind == BlobKind::kExpertTable ? SerializeExpertTable(experts[blob.index])
                                                          : blobs_[i];
      for (const Edit& edit : edits) {
        if (edit.part >= kFirstBlob && (edit.part - kFirstBlob) % blobs_.size() == i) Apply(edit, &bytes);
      }
      file.resize(Align(file.size()), 0);
      blob.offset = first + file.size();
      blob.bytes = bytes.size();
      blob.digest = Sha256(bytes);
      file.insert(file.end(), bytes.begin(), bytes.end());
    }
    file.resize(Align(file.size()), 0);
    *chunks_begin = first + file.size();
    file.insert(file.end(), area_.begin(), area_.end());
    manifest_.file_bytes = first + file.size();
    return file;
  }

  Bytes EditedManifest(const std::vector<Edit>& edits) const {
    Bytes manifest = SerializeManifest(manifest_);
    for (const Edit& edit : edits) {
      if (edit.part == kManifest) Apply(edit, &manifest);
    }
    return manifest;
  }

  Manifest manifest_;
  DenseTable dense_;
  std::vector<ExpertTable> experts_;
  std::vector<Bytes> blobs_;
  uint64_t chunks_begin_ = 0;  // as the tables have it
  Bytes area_;
};

// Whether every byte was found to be as it was signed.
bool ReadAll(Bytes file) {
  static ThreadPool pool(1);
  auto bundle = testing::OpenBytes(std::move(file));
  if (!bundle.ok()) return false;
  const bool whole = (*bundle)->VerifyAll(pool, NoProgress()).ok();
  runtime::BundleSource source(std::move(*bundle));
  for (size_t unit = 0; unit < source.dense().units.size(); ++unit) (void)source.ReadDense(unit);
  for (uint32_t t = 0; t < source.experts().size(); ++t) {
    for (uint32_t p = 0; p < source.experts()[t].units.size(); ++p) (void)source.ReadExpert(t, p);
  }
  return whole;
}

}  // namespace
}  // namespace moepack::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace moepack::fuzz;
  static const Mutant base;
  std::vector<Edit> edits;
  for (; size >= kEditBytes && edits.size() < kMostEdits; data += kEditBytes, size -= kEditBytes) {
    edits.push_back(
        {data[0], data[1], static_cast<uint16_t>(data[2] | data[3] << 8), static_cast<uint16_t>(data[4] | data[5] << 8)});
  }
  const moepack::Bytes signed_file = Mutant(base).Make(edits);
  moepack::Bytes file = signed_file;
  for (const Edit& edit : edits) {
    if (edit.part == kFile) Apply(edit, &file);
  }
  const bool whole = ReadAll(file);
  if (edits.empty() && !whole) __builtin_trap();
  if (whole && file != signed_file) __builtin_trap();  // bytes that nobody signed
  return 0;
}
