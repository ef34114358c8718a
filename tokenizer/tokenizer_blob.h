// The tokenizer blob: bytes <-> TokenizerData.
//
//   u32 magic "MTOK"   u16 version 1   u8 pre-tokenizer   u8 flags: 1 NFC, 2 space prefix, 4 whole pieces, 8 beginning,
//       16 space prefix unless there, 32 chat template
//   u32 tokens (256 .. 2^20)   u32 merges (0 .. 2^22)   u32 special   u32 end_of_text
//   u16 length[tokens]         bytes of each token, 0 .. 1024; 0 = the id is not used
//   bytes                      the tokens one after the other, by id
//   {u32 left, u32 right}[merges]   token ids, by rank
//   u32 special[]              strictly increasing
//   u32 end_of_text[]          strictly increasing
//   u32 count, u32 ids[]       beginning; only with flag 8
//   u32 bytes[256]             only with the SentencePiece pre-tokenizer
//   chat template              tokenizer/chat_blob.h; only with flag 32
// Little endian, no padding, nothing after it. Rules (kTokenizer each):
//   T1  magic and version
//   T2  closed enums; flags 2 and 16 exclude each other
//   T3  counts in range
//   T4  token length in range
//   T5  the blob ends with its last field
//   T6  ids below the token count
//   T7  special and end_of_text strictly increasing
//   T8  each of the 256 bytes has a token of its own
//   T9  no two ordinary tokens are equal
//   T10 a merge names ordinary, used tokens whose concatenation is an ordinary token
//   T11 no pair is merged twice
//   T12 the chat template's own (tokenizer/chat_blob.h)
// Ordinary means not special, and with SentencePiece not among bytes[].
#pragma once

#include <memory>
#include <string_view>
#include <unordered_map>

#include "tokenizer/bpe.h"
#include "tokenizer/tokenizer.h"

namespace moepack {

inline constexpr uint32_t kMaxTokens = 1u << 20;
inline constexpr uint32_t kMaxMerges = 1u << 22;
inline constexpr uint32_t kMaxTokenBytes = 1024;

// Rules T1 to T7 and T12.
Result<TokenizerData> ParseTokenizerBlob(ByteSpan blob);

// What encoding looks up.
struct EncodingTables {
  uint32_t byte_token[256] = {};
  MergeTable merges{0};
  std::unordered_map<std::string_view, uint32_t> ordinary;  // by their bytes, which stay in the data
};

// Rules T8 to T11. The result refers to `data`.
Result<EncodingTables> BuildEncodingTables(const TokenizerData& data);

}  // namespace moepack
