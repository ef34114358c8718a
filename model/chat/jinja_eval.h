// Operations of Jinja on values: filters, tests, methods, operators. Internal to model/chat.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "model/chat/jinja.h"

namespace moepack::jinja {

// A call's arguments: by place, then by name.
struct Arguments {
  std::vector<Value> values;
  Value::Map named;
};

class Operations {
 public:
  explicit Operations(RenderContext* context)
      : context_(context), most_work_(std::min(context->work + kMostWork, kMostWorkOfAll)) {}

  // Counts bytes that are about to be made, copied or looked through.
  Status Charge(uint32_t line, uint64_t bytes);
  // A value that an expression gave: its bytes, and how deep it is.
  Status Check(uint32_t line, const Value& value);

  Result<Value> Binary(uint32_t line, const std::string& op, const Value& left, const Value& right);
  Result<Value> Filter(uint32_t line, const std::string& name, const Value& value, const Arguments& arguments);
  Result<bool> Test(uint32_t line, const std::string& name, const Value& value, const std::vector<Value>& arguments);
  // The method `name` of a string, list or map.
  Result<Value> Method(uint32_t line, const std::string& name, const Value& self, const Arguments& arguments);
  // An attribute or item that is no method; undefined when there is none.
  Result<Value> Item(uint32_t line, const Value& value, const Value& key);
  Result<Value> Slice(uint32_t line, const Value& value, const Value& begin, const Value& end, const Value& step);
  Result<std::string> Text(uint32_t line, const Value& value);
  Result<Value::List> Items(uint32_t line, const Value& value);

  static bool IsMethod(const Value& self, const std::string& name);

 private:
  bool IsContent(const Value& value) const;
  Status TakenApart(uint32_t line, const std::string& how) const;
  // Notes what a content is searched for.
  void Search(const Value& subject, const Value& needle);
  // Charges for a search for `needle` through `text`, at its worst.
  Status ChargeSearch(uint32_t line, std::string_view text, std::string_view needle);
  Status ChargeList(uint32_t line, const Value::List& list);
  // Whether two values are equal as Python has it.
  Result<bool> Same(uint32_t line, const Value& a, const Value& b);
  Result<Value> Contains(uint32_t line, const Value& needle, const Value& haystack);
  Result<Value> Replace(uint32_t line, std::string_view text, std::string_view from, std::string_view to);
  Result<Value> StringMethod(uint32_t line, const std::string& name, const Value& self, const std::vector<Value>& arguments);
  Result<Value> Split(uint32_t line, const Value& self, const std::vector<Value>& arguments);
  Result<Value> Select(uint32_t line, const Value& value, const Arguments& arguments, bool wanted);
  Result<Value> Length(uint32_t line, const Value& value);
  Result<Value> Join(uint32_t line, const Value& value, const Arguments& arguments);

  RenderContext* context_;
  const uint64_t most_work_;
};

}  // namespace moepack::jinja
