// The chat template's part of the tokenizer blob (tokenizer/tokenizer_blob.h), format/SPEC.md section 8.
//
//   u8 flags: 1 with a system message, 2 without, 4 space at start only, 8 16 32 contents of system, user, assistant trimmed
//   6 places in order of ChatPlace, each u8 pieces (0 .. 64) and the pieces:
//       u8 kind 0, u16 length (1 .. 16384), bytes          text
//       u8 kind 1 + 2 strips before + 4 strips after, u32 token
//   u8 exclusions (0 .. 16), each u8 role, u8 length, bytes; strictly increasing by role, then bytes
//
// T12: unknown flags, neither 1 nor 2, pieces that only an absent one needs; counts, kinds, lengths and roles out of range;
// two texts in a row; exclusions that do not increase. T5 and T6 as in the rest of the blob.
#pragma once

#include "base/bytes.h"
#include "base/status.h"
#include "tokenizer/chat_template.h"

namespace moepack {

void AppendChatTemplate(const ChatTemplate& chat, ByteWriter* writer);

// kTokenizer. `tokens`: token ids are below.
Result<ChatTemplate> ReadChatTemplate(ByteReader* reader, uint32_t tokens);

}  // namespace moepack
