#include "runtime-min/run/chat_prompt.h"

namespace moepack::run {
namespace {

namespace po = boost::program_options;
using Json = nlohmann::json;

constexpr uint64_t kMaxMessagesBytes = 64 << 20;

Result<ChatMessage> ReadMessage(const Json& json, const std::string& where) {
  if (!json.is_object() || json.size() != 2 || !json.contains("role") || !json.contains("content") ||
      !json["content"].is_string()) {
    return Status(ErrorCode::kBadInput, where + R"(: expected {"role": "...", "content": "..."})");
  }
  for (const ChatRole role : {ChatRole::kSystem, ChatRole::kUser, ChatRole::kAssistant}) {
    if (json["role"] == ChatRoleName(role)) return ChatMessage{role, json["content"].get<std::string>()};
  }
  return Status(ErrorCode::kBadInput, where + ": role: expected system, user or assistant");
}

Result<std::vector<ChatMessage>> ReadMessages(const std::string& path) {
  MOEPACK_ASSIGN_OR_RETURN(const Bytes bytes, ReadFile(PosixEnv(), path, kMaxMessagesBytes));
  const Json list = Json::parse(AsText(bytes), nullptr, /*allow_exceptions=*/false);
  if (!list.is_array()) return Status(ErrorCode::kBadInput, path + ": expected a list of messages in JSON");
  std::vector<ChatMessage> messages;
  for (const Json& json : list) {
    MOEPACK_ASSIGN_OR_RETURN(ChatMessage message, ReadMessage(json, path + StrFormat(": message %zu", messages.size())));
    messages.push_back(std::move(message));
  }
  return messages;
}

}  // namespace

void AddChatOptions(cli::Command* command) {
  command->options().add_options()("chat", "the prompt is a user's message: put it through the model's chat template")(
      "system", po::value<std::string>(), "with --chat: the system message before it")(
      "messages", po::value<std::string>(),
      "file with a conversation instead of a prompt: [{\"role\": \"user\", \"content\": \"...\"}, ...]");
}

bool IsChat(const cli::Command& command) { return command.Has("chat") || command.Has("messages"); }

Status CheckChatOptions(const cli::Command& command) {
  if (command.Has("system") && (!command.Has("chat") || command.Has("messages"))) {
    return Status(ErrorCode::kUsage, "--system goes with --chat and a prompt");
  }
  if (command.Has("messages") && (command.Has("prompt") || command.Has("prompt-file"))) {
    return Status(ErrorCode::kUsage, "--messages and a prompt: give one of them");
  }
  if (IsChat(command) && command.Has("load-state")) {
    return Status(ErrorCode::kUsage, "--load-state goes on from plain text: give the whole conversation with --messages");
  }
  return Status::Ok();
}

Result<std::vector<int32_t>> ChatTokens(const cli::Command& command, const Tokenizer& tokenizer, const std::string& prompt) {
  std::vector<ChatMessage> messages;
  if (command.Has("messages")) {
    MOEPACK_ASSIGN_OR_RETURN(messages, ReadMessages(command.Get<std::string>("messages")));
  } else {
    if (command.Has("system")) messages.push_back({ChatRole::kSystem, command.Get<std::string>("system")});
    messages.push_back({ChatRole::kUser, prompt});
  }
  return tokenizer.EncodeChat(messages);
}

}  // namespace moepack::run
