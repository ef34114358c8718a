#include "model/frontend/json_text.h"

#include <set>
#include <vector>

namespace moepack {
namespace {

using nlohmann::json;

// Watches a parse: one set of keys for each object that is open.
class KeyWatcher {
 public:
  bool operator()(int depth, json::parse_event_t event, json& parsed) {
    if (!error_.empty()) return false;
    if (depth > kMaxJsonDepth) error_ = StrFormat("nested deeper than %d levels", kMaxJsonDepth);
    if (event == json::parse_event_t::object_start) open_.emplace_back();
    if (event == json::parse_event_t::object_end) open_.pop_back();
    if (event == json::parse_event_t::key && !open_.back().insert(parsed.get<std::string>()).second) {
      error_ = "key '" + parsed.get<std::string>() + "' stands twice in one object";
    }
    return error_.empty();
  }
  const std::string& error() const { return error_; }

 private:
  std::vector<std::set<std::string>> open_;
  std::string error_;
};

}  // namespace

std::string JsonErrorText(const json::exception& error) {
  const std::string text = error.what();
  const size_t end = text.find("] ");
  return end == std::string::npos ? text : text.substr(end + 2);
}

Result<json> ParseJson(ByteSpan text, const std::string& label) {
  KeyWatcher watcher;
  try {
    json document = json::parse(text.begin(), text.end(), std::ref(watcher));
    if (!watcher.error().empty()) return Status(ErrorCode::kBadInput, label + ": " + watcher.error());
    return document;
  } catch (const json::exception& error) {
    const std::string& reason = watcher.error().empty() ? JsonErrorText(error) : watcher.error();
    return Status(ErrorCode::kBadInput, label + ": not valid JSON: " + reason);
  }
}

Result<json> ReadJsonFile(Env& env, const std::string& path, uint64_t max_bytes) {
  MOEPACK_ASSIGN_OR_RETURN(const Bytes text, ReadFile(env, path, max_bytes));
  return ParseJson(text, path);
}

}  // namespace moepack
