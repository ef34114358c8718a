// tokenizer.json -> compiled tokenizer blob (tokenizer/tokenizer.h).
#pragma once

#include <string>

#include "base/bytes.h"
#include "base/status.h"

namespace moepack {

// `tokenizer_config_json` and `generation_config_json` may be empty; `vocab_size` is the model's (tokens with higher ids
// are refused). kTokenizer names the field that is missing, unsupported or contradictory.
//
// The chat template of `chat_template_jinja`, or else of the configuration, goes into the blob where it can be reduced
// (model/chat/reduce.h). `chat_note`, when not null, is set to why it cannot, or what of it is left out; empty otherwise.
Result<Bytes> CompileTokenizerJson(ByteSpan tokenizer_json, ByteSpan tokenizer_config_json, ByteSpan generation_config_json,
                                   uint64_t vocab_size, ByteSpan chat_template_jinja = {}, std::string* chat_note = nullptr);

}  // namespace moepack
