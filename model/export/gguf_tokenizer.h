// Compiled tokenizer -> GGUF's tokenizer keys. Not for use outside of model/export/gguf*.cc.
#pragma once

#include "base/bytes.h"
#include "base/status.h"
#include "model/export/gguf_writer.h"

namespace moepack {

// `blob` may be empty: then the file says that the model has no tokenizer. The vocabulary is filled up to `vocab` entries.
// kTokenizer names what llama.cpp has no key for.
Status AddGgufTokenizer(ByteSpan blob, uint64_t vocab, GgufHeader* header);

}  // namespace moepack
