// Manifest and tables that fit testing::TinyProgram, for tests. Digests are made up; no bytes stand behind the chunks.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "format/manifest/manifest.h"
#include "format/testing/tiny_program.h"

namespace moepack::testing {

struct TinyBundle {
  Program program;
  DenseTable dense;
  std::vector<ExpertTable> experts;
  HotList hot;
  Manifest manifest;
  uint64_t blobs_end = 0;

  Status Validate() const { return ValidateLayout(manifest, program, dense, experts, hot, blobs_end); }
};

inline DigestBytes MadeUpDigest(uint64_t seed) {
  DigestBytes digest;
  for (size_t i = 0; i < digest.size(); ++i) digest[i] = static_cast<uint8_t>(seed * 31 + i * 7 + 1);
  return digest;
}

// The unit's tensors in f32; chunks of at most `chunk_bytes`, placed from *end on, every other one as if compressed.
inline Unit TinyUnit(std::vector<UnitTensor> tensors, uint64_t chunk_bytes, uint64_t* end) {
  Unit unit;
  uint64_t left = 0;
  for (const UnitTensor& tensor : tensors) left += tensor.shape.rows * tensor.shape.cols * 4;
  unit.tensors = std::move(tensors);
  while (left > 0) {
    ChunkRef chunk;
    chunk.offset = (*end + kBundleAlignment - 1) / kBundleAlignment * kBundleAlignment;
    chunk.plain_bytes = std::min(left, chunk_bytes);
    chunk.encoding = unit.chunks.size() % 2 == 0 ? Encoding::kRaw : Encoding::kZstd;
    chunk.stored_bytes = chunk.encoding == Encoding::kRaw ? chunk.plain_bytes : (chunk.plain_bytes + 1) / 2;
    chunk.plain_digest = MadeUpDigest(chunk.offset);
    chunk.stored_digest = chunk.encoding == Encoding::kRaw ? chunk.plain_digest : MadeUpDigest(chunk.offset + 1);
    *end = chunk.offset + chunk.stored_bytes;
    left -= chunk.plain_bytes;
    unit.chunks.push_back(chunk);
  }
  return unit;
}

inline std::vector<UnitTensor> ExpertTensors(const ExpertTableDecl& table, uint32_t expert) {
  const uint64_t width = table.intermediate[expert];
  return {{0, {}, {width, table.hidden}}, {1, {}, {width, table.hidden}}, {2, {}, {table.hidden, width}}};
}

inline std::vector<UnitTensor> BlockTensors(const Program& program, int32_t block) {
  std::vector<UnitTensor> tensors;
  for (const TensorId id : TensorsOfBlock(program, block)) {
    tensors.push_back({id, {}, {program.tensors[id].rows, program.tensors[id].cols}});
  }
  return tensors;
}

// Blobs of 100, 200, ... bytes one after another; returns the end of the last.
inline uint64_t PlaceTinyBlobs(Manifest* manifest) {
  uint64_t end = kBundleAlignment, bytes = 0;
  for (const BlobKind kind : {BlobKind::kProgram, BlobKind::kTokenizer, BlobKind::kDenseTable, BlobKind::kExpertTable,
                              BlobKind::kHotList, BlobKind::kProvenance}) {
    const uint64_t offset = (end + kBundleAlignment - 1) / kBundleAlignment * kBundleAlignment;
    bytes += 100;
    manifest->blobs.push_back({kind, 0, offset, bytes, MadeUpDigest(offset)});
    end = offset + bytes;
  }
  return end;
}

// Experts 0 and 1 share a unit (merged); expert 3 has two variants.
inline TinyBundle MakeTinyBundle() {
  TinyBundle b;
  b.program = TinyProgram();
  b.manifest.product = "tiny";
  b.manifest.version = "1.0";
  b.manifest.key_epoch = 3;
  b.manifest.security_counter = 7;
  b.manifest.required_features = {2, 300};
  b.blobs_end = PlaceTinyBlobs(&b.manifest);
  uint64_t end = b.blobs_end;
  for (int32_t block = 0; block < b.program.blocks(); ++block) {
    b.dense.units.push_back(TinyUnit(BlockTensors(b.program, block), 300, &end));
  }
  const ExpertTableDecl& decl = b.program.expert_tables[0];
  ExpertTable table;
  table.experts = {{{{0}}}, {{{0}}}, {{{1}}}, {{{2}, {0}}}};
  for (const uint32_t expert : {0u, 2u, 3u}) table.units.push_back(TinyUnit(ExpertTensors(decl, expert), 300, &end));
  b.experts = {table};
  b.hot.experts = {{0, 3}, {0, 1}};
  b.manifest.file_bytes = end;
  const auto count = [](const std::vector<Unit>& units) {
    uint64_t chunks = 0;
    for (const Unit& unit : units) chunks += unit.chunks.size();
    return chunks;
  };
  b.manifest.chunk_count = count(b.dense.units) + count(table.units);
  return b;
}

}  // namespace moepack::testing
