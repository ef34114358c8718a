// A chat template as data: what stands before, between and behind the messages of a conversation. Reduced from a
// checkpoint's Jinja when the model is read (model/chat/reduce.h); this header builds prompts from it.
//
// A conversation is an optional system message, then messages of user and assistant in turn, beginning and ending with the
// user. Special tokens come from the template only: a message's text never becomes one.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace moepack {

enum class ChatRole : uint8_t { kSystem = 0, kUser = 1, kAssistant = 2 };
inline constexpr size_t kChatRoles = 3;
// "system", "user", "assistant". Static storage.
const char* ChatRoleName(ChatRole role);

struct ChatMessage {
  ChatRole role = ChatRole::kUser;
  std::string content;  // any bytes
};

// Where the text of a template stands.
enum class ChatPlace : uint8_t {
  kBeforeSystem = 0,  // begins a conversation with a system message
  kBeforeUser = 1,    // begins one without
  kSystemToUser = 2,
  kUserToAssistant = 3,
  kAssistantToUser = 4,
  kUserToAnswer = 5,  // behind the last message: what is generated follows
};
inline constexpr size_t kChatPlaces = 6;

// A token, or text that is encoded together with the text around it.
struct ChatPiece {
  std::string text;  // empty for a token
  uint32_t token = 0;
  bool strips_before = false, strips_after = false;  // of a token: white space next to it goes away

  bool is_token() const { return text.empty(); }
  bool operator==(const ChatPiece&) const = default;
};

// Contents of a role that the template treats in another way than the pieces do: those that hold `text`; with an empty
// text those of white space only.
struct ChatExclusion {
  ChatRole role = ChatRole::kUser;
  std::string text;

  bool operator==(const ChatExclusion&) const = default;
};

struct ChatTemplate {
  bool with_system = false, without_system = false;  // at least one; the pieces that only the other needs are empty
  bool space_at_start_only = false;                  // a tokenizer's space before text goes only before the first piece
  std::array<bool, kChatRoles> trims = {};           // white space around contents goes away
  std::array<std::vector<ChatPiece>, kChatPlaces> pieces;
  std::vector<ChatExclusion> exclusions;

  bool operator==(const ChatTemplate&) const = default;
};

inline constexpr uint32_t kMaxChatPieces = 64;   // of a place
inline constexpr uint32_t kMaxChatText = 16384;  // bytes of a piece
inline constexpr uint32_t kMaxChatExclusions = 16;
inline constexpr uint32_t kMaxChatExclusionText = 255;

// kUsage when the roles are not in the order above, the template has no place for them, or a content is excluded; says
// which.
Status CheckConversation(const ChatTemplate& chat, std::span<const ChatMessage> messages);

// The conversation up to where the answer begins: pieces in order, contents among them as text. What stands next to each
// other as text is one piece, white space that a template or a token takes away is gone. Fails as CheckConversation.
Result<std::vector<ChatPiece>> JoinConversation(const ChatTemplate& chat, std::span<const ChatMessage> messages);

// The text without white space (what Python's str.strip takes away) at its begin, end or both.
std::string_view StripSpaces(std::string_view text, bool begin, bool end);

}  // namespace moepack
