// Model -> ONNX, in the conventions of ONNX Runtime GenAI.
#pragma once

#include <string>
#include <vector>

#include "base/env.h"
#include "base/status.h"
#include "model/frontend/tokenizer_files.h"
#include "model/model.h"

namespace moepack {

// Writes `out_path`, its float32 weights beside it as `out_path`.data, and the files of `beside` that its folder does not
// hold yet (kUsage when it holds one with other bytes). When it fails, what stood under these names before stands there
// still. Weights are loaded one matrix at a time. The same model gives the same bytes.
//
// Inputs: input_ids [batch, sequence], attention_mask [batch, total] (int64, no padding), past_key_values.N.key and .value
// [batch, kv heads, past, head width] (past may be 0). Outputs: logits [batch, sequence, vocabulary], present.N.key, .value.
// Operators: GroupQueryAttention with rotary caches, MoE (SwiGLU interleaved, the one form that ONNX Runtime runs on a CPU),
// SimplifiedLayerNormalization, MatMul with its weight stored [in, out], elementwise operators.
// kUnsupported names what the operators cannot express.
Status ExportOnnx(Env& env, const Model& model, const std::string& out_path, const std::vector<TokenizerFile>& beside = {});

}  // namespace moepack
