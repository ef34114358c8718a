// Sources of the shapes: in-toto attestation spec v1 (statement, resource descriptor), SLSA provenance v1, CycloneDX 1.6
// (bom-1.6.schema.json).
#include <ctime>

#include "base/digest/sha256.h"
#include "format/manifest/unavailable.h"
#include "format/provenance/document_names.h"
#include "format/provenance/json_fields.h"
#include "format/provenance/provenance.h"

namespace moepack {
namespace {

using provenance::Dump;
using provenance::Json;

Json Descriptor(const std::string& name, const std::string& sha256) {
  return {{"name", name}, {"digest", {{"sha256", sha256}}}};
}

std::string TimeText(uint64_t seconds) {
  const auto time = static_cast<std::time_t>(seconds);
  std::tm parts{};
  ::gmtime_r(&time, &parts);
  return StrFormat("%04d-%02d-%02dT%02d:%02d:%02dZ", parts.tm_year + 1900, parts.tm_mon + 1, parts.tm_mday, parts.tm_hour,
                   parts.tm_min, parts.tm_sec);
}

// Of one length for every KLD: what is below the smallest number with an exponent of two digits is none.
std::string KldText(double kld) {
  static constexpr double kLeast = 1e-99;
  return StrFormat("%.3e", kld >= kLeast ? kld : 0.0);
}

// What the build read, as the statement names it.
std::vector<NamedDigest> Dependencies(const BuildRecord& record) {
  std::vector<NamedDigest> out;
  for (const NamedDigest& file : record.inputs) out.push_back({kModelPrefix + file.name, file.sha256});
  if (!record.profile.empty()) out.push_back({kProfileName, record.profile});
  for (const NamedDigest& text : record.calibration) out.push_back({kCalibrationPrefix + text.name, text.sha256});
  if (!record.like.empty()) out.push_back({kLikeName, record.like});
  return out;
}

// SHA-256 over the digests of all subjects in their order: one name for the contents of a bundle.
std::string ContentsDigest(const std::vector<NamedDigest>& subjects) {
  Bytes all;
  for (const NamedDigest& subject : subjects) {
    DigestBytes digest{};
    FromHex(subject.sha256, digest);
    all.insert(all.end(), digest.begin(), digest.end());
  }
  return ToHex(Sha256(all));
}

// CycloneDX

Json Hashes(const std::string& sha256) { return Json::array({{{"alg", "SHA-256"}, {"content", sha256}}}); }

Json Property(const std::string& name, const std::string& value) { return {{"name", "moepack:" + name}, {"value", value}}; }

Json Metric(const std::string& slice, double kld) {
  return {{"type", "mean KLD from the original model"}, {"slice", slice}, {"value", KldText(kld)}};
}

std::string Joined(const std::vector<std::string>& names) {
  std::string out;
  for (const std::string& name : names) out += (out.empty() ? "" : " ") + name;
  return out;
}

Json ModelCard(const BuildRecord& record, const BuildResult& result) {
  Json parameters = {{"task", "text-generation"},
                     {"architectureFamily", "mixture of experts transformer"},
                     {"modelArchitecture", record.family}};
  for (const NamedDigest& text : record.calibration) {
    parameters["datasets"].push_back({{"ref", kCalibrationPrefix + text.name}});
  }
  Json card = {{"modelParameters", parameters}};
  Json metrics = Json::array();
  if (result.kld) metrics.push_back(Metric("all", *result.kld));
  for (const auto& [domain, kld] : result.domain_kld) metrics.push_back(Metric(kCalibrationPrefix + domain, kld));
  if (!metrics.empty()) card["quantitativeAnalysis"]["performanceMetrics"] = metrics;
  return card;
}

Json ModelComponent(const BuildRecord& record, const PackParameters& pack, const BuildResult& result) {
  return {{"type", "machine-learning-model"},
          {"bom-ref", kModelRef},
          {"name", pack.product},
          {"version", pack.version},
          {"hashes", Hashes(ContentsDigest(result.subjects))},
          {"modelCard", ModelCard(record, result)},
          {"properties",
           {Property("parameters", std::to_string(result.parameters)),
            Property("parameters_of_original", std::to_string(result.original_parameters)),
            Property("quantization", Joined(result.codecs))}}};
}

Json DataComponent(const NamedDigest& dependency) {
  const bool text = dependency.name.starts_with(kCalibrationPrefix);
  Json out = {{"bom-ref", dependency.name}, {"name", dependency.name}, {"hashes", Hashes(dependency.sha256)}};
  out["type"] = text ? "data" : "file";
  if (text) out["data"] = Json::array({{{"type", "dataset"}}});
  return out;
}

std::string MakeBom(const BuildRecord& record, const PackParameters& pack, const BuildResult& result) {
  Json tool = {{"type", "application"}, {"name", "moepack"}, {"version", pack.tool_version}};
  Json root = {{"bomFormat", "CycloneDX"}, {"specVersion", "1.6"}, {"version", 1}};
  root["metadata"] = {{"component", ModelComponent(record, pack, result)}, {"tools", {{"components", {tool}}}}};
  if (pack.source_date_epoch) root["metadata"]["timestamp"] = TimeText(*pack.source_date_epoch);
  Json depends_on = Json::array();
  root["components"] = Json::array();
  for (const NamedDigest& dependency : Dependencies(record)) {
    root["components"].push_back(DataComponent(dependency));
    depends_on.push_back(dependency.name);
  }
  root["dependencies"] = Json::array({{{"ref", kModelRef}, {"dependsOn", depends_on}}});
  return Dump(root) + "\n";
}

// in-toto

std::string MakeStatement(const BuildRecord& record, const PackParameters& pack, const BuildResult& result,
                          std::string_view bom) {
  Json definition = {{"buildType", kBuildType}};
  definition["externalParameters"]["compress"] = {{"recipe", Json::parse(record.recipe, nullptr, false)}};
  if (!record.accepted_keys.empty()) definition["externalParameters"]["compress"]["accepted_keys"] = record.accepted_keys;
  definition["externalParameters"]["pack"] = {{"product", pack.product},
                                              {"version", pack.version},
                                              {"key_epoch", pack.key_epoch},
                                              {"security_counter", pack.security_counter},
                                              {"zstd_level", pack.zstd_level}};
  if (pack.source_date_epoch) definition["externalParameters"]["pack"]["source_date_epoch"] = *pack.source_date_epoch;
  if (!pack.unavailable.empty())
    definition["externalParameters"]["pack"]["unavailable"] = DescribeUnavailable(pack.unavailable);
  definition["resolvedDependencies"] = Json::array();
  for (const NamedDigest& d : Dependencies(record)) {
    definition["resolvedDependencies"].push_back(Descriptor(d.name, d.sha256));
  }
  Json run;
  run["builder"] = {{"id", kBuilderId},
                    {"version", {{"moepack-compress", record.tool_version}, {"moepack-pack", pack.tool_version}}}};
  if (pack.source_date_epoch) run["metadata"]["finishedOn"] = TimeText(*pack.source_date_epoch);
  run["byproducts"] = Json::array({Descriptor(kBomName, ToHex(Sha256(AsBytes(bom)))), Descriptor(kPlanName, record.plan)});
  run["byproducts"][0]["mediaType"] = "application/vnd.cyclonedx+json";
  if (!result.errors.empty()) run["byproducts"].push_back(Descriptor(kErrorsName, result.errors));
  Json subjects = Json::array();
  for (const NamedDigest& subject : result.subjects) subjects.push_back(Descriptor(subject.name, subject.sha256));
  return Dump({{"_type", kStatementType},
               {"subject", subjects},
               {"predicateType", kPredicateType},
               {"predicate", {{"buildDefinition", definition}, {"runDetails", run}}}}) +
         "\n";
}

}  // namespace

std::string MakeProvenance(const BuildRecord& record, const PackParameters& pack, const BuildResult& result) {
  const std::string bom = MakeBom(record, pack, result);
  return MakeStatement(record, pack, result, bom) + bom;
}

uint64_t MostProvenanceBytes(const BuildRecord& record, const BuildResult& result) {
  static constexpr int kHighestLevel = 22;
  const std::string longest(kMaxManifestTextBytes, 'x'), digest(2 * DigestBytes().size(), '0');
  const PackParameters pack = {longest,        longest,         UINT64_MAX, UINT64_MAX, kHighestLevel, record.tool_version,
                               kMaxSourceDate, AllUnavailable()};
  BuildResult filled = result;
  for (NamedDigest& subject : filled.subjects) subject.sha256 = digest;
  filled.errors = digest;
  return MakeProvenance(record, pack, filled).size();
}

}  // namespace moepack
