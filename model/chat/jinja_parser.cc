#include <algorithm>
#include <initializer_list>

#include "model/chat/jinja_lexer.h"
#include "model/chat/jinja_syntax.h"

namespace moepack::jinja {
namespace {

constexpr int kMaxDepth = 100;  // of expressions and of blocks
constexpr uint32_t kMaxTreeDepth = 400;
constexpr int kMaxLinks = 200;  // of a chain such as a.b.c or a + b + c
constexpr std::string_view kReserved[] = {"and", "or", "not", "in", "is", "if", "else"};

// Counts how deep the parser is while it lives.
class Depth {
 public:
  explicit Depth(int* depth) : depth_(depth) { ++*depth_; }
  ~Depth() { --*depth_; }
  Depth(const Depth&) = delete;
  Depth& operator=(const Depth&) = delete;
  bool too_deep() const { return *depth_ > kMaxDepth; }

 private:
  int* depth_;
};

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  Result<Body> Run() {
    MOEPACK_ASSIGN_OR_RETURN(Body body, ParseBody({}));
    return body;
  }

 private:
  const Token& Now() const { return tokens_[at_]; }
  const Token& Next() { return tokens_[at_ + 1 < tokens_.size() ? at_++ : at_]; }
  bool Is(TokenKind kind, std::string_view text) const { return Now().kind == kind && Now().text == text; }
  bool IsOperator(std::string_view text) const { return Is(TokenKind::kOperator, text); }
  bool IsWord(std::string_view text) const { return Is(TokenKind::kName, text); }
  bool Take(TokenKind kind, std::string_view text) {
    const bool there = Is(kind, text);
    if (there) Next();
    return there;
  }
  bool TakeOperator(std::string_view text) { return Take(TokenKind::kOperator, text); }
  bool TakeWord(std::string_view text) { return Take(TokenKind::kName, text); }

  Status Unexpected(const std::string& expected) const {
    const Token& token = Now();
    const bool end =
        token.kind == TokenKind::kBlockEnd || token.kind == TokenKind::kOutputEnd || token.kind == TokenKind::kEnd;
    return At(token.line, "expected " + expected + (end ? " before the end" : ", found '" + token.text + "'"));
  }
  Status ExpectOperator(std::string_view text) {
    return TakeOperator(text) ? Status::Ok() : Unexpected("'" + std::string(text) + "'");
  }
  Status ExpectBlockEnd() {
    if (Now().kind != TokenKind::kBlockEnd) return Unexpected("the end of the tag");
    Next();
    return Status::Ok();
  }
  Result<std::string> Name() {
    if (Now().kind != TokenKind::kName) return Unexpected("a name");
    return Next().text;
  }

  // Statements

  // Up to a block that begins with one of `ends`, which is left to the caller with its name as the next token.
  Result<Body> ParseBody(std::initializer_list<std::string_view> ends) {
    const Depth depth(&depth_);
    if (depth.too_deep()) return At(Now().line, "blocks that are too deep");
    Body body;
    while (Now().kind != TokenKind::kEnd) {
      if (Now().kind == TokenKind::kText) {
        Statement text;
        text.line = Now().line;
        text.text = Next().text;
        body.push_back(std::move(text));
        continue;
      }
      const bool block = Next().kind == TokenKind::kBlockBegin;
      if (block && std::find(ends.begin(), ends.end(), std::string_view(Now().text)) != ends.end()) return body;
      MOEPACK_ASSIGN_OR_RETURN(Statement statement, block ? ParseBlock() : ParseOutput());
      body.push_back(std::move(statement));
    }
    if (ends.size() == 0) return body;
    return Unexpected("{% " + std::string(*(ends.end() - 1)) + " %}");
  }

  Result<Statement> ParseOutput() {
    Statement out;
    out.kind = StatementKind::kOutput;
    out.line = Now().line;
    MOEPACK_ASSIGN_OR_RETURN(ExpressionPtr value, ParseExpression());
    out.expressions.push_back(std::move(value));
    if (Now().kind != TokenKind::kOutputEnd) return Unexpected("'}}'");
    Next();
    return out;
  }

  Result<Statement> ParseBlock() {
    Statement out;
    out.line = Now().line;
    MOEPACK_ASSIGN_OR_RETURN(const std::string word, Name());
    Status status = At(out.line, "{% " + word + " %} is not supported");
    if (word == "if") status = ParseIf(&out);
    if (word == "for") status = ParseFor(&out);
    if (word == "set") status = ParseSet(&out);
    if (word == "macro") status = ParseMacro(&out);
    if (word == "generation") {
      out.kind = StatementKind::kGroup;
      status = ParseRest(&out, "endgeneration");
    }
    if (word == "break" || word == "continue") {
      out.kind = word == "break" ? StatementKind::kBreak : StatementKind::kContinue;
      status = ExpectBlockEnd();
    }
    MOEPACK_RETURN_IF_ERROR(status);
    return out;
  }

  // The end of the tag, a body and the tag that ends it.
  Status ParseRest(Statement* out, std::string_view end) {
    MOEPACK_RETURN_IF_ERROR(ExpectBlockEnd());
    MOEPACK_ASSIGN_OR_RETURN(Body body, ParseBody({end}));
    out->bodies.push_back(std::move(body));
    Next();
    return ExpectBlockEnd();
  }

  Status ParseIf(Statement* out) {
    out->kind = StatementKind::kIf;
    do {
      MOEPACK_ASSIGN_OR_RETURN(ExpressionPtr condition, ParseExpression());
      out->expressions.push_back(std::move(condition));
      MOEPACK_RETURN_IF_ERROR(ExpectBlockEnd());
      MOEPACK_ASSIGN_OR_RETURN(Body body, ParseBody({"elif", "else", "endif"}));
      out->bodies.push_back(std::move(body));
    } while (TakeWord("elif"));
    if (TakeWord("else")) return ParseRest(out, "endif");
    Next();
    return ExpectBlockEnd();
  }

  Status ParseFor(Statement* out) {
    out->kind = StatementKind::kFor;
    do {
      MOEPACK_ASSIGN_OR_RETURN(std::string name, Name());
      out->names.push_back(std::move(name));
    } while (TakeOperator(","));
    if (!TakeWord("in")) return Unexpected("'in'");
    // A condition behind the list filters it: it is no conditional expression.
    MOEPACK_ASSIGN_OR_RETURN(ExpressionPtr list, ParseBinary(0));
    out->expressions.push_back(std::move(list));
    ExpressionPtr filter;
    if (TakeWord("if")) {
      MOEPACK_ASSIGN_OR_RETURN(filter, ParseExpression());
    }
    out->expressions.push_back(std::move(filter));
    if (IsWord("recursive")) return At(out->line, "a recursive loop");
    MOEPACK_RETURN_IF_ERROR(ExpectBlockEnd());
    MOEPACK_ASSIGN_OR_RETURN(Body body, ParseBody({"else", "endfor"}));
    out->bodies.push_back(std::move(body));
    if (TakeWord("else")) return ParseRest(out, "endfor");
    Next();
    return ExpectBlockEnd();
  }

  Status ParseSet(Statement* out) {
    MOEPACK_ASSIGN_OR_RETURN(out->text, Name());
    if (Now().kind == TokenKind::kBlockEnd) {
      out->kind = StatementKind::kSetBlock;
      return ParseRest(out, "endset");
    }
    out->kind = StatementKind::kSet;
    if (TakeOperator(".")) {
      MOEPACK_ASSIGN_OR_RETURN(out->attribute, Name());
    }
    MOEPACK_RETURN_IF_ERROR(ExpectOperator("="));
    MOEPACK_ASSIGN_OR_RETURN(ExpressionPtr value, ParseExpression());
    out->expressions.push_back(std::move(value));
    return ExpectBlockEnd();
  }

  Status ParseMacro(Statement* out) {
    out->kind = StatementKind::kMacro;
    MOEPACK_ASSIGN_OR_RETURN(out->text, Name());
    MOEPACK_RETURN_IF_ERROR(ExpectOperator("("));
    while (!TakeOperator(")")) {
      MOEPACK_ASSIGN_OR_RETURN(std::string name, Name());
      out->names.push_back(std::move(name));
      ExpressionPtr value;
      if (TakeOperator("=")) {
        MOEPACK_ASSIGN_OR_RETURN(value, ParseExpression());
      }
      out->expressions.push_back(std::move(value));
      if (!IsOperator(")")) MOEPACK_RETURN_IF_ERROR(ExpectOperator(","));
    }
    return ParseRest(out, "endmacro");
  }

  // Expressions

  ExpressionPtr Make(ExpressionKind kind, uint32_t line, std::string text = "") const {
    auto out = std::make_unique<Expression>();
    out->kind = kind;
    out->line = line;
    out->text = std::move(text);
    return out;
  }

  static void Adopt(ExpressionPtr operand, Expression* parent) {
    if (operand != nullptr) parent->depth = std::max(parent->depth, operand->depth + 1);
    parent->operands.push_back(std::move(operand));
  }

  Result<ExpressionPtr> ParseExpression() {
    const Depth depth(&depth_);
    if (depth.too_deep()) return At(Now().line, "an expression that is too deep");
    MOEPACK_ASSIGN_OR_RETURN(ExpressionPtr out, ParseConditional());
    // Chains are trees too, and chains of chains deep ones.
    if (out->depth > kMaxTreeDepth) return At(out->line, "an expression that is too deep");
    return out;
  }

  Result<ExpressionPtr> ParseConditional() {
    MOEPACK_ASSIGN_OR_RETURN(ExpressionPtr value, ParseBinary(0));
    const uint32_t line = Now().line;
    if (!TakeWord("if")) return value;
    ExpressionPtr out = Make(ExpressionKind::kConditional, line), otherwise;
    MOEPACK_ASSIGN_OR_RETURN(ExpressionPtr condition, ParseBinary(0));
    if (TakeWord("else")) {
      MOEPACK_ASSIGN_OR_RETURN(otherwise, ParseExpression());
    }
    Adopt(std::move(condition), out.get());
    Adopt(std::move(value), out.get());
    Adopt(std::move(otherwise), out.get());
    return out;
  }

  // The operator of a level of precedence that stands here, or nothing: 0 or, 1 and, 2 not, 3 comparisons, 4 + -, 5 ~, 6 *
  // /.
  std::string OperatorOf(int level) {
    static const std::vector<std::vector<std::string_view>> kLevels = {
        {"or"}, {"and"}, {}, {"==", "!=", "<=", ">=", "<", ">", "in"}, {"+", "-"}, {"~"}, {"*", "//", "/", "%"}};
    for (const std::string_view text : kLevels[static_cast<size_t>(level)]) {
      const bool word = text == "or" || text == "and" || text == "in";
      if (Take(word ? TokenKind::kName : TokenKind::kOperator, text)) return std::string(text);
    }
    const bool not_in = level == 3 && IsWord("not") && at_ + 1 < tokens_.size() &&
                        tokens_[at_ + 1].kind == TokenKind::kName && tokens_[at_ + 1].text == "in";
    if (!not_in) return "";
    at_ += 2;
    return "not in";
  }

  Result<ExpressionPtr> ParseBinary(int level) {
    constexpr int kNotLevel = 2, kLevels = 7;
    if (level == kLevels) return ParseUnary();
    const uint32_t line = Now().line;
    if (level == kNotLevel && TakeWord("not")) {
      const Depth depth(&depth_);
      if (depth.too_deep()) return At(line, "an expression that is too deep");
      ExpressionPtr out = Make(ExpressionKind::kNot, line);
      MOEPACK_ASSIGN_OR_RETURN(ExpressionPtr value, ParseBinary(level));
      Adopt(std::move(value), out.get());
      return out;
    }
    MOEPACK_ASSIGN_OR_RETURN(ExpressionPtr left, ParseBinary(level + 1));
    int links = 0;
    for (std::string op = OperatorOf(level); !op.empty(); op = OperatorOf(level)) {
      if (++links > kMaxLinks) return At(line, "an expression that is too long");
      const bool negated = op == "not in";
      ExpressionPtr out = Make(ExpressionKind::kBinary, line, negated ? "in" : op);
      MOEPACK_ASSIGN_OR_RETURN(ExpressionPtr right, ParseBinary(level + 1));
      Adopt(std::move(left), out.get());
      Adopt(std::move(right), out.get());
      left = std::move(out);
      if (!negated) continue;
      out = Make(ExpressionKind::kNot, line);
      Adopt(std::move(left), out.get());
      left = std::move(out);
    }
    return left;
  }

  Result<ExpressionPtr> ParseUnary() {
    const uint32_t line = Now().line;
    if (!TakeOperator("-")) return ParsePostfix();
    const Depth depth(&depth_);
    if (depth.too_deep()) return At(line, "an expression that is too deep");
    ExpressionPtr out = Make(ExpressionKind::kNegative, line);
    MOEPACK_ASSIGN_OR_RETURN(ExpressionPtr value, ParseUnary());
    Adopt(std::move(value), out.get());
    return out;
  }

  Result<ExpressionPtr> ParsePostfix() {
    MOEPACK_ASSIGN_OR_RETURN(ExpressionPtr value, ParsePrimary());
    for (int links = 0;; ++links) {
      const uint32_t line = Now().line;
      if (links > kMaxLinks) return At(line, "an expression that is too long");
      ExpressionPtr out;
      if (TakeOperator(".")) {
        if (Now().kind != TokenKind::kName) return Unexpected("a name");
        out = Make(ExpressionKind::kAttribute, line, Next().text);
        Adopt(std::move(value), out.get());
      } else if (TakeOperator("[")) {
        MOEPACK_ASSIGN_OR_RETURN(out, ParseSubscript(std::move(value), line));
      } else if (IsOperator("(")) {
        out = Make(ExpressionKind::kCall, line);
        Adopt(std::move(value), out.get());
        MOEPACK_RETURN_IF_ERROR(ParseArguments(out.get()));
      } else if (TakeOperator("|")) {
        MOEPACK_ASSIGN_OR_RETURN(std::string name, Name());
        out = Make(ExpressionKind::kFilter, line, std::move(name));
        Adopt(std::move(value), out.get());
        if (IsOperator("(")) MOEPACK_RETURN_IF_ERROR(ParseArguments(out.get()));
      } else if (TakeWord("is")) {
        MOEPACK_ASSIGN_OR_RETURN(out, ParseTest(std::move(value), line));
      } else {
        return value;
      }
      value = std::move(out);
    }
  }

  Result<ExpressionPtr> ParseTest(ExpressionPtr value, uint32_t line) {
    const bool negated = TakeWord("not");
    MOEPACK_ASSIGN_OR_RETURN(std::string name, Name());
    ExpressionPtr out = Make(ExpressionKind::kTest, line, std::move(name));
    Adopt(std::move(value), out.get());
    const bool reserved =
        std::find(std::begin(kReserved), std::end(kReserved), std::string_view(Now().text)) != std::end(kReserved);
    if (IsOperator("(")) {
      MOEPACK_RETURN_IF_ERROR(ParseArguments(out.get()));
    } else if (Now().kind == TokenKind::kString || Now().kind == TokenKind::kInteger ||
               (Now().kind == TokenKind::kName && !reserved)) {
      MOEPACK_ASSIGN_OR_RETURN(ExpressionPtr argument, ParsePrimary());
      Adopt(std::move(argument), out.get());
    }
    if (!negated) return out;
    ExpressionPtr inverse = Make(ExpressionKind::kNot, line);
    Adopt(std::move(out), inverse.get());
    return inverse;
  }

  // Behind the "[" of value[...].
  Result<ExpressionPtr> ParseSubscript(ExpressionPtr value, uint32_t line) {
    ExpressionPtr out = Make(ExpressionKind::kIndex, line);
    Adopt(std::move(value), out.get());
    bool slice = false;
    for (int part = 0; part < 3; ++part) {
      ExpressionPtr bound;
      if (!IsOperator(":") && !IsOperator("]")) {
        MOEPACK_ASSIGN_OR_RETURN(bound, ParseExpression());
      }
      Adopt(std::move(bound), out.get());
      if (!TakeOperator(":")) break;
      slice = true;
    }
    MOEPACK_RETURN_IF_ERROR(ExpectOperator("]"));
    if (!slice && out->operands[1] == nullptr) return At(line, "an index without a value");
    if (!slice) return out;
    out->kind = ExpressionKind::kSlice;
    out->operands.resize(4);
    return out;
  }

  Status ParseArguments(Expression* out) {
    MOEPACK_RETURN_IF_ERROR(ExpectOperator("("));
    while (!TakeOperator(")")) {
      std::string name;
      const bool keyword =
          Now().kind == TokenKind::kName && tokens_[at_ + 1].kind == TokenKind::kOperator && tokens_[at_ + 1].text == "=";
      if (keyword) {
        name = Next().text;
        Next();
      }
      MOEPACK_ASSIGN_OR_RETURN(ExpressionPtr value, ParseExpression());
      out->names.push_back(std::move(name));
      Adopt(std::move(value), out);
      if (!IsOperator(")")) MOEPACK_RETURN_IF_ERROR(ExpectOperator(","));
    }
    return Status::Ok();
  }

  Result<ExpressionPtr> ParsePrimary() {
    const Token token = Now();
    if (token.kind == TokenKind::kString) {
      ExpressionPtr out = Make(ExpressionKind::kString, token.line);
      while (Now().kind == TokenKind::kString) out->text += Next().text;
      return out;
    }
    if (token.kind == TokenKind::kInteger) {
      ExpressionPtr out = Make(ExpressionKind::kInteger, token.line);
      for (const char digit : Next().text) out->number = out->number * 10 + (digit - '0');
      return out;
    }
    if (token.kind == TokenKind::kName) {
      Next();
      if (token.text == "true" || token.text == "True") return Make(ExpressionKind::kTrue, token.line);
      if (token.text == "false" || token.text == "False") return Make(ExpressionKind::kFalse, token.line);
      if (token.text == "none" || token.text == "None") return Make(ExpressionKind::kNone, token.line);
      return Make(ExpressionKind::kName, token.line, token.text);
    }
    if (TakeOperator("(")) {
      MOEPACK_ASSIGN_OR_RETURN(ExpressionPtr value, ParseExpression());
      MOEPACK_RETURN_IF_ERROR(ExpectOperator(")"));
      return value;
    }
    if (TakeOperator("[")) return ParseItems(Make(ExpressionKind::kList, token.line), "]");
    if (TakeOperator("{")) return ParseItems(Make(ExpressionKind::kMap, token.line), "}");
    return Unexpected("a value");
  }

  Result<ExpressionPtr> ParseItems(ExpressionPtr out, std::string_view end) {
    while (!TakeOperator(end)) {
      MOEPACK_ASSIGN_OR_RETURN(ExpressionPtr item, ParseExpression());
      Adopt(std::move(item), out.get());
      if (out->kind == ExpressionKind::kMap) {
        MOEPACK_RETURN_IF_ERROR(ExpectOperator(":"));
        MOEPACK_ASSIGN_OR_RETURN(ExpressionPtr value, ParseExpression());
        Adopt(std::move(value), out.get());
      }
      if (!IsOperator(end)) MOEPACK_RETURN_IF_ERROR(ExpectOperator(","));
    }
    return out;
  }

  const std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace

Result<Body> Parse(std::string_view source) {
  MOEPACK_ASSIGN_OR_RETURN(std::vector<Token> tokens, Tokenize(source));
  return Parser(std::move(tokens)).Run();
}

}  // namespace moepack::jinja
