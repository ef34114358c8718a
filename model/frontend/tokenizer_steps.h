// The parts of tokenizer.json around the model: normalizer, pre-tokenizer, decoder, post-processor. Internal to
// tokenizer_json.cc.
#pragma once

#include <algorithm>
#include <functional>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"
#include "model/frontend/json_text.h"
#include "tokenizer/tokenizer.h"

namespace moepack {

using Json = nlohmann::json;

inline Status Refuse(const std::string& field, const std::string& what) {
  return Status(ErrorCode::kTokenizer, field + ": " + what);
}

inline Status Unsupported(const std::string& field, const Json& value) {
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > 120) text = text.substr(0, 120) + "...";
  return Refuse(field, "this version does not implement " + text);
}

inline Result<Json> ParseObject(ByteSpan bytes, const char* file) {
  Result<Json> json = ParseJson(bytes, file);
  if (!json.ok()) return Status(ErrorCode::kTokenizer, json.status().message());
  if (!json->is_object()) return Refuse(file, "not a JSON object");
  return json;
}

// The member, or null when it is absent.
inline const Json& Member(const Json& object, const char* key) {
  static const Json kNull;
  if (!object.is_object()) return kNull;
  const auto it = object.find(key);
  return it == object.end() ? kNull : *it;
}

inline bool IsType(const Json& value, const char* type) { return Member(value, "type") == type; }

inline Status KnownKeys(const Json& object, const std::string& field, std::initializer_list<const char*> known) {
  for (const auto& [key, value] : object.items()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) return Refuse(field + "." + key, "unknown field");
  }
  return Status::Ok();
}

// The member is absent, null or `neutral`.
inline Status Neutral(const Json& object, const std::string& field, const char* key, const Json& neutral) {
  const Json& value = Member(object, key);
  if (value.is_null() || value == neutral) return Status::Ok();
  return Unsupported(field + "." + key, value);
}

// Normalizer, pre-tokenizer and decoder, which must be one of the combinations that the device knows: bytes with one of its
// pre-tokenizers, or SentencePiece (spaces as U+2581, one before the text, no cuts). kTokenizer names what is not.
Status ReadTextSteps(const Json& tokenizer, TokenizerData* data);

// Ids that the post-processor puts before a text. A token after the text is refused.
Status ReadPostProcessor(const Json& post, const std::function<std::optional<uint32_t>(const std::string&)>& id,
                         std::vector<uint32_t>* beginning);

// The byte of "<0x0A>".
std::optional<uint8_t> ByteTokenValue(const std::string& text);

}  // namespace moepack
