#include "model/family/decoder.h"

#include "base/status.h"
#include "model/family/decoder_writer.h"

namespace moepack {

CheckpointLayout DecoderWriter::Build() {
  const DecoderNames& names = spec_.names;
  builder_.Enter(0, -1);
  const ValueId tokens = builder_.AddTokens();
  const std::string embedding_name = names.model + "embed_tokens.weight", head_name = names.head + ".weight";
  const TensorId embedding =
      builder_.AddTensor({"embed_tokens", embedding_name}, spec_.vocab, spec_.hidden, TensorRole::kEmbedding);
  ValueId x = Scale(builder_.AddEmbedding(tokens, embedding), spec_.embedding_scale);
  for (uint64_t layer = 0; layer < spec_.layers; ++layer) x = Layer(x, static_cast<int32_t>(layer));
  builder_.Enter(static_cast<int32_t>(spec_.layers) + 1, -1);
  x = Norm(x, "norm", names.model, names.final_norm);
  const TensorId head =
      spec_.tied_head ? embedding : builder_.AddTensor({"lm_head", head_name}, spec_.vocab, spec_.hidden, TensorRole::kHead);
  TensorId bias = kNone;
  if (spec_.head_bias) bias = builder_.AddTensor({"lm_head.bias", names.head + ".bias"}, 1, spec_.vocab, TensorRole::kBias);
  CheckpointLayout layout =
      builder_.Finish(Scale(builder_.AddLinear(x, head, bias), spec_.logits_scale), spec_.max_positions);
  layout.fp8 = spec_.fp8;
  layout.embedding = embedding_name;
  if (spec_.tied_head) layout.head = head_name;
  for (uint64_t i = 0; i < spec_.extra_layers; ++i) {
    layout.ignored.push_back(
        StrFormat("%slayers.%llu.", names.model.c_str(), static_cast<unsigned long long>(spec_.layers + i)));
  }
  return layout;
}

ValueId DecoderWriter::Layer(ValueId x, int32_t layer) {
  builder_.Enter(layer + 1, layer);
  program_ = StrFormat("layers.%d.", layer);
  checkpoint_ = StrFormat("%slayers.%d.", spec_.names.model.c_str(), layer);
  const auto at = static_cast<size_t>(layer);
  const ValueId mixer_in = Norm(x, program_ + "input_layernorm", checkpoint_, spec_.names.input_norm);
  const bool convolution = !spec_.convolution.layers.empty() && spec_.convolution.layers[at];
  const ValueId mixed = convolution                 ? Convolution(mixer_in)
                        : spec_.latent.kv_rank != 0 ? LatentAttention(mixer_in, layer)
                                                    : Attention(mixer_in, layer);
  x = builder_.AddBinary(ElementOp::kAdd, x, Scale(mixed, spec_.residual_scale));
  const ValueId ffn_in = Norm(x, program_ + "post_attention_layernorm", checkpoint_, spec_.names.ffn_norm);
  const ValueId ffn = spec_.sparse[at] ? Moe(ffn_in)
                                       : GatedMlp(ffn_in, "mlp.", spec_.names.ffn + ".", spec_.names.ffn_matrices,
                                                  spec_.dense_intermediate, TensorRole::kDenseFfn);
  return builder_.AddBinary(ElementOp::kAdd, x, Scale(ffn, spec_.residual_scale));
}

ValueId DecoderWriter::Norm(ValueId x, const std::string& name, const std::string& prefix, const std::string& module) {
  NormNode node;
  node.kind = spec_.norm;
  node.group = spec_.hidden;
  node.eps = spec_.norm_eps;
  node.weight = builder_.AddTensor({name, prefix + module + ".weight"}, 1, spec_.hidden, TensorRole::kNorm);
  if (spec_.norm == NormKind::kLayer) {
    node.bias = builder_.AddTensor({name + ".bias", prefix + module + ".bias"}, 1, spec_.hidden, TensorRole::kNorm);
  }
  return builder_.AddNorm(x, node);
}

ValueId DecoderWriter::Linear(ValueId x, const std::string& name, const std::string& module, uint64_t rows, TensorRole role,
                              bool bias) {
  const TensorId weight =
      builder_.AddTensor({program_ + name, checkpoint_ + module + ".weight"}, rows, builder_.width(x), role);
  TensorId bias_id = kNone;
  if (bias) {
    bias_id = builder_.AddTensor({program_ + name + ".bias", checkpoint_ + module + ".bias"}, 1, rows, TensorRole::kBias);
  }
  return builder_.AddLinear(x, weight, bias_id);
}

ValueId DecoderWriter::LinearAt(ValueId x, const std::string& name, WeightRef weight, uint64_t rows, TensorRole role) {
  return builder_.AddLinear(x, builder_.AddTensor({program_ + name, std::move(weight)}, rows, builder_.width(x), role));
}

// down(silu(gate(x)) * up(x))
ValueId DecoderWriter::GatedMlp(ValueId x, const std::string& name, const std::string& module,
                                const std::array<std::string, kExpertMatrices>& matrices, uint64_t width, TensorRole role) {
  const ValueId gate = builder_.AddUnary(ElementOp::kSilu, Linear(x, name + "gate_proj", module + matrices[0], width, role));
  const ValueId up = Linear(x, name + "up_proj", module + matrices[1], width, role);
  return Linear(builder_.AddBinary(ElementOp::kMul, gate, up), name + "down_proj", module + matrices[2], spec_.hidden, role);
}

ValueId DecoderWriter::SharedExpert(ValueId x) {
  const std::string module = spec_.moe.module + "." + spec_.moe.shared;
  const ValueId y = GatedMlp(x, "shared_expert.", module + ".", spec_.names.ffn_matrices, spec_.moe.shared_intermediate,
                             TensorRole::kSharedExpert);
  if (!spec_.moe.shared_gate) return y;
  const ValueId gate = Linear(x, "shared_expert_gate", module + "_gate", 1, TensorRole::kSharedExpert);
  return builder_.AddBinary(ElementOp::kMul, y, builder_.AddUnary(ElementOp::kSigmoid, gate));
}

// Where expert e of the layer has gate, up and down.
ExpertRefs DecoderWriter::Expert(uint32_t e) const {
  const MoeSpec& moe = spec_.moe;
  const std::string prefix = checkpoint_ + moe.module + ".";
  ExpertRefs refs;
  if (moe.layout == ExpertLayout::kPerExpert) {
    for (size_t m = 0; m < refs.size(); ++m)
      refs[m] = StrFormat("%sexperts.%u.%s.weight", prefix.c_str(), e, moe.matrices[m].c_str());
    return refs;
  }
  const bool mxfp4 = moe.layout == ExpertLayout::kInterleavedMxfp4;
  const bool interleaved = mxfp4 || moe.layout == ExpertLayout::kInterleavedTransposed;
  for (WeightRef& ref : refs) {
    ref = prefix + moe.stacked_in;
    ref.stack = static_cast<uint32_t>(moe.experts);
    ref.index = e;
    ref.mxfp4 = mxfp4;
    ref.transposed = moe.layout == ExpertLayout::kStackedTransposed || moe.layout == ExpertLayout::kInterleavedTransposed;
  }
  const uint64_t run = interleaved ? 1 : moe.intermediate;
  refs[static_cast<size_t>(ExpertMatrix::kGate)].rows = {0, run, 2 * run};
  refs[static_cast<size_t>(ExpertMatrix::kUp)].rows = {run, run, 2 * run};
  refs[static_cast<size_t>(ExpertMatrix::kDown)].name = prefix + moe.stacked_out;
  return refs;
}

// Rows of [E, 2I], gate and up laid out as the rows of the matrices are, and of [E, H].
void DecoderWriter::AddExpertBiases(MoeNode* node) {
  const MoeSpec& moe = spec_.moe;
  const std::string prefix = checkpoint_ + moe.module + ".";
  const ExpertRefs refs = Expert(0);
  WeightRef gate(prefix + moe.stacked_in + "_bias"), up = gate;
  gate.columns = refs[static_cast<size_t>(ExpertMatrix::kGate)].rows;
  up.columns = refs[static_cast<size_t>(ExpertMatrix::kUp)].rows;
  node->gate_bias =
      builder_.AddTensor({program_ + "experts.gate_proj.bias", gate}, moe.experts, moe.intermediate, TensorRole::kBias);
  node->up_bias =
      builder_.AddTensor({program_ + "experts.up_proj.bias", up}, moe.experts, moe.intermediate, TensorRole::kBias);
  node->down_bias = builder_.AddTensor({program_ + "experts.down_proj.bias", prefix + moe.stacked_out + "_bias"},
                                       moe.experts, spec_.hidden, TensorRole::kBias);
}

ValueId DecoderWriter::Moe(ValueId x) {
  const MoeSpec& moe = spec_.moe;
  const ValueId logits =
      Linear(x, "router", moe.module + "." + moe.router, moe.experts, TensorRole::kRouter, moe.router_bias);
  MoeNode node;
  node.routing = moe.routing;
  node.activation = moe.activation;
  if (!moe.selection_bias.empty()) {
    node.selection_bias =
        builder_.AddTensor({program_ + "router.selection_bias", checkpoint_ + moe.module + "." + moe.selection_bias}, 1,
                           moe.experts, TensorRole::kBias);
  }
  if (moe.expert_biases) AddExpertBiases(&node);
  std::vector<ExpertRefs> experts(moe.experts);
  for (uint32_t e = 0; e < moe.experts; ++e) experts[e] = Expert(e);
  node.table = builder_.AddExpertTable(spec_.hidden, moe.intermediate, std::move(experts));
  const ValueId routed = builder_.AddMoe(x, logits, node);
  return moe.shared_intermediate == 0 ? routed : builder_.AddBinary(ElementOp::kAdd, routed, SharedExpert(x));
}

CheckpointLayout BuildDecoder(const DecoderSpec& spec) { return DecoderWriter(spec).Build(); }

}  // namespace moepack
