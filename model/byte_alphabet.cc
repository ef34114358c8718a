#include "model/byte_alphabet.h"

#include "tokenizer/unicode.h"

namespace moepack {

ByteAlphabet::ByteAlphabet() {
  byte_of_.fill(-1);
  char32_t next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool prints = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    const char32_t code = prints ? static_cast<char32_t>(byte) : next++;
    code_of_[static_cast<size_t>(byte)] = code;
    byte_of_[code] = byte;
  }
}

std::string ByteAlphabet::Encode(std::string_view bytes) const {
  std::string text;
  for (const char byte : bytes) AppendUtf8(code_of_[static_cast<uint8_t>(byte)], &text);
  return text;
}

std::optional<std::string> ByteAlphabet::Decode(std::string_view text) const {
  std::string bytes;
  for (size_t at = 0; at < text.size();) {
    const CodePoint point = DecodeUtf8(text, at);
    if (point.code >= byte_of_.size() || byte_of_[point.code] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(byte_of_[point.code]));
    at += point.length;
  }
  return bytes;
}

}  // namespace moepack
