// For tests: programs built node by node, with pseudo-random weights made from the tensor's place in the program.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "format/program.h"
#include "model/model.h"

namespace moepack::testing {

// Values in about [-scale, scale], always the same for the same seed.
inline std::vector<float> ToyValues(size_t n, uint64_t seed, float scale) {
  std::vector<float> v(n);
  uint64_t state = seed * 0x9e3779b97f4a7c15ull + 0x1234567;
  for (float& x : v) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    x = (static_cast<float>(state >> 40) / 8388608.0f - 1.0f) * scale;
  }
  return v;
}

class ToySource final : public TensorSource {
 public:
  explicit ToySource(const Program& program) : program_(program) {}
  Result<std::vector<float>> Load(TensorId tensor) const override {
    const TensorDecl& d = program_.tensors[tensor];
    return ToyValues(d.rows * d.cols, tensor + 1, 1.2f / std::sqrt(static_cast<float>(d.cols)));
  }
  Result<std::vector<float>> LoadExpert(uint32_t table, uint32_t expert, ExpertMatrix matrix) const override {
    const ExpertTableDecl& d = program_.expert_tables[table];
    const float in = static_cast<float>(matrix == ExpertMatrix::kDown ? d.intermediate[expert] : d.hidden);
    return ToyValues(d.intermediate[expert] * d.hidden, 1000 + table * 1000 + expert * 3 + static_cast<uint32_t>(matrix),
                     2.5f / std::sqrt(in));
  }
  Codec StoredCodec(TensorId) const override { return {}; }
  Codec StoredExpertCodec(uint32_t, uint32_t, ExpertMatrix) const override { return {}; }

 private:
  const Program& program_;
};

// Adds nodes to a program.
class ToyProgram {
 public:
  Program program;
  int32_t block = 0;

  ToyProgram() {
    program.values.push_back({"tokens", ValueKind::kTokens, 0});
    program.inputs = {0};
    program.max_positions = 4096;
    program.original_parameters = 1;
  }
  uint64_t Width(ValueId id) const { return program.values[id].width; }
  TensorId Tensor(uint64_t rows, uint64_t cols, TensorRole role = TensorRole::kOther) {
    program.tensors.push_back({"t" + std::to_string(program.tensors.size()), rows, cols, role, -1});
    return static_cast<TensorId>(program.tensors.size() - 1);
  }
  ValueId Add(Node node, std::vector<ValueId> inputs, uint64_t width) {
    node.block = block;
    node.inputs = std::move(inputs);
    node.output = static_cast<ValueId>(program.values.size());
    program.values.push_back({"v" + std::to_string(node.output), ValueKind::kFloat, width});
    program.nodes.push_back(std::move(node));
    return program.nodes.back().output;
  }
  ValueId Embedding(uint64_t vocabulary, uint64_t width) {
    return Add({.kind = NodeKind::kEmbedding, .embedding = {Tensor(vocabulary, width)}}, {0}, width);
  }
  ValueId Linear(ValueId in, uint64_t width, bool bias = false) {
    const LinearNode linear{Tensor(width, Width(in)), bias ? Tensor(1, width) : kNone};
    return Add({.kind = NodeKind::kLinear, .linear = linear}, {in}, width);
  }
  ValueId Norm(ValueId in, NormNode norm, bool weight = true, bool bias = false) {
    if (weight) norm.weight = Tensor(1, norm.group);
    if (bias) norm.bias = Tensor(1, norm.group);
    return Add({.kind = NodeKind::kNorm, .norm = norm}, {in}, Width(in));
  }
  ValueId Rms(ValueId in) { return Norm(in, {.group = Width(in), .eps = 1e-6f}); }
  ValueId Rotary(ValueId in, RotaryNode rotary) {
    for (uint32_t i = 0; i < rotary.rotary_dim / 2; ++i) rotary.inv_freq.push_back(1.0f / static_cast<float>(1 + 3 * i));
    return Add({.kind = NodeKind::kRotary, .rotary = rotary}, {in}, Width(in));
  }
  ValueId Attention(ValueId q, ValueId k, ValueId v, AttentionNode attention) {
    attention.state_slot = program.state_slots++;
    return Add({.kind = NodeKind::kAttention, .attention = attention}, {q, k, v},
               uint64_t{attention.heads} * attention.value_width());
  }
  ValueId Element(ElementOp op, ValueId a, float alpha = 0) {
    return Add({.kind = NodeKind::kElementwise, .elementwise = {op, alpha}}, {a}, Width(a));
  }
  ValueId Element2(ElementOp op, ValueId a, ValueId b) {
    return Add({.kind = NodeKind::kElementwise, .elementwise = {op, 0}}, {a, b}, Width(a));
  }
  ValueId Slice(ValueId a, uint64_t begin, uint64_t width) {
    return Add({.kind = NodeKind::kSlice, .slice = {begin}}, {a}, width);
  }
  ValueId Concat(std::vector<ValueId> parts) {
    uint64_t width = 0;
    for (ValueId id : parts) width += Width(id);
    return Add({.kind = NodeKind::kConcat}, parts, width);
  }
  // Heads of `parts` beside each other, each with all of `shared`.
  ValueId ConcatHeads(std::vector<ValueId> parts, ValueId shared, uint32_t heads) {
    uint64_t width = heads * Width(shared);
    for (ValueId id : parts) width += Width(id);
    parts.push_back(shared);
    return Add({.kind = NodeKind::kConcat, .concat = {heads, 1}}, parts, width);
  }
  ValueId Convolution(ValueId in, uint64_t width, bool bias) {
    const ConvolutionNode convolution{Tensor(Width(in), width), bias ? Tensor(1, Width(in)) : kNone, program.state_slots++};
    return Add({.kind = NodeKind::kConvolution, .convolution = convolution}, {in}, Width(in));
  }
  ValueId Sinks(ValueId q, ValueId k, ValueId v, AttentionNode attention) {
    attention.sinks = Tensor(1, attention.heads);
    return Attention(q, k, v, attention);
  }
  // `biases`: of the experts; `selection`: a selection bias.
  ValueId Moe(ValueId in, RoutingRecord routing, ActivationRecord activation, std::vector<uint64_t> intermediate,
              bool biases = false, bool selection = false) {
    const uint64_t experts = intermediate.size(), widest = *std::max_element(intermediate.begin(), intermediate.end());
    ExpertTableDecl table{
        .layer = block - 1, .hidden = Width(in), .intermediate = std::move(intermediate), .gated = activation.gated};
    for (uint32_t e = 0; e < table.experts(); ++e) table.original.push_back(e);
    const ValueId logits = Linear(in, table.experts());
    MoeNode moe{routing, activation, static_cast<uint32_t>(program.expert_tables.size())};
    if (selection) moe.selection_bias = Tensor(1, experts);
    if (biases && activation.gated) moe.gate_bias = Tensor(experts, widest);
    if (biases) moe.up_bias = Tensor(experts, widest);
    if (biases) moe.down_bias = Tensor(experts, Width(in));
    program.expert_tables.push_back(std::move(table));
    return Add({.kind = NodeKind::kMoe, .moe = moe}, {in, logits}, Width(in));
  }
};

// Everything that attention, routing and experts may have beside the usual, and convolutions.
inline Program ToyVariants(uint64_t vocabulary) {
  ToyProgram p;
  ValueId x = p.Embedding(vocabulary, 24);
  p.block = 1;
  // A rotation inside each head, one rotated key for all heads, values narrower than keys.
  RotaryNode turn{.heads = 3, .head_dim = 8, .rotary_dim = 4, .interleaved = true, .offset = 4};
  turn.long_from = 10;
  turn.long_magnitude = 1.5f;
  turn.long_inv_freq = {0.7f, 0.02f};
  ValueId q = p.Rotary(p.Linear(x, 24), turn);
  turn.heads = 1;
  turn.offset = 0;
  turn.head_dim = 4;
  ValueId k = p.ConcatHeads({p.Linear(x, 12)}, p.Rotary(p.Linear(x, 4), turn), 3);
  ValueId a =
      p.Sinks(q, k, p.Linear(x, 15), {.heads = 3, .kv_heads = 3, .head_dim = 8, .scale = 0.5f, .value_dim = 5, .chunk = 7});
  x = p.Element2(ElementOp::kAdd, x, p.Linear(a, 24));
  x = p.Element2(ElementOp::kAdd, x,
                 p.Moe(p.Rms(x),
                       {.score = ScoreFunction::kSigmoid,
                        .k = 2,
                        .renormalise = true,
                        .group_size = 3,
                        .top_groups = 2,
                        .group_rule = GroupRule::kTwoLargest},
                       {.limit = 0.6f, .sigmoid_scale = 1.7f, .up_offset = 1}, {7, 9, 16, 8, 5, 4, 8, 8}, true, true));
  p.block = 2;
  x = p.Element2(ElementOp::kAdd, x, p.Convolution(p.Rms(x), 4, true));
  a = p.Attention(p.Linear(x, 24), p.Linear(x, 8), p.Linear(x, 8),
                  {.heads = 3,
                   .kv_heads = 1,
                   .head_dim = 8,
                   .scale = 0.35f,
                   .window = 6,
                   .chunk = 9,
                   .position_scale = 0.3f,
                   .position_floor = 4});
  x = p.Element2(ElementOp::kAdd, x, a);
  x = p.Element2(
      ElementOp::kAdd, x,
      p.Moe(p.Rms(x), {.score = ScoreFunction::kSigmoid, .score_before_topk = false, .k = 1, .weight_on_input = true},
            {.gated = false}, {6, 6, 6, 6}, true));
  p.block = 3;
  x = p.Convolution(p.Rms(x), 2, false);
  x = p.Element2(ElementOp::kAdd, x,
                 p.Moe(p.Rms(x), {.score = ScoreFunction::kSparseMixer, .k = 2, .mixer_eps = 0.3f}, {}, {8, 8, 8, 8, 8}));
  x = p.Element2(ElementOp::kAdd, x, p.Linear(x, 1));
  p.block = 4;
  ValueId groups = p.Moe(p.Rms(x), {.k = 2, .group_size = 2, .top_groups = 1}, {.function = Activation::kRelu, .limit = 1},
                         {8, 8, 8, 8, 8, 8});
  p.program.output = p.Linear(p.Rms(p.Element2(ElementOp::kAdd, x, groups)), vocabulary);
  p.program.max_positions = 4096;
  return std::move(p.program);
}

}  // namespace moepack::testing
