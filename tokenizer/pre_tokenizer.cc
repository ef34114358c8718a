#include "tokenizer/pre_tokenizer.h"

#include <array>

#include "tokenizer/pattern.h"

namespace moepack {
namespace {

#define MOEPACK_CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define MOEPACK_SPACES "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

constexpr std::string_view kGpt2[] = {
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
};
constexpr std::string_view kQwen2[] = {
    MOEPACK_CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" MOEPACK_SPACES,
};
constexpr std::string_view kLlama3[] = {
    MOEPACK_CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" MOEPACK_SPACES,
};
constexpr std::string_view kO200k[] = {
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+" MOEPACK_CONTRACTIONS
    "?|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*" MOEPACK_CONTRACTIONS
    "?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" MOEPACK_SPACES,
};
constexpr std::string_view kDeepseekV3[] = {
    "\\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| "
    "?[\\p{P}\\p{S}]+[\\r\\n]*|" MOEPACK_SPACES,
};
// Digits one by one, then as GPT-2.
constexpr std::string_view kGranite[] = {"\\p{N}", kGpt2[0]};

#undef MOEPACK_CONTRACTIONS
#undef MOEPACK_SPACES

const std::vector<Pattern>& Compiled(PreTokenizer kind) {
  static const auto kAll = [] {
    std::array<std::vector<Pattern>, kLastPreTokenizer + 1> all;
    for (size_t k = 0; k < all.size(); ++k) {
      for (const std::string_view expression : PreTokenizerPatterns(static_cast<PreTokenizer>(k)))
        all[k].emplace_back(expression);
    }
    return all;
  }();
  return kAll[static_cast<size_t>(kind)];
}

struct Cutter {
  const std::vector<Pattern>& patterns;
  const SymbolText& symbols;
  std::string_view text;
  const std::function<void(std::string_view)>& piece;

  // Symbols [begin, end) by the patterns from `stage` on.
  void Cut(size_t stage, size_t begin, size_t end) const {
    if (begin == end) return;
    if (stage == patterns.size()) {
      piece(text.substr(symbols.offset(begin), symbols.offset(end) - symbols.offset(begin)));
      return;
    }
    size_t gap = begin;
    for (size_t at = begin; at < end;) {
      const size_t match = patterns[stage].Match(symbols, at, end);
      if (match == at) {
        ++at;
        continue;
      }
      Cut(stage + 1, gap, at);
      Cut(stage + 1, at, match);
      gap = at = match;
    }
    Cut(stage + 1, gap, end);
  }
};

}  // namespace

std::span<const std::string_view> PreTokenizerPatterns(PreTokenizer kind) {
  switch (kind) {
    case PreTokenizer::kQwen2:
      return kQwen2;
    case PreTokenizer::kGpt2:
      return kGpt2;
    case PreTokenizer::kLlama3:
      return kLlama3;
    case PreTokenizer::kO200k:
      return kO200k;
    case PreTokenizer::kDeepseekV3:
      return kDeepseekV3;
    case PreTokenizer::kGranite:
      return kGranite;
    case PreTokenizer::kSentencePiece:
      break;
  }
  return {};
}

void CutIntoPieces(PreTokenizer kind, std::string_view text, const std::function<void(std::string_view)>& piece) {
  const SymbolText symbols(text);
  Cutter{Compiled(kind), symbols, text, piece}.Cut(0, 0, symbols.size());
}

}  // namespace moepack
