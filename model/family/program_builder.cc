#include "model/family/program_builder.h"

#include <numeric>
#include <utility>

#include "base/status.h"

namespace moepack {

void ProgramBuilder::Enter(int32_t block, int32_t layer) {
  block_ = block;
  layer_ = layer;
}

ValueId ProgramBuilder::AddTokens() {
  Program& p = layout_.program;
  p.values.push_back({"tokens", ValueKind::kTokens, 0});
  p.inputs.push_back(static_cast<ValueId>(p.values.size() - 1));
  return p.inputs.back();
}

TensorId ProgramBuilder::AddTensor(const TensorNames& names, uint64_t rows, uint64_t cols, TensorRole role) {
  layout_.program.tensors.push_back({names.program, rows, cols, role, layer_});
  layout_.tensors.push_back(names.checkpoint);
  return static_cast<TensorId>(layout_.program.tensors.size() - 1);
}

ValueId ProgramBuilder::AddNode(Node node, const char* what, uint64_t width) {
  Program& p = layout_.program;
  const ValueId id = static_cast<ValueId>(p.values.size());
  p.values.push_back({StrFormat("%u.%s", id, what), ValueKind::kFloat, width});
  node.block = block_;
  node.output = id;
  p.nodes.push_back(std::move(node));
  return id;
}

ValueId ProgramBuilder::AddEmbedding(ValueId tokens, TensorId table) {
  Node node;
  node.kind = NodeKind::kEmbedding;
  node.inputs = {tokens};
  node.embedding.table = table;
  return AddNode(std::move(node), "embedding", layout_.program.tensors[table].cols);
}

ValueId ProgramBuilder::AddLinear(ValueId in, TensorId weight, TensorId bias) {
  Node node;
  node.kind = NodeKind::kLinear;
  node.inputs = {in};
  node.linear = {weight, bias};
  return AddNode(std::move(node), "linear", layout_.program.tensors[weight].rows);
}

ValueId ProgramBuilder::AddRmsNorm(ValueId in, const TensorNames& weight, uint64_t group, float eps) {
  NormNode norm;
  norm.kind = NormKind::kRms;
  norm.weight = AddTensor(weight, 1, group, TensorRole::kNorm);
  norm.group = group;
  norm.eps = eps;
  return AddNorm(in, norm);
}

ValueId ProgramBuilder::AddNorm(ValueId in, const NormNode& norm) {
  Node node;
  node.kind = NodeKind::kNorm;
  node.inputs = {in};
  node.norm = norm;
  return AddNode(std::move(node), "norm", width(in));
}

ValueId ProgramBuilder::AddRotary(ValueId in, const RotaryNode& rotary) {
  Node node;
  node.kind = NodeKind::kRotary;
  node.inputs = {in};
  node.rotary = rotary;
  return AddNode(std::move(node), "rotary", width(in));
}

ValueId ProgramBuilder::AddAttention(ValueId q, ValueId k, ValueId v, const AttentionNode& attention) {
  Node node;
  node.kind = NodeKind::kAttention;
  node.inputs = {q, k, v};
  node.attention = attention;
  node.attention.state_slot = layout_.program.state_slots++;
  return AddNode(std::move(node), "attention", uint64_t{attention.heads} * attention.value_width());
}

ValueId ProgramBuilder::AddMoe(ValueId in, ValueId router_logits, const MoeNode& moe) {
  Node node;
  node.kind = NodeKind::kMoe;
  node.inputs = {in, router_logits};
  node.moe = moe;
  return AddNode(std::move(node), "moe", width(in));
}

uint32_t ProgramBuilder::AddExpertTable(uint64_t hidden, uint64_t intermediate, std::vector<ExpertRefs> experts) {
  ExpertTableDecl table;
  table.layer = layer_;
  table.hidden = hidden;
  table.intermediate.assign(experts.size(), intermediate);
  table.original.resize(experts.size());
  std::iota(table.original.begin(), table.original.end(), 0u);
  layout_.program.expert_tables.push_back(std::move(table));
  layout_.experts.push_back(std::move(experts));
  return static_cast<uint32_t>(layout_.experts.size() - 1);
}

ValueId ProgramBuilder::AddSlice(ValueId in, uint64_t begin, uint64_t width) {
  Node node;
  node.kind = NodeKind::kSlice;
  node.inputs = {in};
  node.slice.begin = begin;
  return AddNode(std::move(node), "slice", width);
}

ValueId ProgramBuilder::AddConcatHeads(const std::vector<ValueId>& inputs, uint32_t heads, uint32_t shared) {
  Node node;
  node.kind = NodeKind::kConcat;
  node.inputs = inputs;
  node.concat = {heads, shared};
  uint64_t sum = 0;
  for (size_t i = 0; i < inputs.size(); ++i) sum += width(inputs[i]) * (i + shared < inputs.size() ? 1 : heads);
  return AddNode(std::move(node), "concat", sum);
}

ValueId ProgramBuilder::AddConvolution(ValueId in, TensorId weight, TensorId bias) {
  Node node;
  node.kind = NodeKind::kConvolution;
  node.inputs = {in};
  node.convolution = {weight, bias, layout_.program.state_slots++};
  return AddNode(std::move(node), "convolution", width(in));
}

ValueId ProgramBuilder::AddUnary(ElementOp op, ValueId in, float alpha) {
  Node node;
  node.kind = NodeKind::kElementwise;
  node.inputs = {in};
  node.elementwise = {op, alpha};
  return AddNode(std::move(node), "element", width(in));
}

ValueId ProgramBuilder::AddBinary(ElementOp op, ValueId a, ValueId b) {
  Node node;
  node.kind = NodeKind::kElementwise;
  node.inputs = {a, b};
  node.elementwise = {op, 0};
  return AddNode(std::move(node), "element", width(a));
}

CheckpointLayout ProgramBuilder::Finish(ValueId output, uint32_t max_positions) {
  layout_.program.output = output;
  layout_.program.max_positions = max_positions;
  layout_.program.original_parameters = CountParameters(layout_.program);
  return std::exchange(layout_, CheckpointLayout());
}

}  // namespace moepack
