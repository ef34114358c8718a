#include "model/chat/jinja.h"

#include "model/chat/jinja_eval.h"
#include "model/chat/jinja_lexer.h"

namespace moepack::jinja {
namespace {

constexpr uint64_t kStepWork = 256;   // bytes that could be copied in the time of a step
constexpr uint64_t kLoopWork = 2048;  // the same for a turn of a loop, whose variable `loop` is made anew
constexpr uint64_t kScopeWork = 16;   // of a scope in which a name is looked up
constexpr size_t kMaxOutput = 1 << 18;
constexpr int kMaxDepth = 400;

enum class Flow : uint8_t { kNext, kBreak, kContinue };

class Renderer {
 public:
  explicit Renderer(RenderContext* context) : context_(context), operations_(context) {
    scopes_.push_back(context->globals);
  }

  Result<std::string> Run(const Body& body) {
    for (const auto& [name, value] : scopes_[0]) {
      MOEPACK_RETURN_IF_ERROR(operations_.Charge(1, name.size() + value.Weight()));
    }
    std::string out;
    MOEPACK_ASSIGN_OR_RETURN(const Flow flow, RunBody(body, &out));
    (void)flow;
    return out;
  }

 private:
  Status CountStep(uint32_t line) { return operations_.Charge(line, kStepWork); }

  Status Write(uint32_t line, std::string_view text, std::string* out) {
    if (out->size() + text.size() > kMaxOutput) return At(line, "the template writes too much");
    MOEPACK_RETURN_IF_ERROR(operations_.Charge(line, text.size()));
    *out += text;
    return Status::Ok();
  }

  Result<Flow> RunBody(const Body& body, std::string* out) {
    Flow flow = Flow::kNext;
    ++depth_;
    for (size_t i = 0; i < body.size() && flow == Flow::kNext; ++i) {
      MOEPACK_RETURN_IF_ERROR(CountStep(body[i].line));
      if (depth_ > kMaxDepth) return At(body[i].line, "the template goes too deep");
      MOEPACK_ASSIGN_OR_RETURN(flow, RunStatement(body[i], out));
    }
    --depth_;
    return flow;
  }

  Result<Flow> RunStatement(const Statement& statement, std::string* out) {
    switch (statement.kind) {
      case StatementKind::kText:
        MOEPACK_RETURN_IF_ERROR(Write(statement.line, statement.text, out));
        return Flow::kNext;
      case StatementKind::kOutput: {
        MOEPACK_ASSIGN_OR_RETURN(const Value value, Evaluate(*statement.expressions[0]));
        MOEPACK_ASSIGN_OR_RETURN(const std::string text, operations_.Text(statement.line, value));
        MOEPACK_RETURN_IF_ERROR(Write(statement.line, text, out));
        return Flow::kNext;
      }
      case StatementKind::kIf:
        return RunIf(statement, out);
      case StatementKind::kFor:
        return RunFor(statement, out);
      case StatementKind::kSet:
        MOEPACK_RETURN_IF_ERROR(RunSet(statement));
        return Flow::kNext;
      case StatementKind::kSetBlock: {
        std::string text;
        MOEPACK_ASSIGN_OR_RETURN(const Flow flow, RunBody(statement.bodies[0], &text));
        MOEPACK_RETURN_IF_ERROR(operations_.Charge(statement.line, text.size()));
        scopes_.back()[statement.text] = Value::Of(std::string_view(text));
        return flow;
      }
      case StatementKind::kMacro: {
        Value macro;
        macro.kind = ValueKind::kMacro;
        macro.macro = &statement;
        scopes_.back()[statement.text] = std::move(macro);
        return Flow::kNext;
      }
      case StatementKind::kBreak:
        return Flow::kBreak;
      case StatementKind::kContinue:
        return Flow::kContinue;
      case StatementKind::kGroup:
        return RunBody(statement.bodies[0], out);
    }
    return Flow::kNext;
  }

  Result<Flow> RunIf(const Statement& statement, std::string* out) {
    for (size_t i = 0; i < statement.expressions.size(); ++i) {
      MOEPACK_ASSIGN_OR_RETURN(const Value condition, Evaluate(*statement.expressions[i]));
      if (condition.Truth()) return RunBody(statement.bodies[i], out);
    }
    if (statement.bodies.size() > statement.expressions.size()) return RunBody(statement.bodies.back(), out);
    return Flow::kNext;
  }

  // Sets the targets of a loop in the innermost scope.
  Status Bind(const Statement& statement, const Value& item) {
    MOEPACK_RETURN_IF_ERROR(operations_.Charge(statement.line, item.Weight()));
    if (statement.names.size() == 1) {
      scopes_.back()[statement.names[0]] = item;
      return Status::Ok();
    }
    if (!item.is(ValueKind::kList) || item.list->size() != statement.names.size()) {
      return At(statement.line, "a loop over several names");
    }
    for (size_t i = 0; i < statement.names.size(); ++i) {
      MOEPACK_RETURN_IF_ERROR(operations_.Charge(statement.line, kStepWork + (*item.list)[i].Weight()));
      scopes_.back()[statement.names[i]] = (*item.list)[i];
    }
    return Status::Ok();
  }

  // The items that pass the loop's filter.
  Result<Value::List> LoopItems(const Statement& statement) {
    MOEPACK_ASSIGN_OR_RETURN(const Value list, Evaluate(*statement.expressions[0]));
    MOEPACK_ASSIGN_OR_RETURN(Value::List items, operations_.Items(statement.line, list));
    if (statement.expressions[1] == nullptr) return items;
    Value::List passing;
    for (const Value& item : items) {
      MOEPACK_RETURN_IF_ERROR(CountStep(statement.line));
      scopes_.emplace_back();
      const Status bound = Bind(statement, item);
      const Result<Value> passes = bound.ok() ? Evaluate(*statement.expressions[1]) : Result<Value>(bound);
      scopes_.pop_back();
      if (!passes.ok()) return passes.status();
      if (passes->Truth()) passing.push_back(item);
    }
    return passing;
  }

  static Value LoopVariable(const Value::List& items, size_t i) {
    const auto at = static_cast<int64_t>(i), size = static_cast<int64_t>(items.size());
    Value::Map loop = {{"index", Value::Of(at + 1)},       {"index0", Value::Of(at)},
                       {"revindex", Value::Of(size - at)}, {"revindex0", Value::Of(size - at - 1)},
                       {"first", Value::Of(i == 0)},       {"last", Value::Of(at + 1 == size)},
                       {"length", Value::Of(size)}};
    if (i > 0) loop["previtem"] = items[i - 1];
    if (i + 1 < items.size()) loop["nextitem"] = items[i + 1];
    return Value::Of(std::move(loop));
  }

  Result<Flow> RunFor(const Statement& statement, std::string* out) {
    MOEPACK_ASSIGN_OR_RETURN(const Value::List items, LoopItems(statement));
    if (items.empty() && statement.bodies.size() > 1) return RunBody(statement.bodies[1], out);
    for (size_t i = 0; i < items.size(); ++i) {
      MOEPACK_RETURN_IF_ERROR(CountStep(statement.line));
      // It is the neighbour of two.
      MOEPACK_RETURN_IF_ERROR(operations_.Charge(statement.line, kLoopWork + 2 * items[i].Weight()));
      scopes_.emplace_back();
      scopes_.back()["loop"] = LoopVariable(items, i);
      const Status bound = Bind(statement, items[i]);
      const Result<Flow> flow = bound.ok() ? RunBody(statement.bodies[0], out) : Result<Flow>(bound);
      scopes_.pop_back();
      if (!flow.ok()) return flow.status();
      if (*flow == Flow::kBreak) break;
    }
    return Flow::kNext;
  }

  Status RunSet(const Statement& statement) {
    MOEPACK_ASSIGN_OR_RETURN(Value value, Evaluate(*statement.expressions[0]));
    if (statement.attribute.empty()) {
      scopes_.back()[statement.text] = std::move(value);
      return Status::Ok();
    }
    const Value target = Lookup(statement.text);
    if (!target.is(ValueKind::kMap)) return At(statement.line, statement.text + " is no namespace");
    const bool plain = value.is(ValueKind::kNone) || value.is(ValueKind::kBool) || value.is(ValueKind::kInteger) ||
                       value.is(ValueKind::kString) || value.is(ValueKind::kUndefined);
    // It could hold itself.
    if (!plain) return At(statement.line, std::string("a namespace that holds ") + KindName(value.kind));
    (*target.map)[statement.attribute] = std::move(value);
    return Status::Ok();
  }

  Value Lookup(const std::string& name) const {
    for (size_t i = scopes_.size(); i-- > first_scope_;) {
      if (const auto found = scopes_[i].find(name); found != scopes_[i].end()) return found->second;
    }
    const auto global = scopes_[0].find(name);
    if (global != scopes_[0].end()) return global->second;
    if (name == "raise_exception" || name == "strftime_now" || name == "namespace" || name == "range" || name == "dict") {
      return Value::Function(name);
    }
    return Value();
  }

  Result<Value> Evaluate(const Expression& expression) {
    MOEPACK_RETURN_IF_ERROR(CountStep(expression.line));
    if (++depth_ > kMaxDepth) return At(expression.line, "the template goes too deep");
    Result<Value> value = EvaluateKind(expression);
    --depth_;
    if (value.ok()) MOEPACK_RETURN_IF_ERROR(operations_.Check(expression.line, *value));
    return value;
  }

  // Operand i, or undefined where the template has none.
  Result<Value> Operand(const Expression& expression, size_t i) {
    if (i >= expression.operands.size() || expression.operands[i] == nullptr) return Value();
    return Evaluate(*expression.operands[i]);
  }

  Result<Value> EvaluateKind(const Expression& e) {
    switch (e.kind) {
      case ExpressionKind::kString:
        return Value::Of(std::string_view(e.text));
      case ExpressionKind::kInteger:
        return Value::Of(e.number);
      case ExpressionKind::kTrue:
      case ExpressionKind::kFalse:
        return Value::Of(e.kind == ExpressionKind::kTrue);
      case ExpressionKind::kNone:
        return Value::None();
      case ExpressionKind::kName:
        MOEPACK_RETURN_IF_ERROR(operations_.Charge(e.line, kScopeWork * (scopes_.size() - first_scope_)));
        return Lookup(e.text);
      case ExpressionKind::kList:
      case ExpressionKind::kMap:
        return EvaluateItems(e);
      case ExpressionKind::kCall:
        return EvaluateCall(e);
      case ExpressionKind::kBinary:
        return EvaluateBinary(e);
      case ExpressionKind::kConditional: {
        MOEPACK_ASSIGN_OR_RETURN(const Value condition, Operand(e, 0));
        return Operand(e, condition.Truth() ? 1 : 2);
      }
      default:
        return EvaluateOfOne(e);
    }
  }

  // Expressions about the value of their first operand.
  Result<Value> EvaluateOfOne(const Expression& e) {
    MOEPACK_ASSIGN_OR_RETURN(const Value value, Operand(e, 0));
    switch (e.kind) {
      case ExpressionKind::kNot:
        return Value::Of(!value.Truth());
      case ExpressionKind::kNegative:
        if (!value.is(ValueKind::kInteger)) return At(e.line, "'-' of what is no number");
        return Value::Of(-value.number);
      case ExpressionKind::kAttribute:
        return Attribute(e, value);
      case ExpressionKind::kIndex: {
        MOEPACK_ASSIGN_OR_RETURN(const Value key, Operand(e, 1));
        return operations_.Item(e.line, value, key);
      }
      case ExpressionKind::kSlice: {
        MOEPACK_ASSIGN_OR_RETURN(const Value begin, Operand(e, 1));
        MOEPACK_ASSIGN_OR_RETURN(const Value end, Operand(e, 2));
        MOEPACK_ASSIGN_OR_RETURN(const Value step, Operand(e, 3));
        return operations_.Slice(e.line, value, begin, end, step);
      }
      default: {
        MOEPACK_ASSIGN_OR_RETURN(const Arguments arguments, EvaluateArguments(e));
        if (e.kind == ExpressionKind::kFilter) return operations_.Filter(e.line, e.text, value, arguments);
        MOEPACK_ASSIGN_OR_RETURN(const bool passes, operations_.Test(e.line, e.text, value, arguments.values));
        return Value::Of(passes);
      }
    }
  }

  Result<Value> Attribute(const Expression& e, const Value& value) {
    if (!Operations::IsMethod(value, e.text)) {
      MOEPACK_ASSIGN_OR_RETURN(Value item, operations_.Item(e.line, value, Value::Of(std::string_view(e.text))));
      return item;
    }
    Value method;
    method.kind = ValueKind::kMethod;
    method.text = e.text;
    method.depth = value.depth + 1;
    MOEPACK_RETURN_IF_ERROR(operations_.Charge(e.line, value.Weight()));
    method.self = std::make_shared<Value>(value);
    return method;
  }

  Result<Value> EvaluateItems(const Expression& e) {
    Value::List list;
    for (size_t i = 0; i < e.operands.size(); ++i) {
      MOEPACK_ASSIGN_OR_RETURN(Value item, Operand(e, i));
      list.push_back(std::move(item));
    }
    if (e.kind == ExpressionKind::kList) return Value::Of(std::move(list));
    Value::Map map;
    for (size_t i = 0; i + 1 < list.size(); i += 2) {
      if (!list[i].is(ValueKind::kString)) return At(e.line, "a map with keys that are no strings");
      map[list[i].text] = list[i + 1];
    }
    return Value::Of(std::move(map));
  }

  Result<Value> EvaluateBinary(const Expression& e) {
    MOEPACK_ASSIGN_OR_RETURN(const Value left, Operand(e, 0));
    if (e.text == "and" && !left.Truth()) return left;
    if (e.text == "or" && left.Truth()) return left;
    MOEPACK_ASSIGN_OR_RETURN(const Value right, Operand(e, 1));
    if (e.text == "and" || e.text == "or") return right;
    return operations_.Binary(e.line, e.text, left, right);
  }

  Result<Arguments> EvaluateArguments(const Expression& e) {
    Arguments out;
    for (size_t i = 1; i < e.operands.size(); ++i) {
      MOEPACK_ASSIGN_OR_RETURN(Value value, Operand(e, i));
      const std::string name = i - 1 < e.names.size() ? e.names[i - 1] : "";
      if (name.empty()) {
        out.values.push_back(std::move(value));
      } else {
        out.named[name] = std::move(value);
      }
    }
    return out;
  }

  Result<Value> EvaluateCall(const Expression& e) {
    MOEPACK_ASSIGN_OR_RETURN(const Value callee, Operand(e, 0));
    MOEPACK_ASSIGN_OR_RETURN(const Arguments arguments, EvaluateArguments(e));
    if (callee.is(ValueKind::kMacro)) return CallMacro(e, *callee.macro, arguments);
    if (callee.is(ValueKind::kMethod)) return operations_.Method(e.line, callee.text, *callee.self, arguments);
    if (!callee.is(ValueKind::kFunction)) {
      const Expression& target = *e.operands[0];
      return At(e.line, "function '" + target.text + "' is not supported");
    }
    if (callee.text == "namespace" || callee.text == "dict") {
      if (!arguments.values.empty()) return At(e.line, callee.text + " of a value");
      return Value::Of(Value::Map(arguments.named));
    }
    if (callee.text == "range") return Range(e.line, arguments.values);
    if (callee.text == "strftime_now") return At(e.line, "strftime_now: the output depends on the day");
    MOEPACK_ASSIGN_OR_RETURN(const std::string text,
                             operations_.Text(e.line, arguments.values.empty() ? Value::Of("") : arguments.values[0]));
    return At(e.line, "raise_exception: " + text.substr(0, 200));
  }

  Result<Value> Range(uint32_t line, const std::vector<Value>& bounds) {
    constexpr int64_t kMost = 1 << 13;
    if (bounds.empty() || bounds.size() > 2) return At(line, "range with a step");
    const int64_t begin = bounds.size() == 2 ? bounds[0].number : 0, end = bounds.back().number;
    if (end - begin > kMost) return At(line, "a range that is too long");
    Value::List out;
    for (int64_t i = begin; i < end; ++i) out.push_back(Value::Of(i));
    MOEPACK_RETURN_IF_ERROR(operations_.Charge(line, out.size() * sizeof(Value)));
    return Value::Of(std::move(out));
  }

  // A macro sees the template's own variables and its arguments.
  Result<Value> CallMacro(const Expression& e, const Statement& macro, const Arguments& arguments) {
    if (arguments.values.size() > macro.names.size()) return At(e.line, "too many arguments of " + macro.text);
    Value::Map scope;
    for (size_t i = 0; i < macro.names.size(); ++i) {
      MOEPACK_RETURN_IF_ERROR(CountStep(e.line));
      Value& value = scope[macro.names[i]];
      const auto named = arguments.named.find(macro.names[i]);
      if (i < arguments.values.size()) {
        value = arguments.values[i];
      } else if (named != arguments.named.end()) {
        value = named->second;
      } else if (macro.expressions[i] != nullptr) {
        MOEPACK_ASSIGN_OR_RETURN(value, Evaluate(*macro.expressions[i]));
      }
    }
    for (const auto& [name, value] : scope) MOEPACK_RETURN_IF_ERROR(operations_.Charge(e.line, value.Weight()));
    const size_t outer = first_scope_;
    first_scope_ = scopes_.size();
    scopes_.push_back(std::move(scope));
    std::string text;
    const Result<Flow> flow = RunBody(macro.bodies[0], &text);
    scopes_.pop_back();
    first_scope_ = outer;
    if (!flow.ok()) return flow.status();
    return Value::Of(std::string_view(text));
  }

  RenderContext* context_;
  Operations operations_;
  std::vector<Value::Map> scopes_;  // the template's, then those of loops and macros
  size_t first_scope_ = 0;          // the first that can be seen beside the template's
  int depth_ = 0;
};

}  // namespace

Result<std::string> Render(const Body& body, RenderContext* context) { return Renderer(context).Run(body); }

}  // namespace moepack::jinja
