// Qwen2-MoE (2407.10671): biases on q, k and v, softmax over all experts, top k, renormalised only when norm_topk_prob says
// so, one shared expert times sigmoid(shared_expert_gate).
#include "model/family/decoder.h"
#include "model/family/family.h"

namespace moepack {
namespace {

CheckpointLayout Build(ConfigReader& config) {
  DecoderSpec spec = ReadDecoder(config);
  spec.qkv_bias = config.FlagOr("qkv_bias", true);
  ReadSwitchedWindow(config, &spec);
  ReadSparseLayers(config, &spec);
  spec.moe.shared_intermediate = config.Count("shared_expert_intermediate_size", 1, kMaxWidth);
  ReadMoe(config, "num_experts", "moe_intermediate_size", config.FlagOr("norm_topk_prob", false), &spec);
  return config.status().ok() ? BuildDecoder(spec) : CheckpointLayout();
}

}  // namespace

const Family& Qwen2MoeFamily() {
  static constexpr Family kFamily = {"qwen2_moe", &Build, {}};
  return kFamily;
}

}  // namespace moepack
