#include "model/chat/jinja_lexer.h"

#include <algorithm>

#include "tokenizer/unicode.h"

namespace moepack::jinja {
namespace {

constexpr std::string_view kSpaces = " \t\n\r\v\f";
constexpr std::string_view kOperators[] = {"==", "!=", "<=", ">=", "//", "**", "(", ")", "[", "]", "{", "}", ",",
                                           ".",  ":",  "|",  "+",  "-",  "*",  "/", "%", "~", "<", ">", "="};

bool IsNameStart(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }

// Line ends as \n, and without the last one.
std::string Normalized(std::string_view source) {
  std::string text;
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      text.push_back(source[i]);
    } else if (i + 1 == source.size() || source[i + 1] != '\n') {
      text.push_back('\n');
    }
  }
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(Normalized(source)) {}

  Result<std::vector<Token>> Run() {
    while (at_ < source_.size()) {
      const size_t tag = FindTag();
      AddText(tag);
      if (tag == source_.size()) break;
      MOEPACK_RETURN_IF_ERROR(source_[tag + 1] == '#' ? SkipComment() : ReadTag());
    }
    Add(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  void Add(TokenKind kind, std::string text) { tokens_.push_back({kind, line_, std::move(text)}); }

  size_t FindTag() const {
    for (size_t i = at_; i + 1 < source_.size(); ++i) {
      if (source_[i] == '{' && (source_[i + 1] == '{' || source_[i + 1] == '%' || source_[i + 1] == '#')) return i;
    }
    return source_.size();
  }

  // The text up to `tag`, without the spaces that the tags on both sides take away.
  void AddText(size_t tag) {
    std::string_view text = std::string_view(source_).substr(at_, tag - at_);
    const uint32_t lines = static_cast<uint32_t>(std::count(text.begin(), text.end(), '\n'));
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : ' ';
    const bool whole_line_before = at_ == 0 || source_[at_ - 1] == '\n';
    if (strip_next_) text.remove_prefix(std::min(text.find_first_not_of(kSpaces), text.size()));
    if (trim_next_ && text.starts_with('\n')) text.remove_prefix(1);
    if (tag < source_.size() && sign == '-') {
      const size_t last = text.find_last_not_of(kSpaces);
      text = text.substr(0, last == std::string_view::npos ? 0 : last + 1);
    } else if (tag < source_.size() && source_[tag + 1] != '{' && sign != '+') {
      const size_t last = text.find_last_not_of(" \t");
      const bool begins_line = last == std::string_view::npos ? whole_line_before || trim_next_newline_ : text[last] == '\n';
      if (begins_line) text = text.substr(0, last == std::string_view::npos ? 0 : last + 1);
    }
    if (!text.empty()) Add(TokenKind::kText, std::string(text));
    line_ += lines;
    at_ = tag;
    strip_next_ = trim_next_ = trim_next_newline_ = false;
  }

  // What the end of a tag does to the text behind it. `at_` is behind the tag, `sign` before its end.
  void EndTag(char sign, bool block) {
    strip_next_ = sign == '-';
    trim_next_ = block && sign != '-' && sign != '+';
    trim_next_newline_ = trim_next_ && at_ < source_.size() && source_[at_] == '\n';
  }

  Status SkipComment() {
    const size_t end = source_.find("#}", at_ + 2);
    if (end == std::string::npos) return At(line_, "a comment that does not end");
    line_ += static_cast<uint32_t>(
        std::count(source_.begin() + static_cast<ptrdiff_t>(at_), source_.begin() + static_cast<ptrdiff_t>(end), '\n'));
    const char sign = end > at_ + 2 ? source_[end - 1] : ' ';
    at_ = end + 2;
    EndTag(sign, true);
    return Status::Ok();
  }

  Status ReadTag() {
    const bool block = source_[at_ + 1] == '%';
    const std::string_view end = block ? "%}" : "}}";
    const uint32_t begin_line = line_;
    Add(block ? TokenKind::kBlockBegin : TokenKind::kOutputBegin, "");
    at_ += 2;
    if (at_ < source_.size() && (source_[at_] == '-' || source_[at_] == '+')) ++at_;
    int open = 0;  // brackets: "}}" may close two maps
    while (at_ < source_.size()) {
      const std::string_view rest = std::string_view(source_).substr(at_);
      const bool sign = (rest[0] == '-' || rest[0] == '+') && rest.substr(1).starts_with(end);
      if (open == 0 && (sign || rest.starts_with(end))) {
        Add(block ? TokenKind::kBlockEnd : TokenKind::kOutputEnd, "");
        at_ += sign ? 3 : 2;
        EndTag(sign ? rest[0] : ' ', block);
        return Status::Ok();
      }
      if (kSpaces.find(rest[0]) != std::string_view::npos) {
        line_ += rest[0] == '\n';
        ++at_;
        continue;
      }
      MOEPACK_RETURN_IF_ERROR(ReadToken(rest));
      if (tokens_.back().kind != TokenKind::kOperator) continue;
      const std::string& text = tokens_.back().text;
      if (text == "(" || text == "[" || text == "{") ++open;
      if ((text == ")" || text == "]" || text == "}") && open > 0) --open;
    }
    return At(begin_line, "a tag that does not end");
  }

  Status ReadToken(std::string_view rest) {
    if (rest[0] == '\'' || rest[0] == '"') return ReadString(rest[0]);
    size_t length = 0;
    if (IsNameStart(rest[0])) {
      while (length < rest.size() && (IsNameStart(rest[length]) || IsDigit(rest[length]))) ++length;
      if (length > 256) return At(line_, "a name of more than 256 characters");
      Add(TokenKind::kName, std::string(rest.substr(0, length)));
    } else if (IsDigit(rest[0])) {
      while (length < rest.size() && IsDigit(rest[length])) ++length;
      if (length > 9) return At(line_, "a number of more than nine digits");
      Add(TokenKind::kInteger, std::string(rest.substr(0, length)));
    } else {
      const auto found =
          std::find_if(std::begin(kOperators), std::end(kOperators), [&](auto o) { return rest.starts_with(o); });
      if (found == std::end(kOperators))
        return At(line_, StrFormat("character 0x%02x", static_cast<unsigned char>(rest[0])));
      length = found->size();
      Add(TokenKind::kOperator, std::string(*found));
    }
    at_ += length;
    return Status::Ok();
  }

  // The code of \xNN, \uNNNN or \UNNNNNNNN, whose first digit is at_ .
  Result<char32_t> ReadHex(size_t digits) {
    char32_t code = 0;
    for (size_t i = 0; i < digits; ++i, ++at_) {
      const char c = at_ < source_.size() ? source_[at_] : ' ';
      const size_t digit = std::string_view("0123456789abcdef").find(static_cast<char>(c | 0x20));
      if (digit == std::string_view::npos || (!IsDigit(c) && !IsNameStart(c))) return At(line_, "an escape without digits");
      code = code * 16 + static_cast<char32_t>(digit);
    }
    if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) return At(line_, "an escape that is no character");
    return code;
  }

  Status ReadString(char quote) {
    const uint32_t begin_line = line_;
    std::string text;
    for (++at_; at_ < source_.size() && source_[at_] != quote;) {
      const char c = source_[at_++];
      line_ += c == '\n';
      if (c != '\\' || at_ == source_.size()) {
        text.push_back(c);
        continue;
      }
      const char escaped = source_[at_++];
      const size_t simple = std::string_view("nrtabfv0\\'\"\n").find(escaped);
      if (simple != std::string_view::npos) {
        constexpr std::string_view kMeaning("\n\r\t\a\b\f\v\0\\'\"", 11);
        if (escaped != '\n') text.push_back(kMeaning[simple]);
      } else if (escaped == 'x' || escaped == 'u' || escaped == 'U') {
        MOEPACK_ASSIGN_OR_RETURN(const char32_t code, ReadHex(escaped == 'x' ? 2 : escaped == 'u' ? 4 : 8));
        AppendUtf8(code, &text);
      } else {
        text += {'\\', escaped};
      }
    }
    if (at_ == source_.size()) return At(begin_line, "a string that does not end");
    ++at_;
    tokens_.push_back({TokenKind::kString, begin_line, std::move(text)});
    return Status::Ok();
  }

  const std::string source_;
  size_t at_ = 0;
  uint32_t line_ = 1;
  bool strip_next_ = false, trim_next_ = false, trim_next_newline_ = false;
  std::vector<Token> tokens_;
};

}  // namespace

Status At(uint32_t line, const std::string& what) {
  return Status(ErrorCode::kUnsupported, StrFormat("line %u: %s", line, what.c_str()));
}

Result<std::vector<Token>> Tokenize(std::string_view source) { return Lexer(source).Run(); }

}  // namespace moepack::jinja
