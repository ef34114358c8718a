#include "tokenizer/pre_tokenizer.h"

#include "tokenizer/unicode.h"

namespace moepack {
namespace {

struct Symbol {
  char32_t code = 0;
  CharClass kind = CharClass::kOther;
  size_t end = 0;
};

Symbol SymbolAt(std::string_view text, size_t position) {
  const CodePoint point = DecodeUtf8(text, position);
  return {point.code, ClassOf(point.code), position + point.length};
}

bool IsNewline(char32_t code) { return code == '\r' || code == '\n'; }

// End of the run of symbols of one class from `position`.
size_t SkipClass(std::string_view text, size_t position, CharClass kind) {
  while (position < text.size()) {
    const Symbol symbol = SymbolAt(text, position);
    if (symbol.kind != kind) break;
    position = symbol.end;
  }
  return position;
}

// Simple case folding of the letters that contractions use; the long s folds to s.
char32_t Fold(char32_t code) {
  if (code == 0x17F) return 's';
  return code >= 'A' && code <= 'Z' ? code + ('a' - 'A') : code;
}

// (?i:'s|'t|'re|'ve|'m|'ll|'d) whose apostrophe ends at `position`; 0 when there is none.
size_t ContractionEnd(std::string_view text, size_t position) {
  if (position >= text.size()) return 0;
  const Symbol first = SymbolAt(text, position);
  const char32_t a = Fold(first.code);
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return first.end;
  if (first.end >= text.size()) return 0;
  const Symbol second = SymbolAt(text, first.end);
  const char32_t b = Fold(second.code);
  const bool pair = (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l');
  return pair ? second.end : 0;
}

// \s*[\r\n]+|\s+(?!\S)|\s+ at a white-space symbol.
size_t SpaceEnd(std::string_view text, size_t begin) {
  size_t end = begin, last_symbol = begin, after_newline = begin;
  while (end < text.size()) {
    const Symbol symbol = SymbolAt(text, end);
    if (symbol.kind != CharClass::kSpace) break;
    last_symbol = end;
    end = symbol.end;
    if (IsNewline(symbol.code)) after_newline = end;
  }
  if (after_newline > begin) return after_newline;
  // The lookahead leaves the last space to the word that follows, unless it is the only one.
  return end == text.size() || last_symbol == begin ? end : last_symbol;
}

}  // namespace

size_t Qwen2PieceEnd(std::string_view text, size_t begin) {
  const Symbol first = SymbolAt(text, begin);
  if (first.code == '\'') {
    if (const size_t end = ContractionEnd(text, first.end); end != 0) return end;
  }
  if (first.kind == CharClass::kLetter) return SkipClass(text, first.end, CharClass::kLetter);
  if (first.kind == CharClass::kNumber) return first.end;
  const bool has_next = first.end < text.size();
  const CharClass next = has_next ? SymbolAt(text, first.end).kind : CharClass::kSpace;
  if (next == CharClass::kLetter && !IsNewline(first.code)) return SkipClass(text, first.end, CharClass::kLetter);
  const bool symbols = first.kind == CharClass::kOther || (first.code == ' ' && next == CharClass::kOther);
  if (!symbols) return SpaceEnd(text, begin);
  size_t end = SkipClass(text, first.end, CharClass::kOther);
  while (end < text.size() && IsNewline(static_cast<unsigned char>(text[end]))) ++end;
  return end;
}

}  // namespace moepack
