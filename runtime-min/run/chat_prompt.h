// The prompt of moepack run generate --chat: messages through the bundle's chat template.
#pragma once

#include <string>
#include <vector>

#include "runtime-min/run/session.h"

namespace moepack::run {

// --chat, --system and --messages.
void AddChatOptions(cli::Command* command);

// kUsage when options that do not go together are given. Nothing is opened.
Status CheckChatOptions(const cli::Command& command);

// Whether the prompt is a conversation.
bool IsChat(const cli::Command& command);

// Tokens of the conversation: --system and `prompt` as the user's message, or the file of --messages. kUsage as
// Tokenizer::EncodeChat; kBadInput names what is wrong in the file.
Result<std::vector<int32_t>> ChatTokens(const cli::Command& command, const Tokenizer& tokenizer, const std::string& prompt);

}  // namespace moepack::run
