// Keys that several families have.
#include <algorithm>

#include "base/status.h"
#include "format/codec/codec.h"
#include "model/family/decoder.h"

namespace moepack {
namespace {

constexpr uint64_t kMaxTotalExperts = 1 << 18, kMaxSharedExperts = 64;

void ReadHeads(ConfigReader& config, DecoderSpec* spec) {
  spec->heads = static_cast<uint32_t>(config.Count("num_attention_heads", 1, 1024));
  spec->kv_heads = static_cast<uint32_t>(config.CountOr("num_key_value_heads", spec->heads, 1, 1024));
  if (spec->heads % spec->kv_heads != 0) {
    config.Fail(ErrorCode::kBadInput, "num_key_value_heads",
                StrFormat("%u does not divide the %u attention heads", spec->kv_heads, spec->heads));
  }
  if (const auto head_dim = config.OptionalCount("head_dim", 2, 8192)) {
    spec->head_dim = static_cast<uint32_t>(*head_dim);
    return;
  }
  if (spec->hidden % spec->heads != 0) {
    config.Fail(ErrorCode::kBadInput, "num_attention_heads", StrFormat("%u does not divide hidden_size", spec->heads));
  }
  spec->head_dim = static_cast<uint32_t>(spec->hidden / spec->heads);
}

// Columns of a head that are rotated.
uint32_t RotaryDim(ConfigReader& config, const char* key, uint32_t head_dim) {
  const double share = key == nullptr ? 1.0 : config.OptionalPositive(key).value_or(1.0);
  if (share > 1) config.Fail(ErrorCode::kBadInput, key, "must not be above 1");
  return static_cast<uint32_t>(head_dim * std::min(share, 1.0));
}

}  // namespace

DecoderSpec ReadSizes(ConfigReader& config, const DecoderKeys& keys) {
  DecoderSpec spec;
  spec.vocab = config.Count("vocab_size", 1, kMaxRows);
  spec.hidden = config.Count("hidden_size", 1, kMaxWidth);
  spec.layers = config.Count("num_hidden_layers", 1, kMaxLayers);
  spec.max_positions = static_cast<uint32_t>(config.Count("max_position_embeddings", 1, kMaxPositions));
  spec.norm_eps = static_cast<float>(config.Positive(keys.norm_eps));
  spec.tied_head = config.FlagOr("tie_word_embeddings", keys.tied_head);
  if (keys.activation != nullptr) {
    const std::string activation = config.Text(keys.activation);
    config.Support(activation == "silu", keys.activation, "'" + activation + "' is not supported (silu is)");
  }
  spec.window.assign(spec.layers, 0);
  spec.sparse.assign(spec.layers, true);
  return spec;
}

// quantization_config of weights in FP8 with a scale a block. How activations are rounded there is not repeated.
void ReadFp8(ConfigReader& config, DecoderSpec* spec) {
  auto quantization = config.Object("quantization_config");
  if (!quantization) return;
  const std::string method = quantization->Text("quant_method"), format = quantization->TextOr("fmt", "e4m3");
  quantization->Support(method == "fp8", "quant_method", "'" + method + "' is not supported here (fp8 is)");
  quantization->Support(format == "e4m3", "fmt", "'" + format + "' is not supported (e4m3 is)");
  const std::vector<uint64_t> block = quantization->Counts("weight_block_size", kMaxWidth);
  if (block.size() == 2 && block[0] > 0 && block[1] > 0) {
    spec->fp8 = {block[0], block[1]};
  } else {
    quantization->Fail(ErrorCode::kUnsupported, "weight_block_size", "must be two whole numbers above zero");
  }
  static constexpr const char* kInert[] = {"activation_scheme", "modules_to_not_convert"};
  config.Adopt(quantization->Finish(kInert));
}

void ReadHeadsAndRotary(ConfigReader& config, const DecoderKeys& keys, DecoderSpec* spec) {
  ReadHeads(config, spec);
  spec->rotary = ReadRotary(config, RotaryDim(config, keys.rotary_share, spec->head_dim), spec->max_positions);
}

DecoderSpec ReadDecoder(ConfigReader& config, const DecoderKeys& keys) {
  DecoderSpec spec = ReadSizes(config, keys);
  ReadFp8(config, &spec);
  ReadHeadsAndRotary(config, keys, &spec);
  return spec;
}

std::vector<std::string> ReadLayerTypes(ConfigReader& config, const DecoderSpec& spec,
                                        const std::vector<std::string>& known) {
  std::vector<std::string> types = config.Texts("layer_types");
  if (types.empty()) return types;
  if (types.size() != spec.layers) {
    config.Fail(ErrorCode::kBadInput, "layer_types", "needs one entry a layer");
    return {};
  }
  for (const std::string& type : types) {
    config.Support(std::find(known.begin(), known.end(), type) != known.end(), "layer_types",
                   "'" + type + "' is not supported");
  }
  return types;
}

void ReadSwitchedWindow(ConfigReader& config, DecoderSpec* spec) {
  const bool use = config.FlagOr("use_sliding_window", false);
  const auto window = config.OptionalCount("sliding_window", 1, kMaxPositions);
  const uint64_t first = config.CountOr("max_window_layers", spec->layers, 0, kMaxLayers);
  const std::vector<std::string> types = ReadLayerTypes(config, *spec, {"sliding_attention", "full_attention"});
  for (uint64_t layer = 0; layer < spec->layers; ++layer) {
    bool sliding = use && window.has_value() && layer >= first;
    if (!types.empty()) {
      sliding = types[layer] == "sliding_attention";
      config.Support(!sliding || (use && window.has_value()), "layer_types",
                     "has sliding layers, but use_sliding_window is off");
    }
    if (sliding) spec->window[layer] = static_cast<uint32_t>(window.value_or(0));
  }
}

void ReadSparseLayers(ConfigReader& config, DecoderSpec* spec) {
  const uint64_t step = config.CountOr("decoder_sparse_step", 1, 1, kMaxLayers);
  for (uint64_t layer = 0; layer < spec->layers; ++layer) spec->sparse[layer] = (layer + 1) % step == 0;
  for (uint64_t layer : config.Counts("mlp_only_layers", kMaxLayers)) {
    if (layer < spec->layers) spec->sparse[layer] = false;
  }
  spec->dense_intermediate = config.Count("intermediate_size", 1, kMaxWidth);
}

void ReadDenseFirstLayers(ConfigReader& config, DecoderSpec* spec) {
  const uint64_t dense = config.CountOr("first_k_dense_replace", 0, 0, kMaxLayers);
  const uint64_t step = config.CountOr("moe_layer_freq", 1, 1, kMaxLayers);
  for (uint64_t layer = 0; layer < spec->layers; ++layer) spec->sparse[layer] = layer >= dense && layer % step == 0;
  spec->dense_intermediate = config.Count("intermediate_size", 1, kMaxWidth);
}

void ReadGroups(ConfigReader& config, GroupRule rule, DecoderSpec* spec) {
  const uint64_t groups = config.CountOr("n_group", 1, 1, spec->moe.experts);
  const uint64_t top = config.CountOr("topk_group", 1, 1, groups);
  if (spec->moe.experts % groups != 0) {
    config.Fail(ErrorCode::kBadInput, "n_group", StrFormat("%u does not divide the experts", static_cast<unsigned>(groups)));
    return;
  }
  if (groups == 1) return;
  spec->moe.routing.group_size = static_cast<uint32_t>(spec->moe.experts / groups);
  spec->moe.routing.top_groups = static_cast<uint32_t>(top);
  spec->moe.routing.group_rule = rule;
}

void ReadExtraLayers(ConfigReader& config, DecoderSpec* spec) {
  spec->extra_layers = config.CountOr("num_nextn_predict_layers", 0, 0, kMaxLayers);
}

void ReadMoe(ConfigReader& config, const char* experts_key, const char* intermediate_key, bool renormalise,
             DecoderSpec* spec, const char* k_key) {
  MoeSpec& moe = spec->moe;
  moe.experts = config.Count(experts_key, 1, kMaxExperts);
  moe.intermediate = config.Count(intermediate_key, 1, kMaxWidth);
  moe.routing.k = static_cast<uint32_t>(config.Count(k_key, 1, moe.experts));
  moe.routing.score = ScoreFunction::kSoftmax;
  moe.routing.score_before_topk = true;
  moe.routing.renormalise = renormalise;
  const uint64_t total = spec->layers * moe.experts;
  if (total > kMaxTotalExperts) {
    config.Fail(ErrorCode::kLimit, experts_key,
                StrFormat("%llu experts over all layers, at most %llu are accepted", static_cast<unsigned long long>(total),
                          static_cast<unsigned long long>(kMaxTotalExperts)));
  }
}

void ReadSharedExperts(ConfigReader& config, const char* count_key, DecoderSpec* spec) {
  MoeSpec& moe = spec->moe;
  moe.shared = "shared_experts";
  moe.shared_gate = false;
  moe.shared_intermediate = moe.intermediate * config.CountOr(count_key, 0, 0, kMaxSharedExperts);
}

}  // namespace moepack
