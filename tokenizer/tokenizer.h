// Device-safe tokenizer: BPE over bytes with pre-tokenizers from a closed list, or over characters with fallback to bytes
// (SentencePiece). tokenizer.json is compiled to a blob when the model is read (model/frontend/tokenizer_json.h); this
// header parses the blob.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"
#include "tokenizer/chat_template.h"

namespace moepack {

// How text is cut before tokens are joined (tokenizer/pre_tokenizer.cc); kSentencePiece does not cut and starts from
// characters instead of bytes.
enum class PreTokenizer : uint8_t {
  kQwen2 = 1,
  kGpt2 = 2,
  kLlama3 = 3,
  kO200k = 4,
  kDeepseekV3 = 5,
  kGranite = 6,
  kSentencePiece = 7,
};
inline constexpr size_t kLastPreTokenizer = 7;
enum class Normalizer : uint8_t { kNone = 0, kNfc = 1 };
// Whether a space goes before a text that is not empty: never, always, or unless the text begins with one.
enum class SpacePrefix : uint8_t { kNone = 0, kAlways = 1, kUnlessThere = 2 };

// What a blob holds.
struct TokenizerData {
  PreTokenizer pre_tokenizer = PreTokenizer::kQwen2;
  Normalizer normalizer = Normalizer::kNone;
  SpacePrefix space_prefix = SpacePrefix::kNone;
  bool whole_pieces = false;                          // a piece that is a token is that token, whatever the merges
  std::vector<std::string> tokens;                    // by id, raw bytes (not the printable alphabet); special ones too
  std::vector<std::pair<uint32_t, uint32_t>> merges;  // token ids, by rank
  std::vector<uint32_t> special;                      // ids, strictly increasing: never produced from text
  std::vector<uint32_t> end_of_text;                  // ids that end generation, strictly increasing
  std::vector<uint32_t> beginning;                    // ids that a sequence begins with, in order
  std::vector<uint32_t> bytes;                        // kSentencePiece: the token of each byte that is in no other token
  std::optional<ChatTemplate> chat;
};

Bytes SerializeTokenizer(const TokenizerData& data);  // deterministic; layout in format/SPEC.md

class Tokenizer {
 public:
  // kTokenizer with offset and rule. Every merge must name tokens whose concatenation is a token.
  static Result<std::unique_ptr<Tokenizer>> Parse(ByteSpan blob);
  ~Tokenizer();
  // Any bytes; invalid UTF-8 is tokenized byte by byte as symbols that are neither letters, numbers nor space. Text never
  // becomes a special token. Thread-safe.
  std::vector<int32_t> Encode(std::string_view text) const;
  // A conversation by the chat template, up to where the answer begins. Encode's beginning() does not go before it. kUsage
  // without a template and as JoinConversation. Thread-safe.
  Result<std::vector<int32_t>> EncodeChat(std::span<const ChatMessage> messages) const;
  // Null when there is none.
  const ChatTemplate* chat_template() const;
  // Bytes of a token, special or not; empty when there is no such token.
  std::string_view TokenText(uint32_t id) const;
  // Bytes of the tokens, special tokens left out; ids out of range are left out. Thread-safe.
  std::string Decode(std::span<const int32_t> ids) const;
  // Ids that a prompt begins with, before its text.
  std::span<const uint32_t> beginning() const;
  uint32_t vocab_size() const;
  bool IsEndOfText(int32_t id) const;

 private:
  struct State;
  explicit Tokenizer(std::unique_ptr<State> state);
  void AppendEncoded(std::string_view text, SpacePrefix prefix, std::vector<int32_t>* ids) const;
  std::unique_ptr<State> state_;
};

}  // namespace moepack
