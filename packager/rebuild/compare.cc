#include "packager/rebuild/compare.h"

#include <algorithm>

#include "base/digest/sha256.h"
#include "format/provenance/provenance.h"

namespace moepack {
namespace {

// Whether the bundle has this blob with these bytes; an empty one is left out of a bundle.
bool SameBlob(const Manifest& manifest, BlobKind kind, ByteSpan bytes) {
  for (const BlobRef& blob : manifest.blobs) {
    if (blob.kind == kind) return blob.digest == Sha256(bytes);
  }
  return bytes.empty();
}

bool SamePlain(const ChunkRef& a, const ChunkRef& b) {
  return a.plain_bytes == b.plain_bytes && a.plain_digest == b.plain_digest;
}

bool SameStored(const ChunkRef& a, const ChunkRef& b) {
  return a.encoding == b.encoding && a.stored_bytes == b.stored_bytes && a.stored_digest == b.stored_digest;
}

// Empty when they are the same.
std::string UnitDifference(const Unit& a, const Unit& b) {
  if (a.tensors != b.tensors) return "tensors or codecs";
  if (!std::ranges::equal(a.chunks, b.chunks, SamePlain)) return "plain bytes";
  return std::ranges::equal(a.chunks, b.chunks, SameStored) ? "" : "stored bytes only; the plain ones are the same";
}

void CompareUnits(const std::string& whose, const std::vector<Unit>& bundle, const std::vector<Unit>& rebuilt,
                  std::vector<std::string>* out) {
  if (bundle.size() != rebuilt.size()) {
    out->push_back(StrFormat("%s: %zu units, made again %zu", whose.c_str(), bundle.size(), rebuilt.size()));
    return;
  }
  for (size_t i = 0, end = 0; i < bundle.size(); i = end) {
    const std::string difference = UnitDifference(bundle[i], rebuilt[i]);
    end = i + 1;
    while (end < bundle.size() && UnitDifference(bundle[end], rebuilt[end]) == difference) ++end;
    if (difference.empty()) continue;
    const std::string which = end == i + 1 ? StrFormat("unit %zu", i) : StrFormat("units %zu to %zu", i, end - 1);
    out->push_back(whose + ", " + which + ": " + difference);
  }
}

// What else than the bundle's own parts the provenance tells apart.
std::string ProvenanceDifference(ByteSpan bundle, ByteSpan rebuilt) {
  const Result<RecordedBuild> a = ParseProvenance(bundle), b = ParseProvenance(rebuilt);
  if (!a.ok() || !b.ok()) return "provenance";
  if (a->record.tool_version != b->record.tool_version || a->pack.tool_version != b->pack.tool_version) {
    return "provenance (made by moepack " + a->record.tool_version + " and packed by " + a->pack.tool_version +
           ", this is " + b->pack.tool_version + ")";
  }
  return a->record.plan == b->record.plan ? "provenance" : "provenance (another plan)";
}

}  // namespace

std::vector<std::string> Differences(const verify::VerifiedBundle& bundle, const UnsignedBundle& rebuilt) {
  std::vector<std::string> out;
  if (bundle.manifest_digest() == Sha256(rebuilt.manifest)) return out;
  const Manifest& manifest = bundle.manifest();
  const BundleParts& parts = rebuilt.parts;
  if (!SameBlob(manifest, BlobKind::kProgram, parts.program)) out.emplace_back("program");
  if (!SameBlob(manifest, BlobKind::kTokenizer, parts.tokenizer)) out.emplace_back("tokenizer");
  CompareUnits("dense table", bundle.dense().units, parts.dense.units, &out);
  if (bundle.experts().size() != parts.experts.size()) {
    out.push_back(StrFormat("%zu expert tables, made again %zu", bundle.experts().size(), parts.experts.size()));
  }
  for (size_t t = 0; t < std::min(bundle.experts().size(), parts.experts.size()); ++t) {
    const ExpertTable &a = bundle.experts()[t], &b = parts.experts[t];
    if (a.experts != b.experts) out.push_back(StrFormat("expert table %zu: which unit stands for which expert", t));
    CompareUnits(StrFormat("expert table %zu", t), a.units, b.units, &out);
  }
  if (!SameBlob(manifest, BlobKind::kHotList, SerializeHotList(parts.hot_list))) out.emplace_back("hot list");
  if (!SameBlob(manifest, BlobKind::kProvenance, parts.provenance))
    out.push_back(ProvenanceDifference(bundle.provenance_blob(), parts.provenance));
  if (!SameBlob(manifest, BlobKind::kGolden, parts.golden)) out.emplace_back("golden prompts");
  if (out.empty()) out.emplace_back("manifest");
  return out;
}

}  // namespace moepack
