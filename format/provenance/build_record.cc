#include <algorithm>

#include "format/provenance/json_fields.h"
#include "format/provenance/provenance.h"

namespace moepack {
namespace {

using provenance::Fields;
using provenance::Json;

constexpr uint64_t kRecordVersion = 2;

Json DigestsJson(const std::vector<NamedDigest>& digests) {
  Json out = Json::object();
  for (const NamedDigest& entry : digests) out[entry.name] = entry.sha256;
  return out;
}

}  // namespace

std::string KeyList(const std::vector<std::string>& keys) {
  std::string out;
  for (const std::string& key : keys) out += (out.empty() ? "" : ",") + key;
  return out;
}

std::vector<std::string> KeysOf(std::string_view list) {
  std::vector<std::string> out;
  while (!list.empty()) {
    const size_t end = std::min(list.find(','), list.size());
    out.emplace_back(list.substr(0, end));
    list.remove_prefix(std::min(end + 1, list.size()));
  }
  return out;
}

std::string SerializeBuildRecord(const BuildRecord& record) {
  Json root;
  root["version"] = kRecordVersion;
  root["tool_version"] = record.tool_version;
  root["family"] = record.family;
  root["recipe"] = Json::parse(record.recipe, nullptr, false);
  if (!record.accepted_keys.empty()) root["accepted_keys"] = record.accepted_keys;
  root["inputs"] = DigestsJson(record.inputs);
  if (!record.profile.empty()) root["profile"] = record.profile;
  root["calibration"] = DigestsJson(record.calibration);
  if (!record.like.empty()) root["like"] = record.like;
  root["plan"] = record.plan;
  return root.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

Result<BuildRecord> ParseBuildRecord(ByteSpan json) {
  MOEPACK_ASSIGN_OR_RETURN(const Fields root, Fields::Parse(AsText(json), "provenance.json"));
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t version, root.Number("version"));
  if (version != kRecordVersion) return root.Wrong("is of another version of moepack; compress again");
  BuildRecord out;
  MOEPACK_ASSIGN_OR_RETURN(out.tool_version, root.Text("tool_version"));
  MOEPACK_ASSIGN_OR_RETURN(out.family, root.Text("family"));
  MOEPACK_ASSIGN_OR_RETURN(const Fields recipe, root.Object("recipe"));
  out.recipe = provenance::Dump(recipe.json());
  if (root.Has("accepted_keys")) {
    MOEPACK_ASSIGN_OR_RETURN(out.accepted_keys, root.Text("accepted_keys"));
  }
  MOEPACK_ASSIGN_OR_RETURN(out.inputs, root.Digests("inputs"));
  MOEPACK_ASSIGN_OR_RETURN(out.calibration, root.Digests("calibration"));
  if (root.Has("profile")) {
    MOEPACK_ASSIGN_OR_RETURN(out.profile, root.Digest("profile"));
  }
  if (root.Has("like")) {
    MOEPACK_ASSIGN_OR_RETURN(out.like, root.Digest("like"));
  }
  MOEPACK_ASSIGN_OR_RETURN(out.plan, root.Digest("plan"));
  return out;
}

}  // namespace moepack
