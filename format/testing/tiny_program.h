// A small valid program that has every node kind, for tests: one decoder layer, a shared expert, four experts top 2.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "format/program.h"

namespace moepack::testing {

class ProgramBuilder {
 public:
  ValueId Value(uint64_t width) {
    const auto id = static_cast<ValueId>(program.values.size());
    program.values.push_back({StrFormat("v%u", id), ValueKind::kFloat, width});
    return id;
  }
  TensorId Tensor(const std::string& name, uint64_t rows, uint64_t cols, TensorRole role, int32_t layer = -1) {
    program.tensors.push_back({name, rows, cols, role, layer});
    return static_cast<TensorId>(program.tensors.size() - 1);
  }
  // A node of `kind` in the current block; returns it for its record to be filled in.
  Node& Add(NodeKind kind, std::vector<ValueId> inputs, uint64_t width) {
    const ValueId output = Value(width);
    Node& node = program.nodes.emplace_back();
    node.kind = kind;
    node.block = block;
    node.inputs = std::move(inputs);
    node.output = output;
    return node;
  }
  ValueId Linear(ValueId in, const std::string& name, uint64_t rows, uint64_t cols, TensorRole role, int32_t layer,
                 bool bias = false) {
    const TensorId weight = Tensor(name, rows, cols, role, layer);
    const TensorId bias_id = bias ? Tensor(name + ".bias", 1, rows, TensorRole::kBias, layer) : kNone;
    Node& node = Add(NodeKind::kLinear, {in}, rows);
    node.linear = {weight, bias_id};
    return node.output;
  }
  ValueId Norm(ValueId in, const std::string& name, uint64_t width, int32_t layer) {
    const TensorId weight = Tensor(name, 1, width, TensorRole::kNorm, layer);
    Node& node = Add(NodeKind::kNorm, {in}, width);
    node.norm.weight = weight;
    node.norm.group = width;
    node.norm.eps = 1e-6f;
    return node.output;
  }
  ValueId Rotary(ValueId in, uint32_t heads, uint32_t head_dim) {
    Node& node = Add(NodeKind::kRotary, {in}, static_cast<uint64_t>(heads) * head_dim);
    node.rotary.heads = heads;
    node.rotary.head_dim = head_dim;
    node.rotary.rotary_dim = head_dim;
    for (uint32_t i = 0; i < head_dim / 2; ++i) node.rotary.inv_freq.push_back(1.0f / static_cast<float>(i + 1));
    return node.output;
  }
  ValueId Elementwise(ElementOp op, std::vector<ValueId> inputs, uint64_t width, float alpha = 0) {
    Node& node = Add(NodeKind::kElementwise, std::move(inputs), width);
    node.elementwise = {op, alpha};
    return node.output;
  }

  Program program;
  int32_t block = 0;
};

inline constexpr uint64_t kTinyVocabulary = 16, kTinyHidden = 8;
inline constexpr uint32_t kTinyExperts = 4;

inline ValueId AddTinyAttention(ProgramBuilder& b, ValueId in) {
  const ValueId x = b.Norm(in, "layers.0.input_layernorm", 8, 0);
  ValueId q = b.Linear(x, "layers.0.q_proj", 8, 8, TensorRole::kAttention, 0, true);
  ValueId k = b.Linear(x, "layers.0.k_proj", 4, 8, TensorRole::kAttention, 0, true);
  const ValueId v = b.Linear(x, "layers.0.v_proj", 4, 8, TensorRole::kAttention, 0);
  q = b.Rotary(q, 2, 4);
  k = b.Rotary(k, 1, 4);
  Node& node = b.Add(NodeKind::kAttention, {q, k, v}, 8);
  node.attention = {2, 1, 4, 0.5f, 0, 0, 0};
  const ValueId o = b.Linear(node.output, "layers.0.o_proj", 8, 8, TensorRole::kAttention, 0);
  return b.Elementwise(ElementOp::kAdd, {in, o}, 8);
}

inline ValueId AddTinyMoe(ProgramBuilder& b, ValueId in) {
  const ValueId x = b.Norm(in, "layers.0.post_attention_layernorm", 8, 0);
  const ValueId logits = b.Linear(x, "layers.0.router", kTinyExperts, 8, TensorRole::kRouter, 0);
  Node& moe = b.Add(NodeKind::kMoe, {x, logits}, 8);
  moe.moe.routing.k = 2;
  const ValueId routed = moe.output;
  const ValueId both = b.Linear(x, "layers.0.shared_expert.gate_up_proj", 12, 8, TensorRole::kSharedExpert, 0);
  Node& gate = b.Add(NodeKind::kSlice, {both}, 6);
  const ValueId activated = b.Elementwise(ElementOp::kSilu, {gate.output}, 6);
  Node& up = b.Add(NodeKind::kSlice, {both}, 6);
  up.slice.begin = 6;
  ValueId shared = b.Elementwise(ElementOp::kMul, {activated, up.output}, 6);
  shared = b.Linear(shared, "layers.0.shared_expert.down_proj", 8, 6, TensorRole::kSharedExpert, 0);
  ValueId weight = b.Linear(x, "layers.0.shared_expert_gate", 1, 8, TensorRole::kSharedExpert, 0);
  weight = b.Elementwise(ElementOp::kSigmoid, {weight}, 1);
  shared = b.Elementwise(ElementOp::kMul, {shared, weight}, 8);
  const ValueId sum = b.Elementwise(ElementOp::kAdd, {in, routed}, 8);
  return b.Elementwise(ElementOp::kAdd, {sum, shared}, 8);
}

inline Program TinyProgram() {
  ProgramBuilder b;
  b.program.values.push_back({"tokens", ValueKind::kTokens, 0});
  b.program.inputs = {0};
  b.program.expert_tables.push_back({0, kTinyHidden, {6, 6, 4, 6}, {0, 1, 3, 7}, true});
  b.program.state_slots = 1;
  b.program.max_positions = 64;

  const TensorId table = b.Tensor("embed_tokens", kTinyVocabulary, kTinyHidden, TensorRole::kEmbedding);
  Node& embedding = b.Add(NodeKind::kEmbedding, {0}, kTinyHidden);
  embedding.embedding.table = table;
  ValueId h = embedding.output;

  b.block = 1;
  h = AddTinyAttention(b, h);
  h = AddTinyMoe(b, h);

  b.block = 2;
  h = b.Norm(h, "norm", kTinyHidden, -1);
  h = b.Elementwise(ElementOp::kClamp, {h}, kTinyHidden, 100.0f);
  Node& twice = b.Add(NodeKind::kConcat, {h, h}, 2 * kTinyHidden);
  h = b.Linear(twice.output, "lm_head", kTinyVocabulary, 2 * kTinyHidden, TensorRole::kHead, -1);
  b.program.output = h;
  b.program.original_parameters = 2000;
  return b.program;
}

// First node of `kind`.
inline Node& NodeOf(Program& program, NodeKind kind) {
  for (Node& node : program.nodes) {
    if (node.kind == kind) return node;
  }
  return program.nodes.front();
}

}  // namespace moepack::testing
