// OLMoE (2409.02060): norm over the full width of q and k before the head split, optional clamp of q, k and v, softmax over
// all experts, top k, renormalised only when norm_topk_prob says so.
#include "model/family/decoder.h"
#include "model/family/family.h"

namespace moepack {
namespace {

CheckpointLayout Build(ConfigReader& config) {
  DecoderSpec spec = ReadDecoder(config);
  spec.qk_norm = QkNorm::kFullWidth;
  spec.qkv_bias = spec.output_bias = config.FlagOr("attention_bias", false);
  spec.clip_qkv = static_cast<float>(config.OptionalPositive("clip_qkv").value_or(0));
  ReadMoe(config, "num_experts", "intermediate_size", config.FlagOr("norm_topk_prob", false), &spec);
  return config.status().ok() ? BuildDecoder(spec) : CheckpointLayout();
}

}  // namespace

const Family& OlmoeFamily() {
  static constexpr Family kFamily = {"olmoe", &Build, {}};
  return kFamily;
}

}  // namespace moepack
