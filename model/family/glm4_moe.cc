// GLM-4.5 (2508.06471): attention with part of each head rotated and optional norms of q and k; routing as DeepSeek-V3.
#include "model/family/decoder.h"
#include "model/family/family.h"

namespace moepack {
namespace {

CheckpointLayout Build(ConfigReader& config) {
  DecoderKeys keys;
  keys.rotary_share = "partial_rotary_factor";
  DecoderSpec spec = ReadDecoder(config, keys);
  spec.qkv_bias = config.FlagOr("attention_bias", false);
  spec.qk_norm = config.FlagOr("use_qk_norm", false) ? QkNorm::kPerHead : QkNorm::kNone;
  ReadDenseFirstLayers(config, &spec);
  ReadExtraLayers(config, &spec);
  ReadMoe(config, "n_routed_experts", "moe_intermediate_size", config.FlagOr("norm_topk_prob", true), &spec);
  spec.moe.routing.score = ScoreFunction::kSigmoid;
  spec.moe.routing.eps = spec.moe.routing.renormalise ? 1e-20f : 0;
  spec.moe.routing.scale = static_cast<float>(config.OptionalPositive("routed_scaling_factor").value_or(1));
  ReadGroups(config, GroupRule::kTwoLargest, &spec);
  spec.moe.selection_bias = "gate.e_score_correction_bias";
  ReadSharedExperts(config, "n_shared_experts", &spec);
  return config.status().ok() ? BuildDecoder(spec) : CheckpointLayout();
}

}  // namespace

const Family& Glm4MoeFamily() {
  static constexpr Family kFamily = {"glm4_moe", &Build, {}};
  return kFamily;
}

}  // namespace moepack
