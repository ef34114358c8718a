// Phi-3.5-MoE: layer norms with biases, a bias on the head, LongRoPE, sparse mixer routing (2409.12136) whose two weights
// do not sum to 1.
#include "model/family/decoder.h"
#include "model/family/family.h"

namespace moepack {
namespace {

constexpr const char* kInert[] = {"input_jitter_noise"};  // training only

CheckpointLayout Build(ConfigReader& config) {
  DecoderSpec spec = ReadDecoder(config);
  spec.norm = NormKind::kLayer;
  spec.qkv_bias = spec.output_bias = config.FlagOr("attention_bias", false);
  spec.head_bias = config.FlagOr("lm_head_bias", false);
  spec.window.assign(spec.layers, static_cast<uint32_t>(config.CountOr("sliding_window", 0, 1, kMaxPositions)));
  ReadMoe(config, "num_local_experts", "intermediate_size", false, &spec);
  config.Support(spec.moe.routing.k == 2, "num_experts_per_tok", "must be 2: the sparse mixer chooses two");
  spec.moe.routing.score = ScoreFunction::kSparseMixer;
  spec.moe.routing.mixer_eps = static_cast<float>(config.NumberOr("router_jitter_noise", 0.01));
  spec.moe.module = "block_sparse_moe";
  spec.moe.matrices = {"w1", "w3", "w2"};
  return config.status().ok() ? BuildDecoder(spec) : CheckpointLayout();
}

}  // namespace

const Family& PhiMoeFamily() {
  static constexpr Family kFamily = {"phimoe", &Build, kInert};
  return kFamily;
}

}  // namespace moepack
