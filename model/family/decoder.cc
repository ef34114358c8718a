#include "model/family/decoder.h"

#include <cmath>

#include "base/status.h"
#include "format/codec/codec.h"

namespace moepack {
namespace {

constexpr uint64_t kMaxWidth = 1 << 18, kMaxTotalExperts = 1 << 18;

// Frequencies of a rotary embedding over `dim` columns (RoFormer, 2104.09864): base^(-2i/dim), divided by `factor` when
// positions are scaled linearly.
std::vector<float> InverseFrequencies(double base, uint32_t dim, double factor) {
  std::vector<float> out(dim / 2);
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = static_cast<float>(std::pow(base, -2.0 * static_cast<double>(i) / dim) / factor);
  }
  return out;
}

// Linear factor of rope_scaling or rope_parameters; other kinds are refused by name.
double ScalingFactor(ConfigReader& scaling) {
  const std::string older = scaling.TextOr("type", "default");
  const std::string kind = scaling.TextOr("rope_type", older);
  const bool linear = kind == "linear";
  scaling.Support(linear || kind == "default", "rope_type", "'" + kind + "' is not supported (default and linear are)");
  return linear ? scaling.Positive("factor") : 1.0;
}

// Older configurations have rope_theta and rope_scaling, newer ones rope_parameters.
void ReadRotary(ConfigReader& config, DecoderSpec* spec) {
  double base = 1, factor = 1;
  if (auto parameters = config.Object("rope_parameters")) {
    base = parameters->Positive("rope_theta");
    factor = ScalingFactor(*parameters);
    config.Adopt(parameters->Finish({}));
    config.Support(!config.Has("rope_theta") && !config.Has("rope_scaling"), "rope_parameters",
                   "stands beside rope_theta or rope_scaling");
  } else {
    base = config.Positive("rope_theta");
    if (auto scaling = config.Object("rope_scaling")) {
      factor = ScalingFactor(*scaling);
      config.Adopt(scaling->Finish({}));
    }
  }
  config.Support(spec->head_dim % 2 == 0, "head_dim", "must be even for rotary positions");
  spec->inv_freq = InverseFrequencies(base, spec->head_dim, factor);
}

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

// Writes the nodes of one decoder; split by part so that each reads like the formula it stands for.
class DecoderWriter {
 public:
  explicit DecoderWriter(const DecoderSpec& spec) : spec_(spec) {}

  CheckpointLayout Build() {
    builder_.Enter(0, -1);
    const ValueId tokens = builder_.AddTokens();
    const TensorId embedding =
        builder_.AddTensor({"embed_tokens", "model.embed_tokens.weight"}, spec_.vocab, spec_.hidden, TensorRole::kEmbedding);
    ValueId x = builder_.AddEmbedding(tokens, embedding);
    for (uint64_t layer = 0; layer < spec_.layers; ++layer) x = Layer(x, static_cast<int32_t>(layer));
    builder_.Enter(static_cast<int32_t>(spec_.layers) + 1, -1);
    x = builder_.AddRmsNorm(x, {"norm", "model.norm.weight"}, spec_.hidden, spec_.norm_eps);
    const TensorId head =
        spec_.tied_head ? embedding
                        : builder_.AddTensor({"lm_head", "lm_head.weight"}, spec_.vocab, spec_.hidden, TensorRole::kHead);
    return builder_.Finish(builder_.AddLinear(x, head), spec_.max_positions);
  }

 private:
  ValueId Layer(ValueId x, int32_t layer) {
    builder_.Enter(layer + 1, layer);
    program_ = StrFormat("layers.%d.", layer);
    checkpoint_ = StrFormat("model.layers.%d.", layer);
    const ValueId attention_in = Norm(x, "input_layernorm");
    x = builder_.AddBinary(ElementOp::kAdd, x, Attention(attention_in, spec_.window[layer]));
    const ValueId ffn_in = Norm(x, "post_attention_layernorm");
    return builder_.AddBinary(ElementOp::kAdd, x, spec_.sparse[layer] ? Moe(ffn_in) : DenseFfn(ffn_in));
  }

  ValueId Norm(ValueId x, const char* name) {
    return builder_.AddRmsNorm(x, {program_ + name, checkpoint_ + name + ".weight"}, spec_.hidden, spec_.norm_eps);
  }

  // `name` in the program, `module` in the checkpoint, both below the layer.
  ValueId Linear(ValueId x, const std::string& name, const std::string& module, uint64_t rows, TensorRole role,
                 bool bias = false) {
    const TensorId weight =
        builder_.AddTensor({program_ + name, checkpoint_ + module + ".weight"}, rows, builder_.width(x), role);
    TensorId bias_id = kNone;
    if (bias) {
      bias_id = builder_.AddTensor({program_ + name + ".bias", checkpoint_ + module + ".bias"}, 1, rows, TensorRole::kBias);
    }
    return builder_.AddLinear(x, weight, bias_id);
  }

  // q, k or v: projection, norm over heads or the full width, clamp. Rotation follows for q and k.
  ValueId Projection(ValueId x, const std::string& name, uint32_t heads, bool normed) {
    const uint64_t rows = uint64_t{heads} * spec_.head_dim;
    ValueId y = Linear(x, name + "_proj", "self_attn." + name + "_proj", rows, TensorRole::kAttention, spec_.qkv_bias);
    if (normed && spec_.qk_norm != QkNorm::kNone) {
      const uint64_t group = spec_.qk_norm == QkNorm::kPerHead ? spec_.head_dim : rows;
      y = builder_.AddRmsNorm(y, {program_ + name + "_norm", checkpoint_ + "self_attn." + name + "_norm.weight"}, group,
                              spec_.norm_eps);
    }
    return spec_.clip_qkv > 0 ? builder_.AddUnary(ElementOp::kClamp, y, spec_.clip_qkv) : y;
  }

  ValueId Attention(ValueId x, uint32_t window) {
    ValueId q = Projection(x, "q", spec_.heads, true);
    ValueId k = Projection(x, "k", spec_.kv_heads, true);
    const ValueId v = Projection(x, "v", spec_.kv_heads, false);
    q = builder_.AddRotary(q, spec_.heads, spec_.head_dim, spec_.inv_freq);
    k = builder_.AddRotary(k, spec_.kv_heads, spec_.head_dim, spec_.inv_freq);
    AttentionNode node;
    node.heads = spec_.heads;
    node.kv_heads = spec_.kv_heads;
    node.head_dim = spec_.head_dim;
    node.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(spec_.head_dim)));
    node.window = window;
    const ValueId mixed = builder_.AddAttention(q, k, v, node);
    return Linear(mixed, "o_proj", "self_attn.o_proj", spec_.hidden, TensorRole::kAttention, spec_.output_bias);
  }

  // down(silu(gate(x)) * up(x))
  ValueId GatedMlp(ValueId x, const std::string& name, const std::string& module, uint64_t width, TensorRole role) {
    const ValueId gate =
        builder_.AddUnary(ElementOp::kSilu, Linear(x, name + "gate_proj", module + "gate_proj", width, role));
    const ValueId up = Linear(x, name + "up_proj", module + "up_proj", width, role);
    return Linear(builder_.AddBinary(ElementOp::kMul, gate, up), name + "down_proj", module + "down_proj", spec_.hidden,
                  role);
  }

  ValueId DenseFfn(ValueId x) { return GatedMlp(x, "mlp.", "mlp.", spec_.dense_intermediate, TensorRole::kDenseFfn); }

  ValueId SharedExpert(ValueId x) {
    const std::string module = spec_.moe.module + ".shared_expert";
    const ValueId y = GatedMlp(x, "shared_expert.", module + ".", spec_.moe.shared_intermediate, TensorRole::kSharedExpert);
    const ValueId gate = Linear(x, "shared_expert_gate", module + "_gate", 1, TensorRole::kSharedExpert);
    return builder_.AddBinary(ElementOp::kMul, y, builder_.AddUnary(ElementOp::kSigmoid, gate));
  }

  ValueId Moe(ValueId x) {
    const ValueId logits = Linear(x, "router", spec_.moe.module + ".gate", spec_.moe.experts, TensorRole::kRouter);
    std::vector<ExpertNames> names(spec_.moe.experts);
    for (size_t e = 0; e < names.size(); ++e) {
      for (int m = 0; m < kExpertMatrices; ++m) {
        names[e][m] = StrFormat("%s%s.experts.%zu.%s.weight", checkpoint_.c_str(), spec_.moe.module.c_str(), e,
                                spec_.moe.matrices[m].c_str());
      }
    }
    const uint32_t table = builder_.AddExpertTable(spec_.hidden, spec_.moe.intermediate, std::move(names));
    const ValueId routed = builder_.AddMoe(x, logits, spec_.moe.routing, ActivationRecord{Activation::kSilu, true}, table);
    return spec_.moe.shared_intermediate == 0 ? routed : builder_.AddBinary(ElementOp::kAdd, routed, SharedExpert(x));
  }

  const DecoderSpec& spec_;
  ProgramBuilder builder_;
  std::string program_, checkpoint_;  // prefixes of the layer being written
};

}  // namespace

DecoderSpec ReadDecoder(ConfigReader& config) {
  DecoderSpec spec;
  spec.vocab = config.Count("vocab_size", 1, kMaxRows);
  spec.hidden = config.Count("hidden_size", 1, kMaxWidth);
  spec.layers = config.Count("num_hidden_layers", 1, kMaxLayers);
  spec.max_positions = static_cast<uint32_t>(config.Count("max_position_embeddings", 1, kMaxPositions));
  spec.norm_eps = static_cast<float>(config.Positive("rms_norm_eps"));
  spec.tied_head = config.FlagOr("tie_word_embeddings", false);
  const std::string activation = config.Text("hidden_act");
  config.Support(activation == "silu", "hidden_act", "'" + activation + "' is not supported (silu is)");
  ReadHeads(config, &spec);
  ReadRotary(config, &spec);
  spec.window.assign(spec.layers, 0);
  spec.sparse.assign(spec.layers, true);
  return spec;
}

void ReadSwitchedWindow(ConfigReader& config, DecoderSpec* spec) {
  const bool use = config.FlagOr("use_sliding_window", false);
  const auto window = config.OptionalCount("sliding_window", 1, kMaxPositions);
  const uint64_t first = config.CountOr("max_window_layers", spec->layers, 0, kMaxLayers);
  const std::vector<std::string> types = config.Texts("layer_types");
  if (!types.empty() && types.size() != spec->layers) {
    config.Fail(ErrorCode::kBadInput, "layer_types", "needs one entry a layer");
    return;
  }
  for (uint64_t layer = 0; layer < spec->layers; ++layer) {
    bool sliding = use && window.has_value() && layer >= first;
    if (!types.empty()) {
      sliding = types[layer] == "sliding_attention";
      config.Support(sliding || types[layer] == "full_attention", "layer_types", "'" + types[layer] + "' is not supported");
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

void ReadMoe(ConfigReader& config, const char* experts_key, const char* intermediate_key, bool renormalise,
             DecoderSpec* spec) {
  MoeSpec& moe = spec->moe;
  moe.experts = config.Count(experts_key, 1, kMaxExperts);
  moe.intermediate = config.Count(intermediate_key, 1, kMaxWidth);
  moe.routing.k = static_cast<uint32_t>(config.Count("num_experts_per_tok", 1, moe.experts));
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

CheckpointLayout BuildDecoder(const DecoderSpec& spec) { return DecoderWriter(spec).Build(); }

}  // namespace moepack
