// The parts of a decoder layer that mix tokens.
#include <cmath>

#include "model/family/decoder_writer.h"

namespace moepack {

// q, k or v: projection, norm over heads or the full width, clamp. Rotation follows for q and k.
ValueId DecoderWriter::Projection(ValueId x, const std::string& name, uint32_t heads, bool query_or_key) {
  const std::string& module = spec_.names.attention;
  const uint64_t rows = uint64_t{heads} * spec_.head_dim;
  ValueId y = Linear(x, name + "_proj", module + "." + name + "_proj", rows, TensorRole::kAttention, spec_.qkv_bias);
  if (query_or_key && (spec_.qk_norm == QkNorm::kPerHead || spec_.qk_norm == QkNorm::kFullWidth)) {
    const uint64_t group = spec_.qk_norm == QkNorm::kPerHead ? spec_.head_dim : rows;
    const std::string& norm = name == "q" ? spec_.names.q_norm : spec_.names.k_norm;
    y = builder_.AddRmsNorm(y, {program_ + name + "_norm", checkpoint_ + module + "." + norm + ".weight"}, group,
                            spec_.norm_eps);
  }
  return spec_.clip_qkv > 0 ? builder_.AddUnary(ElementOp::kClamp, y, spec_.clip_qkv) : y;
}

ValueId DecoderWriter::Rotate(ValueId x, uint32_t heads, bool rotated) {
  if (!rotated) return x;
  const ValueId y = builder_.AddRotary(x, spec_.rotary.Node(heads, spec_.head_dim));
  if (spec_.qk_norm != QkNorm::kUnweightedPerHead) return y;
  NormNode norm;
  norm.group = spec_.head_dim;
  norm.eps = spec_.norm_eps;
  return builder_.AddNorm(y, norm);
}

AttentionNode DecoderWriter::AttentionOf(int32_t layer) {
  const auto at = static_cast<size_t>(layer);
  AttentionNode node;
  node.heads = spec_.heads;
  node.kv_heads = spec_.kv_heads;
  node.head_dim = spec_.head_dim;
  const double usual = 1.0 / std::sqrt(static_cast<double>(spec_.head_dim));
  node.scale = spec_.attention_scale != 0 ? spec_.attention_scale : static_cast<float>(usual);
  node.window = spec_.window[at];
  if (!spec_.chunk.empty()) node.chunk = spec_.chunk[at];
  if (!Rotated(layer)) {
    node.position_scale = spec_.position_scale;
    node.position_floor = spec_.position_floor;
  }
  if (spec_.sinks) {
    node.sinks = builder_.AddTensor({program_ + "sinks", checkpoint_ + spec_.names.attention + ".sinks"}, 1, spec_.heads,
                                    TensorRole::kBias);
  }
  return node;
}

ValueId DecoderWriter::Attention(ValueId x, int32_t layer) {
  ValueId q = Projection(x, "q", spec_.heads, true);
  ValueId k = Projection(x, "k", spec_.kv_heads, true);
  const ValueId v = Projection(x, "v", spec_.kv_heads, false);
  q = Rotate(q, spec_.heads, Rotated(layer));
  k = Rotate(k, spec_.kv_heads, Rotated(layer));
  const ValueId mixed = builder_.AddAttention(q, k, v, AttentionOf(layer));
  return Linear(mixed, "o_proj", spec_.names.attention + "." + spec_.names.output, spec_.hidden, TensorRole::kAttention,
                spec_.output_bias);
}

ValueId DecoderWriter::LatentQueries(ValueId x) {
  const std::string module = spec_.names.attention + ".";
  const uint64_t rows = uint64_t{spec_.heads} * spec_.head_dim;
  if (spec_.latent.q_rank == 0) return Linear(x, "q_proj", module + "q_proj", rows, TensorRole::kAttention);
  ValueId q = Linear(x, "q_a_proj", module + "q_a_proj", spec_.latent.q_rank, TensorRole::kAttention, spec_.qkv_bias);
  q = builder_.AddRmsNorm(q, {program_ + "q_a_norm", checkpoint_ + module + "q_a_layernorm.weight"}, spec_.latent.q_rank,
                          spec_.norm_eps);
  return Linear(q, "q_b_proj", module + "q_b_proj", rows, TensorRole::kAttention);
}

// Heads of q and k are [nope | rope]; the rotated part of k is one for all heads. The matrix from the latent holds for each
// head the rows of its keys, then those of its values.
ValueId DecoderWriter::LatentAttention(ValueId x, int32_t layer) {
  const LatentSpec& latent = spec_.latent;
  const std::string module = spec_.names.attention + ".";
  const ValueId q = builder_.AddRotary(LatentQueries(x), spec_.rotary.Node(spec_.heads, spec_.head_dim, latent.nope));
  const ValueId both = Linear(x, "kv_a_proj", module + "kv_a_proj_with_mqa", latent.kv_rank + latent.rope,
                              TensorRole::kAttention, spec_.qkv_bias);
  const ValueId rotated =
      builder_.AddRotary(builder_.AddSlice(both, latent.kv_rank, latent.rope), spec_.rotary.Node(1, latent.rope));
  const ValueId c = builder_.AddRmsNorm(builder_.AddSlice(both, 0, latent.kv_rank),
                                        {program_ + "kv_a_norm", checkpoint_ + module + "kv_a_layernorm.weight"},
                                        latent.kv_rank, spec_.norm_eps);
  WeightRef keys(checkpoint_ + module + "kv_b_proj.weight"), values = keys;
  keys.rows = {0, latent.nope, latent.nope + latent.value};
  values.rows = {latent.nope, latent.value, latent.nope + latent.value};
  const ValueId nope = LinearAt(c, "k_b_proj", keys, uint64_t{spec_.heads} * latent.nope, TensorRole::kAttention);
  const ValueId v = LinearAt(c, "v_b_proj", values, uint64_t{spec_.heads} * latent.value, TensorRole::kAttention);
  const ValueId k = builder_.AddConcatHeads({nope, rotated}, spec_.heads, 1);
  AttentionNode node = AttentionOf(layer);
  node.value_dim = latent.value == spec_.head_dim ? 0 : latent.value;
  return Linear(builder_.AddAttention(q, k, v, node), "o_proj", module + "o_proj", spec_.hidden, TensorRole::kAttention,
                spec_.output_bias);
}

// out(c * convolution(b * x)) with b, c, x = in(x) (LFM2).
ValueId DecoderWriter::Convolution(ValueId x) {
  const ConvolutionSpec& spec = spec_.convolution;
  const ValueId all = Linear(x, "conv.in_proj", "conv.in_proj", 3 * spec_.hidden, TensorRole::kAttention, spec.bias);
  const ValueId b = builder_.AddSlice(all, 0, spec_.hidden), c = builder_.AddSlice(all, spec_.hidden, spec_.hidden);
  const ValueId in = builder_.AddBinary(ElementOp::kMul, b, builder_.AddSlice(all, 2 * spec_.hidden, spec_.hidden));
  const TensorId weight =
      builder_.AddTensor({program_ + "conv", checkpoint_ + "conv.conv.weight"}, spec_.hidden, spec.width, TensorRole::kBias);
  TensorId bias = kNone;
  if (spec.bias) {
    bias = builder_.AddTensor({program_ + "conv.bias", checkpoint_ + "conv.conv.bias"}, 1, spec_.hidden, TensorRole::kBias);
  }
  const ValueId mixed = builder_.AddBinary(ElementOp::kMul, c, builder_.AddConvolution(in, weight, bias));
  return Linear(mixed, "conv.out_proj", "conv.out_proj", spec_.hidden, TensorRole::kAttention, spec.bias);
}

}  // namespace moepack
