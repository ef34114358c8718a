#include <nlohmann/json.hpp>

#include "compressor/plan/error_table.h"

namespace moepack {
namespace {

std::string Quoted(const std::string& text) { return nlohmann::json(text).dump(); }

// Keeps the order of the file.
using Json = nlohmann::ordered_json;

bool IsText(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string();
}

}  // namespace

std::string SerializeErrorTable(const ErrorTable& table) {
  // %.17g: a table that was read back plans the same.
  std::string out = "{\n\"version\": 1,\n\"made_from\": " + Quoted(table.made_from) +
                    ",\n\"measured_by\": " + Quoted(table.measured_by) + ",\n";
  out += "\"sensitivity\": {\n";
  size_t i = 0;
  for (const auto& [group, value] : table.sensitivity) {
    out += StrFormat("%s: %.17g%s\n", Quoted(group).c_str(), value, ++i < table.sensitivity.size() ? "," : "");
  }
  out += "},\n\"tensors\": {\n";
  for (i = 0; i < table.tensors.size(); ++i) {
    const TensorErrors& tensor = table.tensors[i];
    out += StrFormat("%s: {\"group\": %s, \"errors\": {", Quoted(tensor.name).c_str(), Quoted(tensor.group).c_str());
    size_t j = 0;
    for (const auto& [codec, error] : tensor.errors) {
      out += StrFormat("\"%s\": %.17g%s", codec.c_str(), error, ++j < tensor.errors.size() ? ", " : "");
    }
    out += i + 1 < table.tensors.size() ? "}},\n" : "}}\n";
  }
  return out + "}\n}\n";
}

Result<ErrorTable> ParseErrorTable(ByteSpan json, const std::string& file_name) {
  const auto refuse = [&](const std::string& what) { return Status(ErrorCode::kBadInput, file_name + ": " + what); };
  const Json root = Json::parse(AsText(json), nullptr, false);
  if (!root.is_object() || !root.contains("version") || root["version"] != 1)
    return refuse("not an error table of version 1");
  if (!IsText(root, "made_from") || !IsText(root, "measured_by"))
    return refuse("'made_from' and 'measured_by' must be texts");
  if (!root.contains("tensors") || !root["tensors"].is_object() || !root.contains("sensitivity") ||
      !root["sensitivity"].is_object()) {
    return refuse("'tensors' and 'sensitivity' must be objects");
  }
  ErrorTable out;
  out.made_from = root["made_from"];
  out.measured_by = root["measured_by"];
  for (const auto& [group, value] : root["sensitivity"].items()) {
    if (!value.is_number() || value.get<double>() < 0)
      return refuse("sensitivity of '" + group + "' must be a number, not negative");
    out.sensitivity[group] = value;
  }
  for (const auto& [name, tensor] : root["tensors"].items()) {
    if (!tensor.is_object() || !IsText(tensor, "group") || !tensor.contains("errors") || !tensor["errors"].is_object()) {
      return refuse("tensor '" + name + "' needs group and errors");
    }
    TensorErrors errors{name, tensor["group"], {}};
    if (!out.sensitivity.contains(errors.group))
      return refuse("tensor '" + name + "': group '" + errors.group + "' has no sensitivity");
    for (const auto& [codec, value] : tensor["errors"].items()) {
      if (!value.is_number() || value.get<double>() < 0)
        return refuse(StrFormat("tensor '%s': error of '%s' must be a number, not negative", name.c_str(), codec.c_str()));
      errors.errors[codec] = value;
    }
    out.tensors.push_back(std::move(errors));
  }
  return out;
}

}  // namespace moepack
