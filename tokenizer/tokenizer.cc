#include "tokenizer/tokenizer.h"

#include <algorithm>
#include <unordered_map>

#include "tokenizer/bpe.h"
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/tokenizer_blob.h"
#include "tokenizer/unicode.h"

namespace moepack {
namespace {

// Longer pieces are rare and rarely come twice.
constexpr size_t kMaxCachedPiece = 64;

bool Contains(const std::vector<uint32_t>& sorted, uint32_t id) {
  return std::binary_search(sorted.begin(), sorted.end(), id);
}

bool NeedsSpace(SpacePrefix prefix, std::string_view text) {
  if (prefix == SpacePrefix::kNone || text.empty()) return false;
  return prefix == SpacePrefix::kAlways || text.front() != ' ';
}

// Encodes the pieces of one text. A piece that came before is copied from where its tokens stand in the output.
class Encoder {
 public:
  // Appends to *out.
  Encoder(const TokenizerData& data, const EncodingTables& tables, std::vector<int32_t>* out)
      : data_(data), tables_(tables), out_(*out) {}

  void Add(std::string_view piece) {
    if (piece.size() > kMaxCachedPiece) {
      Merge(piece);
      return;
    }
    const auto [it, added] = seen_.try_emplace(piece);
    if (added) {
      it->second.begin = out_.size();
      Merge(piece);
      it->second.count = out_.size() - it->second.begin;
      return;
    }
    for (size_t i = 0; i < it->second.count; ++i) out_.push_back(int32_t{out_[it->second.begin + i]});
  }

 private:
  struct Range {
    size_t begin = 0, count = 0;
  };

  void Merge(std::string_view piece) {
    if (data_.whole_pieces) {
      if (const auto token = tables_.ordinary.find(piece); token != tables_.ordinary.end()) {
        out_.push_back(static_cast<int32_t>(token->second));
        return;
      }
    }
    symbols_.clear();
    if (data_.pre_tokenizer == PreTokenizer::kSentencePiece) {
      AddCharacters(piece);
    } else {
      AddBytes(piece);
    }
    MergePiece(tables_.merges, symbols_, &out_);
  }

  void AddBytes(std::string_view text) {
    for (const char c : text) symbols_.push_back(tables_.byte_token[static_cast<uint8_t>(c)]);
  }

  // Characters that are tokens, the others as their bytes.
  void AddCharacters(std::string_view text) {
    for (size_t i = 0; i < text.size();) {
      const std::string_view character = text.substr(i, DecodeUtf8(text, i).length);
      i += character.size();
      const auto token = tables_.ordinary.find(character);
      if (token != tables_.ordinary.end()) {
        symbols_.push_back(token->second);
      } else {
        AddBytes(character);
      }
    }
  }

  const TokenizerData& data_;
  const EncodingTables& tables_;
  std::unordered_map<std::string_view, Range> seen_;
  std::vector<uint32_t> symbols_;
  std::vector<int32_t>& out_;
};

}  // namespace

struct Tokenizer::State {
  TokenizerData data;
  EncodingTables tables;
};

Tokenizer::Tokenizer(std::unique_ptr<State> state) : state_(std::move(state)) {}
Tokenizer::~Tokenizer() = default;

Result<std::unique_ptr<Tokenizer>> Tokenizer::Parse(ByteSpan blob) {
  auto state = std::make_unique<State>();
  MOEPACK_ASSIGN_OR_RETURN(state->data, ParseTokenizerBlob(blob));
  MOEPACK_ASSIGN_OR_RETURN(state->tables, BuildEncodingTables(state->data));
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(state)));
}

void Tokenizer::AppendEncoded(std::string_view text, SpacePrefix prefix, std::vector<int32_t>* ids) const {
  std::string normalized;
  if (state_->data.normalizer == Normalizer::kNfc) {
    normalized = NormalizeNfc(text);
    text = normalized;
  }
  if (state_->data.pre_tokenizer == PreTokenizer::kSentencePiece) {
    // A text with the mark means a space too.
    normalized = MarksToSpaces(text);
    text = normalized;
  }
  if (NeedsSpace(prefix, text)) {
    normalized = " " + std::string(text);
    text = normalized;
  }
  Encoder encoder(state_->data, state_->tables, ids);
  CutIntoPieces(state_->data.pre_tokenizer, text, [&encoder](std::string_view piece) { encoder.Add(piece); });
}

std::vector<int32_t> Tokenizer::Encode(std::string_view text) const {
  std::vector<int32_t> ids;
  AppendEncoded(text, state_->data.space_prefix, &ids);
  return ids;
}

Result<std::vector<int32_t>> Tokenizer::EncodeChat(std::span<const ChatMessage> messages) const {
  if (!state_->data.chat) return Status(ErrorCode::kUsage, "the bundle has no chat template");
  const ChatTemplate& chat = *state_->data.chat;
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<ChatPiece> pieces, JoinConversation(chat, messages));
  std::vector<int32_t> ids;
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (pieces[i].is_token()) {
      ids.push_back(static_cast<int32_t>(pieces[i].token));
    } else {
      AppendEncoded(pieces[i].text, i > 0 && chat.space_at_start_only ? SpacePrefix::kNone : state_->data.space_prefix,
                    &ids);
    }
  }
  return ids;
}

const ChatTemplate* Tokenizer::chat_template() const { return state_->data.chat ? &*state_->data.chat : nullptr; }

std::string_view Tokenizer::TokenText(uint32_t id) const {
  return id < vocab_size() ? std::string_view(state_->data.tokens[id]) : std::string_view();
}

std::string Tokenizer::Decode(std::span<const int32_t> ids) const {
  std::string text;
  for (const int32_t id : ids) {
    if (id < 0 || static_cast<uint32_t>(id) >= vocab_size()) continue;
    if (!Contains(state_->data.special, static_cast<uint32_t>(id))) text += state_->data.tokens[static_cast<uint32_t>(id)];
  }
  return text;
}

std::span<const uint32_t> Tokenizer::beginning() const { return state_->data.beginning; }

uint32_t Tokenizer::vocab_size() const { return static_cast<uint32_t>(state_->data.tokens.size()); }

bool Tokenizer::IsEndOfText(int32_t id) const {
  return id >= 0 && Contains(state_->data.end_of_text, static_cast<uint32_t>(id));
}

}  // namespace moepack
