#include "packager/bundle_layout.h"

#include "base/checked.h"
#include "base/digest/sha256.h"
#include "format/envelope.h"

namespace moepack {
namespace {

struct NamedBlob {
  BlobKind kind;
  uint32_t index;
  Bytes bytes;
};

std::vector<Unit> Shifted(std::vector<Unit> units, uint64_t by) {
  for (Unit& unit : units) {
    for (ChunkRef& chunk : unit.chunks) chunk.offset += by;
  }
  return units;
}

// Blobs in manifest order, (kind, index).
std::vector<NamedBlob> SerializeBlobs(const BundleParts& parts, uint64_t chunks_begin) {
  std::vector<NamedBlob> blobs;
  blobs.push_back({BlobKind::kProgram, 0, parts.program});
  if (!parts.tokenizer.empty()) blobs.push_back({BlobKind::kTokenizer, 0, parts.tokenizer});
  blobs.push_back({BlobKind::kDenseTable, 0, SerializeDenseTable({Shifted(parts.dense.units, chunks_begin)})});
  for (const ExpertTable& table : parts.experts) {
    blobs.push_back({BlobKind::kExpertTable, table.table,
                     SerializeExpertTable({table.table, table.experts, Shifted(table.units, chunks_begin)})});
  }
  blobs.push_back({BlobKind::kHotList, 0, SerializeHotList(parts.hot_list)});
  if (!parts.provenance.empty()) blobs.push_back({BlobKind::kProvenance, 0, parts.provenance});
  if (!parts.golden.empty()) blobs.push_back({BlobKind::kGolden, 0, parts.golden});
  return blobs;
}

uint64_t CountChunks(const std::vector<Unit>& units) {
  uint64_t count = 0;
  for (const Unit& unit : units) count += unit.chunks.size();
  return count;
}

uint64_t CountChunks(const BundleParts& parts) {
  uint64_t count = CountChunks(parts.dense.units);
  for (const ExpertTable& table : parts.experts) count += CountChunks(table.units);
  return count;
}

// One round: everything placed as if the manifest had `manifest_bytes` and chunks began at `chunks_begin`.
Result<PlacedBundle> PlaceOnce(const Manifest& base, const BundleParts& parts, uint64_t manifest_bytes,
                               uint64_t chunks_begin) {
  const Status too_large(ErrorCode::kLimit, "bundle too large");
  PlacedBundle out;
  Manifest manifest = base;
  manifest.blobs.clear();
  uint64_t end = kEnvelopeBytes + manifest_bytes;
  for (NamedBlob& blob : SerializeBlobs(parts, chunks_begin)) {
    uint64_t offset = 0;
    if (!CheckedAlign(end, kBundleAlignment, &offset) || !CheckedAdd(offset, blob.bytes.size(), &end)) return too_large;
    manifest.blobs.push_back({blob.kind, blob.index, offset, blob.bytes.size(), Sha256(blob.bytes)});
    out.blob_offsets.push_back(offset);
    out.blobs.push_back(std::move(blob.bytes));
  }
  if (!CheckedAlign(end, kBundleAlignment, &out.chunks_begin)) return too_large;
  if (!CheckedAdd(out.chunks_begin, parts.chunk_area_bytes, &out.file_bytes)) return too_large;
  manifest.chunk_count = CountChunks(parts);
  manifest.file_bytes = out.file_bytes;
  out.manifest = SerializeManifest(manifest);
  return out;
}

}  // namespace

Result<PlacedBundle> PlaceBundle(const Manifest& base, const BundleParts& parts) {
  // From the smallest guess up: a larger offset never makes a serialised number shorter, so the sizes only grow and settle.
  static constexpr int kMaxRounds = 64;
  uint64_t manifest_bytes = 0, chunks_begin = 0;
  for (int round = 0; round < kMaxRounds; ++round) {
    MOEPACK_ASSIGN_OR_RETURN(PlacedBundle placed, PlaceOnce(base, parts, manifest_bytes, chunks_begin));
    if (placed.manifest.size() > kMaxManifestBytes) {
      return Status(ErrorCode::kLimit,
                    StrFormat("the manifest has %zu bytes, more than the format allows", placed.manifest.size()));
    }
    if (placed.manifest.size() == manifest_bytes && placed.chunks_begin == chunks_begin) return placed;
    manifest_bytes = placed.manifest.size();
    chunks_begin = placed.chunks_begin;
  }
  return Status(ErrorCode::kInternal, "the layout of the bundle did not settle");
}

}  // namespace moepack
