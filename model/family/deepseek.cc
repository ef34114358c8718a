// DeepSeek-V2 (2405.04434) and V3 (2412.19437): latent attention, shared experts without gate, the first layers dense, and
// three ways to choose experts (topk_method): greedy; group_limited_greedy, groups by their best score; noaux_tc, with a
// bias that counts for the choice only and groups by their two best.
#include <cmath>

#include "model/family/decoder.h"
#include "model/family/family.h"

namespace moepack {
namespace {

constexpr const char* kInert[] = {"ep_size", "aux_loss_alpha", "seq_aux"};

void ReadLatent(ConfigReader& config, DecoderSpec* spec) {
  LatentSpec& latent = spec->latent;
  spec->heads = static_cast<uint32_t>(config.Count("num_attention_heads", 1, 1024));
  spec->kv_heads = static_cast<uint32_t>(config.CountOr("num_key_value_heads", spec->heads, 1, 1024));
  config.Support(spec->kv_heads == spec->heads, "num_key_value_heads",
                 "latent attention has as many as num_attention_heads");
  latent.q_rank = static_cast<uint32_t>(config.CountOr("q_lora_rank", 0, 1, 1 << 16));
  latent.kv_rank = static_cast<uint32_t>(config.Count("kv_lora_rank", 1, 1 << 16));
  latent.nope = static_cast<uint32_t>(config.Count("qk_nope_head_dim", 1, 4096));
  latent.rope = static_cast<uint32_t>(config.Count("qk_rope_head_dim", 2, 4096));
  latent.value = static_cast<uint32_t>(config.Count("v_head_dim", 1, 8192));
  spec->head_dim = latent.nope + latent.rope;
  config.Support(config.CountOr("qk_head_dim", spec->head_dim, 1, 8192) == spec->head_dim, "qk_head_dim",
                 "is not qk_nope_head_dim + qk_rope_head_dim");
  config.Support(config.CountOr("head_dim", latent.rope, 1, 8192) == latent.rope, "head_dim", "is not qk_rope_head_dim");
  spec->rotary = ReadRotary(config, latent.rope, spec->max_positions, "qk_rope_head_dim");
  spec->rotary.interleaved = config.FlagOr("rope_interleave", true);
  spec->attention_scale = static_cast<float>(spec->rotary.score_factor / std::sqrt(static_cast<double>(spec->head_dim)));
  spec->qkv_bias = spec->output_bias = config.FlagOr("attention_bias", false);
}

void ReadScores(ConfigReader& config, const char* usual_score, const char* usual_method, DecoderSpec* spec) {
  RoutingRecord& routing = spec->moe.routing;
  const std::string score = config.TextOr("scoring_func", usual_score), method = config.TextOr("topk_method", usual_method);
  routing.score = score == "sigmoid" ? ScoreFunction::kSigmoid : ScoreFunction::kSoftmax;
  config.Support(score == "sigmoid" || score == "softmax", "scoring_func", "'" + score + "' is not supported");
  if (method == "greedy") {
    // The published code reads neither key for this method.
    (void)config.CountOr("n_group", 1, 1, kMaxExperts);
    (void)config.CountOr("topk_group", 1, 1, kMaxExperts);
  } else if (method == "group_limited_greedy") {
    ReadGroups(config, GroupRule::kLargest, spec);
  } else if (method == "noaux_tc") {
    ReadGroups(config, GroupRule::kTwoLargest, spec);
    spec->moe.selection_bias = "gate.e_score_correction_bias";
  } else {
    config.Support(false, "topk_method", "'" + method + "' is not supported");
  }
}

CheckpointLayout Build(ConfigReader& config, bool v3) {
  DecoderKeys keys;
  DecoderSpec spec = ReadSizes(config, keys);
  ReadFp8(config, &spec);
  ReadLatent(config, &spec);
  ReadDenseFirstLayers(config, &spec);
  ReadExtraLayers(config, &spec);
  ReadMoe(config, "n_routed_experts", "moe_intermediate_size", config.FlagOr("norm_topk_prob", v3), &spec);
  ReadScores(config, v3 ? "sigmoid" : "softmax", v3 ? "noaux_tc" : "greedy", &spec);
  spec.moe.routing.eps = spec.moe.routing.renormalise ? 1e-20f : 0;
  spec.moe.routing.scale = static_cast<float>(config.OptionalPositive("routed_scaling_factor").value_or(v3 ? 2.5 : 1));
  ReadSharedExperts(config, "n_shared_experts", &spec);
  return config.status().ok() ? BuildDecoder(spec) : CheckpointLayout();
}

CheckpointLayout BuildV2(ConfigReader& config) { return Build(config, false); }
CheckpointLayout BuildV3(ConfigReader& config) { return Build(config, true); }

}  // namespace

const Family& DeepseekV2Family() {
  static constexpr Family kFamily = {"deepseek_v2", &BuildV2, kInert};
  return kFamily;
}
const Family& DeepseekV3Family() {
  static constexpr Family kFamily = {"deepseek_v3", &BuildV3, kInert};
  return kFamily;
}

}  // namespace moepack
