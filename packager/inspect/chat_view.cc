#include "packager/inspect/chat_view.h"

#include "base/status.h"
#include "tokenizer/tokenizer.h"

namespace moepack {
namespace {

using Json = nlohmann::json;

constexpr const char* kPlaces[kChatPlaces] = {"before_system",     "before_user",       "system_to_user",
                                              "user_to_assistant", "assistant_to_user", "user_to_answer"};

std::string Dumped(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

Json PiecesJson(const Tokenizer& tokenizer, const std::vector<ChatPiece>& pieces) {
  Json out = Json::array();
  for (const ChatPiece& piece : pieces) {
    if (piece.is_token()) {
      out.push_back({{"token", piece.token}, {"text", std::string(tokenizer.TokenText(piece.token))}});
    } else {
      out.push_back({{"text", piece.text}});
    }
  }
  return out;
}

Json TemplateJson(const Tokenizer& tokenizer, const ChatTemplate& chat) {
  Json out = {{"with_system", chat.with_system}, {"without_system", chat.without_system}};
  for (size_t place = 0; place < kChatPlaces; ++place) out[kPlaces[place]] = PiecesJson(tokenizer, chat.pieces[place]);
  out["trims"] = Json::array();
  for (size_t role = 0; role < kChatRoles; ++role) {
    if (chat.trims[role]) out["trims"].push_back(ChatRoleName(static_cast<ChatRole>(role)));
  }
  out["excluded"] = Json::array();
  for (const ChatExclusion& exclusion : chat.exclusions) {
    out["excluded"].push_back({{"role", ChatRoleName(exclusion.role)}, {"text", exclusion.text}});
  }
  return out;
}

}  // namespace

Json ChatJson(ByteSpan tokenizer_blob) {
  if (tokenizer_blob.empty()) return nullptr;
  const auto tokenizer = Tokenizer::Parse(tokenizer_blob);
  if (!tokenizer.ok() || (*tokenizer)->chat_template() == nullptr) return nullptr;
  // Texts are of any bytes: what is not UTF-8 is shown as U+FFFD.
  return Json::parse(Dumped(TemplateJson(**tokenizer, *(*tokenizer)->chat_template())));
}

std::string ChatText(ByteSpan tokenizer_blob) {
  const Json chat = ChatJson(tokenizer_blob);
  if (chat.is_null()) return "";
  std::string out = "chat template\n";
  for (const char* place : kPlaces) {
    std::string text;
    for (const Json& piece : chat[place]) text += piece["text"].get<std::string>();
    if (!text.empty()) out += StrFormat("  %-18s %s\n", place, Dumped(text).c_str());
  }
  if (!chat["trims"].empty()) out += StrFormat("  %-18s %s\n", "trims", Dumped(chat["trims"]).c_str());
  for (const Json& exclusion : chat["excluded"]) {
    out += StrFormat("  %-18s %s: %s\n", "excluded", exclusion["role"].get<std::string>().c_str(),
                     Dumped(exclusion["text"]).c_str());
  }
  return out;
}

}  // namespace moepack
