// Experts in plain operators leave nodes behind that nothing reads once a MoE node stands for them.
#include "model/frontend/onnx_import.h"

namespace moepack {
namespace {

constexpr uint32_t kUnread = kNone;

// Calls `number` with every tensor id of a node that has one.
template <typename Renumber>
void ForEachTensor(Node* node, const Renumber& number) {
  for (TensorId* id : {&node->embedding.table, &node->linear.weight, &node->linear.bias, &node->norm.weight,
                       &node->norm.bias, &node->attention.sinks, &node->moe.selection_bias, &node->moe.gate_bias,
                       &node->moe.up_bias, &node->moe.down_bias, &node->convolution.weight, &node->convolution.bias}) {
    if (*id != kNone) number(id);
  }
}

// The entries of `all` that are marked, and the number that each gets.
template <typename T>
std::vector<uint32_t> Keep(const std::vector<bool>& marked, std::vector<T>* all) {
  std::vector<uint32_t> number(all->size(), kUnread);
  std::vector<T> kept;
  for (size_t i = 0; i < all->size(); ++i) {
    if (!marked[i]) continue;
    number[i] = static_cast<uint32_t>(kept.size());
    kept.push_back(std::move((*all)[i]));
  }
  *all = std::move(kept);
  return number;
}

}  // namespace

void OnnxImporter::RemoveUnread() {
  std::vector<bool> node_read(program.nodes.size(), false), value_read(program.values.size(), false);
  std::vector<bool> tensor_read(program.tensors.size(), false);
  for (const ValueId id : program.inputs) value_read[id] = true;
  value_read[program.output] = true;
  for (size_t i = program.nodes.size(); i-- > 0;) {
    Node& node = program.nodes[i];
    if (!value_read[node.output]) continue;
    node_read[i] = true;
    for (const ValueId id : node.inputs) value_read[id] = true;
    ForEachTensor(&node, [&](const TensorId* id) { tensor_read[*id] = true; });
  }
  Keep(node_read, &program.nodes);
  const std::vector<uint32_t> values = Keep(value_read, &program.values);
  Keep(tensor_read, &tensors);
  const std::vector<uint32_t> numbers = Keep(tensor_read, &program.tensors);
  for (Node& node : program.nodes) {
    for (ValueId& id : node.inputs) id = values[id];
    node.output = values[node.output];
    ForEachTensor(&node, [&](TensorId* id) { *id = numbers[*id]; });
  }
  for (ValueId& id : program.inputs) id = values[id];
  program.output = values[program.output];
}

}  // namespace moepack
