// Model -> a Hugging Face folder: the checkpoint that a model was made from, with the model's weights in place of its own.
#pragma once

#include <string>
#include <vector>

#include "base/env.h"
#include "base/progress.h"
#include "base/status.h"
#include "model/model.h"

namespace moepack {

struct SafetensorsExport {
  std::string checkpoint;                // folder with the config.json that `model` was made from
  std::vector<std::string> accept_keys;  // OpenOptions::accept_keys
  bool bf16 = false;                     // element type of all weights: bfloat16 (rounded to nearest even) or float32
  uint64_t shard_bytes = 4ull << 30;     // at most this many bytes of weights a file, or one tensor
};

// Writes the folder `out`, which must not exist: model.safetensors, or shards and their index, under the checkpoint's names
// and in its layout; config.json, with the new element type and without a quantization_config; the tokenizer's files. One
// matrix (of a stack: one entry) is in memory at a time. Nothing is left after an error; the same model gives the same
// bytes. Returns the bytes of the weight files.
//
// The checkpoint's weights are not read; where they are there, their headers say which vectors have one dimension.
// kUnsupported when the configuration describes another program than the model has: experts were removed or channels cut.
Result<uint64_t> ExportSafetensors(Env& env, const Model& model, const SafetensorsExport& options, const std::string& out,
                                   Progress& progress);

}  // namespace moepack
