// Fields of JSON that came from outside, each with an error that names it. For the sources of this library only.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "base/status.h"
#include "format/provenance/provenance.h"

namespace moepack::provenance {

using Json = nlohmann::json;

// Compact, keys in order; bytes that are not UTF-8 (of a name) become U+FFFD.
inline std::string Dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

// An object inside a document and how it is called in messages.
class Fields {
 public:
  // kBadInput unless `text` is a JSON object.
  static Result<Fields> Parse(std::string_view text, const std::string& name);

  // kBadInput when the field is not there or of another type.
  Result<Fields> Object(const char* key) const;
  Result<std::string> Text(const char* key) const;
  Result<uint64_t> Number(const char* key) const;
  Result<std::string> Digest(const char* key) const;  // 64 lower-case hexadecimal digits
  // An array of in-toto resource descriptors with a name and a digest.
  Result<std::vector<NamedDigest>> Descriptors(const char* key) const;
  // An object of name -> digest.
  Result<std::vector<NamedDigest>> Digests(const char* key) const;

  bool Has(const char* key) const { return json_.contains(key); }
  const Json& json() const { return json_; }
  Status Wrong(const std::string& what) const { return Status(ErrorCode::kBadInput, name_ + ": " + what); }

 private:
  Fields(Json json, std::string name) : json_(std::move(json)), name_(std::move(name)) {}
  Json json_;
  std::string name_;
};

}  // namespace moepack::provenance
