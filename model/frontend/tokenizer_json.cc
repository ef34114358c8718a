#include "model/frontend/tokenizer_json.h"

#include <algorithm>
#include <array>
#include <initializer_list>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <unordered_map>

#include "tokenizer/tokenizer.h"

namespace moepack {
namespace {

using Json = nlohmann::json;

constexpr const char* kQwen2Pattern =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| "
    "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
// Caps of the blob (tokenizer/tokenizer_blob.h), checked here before anything is allocated by them.
constexpr uint64_t kMaxTokens = 1u << 20;
constexpr size_t kMaxTokenBytes = 1024;

Status Refuse(const std::string& field, const std::string& what) {
  return Status(ErrorCode::kTokenizer, field + ": " + what);
}

Status Unsupported(const std::string& field, const Json& value) {
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > 120) text = text.substr(0, 120) + "...";
  return Refuse(field, "this version does not implement " + text);
}

Result<Json> ParseObject(ByteSpan bytes, const char* file) {
  Json json = Json::parse(bytes.begin(), bytes.end(), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return Refuse(file, "not a JSON object");
  return json;
}

// The member, or null when it is absent.
const Json& Member(const Json& object, const char* key) {
  static const Json kNull;
  if (!object.is_object()) return kNull;
  const auto it = object.find(key);
  return it == object.end() ? kNull : *it;
}

bool IsType(const Json& value, const char* type) { return Member(value, "type") == type; }

Status KnownKeys(const Json& object, const std::string& field, std::initializer_list<const char*> known) {
  for (const auto& [key, value] : object.items()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) return Refuse(field + "." + key, "unknown field");
  }
  return Status::Ok();
}

// The member is absent, null or `neutral`.
Status Neutral(const Json& object, const std::string& field, const char* key, const Json& neutral) {
  const Json& value = Member(object, key);
  if (value.is_null() || value == neutral) return Status::Ok();
  return Unsupported(field + "." + key, value);
}

// Reads the printable alphabet of byte-level BPE, in which every byte is one character.
class ByteAlphabet {
 public:
  ByteAlphabet() {
    byte_of_.fill(-1);
    int next = 256;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      byte_of_[static_cast<size_t>(printable ? byte : next++)] = byte;
    }
  }

  // Nothing when a character is not of the alphabet. All of it is below U+0800: at most two bytes each.
  std::optional<std::string> Decode(const std::string& text) const {
    std::string bytes;
    for (size_t i = 0; i < text.size(); ++i) {
      size_t code = static_cast<uint8_t>(text[i]);
      if (code >= 0x80) {
        if (code < 0xC2 || code > 0xDF || i + 1 == text.size()) return std::nullopt;
        code = ((code & 0x1F) << 6) | (static_cast<uint8_t>(text[++i]) & 0x3F);
      }
      if (code >= byte_of_.size() || byte_of_[code] < 0) return std::nullopt;
      bytes.push_back(static_cast<char>(byte_of_[code]));
    }
    return bytes;
  }

 private:
  std::array<int, 0x200> byte_of_;
};

class Compiler {
 public:
  explicit Compiler(uint64_t vocab_size) : vocab_size_(vocab_size) {}

  Status ReadTokenizer(const Json& json) {
    MOEPACK_RETURN_IF_ERROR(KnownKeys(json, "tokenizer.json",
                                      {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
                                       "post_processor", "decoder", "model"}));
    MOEPACK_RETURN_IF_ERROR(ReadNormalizer(Member(json, "normalizer")));
    MOEPACK_RETURN_IF_ERROR(CheckPreTokenizer(Member(json, "pre_tokenizer")));
    const Json& post = Member(json, "post_processor");
    if (!post.is_null() && !IsType(post, "ByteLevel")) return Unsupported("tokenizer.json: post_processor", post);
    const Json& decoder = Member(json, "decoder");
    if (!IsType(decoder, "ByteLevel")) return Unsupported("tokenizer.json: decoder", decoder);
    const Json& model = Member(json, "model");
    MOEPACK_RETURN_IF_ERROR(CheckModel(model));
    MOEPACK_RETURN_IF_ERROR(ReadVocabulary(Member(model, "vocab")));
    MOEPACK_RETURN_IF_ERROR(ReadMerges(Member(model, "merges")));
    return ReadAddedTokens(Member(json, "added_tokens"));
  }

  // tokenizer_config.json
  Status ReadConfig(const Json& json) {
    for (const char* key : {"add_prefix_space", "add_bos_token", "add_eos_token"}) {
      MOEPACK_RETURN_IF_ERROR(Neutral(json, "tokenizer_config.json", key, false));
    }
    const Json* eos = &Member(json, "eos_token");
    if (eos->is_object()) eos = &Member(*eos, "content");
    if (eos->is_null()) return Status::Ok();
    if (!eos->is_string()) return Unsupported("tokenizer_config.json: eos_token", *eos);
    const std::string text = eos->get<std::string>();
    if (const auto it = added_.find(text); it != added_.end())
      return AddEndOfText(it->second, "tokenizer_config.json: eos_token");
    if (const auto it = vocabulary_.find(text); it != vocabulary_.end()) {
      return AddEndOfText(it->second, "tokenizer_config.json: eos_token");
    }
    return Refuse("tokenizer_config.json: eos_token", "\"" + text + "\" is not a token of tokenizer.json");
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

  Result<Bytes> Finish() {
    SortUnique(&data_.special);
    SortUnique(&data_.end_of_text);
    Bytes blob = SerializeTokenizer(data_);
    // The device's own rules are the last word on what may be shipped.
    if (const auto parsed = Tokenizer::Parse(blob); !parsed.ok()) return parsed.status().With("tokenizer.json");
    return blob;
  }

 private:
  static void SortUnique(std::vector<uint32_t>* ids) {
    std::sort(ids->begin(), ids->end());
    ids->erase(std::unique(ids->begin(), ids->end()), ids->end());
  }

  Status ReadNormalizer(const Json& json) {
    if (json.is_null()) return Status::Ok();
    if (!IsType(json, "NFC")) return Unsupported("tokenizer.json: normalizer", json);
    data_.normalizer = Normalizer::kNfc;
    return Status::Ok();
  }

  static Status CheckPreTokenizer(const Json& json) {
    const std::string field = "tokenizer.json: pre_tokenizer";
    const Json& steps = Member(json, "pretokenizers");
    if (!IsType(json, "Sequence") || !steps.is_array() || steps.size() != 2) return Unsupported(field, json);
    const Json& split = steps[0];
    const bool is_split =
        IsType(split, "Split") && Member(split, "behavior") == "Isolated" && Member(split, "invert") == false;
    if (!is_split || Member(Member(split, "pattern"), "Regex") != kQwen2Pattern) return Unsupported(field + "[0]", split);
    const Json& bytes = steps[1];
    if (!IsType(bytes, "ByteLevel") || Member(bytes, "add_prefix_space") != false || Member(bytes, "use_regex") != false) {
      return Unsupported(field + "[1]", bytes);
    }
    return Status::Ok();
  }

  static Status CheckModel(const Json& model) {
    const std::string field = "tokenizer.json: model";
    if (!model.is_object()) return Refuse(field, "missing");
    MOEPACK_RETURN_IF_ERROR(KnownKeys(model, field,
                                      {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
                                       "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"}));
    if (!IsType(model, "BPE")) return Unsupported(field + ".type", Member(model, "type"));
    for (const char* key : {"fuse_unk", "byte_fallback", "ignore_merges"}) {
      MOEPACK_RETURN_IF_ERROR(Neutral(model, field, key, false));
    }
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      MOEPACK_RETURN_IF_ERROR(Neutral(model, field, key, ""));
    }
    MOEPACK_RETURN_IF_ERROR(Neutral(model, field, "dropout", nullptr));
    return Neutral(model, field, "unk_token", nullptr);
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
    const ByteAlphabet alphabet;
    for (const auto& [text, value] : vocab.items()) {
      const std::string field = "tokenizer.json: model.vocab[\"" + text + "\"]";
      MOEPACK_ASSIGN_OR_RETURN(const uint32_t id, TokenId(value, field));
      const std::optional<std::string> bytes = alphabet.Decode(text);
      // Special tokens may be listed among the ordinary ones in plain text; added_tokens must then say so.
      if (!bytes.has_value()) plain_.emplace(id, text);
      const std::string& token = bytes.has_value() ? *bytes : text;
      if (token.empty() || token.size() > kMaxTokenBytes) return Refuse(field, "empty or longer than 1024 bytes");
      if (!data_.tokens[id].empty()) return Refuse(field, StrFormat("id %u is already taken", id));
      data_.tokens[id] = token;
      vocabulary_.emplace(text, id);
    }
    return Status::Ok();
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
      if (text.empty() || text.size() > kMaxTokenBytes) return Refuse(field, "empty or longer than 1024 bytes");
      if (!data_.tokens[id].empty() && data_.tokens[id] != text) {
        return Refuse(field, StrFormat("\"%s\" has id %u of another token", text.c_str(), id));
      }
      if (!added_.emplace(text, id).second) return Refuse(field, "\"" + text + "\" is there twice");
      data_.tokens[id] = text;
      plain_.erase(id);
      if (special.get<bool>()) data_.special.push_back(id);
    }
    if (plain_.empty()) return Status::Ok();
    return Refuse("tokenizer.json: model.vocab[\"" + plain_.begin()->second + "\"]", "not in the byte-level alphabet");
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
  std::unordered_map<std::string, uint32_t> vocabulary_;  // by its text in the file
  std::unordered_map<std::string, uint32_t> added_;
  std::map<uint32_t, std::string> plain_;  // vocabulary entries outside the byte alphabet, not yet explained by added_tokens
};

}  // namespace

Result<Bytes> CompileTokenizerJson(ByteSpan tokenizer_json, ByteSpan tokenizer_config_json, ByteSpan generation_config_json,
                                   uint64_t vocab_size) {
  Compiler compiler(vocab_size);
  MOEPACK_ASSIGN_OR_RETURN(const Json tokenizer, ParseObject(tokenizer_json, "tokenizer.json"));
  MOEPACK_RETURN_IF_ERROR(compiler.ReadTokenizer(tokenizer));
  if (!tokenizer_config_json.empty()) {
    MOEPACK_ASSIGN_OR_RETURN(const Json config, ParseObject(tokenizer_config_json, "tokenizer_config.json"));
    MOEPACK_RETURN_IF_ERROR(compiler.ReadConfig(config));
  }
  if (!generation_config_json.empty()) {
    MOEPACK_ASSIGN_OR_RETURN(const Json config, ParseObject(generation_config_json, "generation_config.json"));
    MOEPACK_RETURN_IF_ERROR(compiler.ReadGenerationConfig(config));
  }
  return compiler.Finish();
}

}  // namespace moepack
