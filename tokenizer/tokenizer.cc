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

// Encodes the pieces of one text. A piece that came before is copied from where its tokens stand in the output.
class Encoder {
 public:
  explicit Encoder(const EncodingTables& tables) : tables_(tables) {}

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

  std::vector<int32_t> Take() { return std::move(out_); }

 private:
  struct Range {
    size_t begin = 0, count = 0;
  };

  void Merge(std::string_view piece) {
    symbols_.clear();
    for (const char c : piece) symbols_.push_back(tables_.byte_token[static_cast<uint8_t>(c)]);
    MergePiece(tables_.merges, symbols_, &out_);
  }

  const EncodingTables& tables_;
  std::unordered_map<std::string_view, Range> seen_;
  std::vector<uint32_t> symbols_;
  std::vector<int32_t> out_;
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

std::vector<int32_t> Tokenizer::Encode(std::string_view text) const {
  std::string normalized;
  if (state_->data.normalizer == Normalizer::kNfc) {
    normalized = NormalizeNfc(text);
    text = normalized;
  }
  Encoder encoder(state_->tables);
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = Qwen2PieceEnd(text, begin);
    encoder.Add(text.substr(begin, end - begin));
    begin = end;
  }
  return encoder.Take();
}

std::string Tokenizer::Decode(std::span<const int32_t> ids) const {
  std::string text;
  for (const int32_t id : ids) {
    if (id < 0 || static_cast<uint32_t>(id) >= vocab_size()) continue;
    if (!Contains(state_->data.special, static_cast<uint32_t>(id))) text += state_->data.tokens[static_cast<uint32_t>(id)];
  }
  return text;
}

uint32_t Tokenizer::vocab_size() const { return static_cast<uint32_t>(state_->data.tokens.size()); }

bool Tokenizer::IsEndOfText(int32_t id) const {
  return id >= 0 && Contains(state_->data.end_of_text, static_cast<uint32_t>(id));
}

}  // namespace moepack
