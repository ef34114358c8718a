// The chat template of a checkpoint's files, as pieces of its tokenizer's tokens. Internal to tokenizer_json.cc.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"
#include "tokenizer/chat_template.h"

namespace moepack {

// An entry of added_tokens.
struct AddedToken {
  std::string text;
  uint32_t id = 0;
  bool strips_before = false, strips_after = false;
};

struct ChatOfFiles {
  std::optional<ChatTemplate> chat;
  std::string note;  // why there is none, or what is left out; empty when there is nothing to say
};

// The template of chat_template.jinja, or of tokenizer_config.json's chat_template (a string, or the one named "default" of
// several), reduced (model/chat/reduce.h), with tokens where its text has their text. Both sources may be empty or null.
// What cannot be reduced is no error: the note says it.
ChatOfFiles ReadChatOfFiles(ByteSpan chat_template_jinja, const nlohmann::json& tokenizer_config,
                            const std::vector<AddedToken>& added);

}  // namespace moepack
