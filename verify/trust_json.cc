#include "verify/trust_json.h"

#include <nlohmann/json.hpp>
#include <set>

#include "verify/trust_anchor.h"

namespace moepack::verify {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kMaxTrustBytes = 64 * 1024;
constexpr uint64_t kTrustVersion = 1;

// Keys in the order in which they are written; all are required, no others are known.
constexpr const char* kKeys[] = {"moepack_trust", "product", "threshold", "key_epoch", "minimum_security_counter",
                                 "release_keys"};

// One member at a time out of the object; the first error wins.
class Reader {
 public:
  Reader(const std::string& path, const Json& object) : path_(path), object_(object) {}

  Status Error(const std::string& field, const std::string& expected) const {
    return Status(ErrorCode::kTrustRecord, path_ + ": field '" + field + "': expected " + expected);
  }

  Result<uint64_t> Unsigned(const char* field, uint64_t most) const {
    const auto it = object_.find(field);
    if (it == object_.end() || !it->is_number_unsigned() || it->get<uint64_t>() > most) {
      return Error(field, StrFormat("an integer of 0 to %llu", static_cast<unsigned long long>(most)));
    }
    return it->get<uint64_t>();
  }

  Result<std::string> Text(const char* field) const {
    const auto it = object_.find(field);
    if (it == object_.end() || !it->is_string()) return Error(field, "a string");
    return it->get<std::string>();
  }

  Result<std::vector<std::array<uint8_t, 32>>> Keys(const char* field) const {
    const auto it = object_.find(field);
    if (it == object_.end() || !it->is_array()) return Error(field, "a list of public keys");
    std::vector<std::array<uint8_t, 32>> keys;
    for (const Json& text : *it) {
      std::array<uint8_t, 32>& key = keys.emplace_back();
      if (!text.is_string() || !FromHex(text.get<std::string>(), key)) {
        return Error(StrFormat("%s[%zu]", field, keys.size() - 1), "64 hexadecimal digits");
      }
    }
    return keys;
  }

 private:
  const std::string& path_;
  const Json& object_;
};

Result<Json> ParseObject(const std::string& path, ByteSpan bytes) {
  std::set<std::string> seen;
  std::string twice;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::key && depth == 1 && !seen.insert(parsed.get<std::string>()).second) {
      twice = parsed.get<std::string>();
    }
    return true;
  };
  Json object = Json::parse(bytes.begin(), bytes.end(), watch, /*allow_exceptions=*/false);
  if (object.is_discarded() || !object.is_object()) {
    return Status(ErrorCode::kTrustRecord, path + ": not a JSON object; write one with 'moepack pack keygen --trust'");
  }
  if (!twice.empty()) return Status(ErrorCode::kTrustRecord, path + ": field '" + twice + "' appears twice");
  for (const auto& [key, value] : object.items()) {
    if (std::find(std::begin(kKeys), std::end(kKeys), key) == std::end(kKeys)) {
      return Status(ErrorCode::kTrustRecord, path + ": unknown field '" + key + "'");
    }
  }
  return object;
}

Result<TrustPolicy> ParseTrustJson(ByteSpan contents, const std::string& path) {
  if (contents.size() > kMaxTrustBytes) {
    return Status(ErrorCode::kTrustRecord, StrFormat("%s: %zu bytes, at most %llu are read", path.c_str(), contents.size(),
                                                     static_cast<unsigned long long>(kMaxTrustBytes)));
  }
  MOEPACK_ASSIGN_OR_RETURN(const Json object, ParseObject(path, contents));
  const Reader reader(path, object);
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t version, reader.Unsigned("moepack_trust", UINT32_MAX));
  if (version != kTrustVersion) {
    return reader.Error("moepack_trust", StrFormat("version %llu", static_cast<unsigned long long>(kTrustVersion)));
  }
  TrustPolicy policy;
  MOEPACK_ASSIGN_OR_RETURN(policy.product, reader.Text("product"));
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t threshold, reader.Unsigned("threshold", UINT32_MAX));
  policy.threshold = static_cast<uint32_t>(threshold);
  MOEPACK_ASSIGN_OR_RETURN(policy.key_epoch, reader.Unsigned("key_epoch", UINT64_MAX));
  MOEPACK_ASSIGN_OR_RETURN(policy.minimum_security_counter, reader.Unsigned("minimum_security_counter", UINT64_MAX));
  MOEPACK_ASSIGN_OR_RETURN(policy.release_keys, reader.Keys("release_keys"));
  if (const Status status = ValidateTrustPolicy(policy); !status.ok()) return status.With(path);
  return policy;
}

// A file that is too large is no trust record.
Result<Bytes> ReadRecord(Env& env, const std::string& path, uint64_t max_bytes) {
  Result<Bytes> bytes = ReadFile(env, path, max_bytes);
  if (!bytes.ok() && bytes.status().code() == ErrorCode::kLimit) {
    return Status(ErrorCode::kTrustRecord, bytes.status().message());
  }
  return bytes;
}

}  // namespace

Result<TrustPolicy> ReadTrustJson(Env& env, const std::string& path) {
  MOEPACK_ASSIGN_OR_RETURN(const Bytes bytes, ReadRecord(env, path, kMaxTrustBytes));
  return ParseTrustJson(bytes, path);
}

Result<TrustPolicy> ParseTrust(ByteSpan contents, const std::string& path) {
  // A JSON text begins with a brace or a space.
  if (contents.empty() || contents[0] != kAnchorMagic[0]) return ParseTrustJson(contents, path);
  const Result<TrustAnchor> anchor = OpenAnchor(contents);
  if (!anchor.ok()) return anchor.status().With(path);
  return PolicyOf(*anchor, {});
}

Result<TrustPolicy> ReadTrust(Env& env, const std::string& path) {
  MOEPACK_ASSIGN_OR_RETURN(const Bytes bytes, ReadRecord(env, path, kMaxTrustRecordBytes));
  return ParseTrust(bytes, path);
}

std::string WriteTrustJson(const TrustPolicy& policy) {
  Json object;
  object[kKeys[0]] = kTrustVersion;
  object[kKeys[1]] = policy.product;
  object[kKeys[2]] = policy.threshold;
  object[kKeys[3]] = policy.key_epoch;
  object[kKeys[4]] = policy.minimum_security_counter;
  object[kKeys[5]] = Json::array();
  for (const auto& key : policy.release_keys) object[kKeys[5]].push_back(ToHex(ByteSpan(key)));
  return object.dump(2) + "\n";
}

}  // namespace moepack::verify
