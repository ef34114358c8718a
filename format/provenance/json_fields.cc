#include "format/provenance/json_fields.h"

#include <algorithm>

namespace moepack::provenance {
namespace {

bool IsDigest(const Json& json) {
  static constexpr size_t kDigits = 64;
  if (!json.is_string()) return false;
  const auto& text = json.get_ref<const std::string&>();
  return text.size() == kDigits && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

}  // namespace

Result<Fields> Fields::Parse(std::string_view text, const std::string& name) {
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return Status(ErrorCode::kBadInput, name + ": not a JSON object");
  return Fields(std::move(json), name);
}

Result<Fields> Fields::Object(const char* key) const {
  const auto found = json_.find(key);
  if (found == json_.end() || !found->is_object()) return Wrong(std::string("needs the object '") + key + "'");
  return Fields(*found, name_ + ": " + key);
}

Result<std::string> Fields::Text(const char* key) const {
  const auto found = json_.find(key);
  if (found == json_.end() || !found->is_string()) return Wrong(std::string("needs the text '") + key + "'");
  return found->get<std::string>();
}

Result<uint64_t> Fields::Number(const char* key) const {
  const auto found = json_.find(key);
  if (found == json_.end() || !found->is_number_unsigned())
    return Wrong(std::string("needs the whole number '") + key + "'");
  return found->get<uint64_t>();
}

Result<std::string> Fields::Digest(const char* key) const {
  const auto found = json_.find(key);
  if (found == json_.end() || !IsDigest(*found)) return Wrong(std::string("needs the SHA-256 '") + key + "'");
  return found->get<std::string>();
}

Result<std::vector<NamedDigest>> Fields::Descriptors(const char* key) const {
  const auto found = json_.find(key);
  if (found == json_.end() || !found->is_array()) return Wrong(std::string("needs the list '") + key + "'");
  std::vector<NamedDigest> out;
  for (const Json& entry : *found) {
    if (!entry.is_object() || !entry.contains("name") || !entry["name"].is_string() || !entry.contains("digest") ||
        !entry["digest"].is_object() || !entry["digest"].contains("sha256") || !IsDigest(entry["digest"]["sha256"])) {
      return Wrong(std::string("'") + key + "' must list names with a digest.sha256");
    }
    out.push_back({entry["name"].get<std::string>(), entry["digest"]["sha256"].get<std::string>()});
  }
  return out;
}

Result<std::vector<NamedDigest>> Fields::Digests(const char* key) const {
  const auto found = json_.find(key);
  if (found == json_.end() || !found->is_object()) return Wrong(std::string("needs the object '") + key + "'");
  std::vector<NamedDigest> out;
  for (const auto& [name, digest] : found->items()) {
    if (!IsDigest(digest)) return Wrong(std::string("'") + key + "' must map names to SHA-256");
    out.push_back({name, digest.get<std::string>()});
  }
  return out;
}

}  // namespace moepack::provenance
