#include "base/digest/sha256.h"
#include "format/manifest/unavailable.h"
#include "format/provenance/document_names.h"
#include "format/provenance/json_fields.h"
#include "format/provenance/provenance.h"

namespace moepack {
namespace {

using provenance::Fields;

// What stands behind the prefix of a name; nothing when it has another.
std::optional<std::string> Behind(std::string_view prefix, const std::string& name) {
  if (!name.starts_with(prefix)) return std::nullopt;
  return name.substr(prefix.size());
}

Status TakeDependencies(const Fields& definition, BuildRecord* out) {
  MOEPACK_ASSIGN_OR_RETURN(const auto dependencies, definition.Descriptors("resolvedDependencies"));
  for (const NamedDigest& d : dependencies) {
    if (const auto file = Behind(kModelPrefix, d.name)) {
      out->inputs.push_back({*file, d.sha256});
    } else if (const auto domain = Behind(kCalibrationPrefix, d.name)) {
      out->calibration.push_back({*domain, d.sha256});
    } else if (d.name == kProfileName) {
      out->profile = d.sha256;
    } else if (d.name == kLikeName) {
      out->like = d.sha256;
    } else {
      return definition.Wrong("unknown dependency '" + d.name + "'");
    }
  }
  return Status::Ok();
}

Status TakeParameters(const Fields& parameters, RecordedBuild* out) {
  MOEPACK_ASSIGN_OR_RETURN(const Fields compress, parameters.Object("compress"));
  MOEPACK_ASSIGN_OR_RETURN(const Fields recipe, compress.Object("recipe"));
  out->record.recipe = provenance::Dump(recipe.json());
  if (compress.Has("accepted_keys")) {
    MOEPACK_ASSIGN_OR_RETURN(out->record.accepted_keys, compress.Text("accepted_keys"));
  }
  MOEPACK_ASSIGN_OR_RETURN(const Fields pack, parameters.Object("pack"));
  MOEPACK_ASSIGN_OR_RETURN(out->pack.product, pack.Text("product"));
  MOEPACK_ASSIGN_OR_RETURN(out->pack.version, pack.Text("version"));
  MOEPACK_ASSIGN_OR_RETURN(out->pack.key_epoch, pack.Number("key_epoch"));
  MOEPACK_ASSIGN_OR_RETURN(out->pack.security_counter, pack.Number("security_counter"));
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t level, pack.Number("zstd_level"));
  static constexpr uint64_t kHighestLevel = 22;
  if (level > kHighestLevel) return pack.Wrong("'zstd_level' must be 0 to 22");
  out->pack.zstd_level = static_cast<int>(level);
  if (pack.Has("unavailable")) {
    MOEPACK_ASSIGN_OR_RETURN(const std::string unavailable, pack.Text("unavailable"));
    auto steps = ParseUnavailable(unavailable);
    if (!steps.ok()) return pack.Wrong("'unavailable': " + steps.status().message());
    out->pack.unavailable = std::move(*steps);
  }
  if (!pack.Has("source_date_epoch")) return Status::Ok();
  MOEPACK_ASSIGN_OR_RETURN(out->pack.source_date_epoch, pack.Number("source_date_epoch"));
  return *out->pack.source_date_epoch <= kMaxSourceDate ? Status::Ok() : pack.Wrong("'source_date_epoch' is too late");
}

Status TakeRun(const Fields& run, std::string_view bom, RecordedBuild* out) {
  MOEPACK_ASSIGN_OR_RETURN(const Fields builder, run.Object("builder"));
  MOEPACK_ASSIGN_OR_RETURN(const Fields version, builder.Object("version"));
  MOEPACK_ASSIGN_OR_RETURN(out->record.tool_version, version.Text("moepack-compress"));
  MOEPACK_ASSIGN_OR_RETURN(out->pack.tool_version, version.Text("moepack-pack"));
  MOEPACK_ASSIGN_OR_RETURN(const auto byproducts, run.Descriptors("byproducts"));
  for (const NamedDigest& byproduct : byproducts) {
    if (byproduct.name == kPlanName) out->record.plan = byproduct.sha256;
    if (byproduct.name == kBomName && byproduct.sha256 != ToHex(Sha256(AsBytes(bom)))) {
      return run.Wrong("the bill of materials beside the statement is not the one it names");
    }
  }
  return Status::Ok();
}

Status TakeBom(std::string_view text, RecordedBuild* out) {
  MOEPACK_ASSIGN_OR_RETURN(const Fields bom, Fields::Parse(text, "provenance: bill of materials"));
  MOEPACK_ASSIGN_OR_RETURN(const Fields metadata, bom.Object("metadata"));
  MOEPACK_ASSIGN_OR_RETURN(const Fields component, metadata.Object("component"));
  MOEPACK_ASSIGN_OR_RETURN(const Fields card, component.Object("modelCard"));
  MOEPACK_ASSIGN_OR_RETURN(const Fields parameters, card.Object("modelParameters"));
  MOEPACK_ASSIGN_OR_RETURN(out->record.family, parameters.Text("modelArchitecture"));
  return Status::Ok();
}

}  // namespace

Result<ProvenanceDocuments> SplitProvenance(ByteSpan blob) {
  const std::string_view text = AsText(blob);
  const size_t first = text.find('\n');
  const size_t second = first == std::string_view::npos ? first : text.find('\n', first + 1);
  if (second == std::string_view::npos || second + 1 != text.size())
    return Status(ErrorCode::kBadInput, "provenance: expected two lines, a statement and a bill of materials");
  return ProvenanceDocuments{text.substr(0, first + 1), text.substr(first + 1)};
}

Result<RecordedBuild> ParseProvenance(ByteSpan blob) {
  MOEPACK_ASSIGN_OR_RETURN(const ProvenanceDocuments documents, SplitProvenance(blob));
  MOEPACK_ASSIGN_OR_RETURN(const Fields statement, Fields::Parse(documents.statement, "provenance: statement"));
  MOEPACK_ASSIGN_OR_RETURN(const std::string type, statement.Text("_type"));
  MOEPACK_ASSIGN_OR_RETURN(const std::string predicate_type, statement.Text("predicateType"));
  MOEPACK_ASSIGN_OR_RETURN(const Fields predicate, statement.Object("predicate"));
  MOEPACK_ASSIGN_OR_RETURN(const Fields definition, predicate.Object("buildDefinition"));
  MOEPACK_ASSIGN_OR_RETURN(const std::string build_type, definition.Text("buildType"));
  if (type != kStatementType || predicate_type != kPredicateType || build_type != kBuildType)
    return statement.Wrong("not a statement about a build of moepack");
  RecordedBuild out;
  MOEPACK_ASSIGN_OR_RETURN(out.subjects, statement.Descriptors("subject"));
  MOEPACK_ASSIGN_OR_RETURN(const Fields parameters, definition.Object("externalParameters"));
  MOEPACK_RETURN_IF_ERROR(TakeParameters(parameters, &out));
  MOEPACK_RETURN_IF_ERROR(TakeDependencies(definition, &out.record));
  MOEPACK_ASSIGN_OR_RETURN(const Fields run, predicate.Object("runDetails"));
  MOEPACK_RETURN_IF_ERROR(TakeRun(run, documents.bom, &out));
  MOEPACK_RETURN_IF_ERROR(TakeBom(documents.bom, &out));
  return out;
}

}  // namespace moepack
