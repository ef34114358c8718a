// LFM2-MoE: gated short convolutions in most layers, attention with normed heads in the others; sigmoid scores with a bias
// that counts for the choice only, renormalised.
#include "model/family/decoder.h"
#include "model/family/family.h"

namespace moepack {
namespace {

CheckpointLayout Build(ConfigReader& config) {
  DecoderKeys keys;
  keys.norm_eps = "norm_eps";
  keys.activation = nullptr;
  keys.tied_head = config.FlagOr("tie_embedding", true);
  DecoderSpec spec = ReadDecoder(config, keys);
  spec.qk_norm = QkNorm::kPerHead;
  spec.names.output = "out_proj";
  spec.names.q_norm = "q_layernorm";
  spec.names.k_norm = "k_layernorm";
  spec.names.input_norm = "operator_norm";
  spec.names.ffn_norm = "ffn_norm";
  spec.names.final_norm = "embedding_norm";
  spec.names.ffn = spec.moe.module = "feed_forward";
  spec.names.ffn_matrices = spec.moe.matrices = {"w1", "w3", "w2"};
  const std::vector<std::string> types = ReadLayerTypes(config, spec, {"conv", "full_attention"});
  config.Support(!types.empty(), "layer_types", "is needed: one entry a layer");
  for (const std::string& type : types) spec.convolution.layers.push_back(type == "conv");
  spec.convolution.width = static_cast<uint32_t>(config.Count("conv_L_cache", 1, kMaxConvolution));
  spec.convolution.bias = config.FlagOr("conv_bias", false);
  const uint64_t dense = config.CountOr("num_dense_layers", 2, 0, kMaxLayers);
  for (uint64_t layer = 0; layer < spec.layers; ++layer) spec.sparse[layer] = layer >= dense;
  spec.dense_intermediate = config.Count("intermediate_size", 1, kMaxWidth);
  ReadMoe(config, "num_experts", "moe_intermediate_size", config.FlagOr("norm_topk_prob", true), &spec);
  spec.moe.routing.score = ScoreFunction::kSigmoid;
  spec.moe.routing.eps = spec.moe.routing.renormalise ? 1e-6f : 0;
  spec.moe.routing.scale = static_cast<float>(config.OptionalPositive("routed_scaling_factor").value_or(1));
  if (config.FlagOr("use_expert_bias", true)) spec.moe.selection_bias = "expert_bias";
  return config.status().ok() ? BuildDecoder(spec) : CheckpointLayout();
}

}  // namespace

const Family& Lfm2MoeFamily() {
  static constexpr Family kFamily = {"lfm2_moe", &Build, {}};
  return kFamily;
}

}  // namespace moepack
