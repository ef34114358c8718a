// Device-safe tokenizer: byte-level BPE with pre-tokenizers from a closed list, compiled from tokenizer.json at pack time
// (model/frontend/tokenizer_json.h) into a blob that this header parses.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"

namespace moepack {

enum class PreTokenizer : uint8_t { kQwen2 = 1 };
enum class Normalizer : uint8_t { kNone = 0, kNfc = 1 };

// What a blob holds.
struct TokenizerData {
  PreTokenizer pre_tokenizer = PreTokenizer::kQwen2;
  Normalizer normalizer = Normalizer::kNone;
  std::vector<std::string> tokens;                    // by id, raw bytes (not the printable alphabet); special ones too
  std::vector<std::pair<uint32_t, uint32_t>> merges;  // token ids, by rank
  std::vector<uint32_t> special;                      // ids, strictly increasing: never produced from text
  std::vector<uint32_t> end_of_text;                  // ids that end generation, strictly increasing
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
  // Bytes of the tokens, special tokens left out; ids out of range are left out. Thread-safe.
  std::string Decode(std::span<const int32_t> ids) const;
  uint32_t vocab_size() const;
  bool IsEndOfText(int32_t id) const;

 private:
  struct State;
  explicit Tokenizer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace moepack
