#include "model/chat/jinja_value.h"

#include <algorithm>

#include "tokenizer/chat_template.h"

namespace moepack::jinja {

Value Value::None() {
  Value out;
  out.kind = ValueKind::kNone;
  return out;
}

Value Value::Of(bool value) {
  Value out;
  out.kind = ValueKind::kBool;
  out.number = value;
  return out;
}

Value Value::Of(int64_t value) {
  Value out;
  out.kind = ValueKind::kInteger;
  out.number = value;
  return out;
}

Value Value::Of(std::string_view value) {
  Value out;
  out.kind = ValueKind::kString;
  out.text = std::string(value);
  return out;
}

Value Value::Of(List value) {
  Value out;
  out.kind = ValueKind::kList;
  for (const Value& item : value) out.depth = std::max(out.depth, item.depth);
  ++out.depth;
  out.list = std::make_shared<List>(std::move(value));
  return out;
}

Value Value::Of(Map value) {
  Value out;
  out.kind = ValueKind::kMap;
  for (const auto& [key, item] : value) out.depth = std::max(out.depth, item.depth);
  ++out.depth;
  out.map = std::make_shared<Map>(std::move(value));
  return out;
}

Value Value::Function(std::string name) {
  Value out;
  out.kind = ValueKind::kFunction;
  out.text = std::move(name);
  return out;
}

bool Value::Truth() const {
  switch (kind) {
    case ValueKind::kUndefined:
    case ValueKind::kNone:
      return false;
    case ValueKind::kBool:
    case ValueKind::kInteger:
      return number != 0;
    case ValueKind::kString:
      return !text.empty();
    case ValueKind::kList:
      return !list->empty();
    case ValueKind::kMap:
      return !map->empty();
    default:
      return true;
  }
}

const char* KindName(ValueKind kind) {
  switch (kind) {
    case ValueKind::kUndefined:
      return "something undefined";
    case ValueKind::kNone:
      return "none";
    case ValueKind::kBool:
      return "true or false";
    case ValueKind::kInteger:
      return "a number";
    case ValueKind::kString:
      return "a string";
    case ValueKind::kList:
      return "a list";
    case ValueKind::kMap:
      return "a map";
    default:
      return "a function";
  }
}

std::string_view StripText(std::string_view text, bool left, bool right) { return StripSpaces(text, left, right); }

std::string_view StripCharacters(std::string_view text, std::string_view characters, bool left, bool right) {
  if (left) text.remove_prefix(std::min(text.find_first_not_of(characters), text.size()));
  if (right) text = text.substr(0, text.find_last_not_of(characters) + 1);
  return text;
}

}  // namespace moepack::jinja
