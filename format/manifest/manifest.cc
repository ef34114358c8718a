#include "format/manifest/manifest.h"

#include <algorithm>
#include <map>
#include <optional>
#include <string_view>

#include "base/checked.h"
#include "format/manifest/names.h"
#include "format/manifest/tables_schema.h"
#include "format/manifest/unit_wire.h"
#include "format/manifest/wire_io.h"
#include "format/proto/manifest.pb.h"

namespace moepack {
namespace {

constexpr uint32_t kManifestSchema = 1;

Status Malformed(std::string message) { return Status(ErrorCode::kMalformed, "manifest: " + std::move(message)); }

bool IsText(std::string_view text, bool upper_case, std::string_view others) {
  const auto allowed = [&](char c) {
    return (c >= 'a' && c <= 'z') || (upper_case && c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           others.find(c) != std::string_view::npos;
  };
  return !text.empty() && text.size() <= kMaxManifestTextBytes && std::all_of(text.begin(), text.end(), allowed);
}

Status CheckRoot(const Manifest& manifest) {
  if (!IsProductName(manifest.product)) return Malformed("product must be 1 to 64 of [a-z0-9._-]");
  if (!IsVersionName(manifest.version)) return Malformed("version must be 1 to 64 of [A-Za-z0-9._+-]");
  for (size_t i = 0; i < manifest.unavailable.size(); ++i) {
    const Unavailable step = manifest.unavailable[i];
    if (step < Unavailable::kRetry || step > Unavailable::kDense) return Malformed("unknown step of unavailability");
    if (i > 0 && step <= manifest.unavailable[i - 1]) return Malformed("steps of unavailability must rise");
  }
  for (size_t i = 1; i < manifest.required_features.size(); ++i) {
    if (manifest.required_features[i] <= manifest.required_features[i - 1]) return Malformed("required features must rise");
  }
  if (manifest.chunk_count == 0) return Malformed("no chunks");
  return Status::Ok();
}

// Kinds and indices: each blob once, the ones every bundle needs present, expert tables without gaps.
Status CheckBlobKinds(const std::vector<BlobRef>& blobs) {
  bool present[static_cast<size_t>(BlobKind::kGolden) + 1] = {};
  uint32_t tables = 0;
  for (size_t i = 0; i < blobs.size(); ++i) {
    const BlobRef& blob = blobs[i];
    if (blob.kind < BlobKind::kProgram || blob.kind > BlobKind::kGolden)
      return Malformed(StrFormat("blob %zu: unknown kind", i));
    if (i > 0 && blob.kind < blobs[i - 1].kind) return Malformed(StrFormat("blob %zu: kinds must rise", i));
    const uint32_t index = blob.kind == BlobKind::kExpertTable ? tables++ : 0;
    const bool again = i > 0 && blob.kind == blobs[i - 1].kind && blob.kind != BlobKind::kExpertTable;
    if (blob.index != index || again)
      return Malformed(StrFormat("blob %zu: index %u is repeated or out of order", i, blob.index));
    present[static_cast<size_t>(blob.kind)] = true;
  }
  for (const BlobKind kind : {BlobKind::kProgram, BlobKind::kDenseTable, BlobKind::kHotList}) {
    if (!present[static_cast<size_t>(kind)]) return Malformed(StrFormat("no blob of kind %d", static_cast<int>(kind)));
  }
  return Status::Ok();
}

// Blobs follow each other at the next aligned offset.
Status CheckBlobPlaces(const Manifest& manifest) {
  uint64_t end = 0;
  for (size_t i = 0; i < manifest.blobs.size(); ++i) {
    const BlobRef& blob = manifest.blobs[i];
    uint64_t begin = 0;
    if (blob.bytes == 0 || blob.bytes > kMaxBlobBytes) {
      return Status(ErrorCode::kLimit,
                    StrFormat("manifest: blob %zu: %llu bytes, must be 1 to %llu", i,
                              static_cast<unsigned long long>(blob.bytes), static_cast<unsigned long long>(kMaxBlobBytes)));
    }
    if (blob.offset == 0 || blob.offset % kBundleAlignment != 0)
      return Malformed(StrFormat("blob %zu: offset is not aligned", i));
    if (i > 0 && (!CheckedAlign(end, kBundleAlignment, &begin) || blob.offset != begin)) {
      return Malformed(StrFormat("blob %zu: does not follow the blob before it", i));
    }
    if (!CheckedAdd(blob.offset, blob.bytes, &end) || end > manifest.file_bytes) {
      return Malformed(StrFormat("blob %zu: reaches past the end of the file", i));
    }
  }
  return Status::Ok();
}

}  // namespace

bool IsProductName(std::string_view text) { return IsText(text, false, "._-"); }
bool IsVersionName(std::string_view text) { return IsText(text, true, "._+-"); }

Bytes SerializeManifest(const Manifest& manifest) {
  wire::Manifest message;
  message.set_schema(manifest.schema);
  message.set_product(manifest.product);
  message.set_version(manifest.version);
  message.set_key_epoch(manifest.key_epoch);
  message.set_security_counter(manifest.security_counter);
  message.mutable_required_features()->Add(manifest.required_features.begin(), manifest.required_features.end());
  for (const Unavailable step : manifest.unavailable) message.add_unavailable(static_cast<uint32_t>(step));
  message.set_file_bytes(manifest.file_bytes);
  message.set_chunk_count(manifest.chunk_count);
  for (const BlobRef& blob : manifest.blobs) {
    wire::Blob* out = message.add_blobs();
    out->set_kind(static_cast<uint32_t>(blob.kind));
    out->set_index(blob.index);
    out->set_offset(blob.offset);
    out->set_bytes(blob.bytes);
    out->set_digest(WriteDigest(blob.digest));
  }
  return SerializeMessage(message);
}

std::vector<std::vector<VariantKind>> VariantKinds(const std::vector<ExpertEntry>& experts) {
  // By physical unit: what it is to an expert of which it is not the best, and whose it is then.
  struct Unit {
    VariantKind kind = VariantKind::kLower;
    std::optional<uint32_t> best;
  };
  std::map<uint32_t, Unit> units;
  for (const ExpertEntry& expert : experts) units[expert.variants[0].physical].kind = VariantKind::kTwin;
  for (const ExpertEntry& expert : experts) {
    const uint32_t best = expert.variants[0].physical;
    for (const ExpertEntry::Variant& variant : expert.variants) {
      Unit& unit = units[variant.physical];
      if (unit.kind == VariantKind::kLower && unit.best.value_or(best) != best) unit.kind = VariantKind::kDense;
      unit.best = best;
    }
  }
  std::vector<std::vector<VariantKind>> out;
  for (const ExpertEntry& expert : experts) {
    out.emplace_back();
    for (const ExpertEntry::Variant& variant : expert.variants) out.back().push_back(units[variant.physical].kind);
    out.back()[0] = VariantKind::kFirst;
  }
  return out;
}

Result<Manifest> ParseManifest(ByteSpan bytes) {
  wire::Manifest message;
  MOEPACK_RETURN_IF_ERROR(ParseMessage(wire_check::kManifest, kManifestSchema, bytes, &message));
  Manifest out;
  out.schema = message.schema();
  out.product = message.product();
  out.version = message.version();
  out.key_epoch = message.key_epoch();
  out.security_counter = message.security_counter();
  out.required_features.assign(message.required_features().begin(), message.required_features().end());
  for (const uint32_t step : message.unavailable())
    out.unavailable.push_back(static_cast<Unavailable>(std::min(step, 255u)));
  out.file_bytes = message.file_bytes();
  out.chunk_count = message.chunk_count();
  for (const wire::Blob& blob : message.blobs()) {
    out.blobs.push_back(
        {static_cast<BlobKind>(blob.kind()), blob.index(), blob.offset(), blob.bytes(), ReadDigest(blob.digest())});
  }
  MOEPACK_RETURN_IF_ERROR(CheckRoot(out));
  MOEPACK_RETURN_IF_ERROR(CheckBlobKinds(out.blobs));
  MOEPACK_RETURN_IF_ERROR(CheckBlobPlaces(out));
  return out;
}

}  // namespace moepack
