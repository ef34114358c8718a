// tokenizer.json -> compiled tokenizer blob (tokenizer/tokenizer.h).
#pragma once

#include "base/bytes.h"
#include "base/status.h"

namespace moepack {

// `tokenizer_config_json` and `generation_config_json` may be empty; `vocab_size` is the model's (tokens with higher ids
// are refused). kTokenizer names the field that is missing, unsupported or contradictory.
Result<Bytes> CompileTokenizerJson(ByteSpan tokenizer_json, ByteSpan tokenizer_config_json, ByteSpan generation_config_json,
                                   uint64_t vocab_size);

}  // namespace moepack
