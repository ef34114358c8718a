#include "model/family/config_reader.h"

#include <algorithm>
#include <cmath>

namespace moepack {

using nlohmann::json;
using Unsigned = unsigned long long;

ConfigReader::ConfigReader(json document, std::string label, std::shared_ptr<AcceptedKeys> accepted, std::string prefix)
    : document_(std::move(document)), label_(std::move(label)), accepted_(std::move(accepted)), prefix_(std::move(prefix)) {
  if (document_.is_object()) return;
  status_ = Status(ErrorCode::kBadInput, label_ + ": must hold one JSON object");
  document_ = json::object();
}

void ConfigReader::Fail(ErrorCode code, const std::string& key, const std::string& reason) {
  if (status_.ok()) status_ = Status(code, label_ + ": " + key + ": " + reason);
}

void ConfigReader::Support(bool ok, const char* key, const std::string& reason) {
  if (!ok) Fail(ErrorCode::kUnsupported, key, reason);
}

void ConfigReader::Adopt(const Status& status) {
  if (status_.ok()) status_ = status;
}

bool ConfigReader::Has(const char* key) const {
  const auto it = document_.find(key);
  return it != document_.end() && !it->is_null();
}

const json* ConfigReader::Use(const char* key) {
  honoured_.insert(key);
  return Has(key) ? &*document_.find(key) : nullptr;
}

const json* ConfigReader::Require(const char* key) {
  const json* value = Use(key);
  if (value == nullptr) Fail(ErrorCode::kBadInput, key, "missing");
  return value;
}

uint64_t ConfigReader::ToCount(const char* key, const json& value, uint64_t min, uint64_t max) {
  if (value.is_number_unsigned() && value.get<uint64_t>() >= min && value.get<uint64_t>() <= max)
    return value.get<uint64_t>();
  Fail(ErrorCode::kBadInput, key,
       StrFormat("must be a whole number from %llu to %llu", static_cast<Unsigned>(min), static_cast<Unsigned>(max)));
  return min;
}

double ConfigReader::ToPositive(const char* key, const json& value) {
  if (value.is_number() && std::isfinite(value.get<double>()) && value.get<double>() > 0) return value.get<double>();
  Fail(ErrorCode::kBadInput, key, "must be a finite number above zero");
  return 1;
}

double ConfigReader::ToNumber(const char* key, const json& value) {
  if (value.is_number() && std::isfinite(value.get<double>())) return value.get<double>();
  Fail(ErrorCode::kBadInput, key, "must be a finite number");
  return 0;
}

double ConfigReader::Number(const char* key) {
  const json* value = Require(key);
  return value == nullptr ? 0 : ToNumber(key, *value);
}

double ConfigReader::NumberOr(const char* key, double fallback) {
  const json* value = Use(key);
  return value == nullptr ? fallback : ToNumber(key, *value);
}

std::vector<double> ConfigReader::Numbers(const char* key) {
  std::vector<double> out;
  const json* value = Use(key);
  if (value == nullptr) return out;
  if (!value->is_array()) Fail(ErrorCode::kBadInput, key, "must be a list of numbers");
  for (const json& item : *value) out.push_back(ToNumber(key, item));
  return out;
}

uint64_t ConfigReader::Count(const char* key, uint64_t min, uint64_t max) {
  const json* value = Require(key);
  return value == nullptr ? min : ToCount(key, *value, min, max);
}

uint64_t ConfigReader::CountOr(const char* key, uint64_t fallback, uint64_t min, uint64_t max) {
  return OptionalCount(key, min, max).value_or(fallback);
}

std::optional<uint64_t> ConfigReader::OptionalCount(const char* key, uint64_t min, uint64_t max) {
  const json* value = Use(key);
  if (value == nullptr) return std::nullopt;
  return ToCount(key, *value, min, max);
}

double ConfigReader::Positive(const char* key) {
  const json* value = Require(key);
  return value == nullptr ? 1 : ToPositive(key, *value);
}

std::optional<double> ConfigReader::OptionalPositive(const char* key) {
  const json* value = Use(key);
  if (value == nullptr) return std::nullopt;
  return ToPositive(key, *value);
}

bool ConfigReader::FlagOr(const char* key, bool fallback) {
  const json* value = Use(key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) {
    Fail(ErrorCode::kBadInput, key, "must be true or false");
    return fallback;
  }
  return value->get<bool>();
}

bool ConfigReader::FlagOrNumber(const char* key, bool fallback) {
  const json* value = Use(key);
  if (value != nullptr && value->is_number()) return ToNumber(key, *value) != 0;
  return FlagOr(key, fallback);
}

std::string ConfigReader::Text(const char* key) {
  const json* value = Require(key);
  return value == nullptr ? "" : TextOr(key, "");
}

std::string ConfigReader::TextOr(const char* key, const std::string& fallback) {
  const json* value = Use(key);
  if (value == nullptr) return fallback;
  if (!value->is_string()) {
    Fail(ErrorCode::kBadInput, key, "must be a string");
    return fallback;
  }
  return value->get<std::string>();
}

std::vector<uint64_t> ConfigReader::Counts(const char* key, uint64_t max) {
  std::vector<uint64_t> out;
  const json* value = Use(key);
  if (value == nullptr) return out;
  if (!value->is_array()) Fail(ErrorCode::kBadInput, key, "must be a list of whole numbers");
  for (const json& item : *value) out.push_back(ToCount(key, item, 0, max));
  return out;
}

std::vector<std::string> ConfigReader::Texts(const char* key) {
  std::vector<std::string> out;
  const json* value = Use(key);
  if (value == nullptr) return out;
  const bool fits =
      value->is_array() && std::all_of(value->begin(), value->end(), [](const json& item) { return item.is_string(); });
  if (!fits) {
    Fail(ErrorCode::kBadInput, key, "must be a list of strings");
    return out;
  }
  return value->get<std::vector<std::string>>();
}

std::optional<ConfigReader> ConfigReader::Object(const char* key) {
  const json* value = Use(key);
  if (value == nullptr) return std::nullopt;
  return ConfigReader(*value, label_ + ": " + key, accepted_, prefix_ + key + ".");
}

std::vector<ConfigReader> ConfigReader::Objects(const char* key) {
  std::vector<ConfigReader> out;
  const json* value = Require(key);
  if (value == nullptr) return out;
  if (!value->is_array()) Fail(ErrorCode::kBadInput, key, "must be a list of objects");
  for (const json& item : *value)
    out.push_back(
        ConfigReader(item, StrFormat("%s: %s[%zu]", label_.c_str(), key, out.size()), accepted_, prefix_ + key + "."));
  return out;
}

Status ConfigReader::Finish(std::span<const char* const> inert, std::span<const char* const> more_inert) {
  const auto listed = [](std::span<const char* const> list, const std::string& key) {
    return std::find(list.begin(), list.end(), key) != list.end();
  };
  for (const auto& [key, value] : document_.items()) {
    if (honoured_.count(key) != 0 || listed(inert, key) || listed(more_inert, key)) continue;
    if (accepted_ != nullptr && accepted_->wanted.count(prefix_ + key) != 0) {
      accepted_->used.insert(prefix_ + key);
      continue;
    }
    Fail(ErrorCode::kUnknownKey, "key '" + key + "'",
         "neither implemented nor known to be without effect; if the model computes the same without it, say so with "
         "--accept-key " +
             prefix_ + key);
  }
  return status_;
}

}  // namespace moepack
