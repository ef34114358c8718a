// UTF-8, character classes and NFC: what the pre-tokenizers need of Unicode. Thread-safe; any bytes are accepted.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace moepack {

enum class CharClass : uint8_t { kOther = 0, kLetter = 1, kNumber = 2, kSpace = 3 };

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

// \p{L}, \p{N} or White_Space; kOther for everything else, invalid bytes among it.
CharClass ClassOf(char32_t code);

// Normalization Form C (Unicode Standard Annex 15). Invalid bytes are kept and never combine.
std::string NormalizeNfc(std::string_view text);

}  // namespace moepack
