// A whole checkpoint: a fixed config.json with a safetensors file of any bytes, and every tensor that is accepted loaded.
#include "model/model.h"
#include "tests/fuzz/memory_env.h"

namespace {

// Small enough that a seed file has a few kilobytes.
constexpr char kConfig[] = R"({"model_type": "mixtral", "vocab_size": 8, "hidden_size": 4, "num_hidden_layers": 1,
  "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 4, "num_local_experts": 2, "num_experts_per_tok": 1,
  "max_position_embeddings": 16, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": false})";

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  moepack::fuzz::MemoryEnv env;
  env.files["m/config.json"] = moepack::Bytes(kConfig, kConfig + sizeof(kConfig) - 1);
  env.files["m/model.safetensors"] = moepack::Bytes(data, data + size);
  const auto model = moepack::OpenModel(env, "m");
  if (!model.ok()) return 0;
  for (moepack::TensorId id = 0; id < model->program.tensors.size(); ++id) (void)model->tensors->Load(id);
  return 0;
}
