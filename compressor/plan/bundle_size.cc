#include "compressor/plan/bundle_size.h"

#include <limits>
#include <map>

#include "base/checked.h"
#include "format/envelope.h"
#include "format/manifest/expert_parts.h"
#include "format/manifest/program_wire.h"
#include "format/manifest/unavailable.h"

namespace moepack {
namespace {

struct Tables {
  DenseTable dense;
  std::vector<ExpertTable> experts;
  uint64_t chunk_area_bytes = 0;
  uint64_t chunk_count = 0;
};

// Digests have a fixed length unless all zero bytes could be left out, so they are filled.
DigestBytes AnyDigest() {
  DigestBytes digest;
  digest.fill(0xff);
  return digest;
}

// Plain bytes of a unit's chunks.
std::vector<uint64_t> ChunkSizes(bool expert, uint64_t plain_bytes) {
  if (expert && plain_bytes <= kMaxChunkPlainBytes) return RawParts(plain_bytes, HalvingsOfExpert(plain_bytes));
  std::vector<uint64_t> sizes(plain_bytes / kMaxChunkPlainBytes, kMaxChunkPlainBytes);
  if (plain_bytes % kMaxChunkPlainBytes != 0) sizes.push_back(plain_bytes % kMaxChunkPlainBytes);
  return sizes;
}

// Chunks of a unit with sizes that add up, each to the next page, to what the unit takes at most.
void AddChunks(bool expert, uint64_t stored_bytes, uint64_t plain_bytes, Unit* unit) {
  const std::vector<uint64_t> sizes = ChunkSizes(expert, plain_bytes);
  const uint64_t chunks = sizes.size();
  const uint64_t pages = StoredUnitBytes(stored_bytes, plain_bytes) / kBundleAlignment;
  for (uint64_t i = 0; i < chunks; ++i) {
    ChunkRef chunk;
    chunk.plain_bytes = chunk.stored_bytes = sizes[i];
    if (stored_bytes != plain_bytes) {
      chunk.stored_bytes = chunks == 1 ? stored_bytes : (pages / chunks + (i < pages % chunks ? 1 : 0)) * kBundleAlignment;
    }
    chunk.encoding = Encoding::kZstd;
    chunk.stored_digest = chunk.plain_digest = AnyDigest();
    unit->chunks.push_back(chunk);
  }
}

// In file order; nothing pads the last chunk.
void PlaceChunks(uint64_t first_offset, Tables* tables) {
  uint64_t end = 0;
  const auto place = [&](std::vector<Unit>& units) {
    for (Unit& unit : units) {
      for (ChunkRef& chunk : unit.chunks) {
        chunk.offset = first_offset + WholePages(end);
        end = WholePages(end) + chunk.stored_bytes;
        chunk.stored_bytes = chunk.plain_bytes;  // no length in the tables is longer
        ++tables->chunk_count;
      }
    }
  };
  place(tables->dense.units);
  for (ExpertTable& table : tables->experts) place(table.units);
  tables->chunk_area_bytes = end;
}

// Adds the units that `further` names, by table and expert, behind those that are there: each shaped as the first expert
// that names it.
Status AddFurtherUnits(std::span<const TensorRef> tensors, const ExpertIndex& further, const RatedCodec& codec,
                       Tables* out) {
  const std::vector<RatedCodec> codecs(kExpertMatrices, codec);
  for (size_t i = 0, count = 1; i < tensors.size(); i += count) {
    const TensorRef& first = tensors[i];
    count = 1;
    if (!first.is_expert()) continue;
    while (i + count < tensors.size() && tensors[i + count].unit == first.unit) ++count;
    std::vector<Unit>& units = out->experts[first.table].units;
    if (further[first.table][first.expert] != units.size()) continue;
    const std::span<const TensorRef> matrices = tensors.subspan(i, count);
    Unit unit;
    for (const TensorRef& ref : matrices)
      unit.tensors.push_back({static_cast<uint32_t>(ref.matrix), codec.codec, ref.shape});
    MOEPACK_ASSIGN_OR_RETURN(const ExpertBytes bytes, BytesOfExpert(matrices, codecs));
    AddChunks(true, bytes.stored, bytes.plain, &unit);
    units.push_back(std::move(unit));
  }
  return Status::Ok();
}

Result<Tables> MakeTables(const Program& program, std::span<const TensorRef> tensors, std::span<const RatedCodec> codecs,
                          const BundleExtras& extras, uint64_t first_offset) {
  Tables out;
  FurtherUnits further{{}, extras.twins, {}};
  MOEPACK_ASSIGN_OR_RETURN(further.seconds, SecondUnits(program, tensors, codecs, extras.second));
  if (extras.dense) further.dense = DenseUnits(program, further.seconds);
  for (uint32_t t = 0; t < program.expert_tables.size(); ++t) out.experts.push_back({t, EntriesOf(program, t, further), {}});
  for (size_t i = 0; i < tensors.size();) {
    Unit unit;
    uint64_t plain = 0, stored = 0;
    const TensorRef& first = tensors[i];
    for (; i < tensors.size() && tensors[i].unit == first.unit && tensors[i].block == first.block; ++i) {
      const TensorRef& ref = tensors[i];
      auto bytes = PlainBytes(codecs[i], ref.shape);
      if (!bytes.ok()) return bytes.status().With(ref.name + " as " + codecs[i].Name());
      MOEPACK_ASSIGN_OR_RETURN(const uint64_t held_to, StoredBytes(codecs[i], ref.shape));
      if (!CheckedAdd(plain, *bytes, &plain) || !CheckedAdd(stored, held_to, &stored))
        return Status(ErrorCode::kLimit, "the model's size exceeds 64 bits");
      unit.tensors.push_back({ref.is_expert() ? static_cast<uint32_t>(ref.matrix) : ref.dense, codecs[i].codec, ref.shape});
    }
    AddChunks(first.is_expert(), stored, plain, &unit);
    (first.is_expert() ? out.experts[first.table].units : out.dense.units).push_back(std::move(unit));
  }
  if (extras.second) MOEPACK_RETURN_IF_ERROR(AddFurtherUnits(tensors, further.seconds, *extras.second, &out));
  if (extras.dense) MOEPACK_RETURN_IF_ERROR(AddFurtherUnits(tensors, further.dense, *extras.dense, &out));
  PlaceChunks(first_offset, &out);
  return out;
}

struct Blob {
  BlobKind kind;
  uint32_t index;
  uint64_t bytes;
};

std::vector<Blob> ListBlobs(const Program& program, const Tables& tables, const BundleExtras& extras) {
  std::vector<Blob> blobs = {{BlobKind::kProgram, 0, SerializeProgram(program).size()}};
  if (extras.tokenizer_bytes > 0) blobs.push_back({BlobKind::kTokenizer, 0, extras.tokenizer_bytes});
  blobs.push_back({BlobKind::kDenseTable, 0, SerializeDenseTable(tables.dense).size()});
  for (const ExpertTable& table : tables.experts)
    blobs.push_back({BlobKind::kExpertTable, table.table, SerializeExpertTable(table).size()});
  blobs.push_back({BlobKind::kHotList, 0, SerializeHotList(extras.hot_list).size()});
  if (extras.provenance_bytes > 0) blobs.push_back({BlobKind::kProvenance, 0, extras.provenance_bytes});
  return blobs;
}

uint64_t ManifestBytes(const std::vector<Blob>& blobs, uint64_t first_offset, const Tables& tables) {
  static constexpr size_t kLongestName = 64;
  Manifest manifest;
  manifest.product = manifest.version = std::string(kLongestName, 'x');
  manifest.key_epoch = manifest.security_counter = std::numeric_limits<uint64_t>::max();
  manifest.unavailable = AllUnavailable();
  manifest.file_bytes = first_offset + tables.chunk_area_bytes;
  manifest.chunk_count = tables.chunk_count;
  for (const Blob& blob : blobs) manifest.blobs.push_back({blob.kind, blob.index, first_offset, blob.bytes, AnyDigest()});
  return SerializeManifest(manifest).size();
}

}  // namespace

uint64_t WholePages(uint64_t bytes) { return CeilDiv(bytes, kBundleAlignment) * kBundleAlignment; }

uint64_t StoredUnitBytes(uint64_t stored_bytes, uint64_t plain_bytes) {
  if (stored_bytes == plain_bytes) return WholePages(plain_bytes);
  // Where the rate of a tensor is held, each further chunk may need a page more and tables of its own.
  static constexpr uint64_t kChunkTables = 2048;
  const uint64_t chunks = CeilDiv(plain_bytes, kMaxChunkPlainBytes);
  return std::min(WholePages(plain_bytes),
                  WholePages(stored_bytes + (chunks - 1) * kChunkTables) + (chunks - 1) * kBundleAlignment);
}

Result<uint64_t> BundleBytes(const Program& program, std::span<const TensorRef> tensors, std::span<const RatedCodec> codecs,
                             const BundleExtras& extras) {
  // Where chunks begin depends on the tables' length, which depends on the offsets in them: from below until it settles.
  uint64_t first_offset = 0;
  static constexpr int kMaxRounds = 16;
  for (int round = 0; round < kMaxRounds; ++round) {
    MOEPACK_ASSIGN_OR_RETURN(const Tables tables, MakeTables(program, tensors, codecs, extras, first_offset));
    const std::vector<Blob> blobs = ListBlobs(program, tables, extras);
    uint64_t end = WholePages(kEnvelopeBytes + ManifestBytes(blobs, first_offset, tables));
    for (const Blob& blob : blobs) end += WholePages(blob.bytes);
    if (end == first_offset) return first_offset + tables.chunk_area_bytes;
    first_offset = end;
  }
  return Status(ErrorCode::kInternal, "the size of the bundle did not settle");
}

}  // namespace moepack
