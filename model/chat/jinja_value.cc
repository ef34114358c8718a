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
  out.list = std::make_shared<List>(std::move(value));
  return out;
}

Value Value::Of(Map value) {
  Value out;
  out.kind = ValueKind::kMap;
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

bool Value::SameAs(const Value& other) const {
  const auto is_number = [](const Value& v) { return v.is(ValueKind::kBool) || v.is(ValueKind::kInteger); };
  if (is_number(*this) && is_number(other)) return number == other.number;
  if (kind != other.kind) return false;
  const auto same = [](const Value& a, const Value& b) { return a.SameAs(b); };
  switch (kind) {
    case ValueKind::kUndefined:
    case ValueKind::kNone:
      return true;
    case ValueKind::kString:
      return text == other.text;
    case ValueKind::kList:
      return std::equal(list->begin(), list->end(), other.list->begin(), other.list->end(), same);
    case ValueKind::kMap:
      return map == other.map ||
             std::equal(map->begin(), map->end(), other.map->begin(), other.map->end(),
                        [](const auto& a, const auto& b) { return a.first == b.first && a.second.SameAs(b.second); });
    default:
      return false;
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
