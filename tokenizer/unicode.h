// UTF-8, categories and NFC: what the pre-tokenizers need of Unicode. Thread-safe; any bytes are accepted.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace moepack {

// General categories as far as pre-tokenizers tell them apart: Lu, Ll, Lt, Lm, Lo, M, N, P, S, White_Space, all others.
enum class Category : uint8_t {
  kOther = 0,
  kUpper = 1,
  kLower = 2,
  kTitle = 3,
  kModifier = 4,
  kOtherLetter = 5,
  kMark = 6,
  kNumber = 7,
  kPunctuation = 8,
  kSymbol = 9,
  kSpace = 10,
};

// A byte that is not part of valid UTF-8 stands as the code point kInvalidByte + byte, one byte long.
inline constexpr char32_t kInvalidByte = 0x110000;

struct CodePoint {
  char32_t code = 0;
  uint32_t length = 0;  // bytes
};

// The code point at text[position], position < text.size(). Overlong forms, surrogates, values above U+10FFFF and
// truncated sequences are invalid (Unicode 14, table 3-7).
CodePoint DecodeUtf8(std::string_view text, size_t position);

// Inverse of DecodeUtf8, for invalid bytes too.
void AppendUtf8(char32_t code, std::string* out);

// Every U+2581, which SentencePiece writes for a space, as a space.
std::string MarksToSpaces(std::string_view text);

// kOther for invalid bytes.
Category CategoryOf(char32_t code);

// Normalization Form C (Unicode Standard Annex 15). Invalid bytes are kept and never combine.
std::string NormalizeNfc(std::string_view text);

}  // namespace moepack
