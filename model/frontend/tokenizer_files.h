// The tokenizer of a checkpoint: tokenizer.json and the files beside it that say more about it.
#pragma once

#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/env.h"
#include "base/status.h"

namespace moepack {

struct TokenizerFile {
  std::string name;
  Bytes bytes;
};

// tokenizer.json, and tokenizer_config.json, generation_config.json and chat_template.jinja where they are, of a folder;
// none without tokenizer.json. kLimit above 256 MiB.
Result<std::vector<TokenizerFile>> ReadTokenizerFiles(Env& env, const std::string& directory);

// Compiles the folder's tokenizer (CompileTokenizerJson) for a model of `vocabulary` tokens and appends the names of what
// was read to `names`. Empty when the folder has none.
Result<Bytes> CompileTokenizerOf(Env& env, const std::string& directory, uint64_t vocabulary,
                                 std::vector<std::string>* names);

// Why the chat template of the checkpoint at `path` (a path that OpenModel takes) is not in its tokenizer, or what of it is
// left out, for people; empty otherwise. Reads and compiles the tokenizer once more.
Result<std::string> ChatTemplateNote(Env& env, const std::string& path);

}  // namespace moepack
