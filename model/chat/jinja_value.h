// Values that chat templates compute with. Internal to model/chat.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace moepack::jinja {

struct Statement;

enum class ValueKind : uint8_t { kUndefined, kNone, kBool, kInteger, kString, kList, kMap, kMacro, kFunction, kMethod };

// Lists and maps are shared, and never changed but for the maps of namespaces.
struct Value {
  using List = std::vector<Value>;
  using Map = std::map<std::string, Value>;

  ValueKind kind = ValueKind::kUndefined;
  int64_t number = 0;  // kInteger, kBool
  std::string text;    // kString; name of kFunction and kMethod
  std::shared_ptr<List> list;
  std::shared_ptr<Map> map;
  const Statement* macro = nullptr;
  std::shared_ptr<Value> self;  // kMethod: whose
  uint32_t depth = 0;           // one more than what is in a list or map, or whose method it is

  static Value None();
  static Value Of(bool value);
  static Value Of(int64_t value);
  static Value Of(std::string_view value);
  static Value Of(const char* value) { return Of(std::string_view(value)); }
  static Value Of(List value);
  static Value Of(Map value);
  static Value Function(std::string name);

  bool is(ValueKind k) const { return kind == k; }
  bool Truth() const;
  // Bytes that a copy takes; what is shared is not copied.
  uint64_t Weight() const { return sizeof(Value) + text.size(); }
};

// For messages: "a string", "a list" ...
const char* KindName(ValueKind kind);

// What Python's str.strip() takes away, at both ends or one.
std::string_view StripText(std::string_view text, bool left, bool right);
// The same for the characters listed (ASCII).
std::string_view StripCharacters(std::string_view text, std::string_view characters, bool left, bool right);

}  // namespace moepack::jinja
