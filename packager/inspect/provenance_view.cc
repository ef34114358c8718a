#include "packager/inspect/provenance_view.h"

#include "format/provenance/provenance.h"

namespace moepack {
namespace {

using Json = nlohmann::json;

Json ObjectOrNull(std::string_view text) {
  Json out = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  return out.is_object() ? out : Json();
}

std::string DigestLine(const std::string& name, const std::string& sha256) {
  return "  " + name + ": sha256 " + sha256 + "\n";
}

}  // namespace

Json ProvenanceJson(ByteSpan blob) {
  const Result<ProvenanceDocuments> documents = SplitProvenance(blob);
  if (!documents.ok()) return Json();
  Json out = {{"statement", ObjectOrNull(documents->statement)}, {"bom", ObjectOrNull(documents->bom)}};
  return out["statement"].is_null() || out["bom"].is_null() ? Json() : out;
}

std::string ProvenanceText(ByteSpan blob) {
  const Result<RecordedBuild> build = ParseProvenance(blob);
  if (!build.ok()) return "";
  const BuildRecord& record = build->record;
  std::string out = "\nprovenance\n  made by: moepack compress " + record.tool_version + ", moepack pack " +
                    build->pack.tool_version + "\n  recipe: " + record.recipe + "\n";
  if (!record.accepted_keys.empty()) out += "  keys taken as without effect: " + record.accepted_keys + "\n";
  for (const NamedDigest& file : record.inputs) out += DigestLine(file.name, file.sha256);
  if (!record.profile.empty()) out += DigestLine("profile", record.profile);
  for (const NamedDigest& text : record.calibration) out += DigestLine("calibration text " + text.name, text.sha256);
  if (!record.like.empty()) out += DigestLine("plan of --like", record.like);
  const Json bom = ProvenanceJson(blob)["bom"];
  const Json::json_pointer metrics("/metadata/component/modelCard/quantitativeAnalysis/performanceMetrics");
  if (!bom.contains(metrics) || !bom[metrics].is_array()) return out;
  for (const Json& metric : bom[metrics]) {
    if (!metric.is_object()) continue;
    out += "  mean KLD, " + metric.value("slice", Json()).dump() + ": " + metric.value("value", Json()).dump() + "\n";
  }
  return out;
}

Status ExtractProvenance(Env& env, ByteSpan blob, const std::string& statement_path, const std::string& bom_path) {
  if (blob.empty()) return Status(ErrorCode::kBadInput, "the bundle does not say how it was made");
  if (!statement_path.empty() && statement_path == bom_path)
    return Status(ErrorCode::kUsage, "--statement and --bom name the same file");
  MOEPACK_ASSIGN_OR_RETURN(const ProvenanceDocuments documents, SplitProvenance(blob));
  std::vector<std::unique_ptr<AtomicFile>> files;
  for (const auto& [path, text] : {std::pair(statement_path, documents.statement), std::pair(bom_path, documents.bom)}) {
    if (path.empty()) continue;
    MOEPACK_ASSIGN_OR_RETURN(auto file, AtomicFile::Create(env, path));
    MOEPACK_RETURN_IF_ERROR(file->Append(AsBytes(text)));
    MOEPACK_RETURN_IF_ERROR(file->Finish());
    files.push_back(std::move(file));
  }
  for (const auto& file : files) MOEPACK_RETURN_IF_ERROR(file->Commit());
  return Status::Ok();
}

}  // namespace moepack
