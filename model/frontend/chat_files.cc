#include "model/frontend/chat_files.h"

#include <map>

#include "model/chat/reduce.h"
#include "model/frontend/tokenizer_steps.h"

namespace moepack {
namespace {

constexpr const char* kTokenKeys[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                      "pad_token", "cls_token", "mask_token"};

struct Source {
  std::string text, name;
};

// Nothing when there is no template; an error for one that cannot be found in what is there.
Result<std::optional<Source>> FindSource(ByteSpan jinja, const Json& config) {
  if (!jinja.empty()) return std::optional<Source>({std::string(AsText(jinja)), "chat_template.jinja"});
  const std::string name = "tokenizer_config.json: chat_template";
  const Json& value = Member(config, "chat_template");
  if (value.is_null()) return std::optional<Source>();
  if (value.is_string()) return std::optional<Source>({value.get<std::string>(), name});
  if (!value.is_array()) return Refuse(name, "neither a text nor a list of them");
  for (const Json& entry : value) {
    const Json& text = Member(entry, "template");
    if (Member(entry, "name") == "default" && text.is_string()) {
      return std::optional<Source>({text.get<std::string>(), name + " \"default\""});
    }
  }
  return Refuse(name, "none of them is named \"default\"");
}

std::map<std::string, std::string> SpecialTokens(const Json& config) {
  std::map<std::string, std::string> out;
  for (const char* key : kTokenKeys) {
    const Json* value = &Member(config, key);
    if (value->is_object()) value = &Member(*value, "content");
    if (value->is_string()) out[key] = value->get<std::string>();
  }
  return out;
}

// The token that begins at text[at], the longest if there are several; null when there is none.
const AddedToken* TokenAt(std::string_view text, size_t at, const std::vector<AddedToken>& added) {
  const AddedToken* best = nullptr;
  for (const AddedToken& token : added) {
    if (!text.substr(at).starts_with(token.text)) continue;
    if (best == nullptr || token.text.size() > best->text.size()) best = &token;
  }
  return best;
}

std::vector<ChatPiece> CutAtTokens(std::string_view text, const std::vector<AddedToken>& added) {
  std::vector<ChatPiece> out;
  for (size_t at = 0; at < text.size();) {
    const AddedToken* token = TokenAt(text, at, added);
    if (token != nullptr) {
      out.push_back({"", token->id, token->strips_before, token->strips_after});
      at += token->text.size();
      continue;
    }
    if (out.empty() || out.back().is_token()) out.emplace_back();
    out.back().text.push_back(text[at++]);
  }
  return out;
}

}  // namespace

ChatOfFiles ReadChatOfFiles(ByteSpan chat_template_jinja, const Json& tokenizer_config,
                            const std::vector<AddedToken>& added) {
  ChatOfFiles out;
  const Result<std::optional<Source>> source = FindSource(chat_template_jinja, tokenizer_config);
  if (!source.ok()) out.note = "chat template refused: " + source.status().message();
  if (!source.ok() || !source->has_value()) return out;
  const std::string& name = (*source)->name;
  Result<ReducedChat> reduced = ReduceChatTemplate((*source)->text, SpecialTokens(tokenizer_config));
  if (!reduced.ok()) {
    out.note = "chat template refused: " + name + ": " + reduced.status().message();
    return out;
  }
  for (std::vector<ChatPiece>& pieces : reduced->chat.pieces) {
    if (pieces.empty()) continue;
    pieces = CutAtTokens(pieces[0].text, added);
    if (pieces.size() <= kMaxChatPieces) continue;
    out.note = "chat template refused: " + name + StrFormat(": more than %u tokens in a row", kMaxChatPieces);
    return out;
  }
  for (const std::string& note : reduced->notes) {
    out.note += (out.note.empty() ? "chat template: " + name + ": " : "; ") + note;
  }
  out.chat = std::move(reduced->chat);
  return out;
}

}  // namespace moepack
