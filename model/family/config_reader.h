// Reads a JSON object, such as a checkpoint's config.json, so that no key goes unseen: every key is either read (honoured)
// or on a list of keys that are known not to change what the model computes. Any other key is refused by name.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"

namespace moepack {

// Keys that somebody takes responsibility for: unknown ones that are to be taken as inert. Of an object inside another one:
// "outer.key".
struct AcceptedKeys {
  std::set<std::string> wanted;
  std::set<std::string> used;  // those that were met and would have been refused
};

// The first thing that is wrong is kept and every read after it returns a harmless value, so that a family can read all
// its keys and ask for status() once.
class ConfigReader {
 public:
  // `label` begins every message (the file). The document must be an object.
  ConfigReader(nlohmann::json document, std::string label, std::shared_ptr<AcceptedKeys> accepted = nullptr,
               std::string prefix = "");

  // Value of a key that must be there, in [min, max]. Returns `min` on error.
  uint64_t Count(const char* key, uint64_t min, uint64_t max);
  uint64_t CountOr(const char* key, uint64_t fallback, uint64_t min, uint64_t max);  // absent or null: fallback
  std::optional<uint64_t> OptionalCount(const char* key, uint64_t min, uint64_t max);
  // Finite number above zero.
  double Positive(const char* key);
  std::optional<double> OptionalPositive(const char* key);
  // Finite numbers of any sign.
  double Number(const char* key);
  double NumberOr(const char* key, double fallback);  // absent or null: fallback
  std::vector<double> Numbers(const char* key);
  bool FlagOr(const char* key, bool fallback);
  // A flag that some exporters write as a number: 0 is false.
  bool FlagOrNumber(const char* key, bool fallback);
  std::string Text(const char* key);
  std::string TextOr(const char* key, const std::string& fallback);
  // Each entry in [0, max]; empty when absent or null.
  std::vector<uint64_t> Counts(const char* key, uint64_t max);
  std::vector<std::string> Texts(const char* key);
  // An object below this one, read in the same way; nothing when absent or null. Its Finish() must be called, and its
  // status handed back with Adopt().
  std::optional<ConfigReader> Object(const char* key);
  void Adopt(const Status& status);
  // The same for a list of objects; the key must be there.
  std::vector<ConfigReader> Objects(const char* key);

  // Records kUnsupported (unless `ok`): "LABEL: KEY: reason".
  void Support(bool ok, const char* key, const std::string& reason);
  // Records an error of the given code, unless there is one.
  void Fail(ErrorCode code, const std::string& key, const std::string& reason);

  bool Has(const char* key) const;  // there and not null
  const Status& status() const { return status_; }

  // Refuses keys that were neither read nor are on one of the lists nor accepted; then returns status().
  Status Finish(std::span<const char* const> inert, std::span<const char* const> more_inert = {});

 private:
  const nlohmann::json* Use(const char* key);      // marks as honoured; null when absent or null
  const nlohmann::json* Require(const char* key);  // the same, absence is an error
  uint64_t ToCount(const char* key, const nlohmann::json& value, uint64_t min, uint64_t max);
  double ToPositive(const char* key, const nlohmann::json& value);
  double ToNumber(const char* key, const nlohmann::json& value);

  nlohmann::json document_;
  std::string label_;
  std::shared_ptr<AcceptedKeys> accepted_;
  std::string prefix_;  // of the names of accepted keys
  std::set<std::string> honoured_;
  Status status_;
};

}  // namespace moepack
