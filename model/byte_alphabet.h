// The printable alphabet of byte-level BPE (GPT-2), in which every byte is one character: a byte that prints stands for
// itself, the others are the code points from 256 on, in order. Thread-safe.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>

namespace moepack {

class ByteAlphabet {
 public:
  ByteAlphabet();
  // UTF-8 of the characters of `bytes`.
  std::string Encode(std::string_view bytes) const;
  // Its inverse; nothing when a character is not of the alphabet.
  std::optional<std::string> Decode(std::string_view text) const;

 private:
  std::array<char32_t, 256> code_of_;  // by byte
  std::array<int, 0x200> byte_of_;     // by code point, -1 for those outside of the alphabet
};

}  // namespace moepack
