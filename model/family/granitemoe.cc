// GraniteMoE: fused experts, softmax over the chosen logits only, multipliers on embeddings, scores, residual branches and
// logits.
#include "model/family/decoder.h"
#include "model/family/family.h"

namespace moepack {
namespace {

CheckpointLayout Build(ConfigReader& config) {
  DecoderSpec spec = ReadDecoder(config);
  spec.qkv_bias = spec.output_bias = config.FlagOr("attention_bias", false);
  spec.embedding_scale = static_cast<float>(config.OptionalPositive("embedding_multiplier").value_or(1));
  spec.residual_scale = static_cast<float>(config.OptionalPositive("residual_multiplier").value_or(1));
  spec.attention_scale = static_cast<float>(config.OptionalPositive("attention_multiplier").value_or(1));
  spec.logits_scale = static_cast<float>(1 / config.OptionalPositive("logits_scaling").value_or(1));
  ReadMoe(config, "num_local_experts", "intermediate_size", false, &spec);
  spec.moe.routing.score_before_topk = false;
  spec.moe.module = "block_sparse_moe";
  spec.moe.router = "router.layer";
  spec.moe.layout = ExpertLayout::kStacked;
  spec.moe.stacked_in = "input_linear.weight";
  spec.moe.stacked_out = "output_linear.weight";
  return config.status().ok() ? BuildDecoder(spec) : CheckpointLayout();
}

}  // namespace

const Family& GraniteMoeFamily() {
  static constexpr Family kFamily = {"granitemoe", &Build, {}};
  return kFamily;
}

}  // namespace moepack
