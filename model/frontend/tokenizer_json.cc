#include "model/frontend/tokenizer_json.h"

#include <algorithm>
#include <initializer_list>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <unordered_map>

#include "model/byte_alphabet.h"
#include "model/frontend/chat_files.h"
#include "model/frontend/tokenizer_steps.h"
#include "tokenizer/tokenizer_blob.h"
#include "tokenizer/unicode.h"

namespace moepack {
namespace {

class Compiler {
 public:
  explicit Compiler(uint64_t vocab_size) : vocab_size_(vocab_size) {}

  Status ReadTokenizer(const Json& json) {
    MOEPACK_RETURN_IF_ERROR(KnownKeys(json, "tokenizer.json",
                                      {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
                                       "post_processor", "decoder", "model"}));
    MOEPACK_RETURN_IF_ERROR(ReadTextSteps(json, &data_));
    const Json& model = Member(json, "model");
    MOEPACK_RETURN_IF_ERROR(ReadModel(model));
    MOEPACK_RETURN_IF_ERROR(ReadVocabulary(Member(model, "vocab")));
    MOEPACK_RETURN_IF_ERROR(ReadMerges(Member(model, "merges")));
    MOEPACK_RETURN_IF_ERROR(ReadAddedTokens(Member(json, "added_tokens")));
    return ReadPostProcessor(
        Member(json, "post_processor"), [this](const std::string& text) { return Id(text); }, &data_.beginning);
  }

  // tokenizer_config.json
  Status ReadConfig(const Json& json) {
    MOEPACK_RETURN_IF_ERROR(Neutral(json, "tokenizer_config.json", "add_eos_token", false));
    if (data_.space_prefix == SpacePrefix::kNone) {
      MOEPACK_RETURN_IF_ERROR(Neutral(json, "tokenizer_config.json", "add_prefix_space", false));
    }
    if (Member(json, "add_bos_token") == true && data_.beginning.empty()) {
      MOEPACK_ASSIGN_OR_RETURN(const std::optional<uint32_t> bos, NamedToken(json, "bos_token"));
      if (!bos.has_value()) return Refuse("tokenizer_config.json: add_bos_token", "is true without a bos_token");
      data_.beginning = {*bos};
    }
    MOEPACK_ASSIGN_OR_RETURN(const std::optional<uint32_t> eos, NamedToken(json, "eos_token"));
    return eos.has_value() ? AddEndOfText(*eos, "tokenizer_config.json: eos_token") : Status::Ok();
  }

  // generation_config.json
  Status ReadGenerationConfig(const Json& json) {
    const Json& eos = Member(json, "eos_token_id");
    if (eos.is_null()) return Status::Ok();
    const Json list = eos.is_array() ? eos : Json::array({eos});
    for (const Json& id : list) {
      if (!id.is_number_unsigned()) return Unsupported("generation_config.json: eos_token_id", id);
      MOEPACK_RETURN_IF_ERROR(AddEndOfText(id.get<uint64_t>(), "generation_config.json: eos_token_id"));
    }
    return Status::Ok();
  }

  // The template's pieces, and the first token behind an answer as one that ends it. Returns the note.
  std::string ReadChat(const Json& tokenizer, const Json& config, ByteSpan jinja) {
    ChatOfFiles files = ReadChatOfFiles(jinja, config, added_tokens_);
    if (!files.chat.has_value()) return files.note;
    if (const std::string why = KeepOutOfText(*files.chat); !why.empty()) return why;
    data_.chat = std::move(files.chat);
    data_.chat->space_at_start_only = PrependsFirstOnly(Member(tokenizer, "pre_tokenizer"));
    const auto& after_answer = data_.chat->pieces[static_cast<size_t>(ChatPlace::kAssistantToUser)];
    if (!after_answer.empty() && after_answer[0].is_token() && IsSpecial(after_answer[0].token))
      data_.end_of_text.push_back(after_answer[0].token);
    return files.note;
  }

  Result<Bytes> Finish() {
    SortUnique(&data_.special);
    SortUnique(&data_.end_of_text);
    Bytes blob = SerializeTokenizer(data_);
    // The device's own rules are the last word on what may be shipped.
    if (const auto parsed = Tokenizer::Parse(blob); !parsed.ok()) return parsed.status().With("tokenizer.json");
    return blob;
  }

 private:
  bool IsSpecial(uint32_t id) const { return std::find(data_.special.begin(), data_.special.end(), id) != data_.special.end(); }

  // No message may write what the template writes between messages. Why that cannot be, or nothing.
  std::string KeepOutOfText(const ChatTemplate& chat) {
    std::unordered_map<std::string, uint32_t> tokens;
    for (const std::vector<ChatPiece>& pieces : chat.pieces) {
      for (const ChatPiece& piece : pieces) {
        if (piece.is_token()) tokens.emplace(data_.tokens[piece.token], piece.token);
      }
    }
    for (const auto& [left, right] : data_.merges) {
      const auto found = tokens.find(data_.tokens[left] + data_.tokens[right]);
      if (found != tokens.end())
        return "chat template refused: its token \"" + found->first + "\" is one that text becomes by merges";
    }
    // Those that text could become as a whole.
    for (const auto& [text, id] : tokens) {
      if (text.size() == 1) return "chat template refused: its token \"" + text + "\" is a byte of any text";
      if (!IsSpecial(id)) data_.special.push_back(id);
    }
    return "";
  }

  static void SortUnique(std::vector<uint32_t>* ids) {
    std::sort(ids->begin(), ids->end());
    ids->erase(std::unique(ids->begin(), ids->end()), ids->end());
  }

  // Id of an added token or one of the vocabulary.
  std::optional<uint32_t> Id(const std::string& text) const {
    if (const auto it = added_.find(text); it != added_.end()) return it->second;
    if (const auto it = vocabulary_.find(text); it != vocabulary_.end()) return it->second;
    return std::nullopt;
  }

  // The token that a key of tokenizer_config.json names, as text or as an object with a content.
  Result<std::optional<uint32_t>> NamedToken(const Json& json, const char* key) const {
    const std::string field = std::string("tokenizer_config.json: ") + key;
    const Json* value = &Member(json, key);
    if (value->is_object()) value = &Member(*value, "content");
    if (value->is_null()) return std::optional<uint32_t>();
    if (!value->is_string()) return Unsupported(field, *value);
    const std::optional<uint32_t> id = Id(value->get<std::string>());
    if (id.has_value()) return id;
    return Refuse(field, "\"" + value->get<std::string>() + "\" is not a token of tokenizer.json");
  }

  Status ReadModel(const Json& model) {
    const std::string field = "tokenizer.json: model";
    if (!model.is_object()) return Refuse(field, "missing");
    MOEPACK_RETURN_IF_ERROR(KnownKeys(model, field,
                                      {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
                                       "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"}));
    if (!IsType(model, "BPE")) return Unsupported(field + ".type", Member(model, "type"));
    const Json& whole = Member(model, "ignore_merges");
    if (!whole.is_null() && !whole.is_boolean()) return Unsupported(field + ".ignore_merges", whole);
    data_.whole_pieces = whole == true;
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      MOEPACK_RETURN_IF_ERROR(Neutral(model, field, key, ""));
    }
    MOEPACK_RETURN_IF_ERROR(Neutral(model, field, "dropout", nullptr));
    if (sentence_piece()) {
      // With a token for every byte nothing is unknown: fuse_unk and unk_token have no effect.
      return Member(model, "byte_fallback") == true
                 ? Status::Ok()
                 : Refuse(field + ".byte_fallback", "must be true without byte-level text");
    }
    for (const char* key : {"fuse_unk", "byte_fallback"}) MOEPACK_RETURN_IF_ERROR(Neutral(model, field, key, false));
    return Neutral(model, field, "unk_token", nullptr);
  }

  bool sentence_piece() const { return data_.pre_tokenizer == PreTokenizer::kSentencePiece; }

  // Bytes of a token of the vocabulary; nothing when it is not in the byte-level alphabet.
  std::optional<std::string> TokenBytes(const std::string& text, uint32_t id) {
    if (!sentence_piece()) return alphabet_.Decode(text);
    if (const std::optional<uint8_t> byte = ByteTokenValue(text)) {
      byte_tokens_[*byte] = id;
      return std::string(1, static_cast<char>(*byte));
    }
    return MarksToSpaces(text);
  }

  Status CheckByteTokens() {
    if (!sentence_piece()) return Status::Ok();
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const auto it = byte_tokens_.find(static_cast<uint8_t>(byte));
      if (it == byte_tokens_.end())
        return Refuse("tokenizer.json: model.vocab", StrFormat("byte_fallback without a token <0x%02X>", byte));
      data_.bytes.push_back(it->second);
    }
    return Status::Ok();
  }

  // Checks an id and makes room for it.
  Result<uint32_t> TokenId(const Json& value, const std::string& field) {
    if (!value.is_number_unsigned()) return Refuse(field, "the id is not a number of at least 0");
    const uint64_t id = value.get<uint64_t>();
    if (id >= vocab_size_ || id >= kMaxTokens) {
      return Refuse(field, StrFormat("id %llu, but the model has %llu tokens", static_cast<unsigned long long>(id),
                                     static_cast<unsigned long long>(vocab_size_)));
    }
    if (id >= data_.tokens.size()) data_.tokens.resize(id + 1);
    return static_cast<uint32_t>(id);
  }

  Status ReadVocabulary(const Json& vocab) {
    if (!vocab.is_object()) return Refuse("tokenizer.json: model.vocab", "missing");
    for (const auto& [text, value] : vocab.items()) {
      const std::string field = "tokenizer.json: model.vocab[\"" + text + "\"]";
      MOEPACK_ASSIGN_OR_RETURN(const uint32_t id, TokenId(value, field));
      const std::optional<std::string> bytes = TokenBytes(text, id);
      // Special tokens may be listed among the ordinary ones in plain text; added_tokens must then say so.
      if (!bytes.has_value()) plain_.emplace(id, text);
      const std::string& token = bytes.has_value() ? *bytes : text;
      if (token.empty() || token.size() > kMaxTokenBytes)
        return Refuse(field, StrFormat("empty or longer than %u bytes", kMaxTokenBytes));
      if (!data_.tokens[id].empty()) return Refuse(field, StrFormat("id %u is already taken", id));
      data_.tokens[id] = token;
      vocabulary_.emplace(text, id);
    }
    return CheckByteTokens();
  }

  Result<uint32_t> MergePart(const std::string& text, size_t rank) const {
    const auto it = vocabulary_.find(text);
    if (it == vocabulary_.end()) {
      return Refuse(StrFormat("tokenizer.json: model.merges[%zu]", rank), "\"" + text + "\" is not in the vocabulary");
    }
    return it->second;
  }

  Status ReadMerges(const Json& merges) {
    if (!merges.is_array()) return Refuse("tokenizer.json: model.merges", "missing");
    for (size_t rank = 0; rank < merges.size(); ++rank) {
      const Json& merge = merges[rank];
      std::string left, right;
      if (merge.is_string()) {
        const std::string text = merge.get<std::string>();
        const size_t space = text.find(' ');
        if (space != std::string::npos) left = text.substr(0, space), right = text.substr(space + 1);
      } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
        left = merge[0].get<std::string>(), right = merge[1].get<std::string>();
      }
      if (left.empty() || right.empty()) return Unsupported(StrFormat("tokenizer.json: model.merges[%zu]", rank), merge);
      MOEPACK_ASSIGN_OR_RETURN(const uint32_t a, MergePart(left, rank));
      MOEPACK_ASSIGN_OR_RETURN(const uint32_t b, MergePart(right, rank));
      data_.merges.emplace_back(a, b);
    }
    return Status::Ok();
  }

  // Tokens that text never becomes. Those that are not special are still shown by Decode.
  Status ReadAddedTokens(const Json& added) {
    if (!added.is_null() && !added.is_array()) return Refuse("tokenizer.json: added_tokens", "not a list");
    for (size_t i = 0; i < added.size(); ++i) {
      const std::string field = StrFormat("tokenizer.json: added_tokens[%zu]", i);
      const Json &content = Member(added[i], "content"), &special = Member(added[i], "special");
      if (!content.is_string() || !special.is_boolean()) return Refuse(field, "needs a content and a special flag");
      MOEPACK_ASSIGN_OR_RETURN(const uint32_t id, TokenId(Member(added[i], "id"), field));
      const std::string text = content.get<std::string>();
      if (text.empty() || text.size() > kMaxTokenBytes)
        return Refuse(field, StrFormat("empty or longer than %u bytes", kMaxTokenBytes));
      if (!data_.tokens[id].empty() && data_.tokens[id] != text) {
        return Refuse(field, StrFormat("\"%s\" has id %u of another token", text.c_str(), id));
      }
      if (!added_.emplace(text, id).second) return Refuse(field, "\"" + text + "\" is there twice");
      data_.tokens[id] = text;
      added_tokens_.push_back({text, id, Member(added[i], "lstrip") == true, Member(added[i], "rstrip") == true});
      plain_.erase(id);
      if (special.get<bool>()) data_.special.push_back(id);
    }
    if (plain_.empty()) return Status::Ok();
    return Refuse("tokenizer.json: model.vocab[\"" + plain_.begin()->second + "\"]", "not in the byte-level alphabet");
  }

  // Metaspace that puts its mark before the start of a text, not before what follows a special token.
  static bool PrependsFirstOnly(const Json& pre_tokenizer) {
    const Json& steps = Member(pre_tokenizer, "pretokenizers");
    if (steps.is_array()) return std::any_of(steps.begin(), steps.end(), PrependsFirstOnly);
    return IsType(pre_tokenizer, "Metaspace") && Member(pre_tokenizer, "prepend_scheme") == "first";
  }

  Status AddEndOfText(uint64_t id, const std::string& field) {
    if (id >= data_.tokens.size() || data_.tokens[id].empty()) {
      return Refuse(field, StrFormat("token %llu is not in tokenizer.json", static_cast<unsigned long long>(id)));
    }
    data_.end_of_text.push_back(static_cast<uint32_t>(id));
    return Status::Ok();
  }

  uint64_t vocab_size_;
  TokenizerData data_;
  const ByteAlphabet alphabet_;
  std::map<uint8_t, uint32_t> byte_tokens_;               // SentencePiece
  std::unordered_map<std::string, uint32_t> vocabulary_;  // by its text in the file
  std::unordered_map<std::string, uint32_t> added_;
  std::vector<AddedToken> added_tokens_;
  std::map<uint32_t, std::string> plain_;  // vocabulary entries outside the byte alphabet, not yet explained by added_tokens
};

}  // namespace

Result<Bytes> CompileTokenizerJson(ByteSpan tokenizer_json, ByteSpan tokenizer_config_json, ByteSpan generation_config_json,
                                   uint64_t vocab_size, ByteSpan chat_template_jinja, std::string* chat_note) {
  Compiler compiler(vocab_size);
  MOEPACK_ASSIGN_OR_RETURN(const Json tokenizer, ParseObject(tokenizer_json, "tokenizer.json"));
  MOEPACK_RETURN_IF_ERROR(compiler.ReadTokenizer(tokenizer));
  Json config;
  if (!tokenizer_config_json.empty()) {
    MOEPACK_ASSIGN_OR_RETURN(config, ParseObject(tokenizer_config_json, "tokenizer_config.json"));
    MOEPACK_RETURN_IF_ERROR(compiler.ReadConfig(config));
  }
  if (!generation_config_json.empty()) {
    MOEPACK_ASSIGN_OR_RETURN(const Json generation, ParseObject(generation_config_json, "generation_config.json"));
    MOEPACK_RETURN_IF_ERROR(compiler.ReadGenerationConfig(generation));
  }
  const std::string note = compiler.ReadChat(tokenizer, config, chat_template_jinja);
  if (chat_note != nullptr) *chat_note = note;
  return compiler.Finish();
}

}  // namespace moepack
