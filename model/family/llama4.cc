// Llama 4, text part: chunked attention with rotated, then normed q and k in most layers, full attention without positions
// but with a scale that grows with them in the others; the sigmoid of the chosen logits multiplies the experts' input; fused
// transposed experts, a shared expert without gate.
#include "model/family/decoder.h"
#include "model/family/family.h"

namespace moepack {
namespace {

constexpr const char* kInert[] = {"router_jitter_noise", "for_llm_compression"};
// Of the configuration around text_config: what makes images into tokens.
constexpr const char* kVision[] = {"vision_config", "boi_token_index", "eoi_token_index", "image_token_index",
                                   "tie_word_embeddings"};

// no_rope_layers has a 1 for layers that are rotated, one entry a layer; absent or empty: every fourth layer is not.
void ReadUnrotated(ConfigReader& config, DecoderSpec* spec) {
  const uint64_t interval = config.CountOr("no_rope_layer_interval", 4, 1, kMaxLayers);
  const std::vector<uint64_t> rotated = config.Counts("no_rope_layers", 1);
  if (!rotated.empty() && rotated.size() != spec->layers) {
    config.Fail(ErrorCode::kBadInput, "no_rope_layers", "needs one entry a layer");
    return;
  }
  for (uint64_t layer = 0; layer < spec->layers; ++layer) {
    spec->unrotated.push_back(rotated.empty() ? (layer + 1) % interval == 0 : rotated[layer] == 0);
  }
}

void ReadChunks(ConfigReader& config, DecoderSpec* spec) {
  const auto chunk = static_cast<uint32_t>(config.CountOr("attention_chunk_size", 0, 1, kMaxPositions));
  const std::vector<std::string> types = ReadLayerTypes(config, *spec, {"chunked_attention", "full_attention"});
  if (!config.status().ok()) return;
  for (uint64_t layer = 0; layer < spec->layers; ++layer) {
    const bool chunked = types.empty() ? !spec->unrotated[layer] : types[layer] == "chunked_attention";
    config.Support(!chunked || chunk > 0, "attention_chunk_size", "is needed by the layers with chunks");
    spec->chunk.push_back(chunked ? chunk : 0);
  }
}

void ReadSparse(ConfigReader& config, DecoderSpec* spec) {
  const uint64_t step = config.CountOr("interleave_moe_layer_step", 1, 1, kMaxLayers);
  const bool listed = config.Has("moe_layers");
  const std::vector<uint64_t> layers = config.Counts("moe_layers", kMaxLayers);
  for (uint64_t layer = 0; layer < spec->layers; ++layer) spec->sparse[layer] = !listed && (layer + 1) % step == 0;
  for (const uint64_t layer : layers) {
    if (layer < spec->layers) spec->sparse[layer] = true;
  }
  spec->dense_intermediate = config.Count("intermediate_size_mlp", 1, kMaxWidth);
}

CheckpointLayout BuildText(ConfigReader& config, const std::string& prefix) {
  DecoderSpec spec = ReadDecoder(config);
  spec.rotary.interleaved = true;
  spec.qkv_bias = spec.output_bias = config.FlagOr("attention_bias", false);
  spec.qk_norm = config.FlagOr("use_qk_norm", true) ? QkNorm::kUnweightedPerHead : QkNorm::kNone;
  ReadUnrotated(config, &spec);
  ReadChunks(config, &spec);
  const double scale = config.OptionalPositive("attn_scale").value_or(0.1);
  const uint64_t floor = config.CountOr("floor_scale", 8192, 1, kMaxPositions);
  if (config.FlagOrNumber("attn_temperature_tuning", true)) {
    spec.position_scale = static_cast<float>(scale);
    spec.position_floor = static_cast<uint32_t>(floor);
  }
  ReadSparse(config, &spec);
  ReadMoe(config, "num_local_experts", "intermediate_size", false, &spec);
  spec.moe.routing.score = ScoreFunction::kSigmoid;
  spec.moe.routing.score_before_topk = false;
  spec.moe.routing.weight_on_input = true;
  spec.moe.module = spec.names.ffn = "feed_forward";
  spec.moe.router = "router";
  spec.moe.layout = ExpertLayout::kStackedTransposed;
  spec.moe.stacked_in = "experts.gate_up_proj";
  spec.moe.stacked_out = "experts.down_proj";
  spec.moe.shared_gate = false;
  spec.moe.shared_intermediate = spec.moe.intermediate;
  spec.names.model = prefix + "model.";
  spec.names.head = prefix + "lm_head";
  return config.status().ok() ? BuildDecoder(spec) : CheckpointLayout();
}

CheckpointLayout Build(ConfigReader& config) { return BuildText(config, ""); }

// The published checkpoints: text and vision in one.
CheckpointLayout BuildFromWhole(ConfigReader& config) {
  auto text = config.Object("text_config");
  config.Support(text.has_value(), "text_config", "is missing");
  if (!text) return {};
  const std::string type = text->TextOr("model_type", "llama4_text");
  text->Support(type == "llama4_text", "model_type", "'" + type + "' is not supported (llama4_text is)");
  CheckpointLayout layout = BuildText(*text, "language_model.");
  layout.ignored.insert(layout.ignored.end(), {"vision_model.", "multi_modal_projector."});
  config.Adopt(FinishInner(*text, kInert));
  return layout;
}

}  // namespace

const Family& Llama4TextFamily() {
  static constexpr Family kFamily = {"llama4_text", &Build, kInert};
  return kFamily;
}
const Family& Llama4Family() {
  static constexpr Family kFamily = {"llama4", &BuildFromWhole, kVision};
  return kFamily;
}

}  // namespace moepack
