// Syntax tree of the part of Jinja that chat templates are written in. Internal to model/chat.
//
// Statements: text, {{ }}, if/elif/else, for (with a filter, else, break, continue), set (a name, an attribute of a
// namespace, a block), macro, generation. Whitespace as Hugging Face sets Jinja up: trim_blocks, lstrip_blocks, no trailing
// newline. Anything else is refused with its line.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace moepack::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

enum class ExpressionKind : uint8_t {
  kString,
  kInteger,
  kTrue,
  kFalse,
  kNone,
  kName,
  kList,
  kMap,        // operands: key, value, key, value ...
  kAttribute,  // operands[0].text
  kIndex,      // operands[0][operands[1]]
  kSlice,      // operands[0][operands[1] : operands[2] : operands[3]]; null where nothing is written
  kCall,       // operands[0](the others); names[i] is the keyword of argument i, or empty
  kFilter,     // operands[0] | text(the others)
  kTest,       // operands[0] is text(the others)
  kNot,
  kNegative,
  kBinary,       // text is the operator: or and == != < <= > >= in + - * // % ~
  kConditional,  // operands[1] if operands[0] else operands[2], which may be null
};

struct Expression {
  ExpressionKind kind = ExpressionKind::kNone;
  uint32_t line = 0;
  uint32_t depth = 0;  // one more than the operands'
  std::string text;
  int64_t number = 0;
  std::vector<ExpressionPtr> operands;
  std::vector<std::string> names;
};

struct Statement;
using Body = std::vector<Statement>;

enum class StatementKind : uint8_t { kText, kOutput, kIf, kFor, kSet, kSetBlock, kMacro, kBreak, kContinue, kGroup };

struct Statement {
  StatementKind kind = StatementKind::kText;
  uint32_t line = 0;
  std::string text;                        // kText; name of kMacro, kSet and kSetBlock
  std::string attribute;                   // kSet: of a namespace, or empty
  std::vector<std::string> names;          // targets of kFor, parameters of kMacro
  std::vector<ExpressionPtr> expressions;  // kOutput, kSet: the value; kIf: conditions; kFor: list and filter or null;
                                           // kMacro: defaults, null where there is none
  std::vector<Body> bodies;  // kIf: one a condition, then that of else; kFor: the body, then that of else; else one
};

// The statements of a template. kUnsupported with "line N: " for what is not of the subset or not well formed.
Result<Body> Parse(std::string_view source);

}  // namespace moepack::jinja
