// gpt-oss (2508.10925): biases everywhere, attention sinks, a sliding window in the layers that layer_types names, YaRN,
// softmax over the chosen logits, clamped SwiGLU with (up + 1); experts stacked with gate and up rows in turns, in MXFP4 or
// transposed in bf16.
#include "model/family/decoder.h"
#include "model/family/family.h"

namespace moepack {
namespace {

// Length of the context before positions were scaled, which rope_scaling repeats.
constexpr const char* kInert[] = {"initial_context_length"};

ExpertLayout ReadLayout(ConfigReader& config) {
  auto quantization = config.Object("quantization_config");
  if (!quantization) return ExpertLayout::kInterleavedTransposed;
  const std::string method = quantization->Text("quant_method");
  quantization->Support(method == "mxfp4", "quant_method", "'" + method + "' is not supported here (mxfp4 is)");
  static constexpr const char* kWithoutEffect[] = {"modules_to_not_convert"};
  config.Adopt(quantization->Finish(kWithoutEffect));
  return ExpertLayout::kInterleavedMxfp4;
}

CheckpointLayout Build(ConfigReader& config) {
  DecoderKeys keys;
  DecoderSpec spec = ReadSizes(config, keys);
  spec.moe.layout = ReadLayout(config);
  ReadHeadsAndRotary(config, keys, &spec);
  spec.qkv_bias = spec.output_bias = config.FlagOr("attention_bias", true);
  spec.sinks = true;
  const auto window = config.OptionalCount("sliding_window", 1, kMaxPositions);
  const std::vector<std::string> types = ReadLayerTypes(config, spec, {"sliding_attention", "full_attention"});
  for (uint64_t layer = 0; layer < spec.layers; ++layer) {
    const bool sliding = types.empty() ? layer % 2 == 0 : types[layer] == "sliding_attention";
    if (!sliding) continue;
    config.Support(window.has_value(), "sliding_window", "is needed by the layers with a window");
    spec.window[layer] = static_cast<uint32_t>(window.value_or(1));
  }
  ReadMoe(config, "num_local_experts", "intermediate_size", false, &spec);
  if (const auto again = config.OptionalCount("experts_per_token", 1, kMaxExperts)) {
    config.Support(*again == spec.moe.routing.k, "experts_per_token", "differs from num_experts_per_tok");
  }
  spec.moe.routing.score_before_topk = false;
  spec.moe.activation.limit = static_cast<float>(config.OptionalPositive("swiglu_limit").value_or(7));
  spec.moe.activation.sigmoid_scale = 1.702f;
  spec.moe.activation.up_offset = 1;
  spec.moe.router = "router";
  spec.moe.router_bias = spec.moe.expert_biases = true;
  spec.moe.stacked_in = "experts.gate_up_proj";
  spec.moe.stacked_out = "experts.down_proj";
  return config.status().ok() ? BuildDecoder(spec) : CheckpointLayout();
}

}  // namespace

const Family& GptOssFamily() {
  static constexpr Family kFamily = {"gpt_oss", &Build, kInert};
  return kFamily;
}

}  // namespace moepack
