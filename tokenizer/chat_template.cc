#include "tokenizer/chat_template.h"

#include "tokenizer/unicode.h"

namespace moepack {
namespace {

// White_Space and the four separators that Python counts too.
bool IsSpace(char32_t code) { return CategoryOf(code) == Category::kSpace || (code >= 0x1C && code <= 0x1F); }

// Bytes of the space at the end of a text, 0 when there is none.
size_t SpaceAtEnd(std::string_view text) {
  for (size_t length = 1; length <= 3 && length <= text.size(); ++length) {
    const CodePoint last = DecodeUtf8(text, text.size() - length);
    if (last.length == length && IsSpace(last.code)) return length;
  }
  return 0;
}

ChatPlace PlaceBefore(std::span<const ChatMessage> messages, size_t i) {
  const ChatRole role = messages[i].role;
  if (i == 0) return role == ChatRole::kSystem ? ChatPlace::kBeforeSystem : ChatPlace::kBeforeUser;
  if (role == ChatRole::kAssistant) return ChatPlace::kUserToAssistant;
  return messages[i - 1].role == ChatRole::kSystem ? ChatPlace::kSystemToUser : ChatPlace::kAssistantToUser;
}

ChatRole RoleAt(std::span<const ChatMessage> messages, size_t i) {
  const bool system = messages[0].role == ChatRole::kSystem;
  if (i == 0 && system) return ChatRole::kSystem;
  return (i % 2 == 0) == system ? ChatRole::kAssistant : ChatRole::kUser;
}

std::string_view ContentOf(const ChatTemplate& chat, const ChatMessage& message) {
  const bool trims = chat.trims[static_cast<size_t>(message.role)];
  return StripSpaces(message.content, trims, trims);
}

// Appends pieces; neighbouring texts become one, and tokens take white space away.
class Joiner {
 public:
  void Add(const ChatPiece& piece) {
    if (!piece.is_token()) return AddText(piece.text);
    if (piece.strips_before && !out_.empty() && !out_.back().is_token()) {
      out_.back().text = std::string(StripSpaces(out_.back().text, false, true));
      if (out_.back().text.empty()) out_.pop_back();
    }
    out_.push_back(piece);
  }

  void AddText(std::string_view text) {
    if (!out_.empty() && out_.back().is_token() && out_.back().strips_after) text = StripSpaces(text, true, false);
    if (text.empty()) return;
    if (out_.empty() || out_.back().is_token()) out_.emplace_back();
    out_.back().text += text;
  }

  std::vector<ChatPiece> Take() { return std::move(out_); }

 private:
  std::vector<ChatPiece> out_;
};

}  // namespace

const char* ChatRoleName(ChatRole role) {
  constexpr const char* kNames[] = {"system", "user", "assistant"};
  return kNames[static_cast<size_t>(role)];
}

std::string_view StripSpaces(std::string_view text, bool begin, bool end) {
  while (begin && !text.empty()) {
    const CodePoint first = DecodeUtf8(text, 0);
    if (!IsSpace(first.code)) break;
    text.remove_prefix(first.length);
  }
  while (end) {
    const size_t length = SpaceAtEnd(text);
    if (length == 0) break;
    text.remove_suffix(length);
  }
  return text;
}

Status CheckConversation(const ChatTemplate& chat, std::span<const ChatMessage> messages) {
  if (messages.empty()) return Status(ErrorCode::kUsage, "a conversation without messages");
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatRole role = messages[i].role;
    if (role != RoleAt(messages, i)) {
      return Status(ErrorCode::kUsage,
                    StrFormat("message %zu is the %s's, expected the %s's: one system message at most, then user and "
                              "assistant in turn",
                              i, ChatRoleName(role), ChatRoleName(RoleAt(messages, i))));
    }
    for (const ChatExclusion& exclusion : chat.exclusions) {
      const std::string_view content = messages[i].content;
      const bool hit = exclusion.text.empty() ? StripSpaces(content, true, true).empty()
                                              : content.find(exclusion.text) != std::string_view::npos;
      if (exclusion.role != role || !hit) continue;
      const std::string what = exclusion.text.empty() ? "is empty" : "holds \"" + exclusion.text + "\"";
      return Status(ErrorCode::kUsage,
                    StrFormat("message %zu (%s) %s, which the model's chat template treats in another way", i,
                              ChatRoleName(role), what.c_str()));
    }
  }
  if (messages.back().role != ChatRole::kUser) return Status(ErrorCode::kUsage, "the last message is not the user's");
  const bool system = messages[0].role == ChatRole::kSystem;
  if (system && !chat.with_system) return Status(ErrorCode::kUsage, "the model's chat template has no system message");
  if (!system && !chat.without_system) return Status(ErrorCode::kUsage, "the model's chat template needs a system message");
  return Status::Ok();
}

Result<std::vector<ChatPiece>> JoinConversation(const ChatTemplate& chat, std::span<const ChatMessage> messages) {
  MOEPACK_RETURN_IF_ERROR(CheckConversation(chat, messages));
  Joiner joiner;
  const auto add = [&](ChatPlace place) {
    for (const ChatPiece& piece : chat.pieces[static_cast<size_t>(place)]) joiner.Add(piece);
  };
  for (size_t i = 0; i < messages.size(); ++i) {
    add(PlaceBefore(messages, i));
    joiner.AddText(ContentOf(chat, messages[i]));
  }
  add(ChatPlace::kUserToAnswer);
  return joiner.Take();
}

}  // namespace moepack
