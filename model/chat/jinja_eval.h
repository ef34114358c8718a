// Operations of Jinja on values: filters, tests, methods, operators. Internal to model/chat.
#pragma once

#include <string>
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
  explicit Operations(RenderContext* context) : context_(context) {}

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
  Result<Value> Contains(uint32_t line, const Value& needle, const Value& haystack);
  Result<Value> StringMethod(uint32_t line, const std::string& name, const Value& self, const std::vector<Value>& arguments);
  Result<Value> Split(uint32_t line, const Value& self, const std::vector<Value>& arguments);
  Result<Value> Select(uint32_t line, const Value& value, const Arguments& arguments, bool wanted);
  Result<Value> Length(uint32_t line, const Value& value);
  Result<Value> Join(uint32_t line, const Value& value, const Arguments& arguments);

  RenderContext* context_;
};

}  // namespace moepack::jinja
