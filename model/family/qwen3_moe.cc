// Qwen3-MoE (2505.09388): norm of each head of q and k, head_dim free of hidden / heads, softmax over all experts, top k,
// renormalised when norm_topk_prob says so, no shared expert.
#include "model/family/decoder.h"
#include "model/family/family.h"

namespace moepack {
namespace {

CheckpointLayout Build(ConfigReader& config) {
  DecoderSpec spec = ReadDecoder(config);
  spec.qk_norm = QkNorm::kPerHead;
  spec.qkv_bias = spec.output_bias = config.FlagOr("attention_bias", false);
  ReadSwitchedWindow(config, &spec);
  ReadSparseLayers(config, &spec);
  ReadMoe(config, "num_experts", "moe_intermediate_size", config.FlagOr("norm_topk_prob", false), &spec);
  return config.status().ok() ? BuildDecoder(spec) : CheckpointLayout();
}

}  // namespace

const Family& Qwen3MoeFamily() {
  static constexpr Family kFamily = {"qwen3_moe", &Build, {}};
  return kFamily;
}

}  // namespace moepack
