#include "model/chat/jinja_eval.h"

#include <algorithm>

#include "model/chat/jinja_lexer.h"
#include "tokenizer/chat_template.h"

namespace moepack::jinja {
namespace {

constexpr std::string_view kStringMethods[] = {"strip",   "lstrip", "rstrip", "split", "startswith", "endswith",
                                               "replace", "upper",  "lower",  "title", "capitalize"};
constexpr std::string_view kMapMethods[] = {"items", "keys", "values", "get"};
constexpr size_t kMaxString = 1 << 17, kMaxList = 1 << 13;
constexpr uint32_t kMaxValueDepth = 64;

template <size_t N>
bool Listed(const std::string_view (&list)[N], const std::string& name) {
  return std::find(std::begin(list), std::end(list), std::string_view(name)) != std::end(list);
}

bool IsUpper(char c) { return c >= 'A' && c <= 'Z'; }
bool IsLower(char c) { return c >= 'a' && c <= 'z'; }

// ASCII only, which is what templates write themselves.
std::string WithCase(std::string text, const std::string& name) {
  bool word = false;
  for (char& c : text) {
    const bool letter = IsUpper(c) || IsLower(c);
    const bool upper = name == "upper" || (!word && name != "lower");
    if (upper && IsLower(c)) c = static_cast<char>(c - 32);
    if (!upper && IsUpper(c)) c = static_cast<char>(c + 32);
    word = name == "capitalize" || letter;
  }
  return text;
}

}  // namespace

bool Operations::IsContent(const Value& value) const {
  return value.is(ValueKind::kString) && value.text.find(context_->content_mark) != std::string::npos;
}

Status Operations::TakenApart(uint32_t line, const std::string& how) const {
  return At(line, "the output depends on contents of messages (" + how + ")");
}

void Operations::Search(const Value& subject, const Value& needle) {
  if (!IsContent(subject) || !needle.is(ValueKind::kString) || IsContent(needle)) return;
  if (needle.text.size() > kMaxChatExclusionText) {
    context_->long_needle = true;
  } else if (context_->needles.size() <= kMaxNeedles) {
    context_->needles.insert(needle.text);
  }
}

Status Operations::Charge(uint32_t line, uint64_t bytes) {
  context_->work += bytes;
  return context_->work > most_work_ ? At(line, "the template takes too much time or memory") : Status::Ok();
}

Status Operations::Check(uint32_t line, const Value& value) {
  if (value.depth > kMaxValueDepth) return At(line, "lists in lists go too deep");
  return Charge(line, value.Weight());
}

Status Operations::ChargeSearch(uint32_t line, std::string_view text, std::string_view needle) {
  return Charge(line, text.size() + text.size() * needle.size() / 16);
}

Status Operations::ChargeList(uint32_t line, const Value::List& list) {
  if (list.size() > kMaxList) return At(line, "a list that is too long");
  uint64_t bytes = 0;
  for (const Value& item : list) bytes += item.Weight();
  return Charge(line, bytes);
}

Result<bool> Operations::Same(uint32_t line, const Value& a, const Value& b) {
  MOEPACK_RETURN_IF_ERROR(Charge(line, a.Weight()));
  const auto is_number = [](const Value& v) { return v.is(ValueKind::kBool) || v.is(ValueKind::kInteger); };
  if (is_number(a) && is_number(b)) return a.number == b.number;
  if (a.kind != b.kind) return false;
  switch (a.kind) {
    case ValueKind::kUndefined:
    case ValueKind::kNone:
      return true;
    case ValueKind::kString:
      return a.text == b.text;
    case ValueKind::kList: {
      if (a.list->size() != b.list->size()) return false;
      for (size_t i = 0; i < a.list->size(); ++i) {
        MOEPACK_ASSIGN_OR_RETURN(const bool same, Same(line, (*a.list)[i], (*b.list)[i]));
        if (!same) return false;
      }
      return true;
    }
    case ValueKind::kMap: {
      if (a.map == b.map) return true;
      if (a.map->size() != b.map->size()) return false;
      for (auto x = a.map->begin(), y = b.map->begin(); x != a.map->end(); ++x, ++y) {
        MOEPACK_RETURN_IF_ERROR(Charge(line, x->first.size()));
        if (x->first != y->first) return false;
        MOEPACK_ASSIGN_OR_RETURN(const bool same, Same(line, x->second, y->second));
        if (!same) return false;
      }
      return true;
    }
    default:
      return false;
  }
}

Result<std::string> Operations::Text(uint32_t line, const Value& value) {
  switch (value.kind) {
    case ValueKind::kUndefined:
      return std::string();
    case ValueKind::kString:
      return value.text;
    case ValueKind::kInteger:
      return StrFormat("%lld", static_cast<long long>(value.number));
    case ValueKind::kBool:
      return std::string(value.number != 0 ? "True" : "False");
    case ValueKind::kNone:
      return std::string("None");
    default:
      return At(line, std::string(KindName(value.kind)) + " written as text");
  }
}

Result<Value::List> Operations::Items(uint32_t line, const Value& value) {
  if (IsContent(value)) return TakenApart(line, "a loop over one");
  if (value.is(ValueKind::kList)) {
    MOEPACK_RETURN_IF_ERROR(ChargeList(line, *value.list));
    return *value.list;
  }
  Value::List out;
  if (value.is(ValueKind::kMap)) {
    for (const auto& [key, unused] : *value.map) out.push_back(Value::Of(key));
    MOEPACK_RETURN_IF_ERROR(ChargeList(line, out));
    return out;
  }
  if (value.is(ValueKind::kUndefined)) return out;
  return At(line, std::string("a loop over ") + KindName(value.kind));
}

Result<Value> Operations::Length(uint32_t line, const Value& value) {
  if (IsContent(value)) return TakenApart(line, "the length of one");
  if (value.is(ValueKind::kString)) return Value::Of(static_cast<int64_t>(value.text.size()));
  if (value.is(ValueKind::kList)) return Value::Of(static_cast<int64_t>(value.list->size()));
  if (value.is(ValueKind::kMap)) return Value::Of(static_cast<int64_t>(value.map->size()));
  if (value.is(ValueKind::kUndefined)) return Value::Of(int64_t{0});
  return At(line, std::string("the length of ") + KindName(value.kind));
}

Result<Value> Operations::Contains(uint32_t line, const Value& needle, const Value& haystack) {
  if (haystack.is(ValueKind::kList)) {
    bool found = false;
    const bool content = IsContent(needle);
    for (const Value& item : *haystack.list) {
      if (content) Search(needle, item);
      MOEPACK_ASSIGN_OR_RETURN(const bool same, Same(line, item, needle));
      found = found || same;
    }
    return Value::Of(found);
  }
  if (haystack.is(ValueKind::kMap)) return Value::Of(needle.is(ValueKind::kString) && haystack.map->contains(needle.text));
  if (haystack.is(ValueKind::kUndefined)) return Value::Of(false);
  if (!haystack.is(ValueKind::kString) || !needle.is(ValueKind::kString)) {
    return At(line, std::string("'in' with ") + KindName(haystack.kind));
  }
  if (IsContent(needle)) return TakenApart(line, "'in' with one on its left");
  Search(haystack, needle);
  MOEPACK_RETURN_IF_ERROR(ChargeSearch(line, haystack.text, needle.text));
  return Value::Of(haystack.text.find(needle.text) != std::string::npos);
}

Result<Value> Operations::Binary(uint32_t line, const std::string& op, const Value& left, const Value& right) {
  if (op == "in") return Contains(line, left, right);
  if (op == "==" || op == "!=") {
    Search(left, right);
    Search(right, left);
    MOEPACK_ASSIGN_OR_RETURN(const bool same, Same(line, left, right));
    return Value::Of(same == (op == "=="));
  }
  const bool texts = left.is(ValueKind::kString) && right.is(ValueKind::kString);
  if (op == "~" || (op == "+" && texts)) {
    MOEPACK_ASSIGN_OR_RETURN(std::string a, Text(line, left));
    MOEPACK_ASSIGN_OR_RETURN(const std::string b, Text(line, right));
    if (a.size() + b.size() > kMaxString) return At(line, "a string that is too long");
    return Value::Of(std::string_view(a += b));
  }
  if (op == "+" && left.is(ValueKind::kList) && right.is(ValueKind::kList)) {
    Value::List sum = *left.list;
    sum.insert(sum.end(), right.list->begin(), right.list->end());
    MOEPACK_RETURN_IF_ERROR(ChargeList(line, sum));
    return Value::Of(std::move(sum));
  }
  const auto number = [](const Value& v) { return v.is(ValueKind::kInteger) || v.is(ValueKind::kBool); };
  if (!number(left) || !number(right)) {
    return At(line, std::string(KindName(left.kind)) + " " + op + " " + KindName(right.kind));
  }
  const int64_t a = left.number, b = right.number;
  if (op == "<") return Value::Of(a < b);
  if (op == "<=") return Value::Of(a <= b);
  if (op == ">") return Value::Of(a > b);
  if (op == ">=") return Value::Of(a >= b);
  constexpr int64_t kLargest = int64_t{1} << 30;
  if (std::max({a, -a, b, -b}) > kLargest) return At(line, "a number that is too large");
  if (op == "+") return Value::Of(a + b);
  if (op == "-") return Value::Of(a - b);
  if (op == "*") return Value::Of(a * b);
  if (b <= 0 || op == "/") return At(line, "'" + op + "' of these numbers");
  const int64_t floor = a >= 0 ? a / b : -((-a + b - 1) / b);
  return Value::Of(op == "%" ? a - floor * b : floor);
}

Result<Value> Operations::Join(uint32_t line, const Value& value, const Arguments& arguments) {
  MOEPACK_ASSIGN_OR_RETURN(const Value::List items, Items(line, value));
  std::string out, separator;
  if (!arguments.values.empty()) {
    MOEPACK_ASSIGN_OR_RETURN(separator, Text(line, arguments.values[0]));
  }
  for (size_t i = 0; i < items.size(); ++i) {
    MOEPACK_ASSIGN_OR_RETURN(const std::string text, Text(line, items[i]));
    if (i != 0) out += separator;
    out += text;
    if (out.size() > kMaxString) return At(line, "a string that is too long");
  }
  return Value::Of(std::string_view(out));
}

// selectattr and rejectattr: items whose attribute passes a test, or is true.
Result<Value> Operations::Select(uint32_t line, const Value& value, const Arguments& arguments, bool wanted) {
  MOEPACK_ASSIGN_OR_RETURN(const Value::List items, Items(line, value));
  if (arguments.values.empty()) return At(line, "a filter without the attribute it goes by");
  const bool tested = arguments.values.size() > 1;
  const std::vector<Value> rest(arguments.values.begin() + (tested ? 2 : 1), arguments.values.end());
  Value::List out;
  for (const Value& item : items) {
    MOEPACK_ASSIGN_OR_RETURN(const Value attribute, Item(line, item, arguments.values[0]));
    MOEPACK_RETURN_IF_ERROR(Charge(line, arguments.values[0].Weight() + attribute.Weight()));
    bool passes = attribute.Truth();
    if (tested) {
      MOEPACK_ASSIGN_OR_RETURN(passes, Test(line, arguments.values[1].text, attribute, rest));
    }
    if (passes == wanted) out.push_back(item);
  }
  return Value::Of(std::move(out));
}

Result<Value> Operations::Filter(uint32_t line, const std::string& name, const Value& value, const Arguments& arguments) {
  if (name == "length" || name == "count") return Length(line, value);
  if (name == "selectattr" || name == "rejectattr") return Select(line, value, arguments, name == "selectattr");
  if (name == "join") return Join(line, value, arguments);
  if (name == "default" || name == "d") {
    if (arguments.values.empty()) return At(line, "default without a value");
    const bool falsy = arguments.values.size() > 1 && arguments.values[1].Truth();
    return value.is(ValueKind::kUndefined) || (falsy && !value.Truth()) ? arguments.values[0] : value;
  }
  if (name == "list") {
    MOEPACK_ASSIGN_OR_RETURN(Value::List items, Items(line, value));
    return Value::Of(std::move(items));
  }
  if (name == "first" || name == "last") {
    MOEPACK_ASSIGN_OR_RETURN(const Value::List items, Items(line, value));
    if (items.empty()) return Value();
    return name == "first" ? items.front() : items.back();
  }
  if (name == "items" && value.is(ValueKind::kMap)) return Method(line, name, value, arguments);
  const bool text_filter = name == "string" || name == "trim" || name == "upper" || name == "lower" || name == "title" ||
                           name == "capitalize" || name == "replace";
  if (!text_filter) return At(line, "filter '" + name + "' is not supported");
  MOEPACK_ASSIGN_OR_RETURN(const std::string text, Text(line, value));
  if (name == "string") return Value::Of(std::string_view(text));
  return StringMethod(line, name == "trim" ? "strip" : name, Value::Of(std::string_view(text)), arguments.values);
}

Result<bool> Operations::Test(uint32_t line, const std::string& name, const Value& value,
                              const std::vector<Value>& arguments) {
  if (name == "defined") return !value.is(ValueKind::kUndefined);
  if (name == "undefined") return value.is(ValueKind::kUndefined);
  if (name == "none") return value.is(ValueKind::kNone);
  if (name == "string") return value.is(ValueKind::kString);
  if (name == "mapping") return value.is(ValueKind::kMap);
  if (name == "number") return value.is(ValueKind::kInteger);
  if (name == "boolean") return value.is(ValueKind::kBool);
  if (name == "true" || name == "false") return value.is(ValueKind::kBool) && (value.number != 0) == (name == "true");
  if (name == "iterable" || name == "sequence") {
    return value.is(ValueKind::kString) || value.is(ValueKind::kList) || value.is(ValueKind::kMap);
  }
  if ((name == "equalto" || name == "eq" || name == "sameas" || name == "in" || name == "ne") && arguments.size() == 1) {
    MOEPACK_ASSIGN_OR_RETURN(const Value result, Binary(line,
                                                        name == "in"   ? "in"
                                                        : name == "ne" ? "!="
                                                                       : "==",
                                                        value, arguments[0]));
    return result.Truth();
  }
  if ((name == "odd" || name == "even") && value.is(ValueKind::kInteger)) return (value.number % 2 != 0) == (name == "odd");
  return At(line, "test '" + name + "' is not supported");
}

bool Operations::IsMethod(const Value& self, const std::string& name) {
  if (self.is(ValueKind::kString)) return Listed(kStringMethods, name);
  return self.is(ValueKind::kMap) && Listed(kMapMethods, name);
}

Result<Value> Operations::Method(uint32_t line, const std::string& name, const Value& self, const Arguments& arguments) {
  if (self.is(ValueKind::kString)) return StringMethod(line, name, self, arguments.values);
  if (name == "get") {
    if (arguments.values.empty() || !arguments.values[0].is(ValueKind::kString)) return At(line, "get without a key");
    const auto found = self.map->find(arguments.values[0].text);
    if (found != self.map->end()) return found->second;
    return arguments.values.size() > 1 ? arguments.values[1] : Value::None();
  }
  Value::List out;
  for (const auto& [key, value] : *self.map) {
    if (name == "keys") out.push_back(Value::Of(key));
    if (name == "values") out.push_back(value);
    if (name == "items") {
      MOEPACK_RETURN_IF_ERROR(Charge(line, key.size() + value.Weight()));
      out.push_back(Value::Of(Value::List{Value::Of(key), value}));
    }
  }
  MOEPACK_RETURN_IF_ERROR(ChargeList(line, out));
  return Value::Of(std::move(out));
}

Result<Value> Operations::Split(uint32_t line, const Value& self, const std::vector<Value>& arguments) {
  if (arguments.empty() || !arguments[0].is(ValueKind::kString) || arguments[0].text.empty()) {
    return IsContent(self) ? TakenApart(line, "split at spaces") : At(line, "split without a separator");
  }
  Search(self, arguments[0]);
  const std::string& separator = arguments[0].text;
  MOEPACK_RETURN_IF_ERROR(ChargeSearch(line, self.text, separator));
  int64_t most = arguments.size() > 1 ? arguments[1].number : -1;
  Value::List out;
  for (size_t at = 0;;) {
    const size_t next = most == 0 ? std::string::npos : self.text.find(separator, at);
    out.push_back(Value::Of(std::string_view(self.text).substr(at, next == std::string::npos ? next : next - at)));
    if (next == std::string::npos || out.size() > kMaxList) break;
    at = next + separator.size();
    --most;
  }
  MOEPACK_RETURN_IF_ERROR(ChargeList(line, out));
  return Value::Of(std::move(out));
}

Result<Value> Operations::Replace(uint32_t line, std::string_view text, std::string_view from, std::string_view to) {
  MOEPACK_RETURN_IF_ERROR(ChargeSearch(line, text, from));
  std::string out;
  for (size_t at = 0;;) {
    const size_t next = from.empty() ? std::string_view::npos : text.find(from, at);
    out += text.substr(at, next == std::string_view::npos ? next : next - at);
    if (next != std::string_view::npos) out += to;
    if (out.size() > kMaxString) return At(line, "a string that is too long");
    if (next == std::string_view::npos) return Value::Of(std::string_view(out));
    at = next + from.size();
  }
}

Result<Value> Operations::StringMethod(uint32_t line, const std::string& name, const Value& self,
                                       const std::vector<Value>& arguments) {
  for (const Value& argument : arguments) {
    if (IsContent(argument) && name != "replace") return TakenApart(line, name + "(one)");
  }
  if (name == "split") return Split(line, self, arguments);
  const auto is_text = [&](size_t i) { return arguments.size() > i && arguments[i].is(ValueKind::kString); };
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    const bool left = name != "rstrip", right = name != "lstrip";
    if (is_text(0)) MOEPACK_RETURN_IF_ERROR(ChargeSearch(line, self.text, arguments[0].text));
    const std::string_view stripped =
        is_text(0) ? StripCharacters(self.text, arguments[0].text, left, right) : StripText(self.text, left, right);
    return Value::Of(stripped);
  }
  if (name == "startswith" || name == "endswith") {
    if (!is_text(0)) return At(line, name + " without a string");
    Search(self, arguments[0]);
    return Value::Of(name == "startswith" ? self.text.starts_with(arguments[0].text)
                                          : self.text.ends_with(arguments[0].text));
  }
  if (name == "replace") {
    if (!is_text(0) || !is_text(1)) return At(line, "replace without two strings");
    Search(self, arguments[0]);
    return Replace(line, self.text, arguments[0].text, arguments[1].text);
  }
  if (IsContent(self)) return TakenApart(line, name + " of one");
  return Value::Of(std::string_view(WithCase(self.text, name)));
}

Result<Value> Operations::Item(uint32_t line, const Value& value, const Value& key) {
  if (IsContent(value)) return TakenApart(line, "an index into one");
  if (value.is(ValueKind::kMap) && key.is(ValueKind::kString)) {
    const auto found = value.map->find(key.text);
    return found == value.map->end() ? Value() : found->second;
  }
  if (value.is(ValueKind::kList) && key.is(ValueKind::kInteger)) {
    const auto size = static_cast<int64_t>(value.list->size());
    const int64_t index = key.number < 0 ? key.number + size : key.number;
    return index < 0 || index >= size ? Value() : (*value.list)[static_cast<size_t>(index)];
  }
  if (value.is(ValueKind::kUndefined)) return At(line, "an item of something undefined");
  return Value();
}

Result<Value> Operations::Slice(uint32_t line, const Value& value, const Value& begin, const Value& end, const Value& step) {
  if (IsContent(value)) return TakenApart(line, "a slice of one");
  if (!value.is(ValueKind::kList)) return At(line, std::string("a slice of ") + KindName(value.kind));
  MOEPACK_RETURN_IF_ERROR(ChargeList(line, *value.list));
  const auto size = static_cast<int64_t>(value.list->size());
  const int64_t by = step.is(ValueKind::kInteger) ? step.number : 1;
  if (by != 1 && by != -1) return At(line, "a slice by other steps than 1 and -1");
  const auto bound = [&](const Value& v, int64_t absent) {
    if (!v.is(ValueKind::kInteger)) return absent;
    return std::clamp<int64_t>(v.number < 0 ? v.number + size : v.number, by > 0 ? 0 : -1, by > 0 ? size : size - 1);
  };
  Value::List out;
  const int64_t last = bound(end, by > 0 ? size : -1);
  for (int64_t i = bound(begin, by > 0 ? 0 : size - 1); by > 0 ? i < last : i > last; i += by) {
    out.push_back((*value.list)[static_cast<size_t>(i)]);
  }
  return Value::Of(std::move(out));
}

}  // namespace moepack::jinja
