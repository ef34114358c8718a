// ERNIE 4.5 MoE: neighbouring pairs rotated, softmax scores with a bias that counts for the choice only, renormalised,
// shared experts without gate.
#include "model/family/decoder.h"
#include "model/family/family.h"

namespace moepack {
namespace {

// Training only, or how the published code runs.
constexpr const char* kInert[] = {"moe_capacity", "moe_use_aux_free_bias_update", "attention_probs_dropout_prob",
                                  "hidden_dropout_prob"};

void ReadSparse(ConfigReader& config, DecoderSpec* spec) {
  const uint64_t start = config.CountOr("moe_layer_start_index", 1, 0, kMaxLayers);
  const uint64_t step = config.CountOr("moe_layer_interval", 1, 1, kMaxLayers);
  const double last = config.NumberOr("moe_layer_end_index", -1);
  for (uint64_t layer = 0; layer < spec->layers; ++layer) {
    const bool before_end = last < 0 || static_cast<double>(layer) <= last;
    spec->sparse[layer] = layer >= start && before_end && (layer + 1) % step == 0;
  }
  spec->dense_intermediate = config.Count("intermediate_size", 1, kMaxWidth);
}

CheckpointLayout Build(ConfigReader& config) {
  DecoderKeys keys;
  keys.tied_head = true;
  DecoderSpec spec = ReadDecoder(config, keys);
  spec.rotary.interleaved = true;
  config.Support(!config.FlagOr("use_bias", false), "use_bias", "biases are not supported");
  ReadSparse(config, &spec);
  ReadMoe(config, "moe_num_experts", "moe_intermediate_size", true, &spec, "moe_k");
  spec.moe.routing.eps = static_cast<float>(config.OptionalPositive("moe_norm_min").value_or(1e-12));
  if (config.FlagOr("moe_use_aux_free", true)) spec.moe.selection_bias = "moe_statics.e_score_correction_bias";
  ReadSharedExperts(config, "moe_num_shared_experts", &spec);
  return config.status().ok() ? BuildDecoder(spec) : CheckpointLayout();
}

}  // namespace

const Family& Ernie45MoeFamily() {
  static constexpr Family kFamily = {"ernie4_5_moe", &Build, kInert};
  return kFamily;
}

}  // namespace moepack
