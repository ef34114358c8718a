// Cuts a Jinja template into text and the tokens of its tags. Internal to model/chat.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace moepack::jinja {

enum class TokenKind : uint8_t {
  kText,
  kBlockBegin,
  kBlockEnd,
  kOutputBegin,
  kOutputEnd,
  kName,
  kString,
  kInteger,
  kOperator,
  kEnd
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  uint32_t line = 0;
  std::string text;
};

// Whitespace around tags is already removed where the template or its set-up asks for it. The last token is kEnd.
Result<std::vector<Token>> Tokenize(std::string_view source);

// kUnsupported with "line N: ".
Status At(uint32_t line, const std::string& what);

}  // namespace moepack::jinja
