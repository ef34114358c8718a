#include "format/program.h"

#include <algorithm>

#include "format/blocks.h"

namespace moepack {

std::array<TensorId, kMaxNodeTensors> TensorsOfNode(const Node& node) {
  switch (node.kind) {
    case NodeKind::kEmbedding:
      return {node.embedding.table, kNone, kNone, kNone};
    case NodeKind::kLinear:
      return {node.linear.weight, node.linear.bias, kNone, kNone};
    case NodeKind::kNorm:
      return {node.norm.weight, node.norm.bias, kNone, kNone};
    case NodeKind::kAttention:
      return {node.attention.sinks, kNone, kNone, kNone};
    case NodeKind::kMoe:
      return {node.moe.selection_bias, node.moe.gate_bias, node.moe.up_bias, node.moe.down_bias};
    case NodeKind::kConvolution:
      return {node.convolution.weight, node.convolution.bias, kNone, kNone};
    default:
      return {kNone, kNone, kNone, kNone};
  }
}

const char* TensorRoleName(TensorRole role) {
  switch (role) {
    case TensorRole::kEmbedding:
      return "embedding";
    case TensorRole::kHead:
      return "head";
    case TensorRole::kNorm:
      return "norm";
    case TensorRole::kAttention:
      return "attention";
    case TensorRole::kRouter:
      return "router";
    case TensorRole::kSharedExpert:
      return "shared_expert";
    case TensorRole::kDenseFfn:
      return "dense_ffn";
    case TensorRole::kBias:
      return "bias";
    case TensorRole::kOther:
      return "other";
  }
  return "unknown";
}

const char* ExpertMatrixName(ExpertMatrix m) {
  switch (m) {
    case ExpertMatrix::kGate:
      return "gate_proj";
    case ExpertMatrix::kUp:
      return "up_proj";
    case ExpertMatrix::kDown:
      return "down_proj";
  }
  return "unknown";
}

std::string ExpertTensorName(const ExpertTableDecl& table, uint32_t expert, ExpertMatrix m) {
  return StrFormat("layers.%d.experts.%u.%s", table.layer, table.original[expert], ExpertMatrixName(m));
}

uint64_t CountParameters(const Program& program) {
  uint64_t total = 0;
  for (const TensorDecl& tensor : program.tensors) total += tensor.rows * tensor.cols;
  for (const ExpertTableDecl& table : program.expert_tables) {
    for (const uint64_t width : table.intermediate) total += table.hidden * width * (table.gated ? 3 : 2);
  }
  return total;
}

const Node* ProducerOf(const Program& program, ValueId value) {
  for (const Node& node : program.nodes) {
    if (node.output == value) return &node;
  }
  return nullptr;
}

std::vector<std::vector<TensorId>> TensorsByBlock(const Program& program) {
  std::vector<int32_t> first(program.tensors.size(), -1);
  for (const Node& node : program.nodes) {
    for (const TensorId id : TensorsOfNode(node)) {
      if (id < first.size() && first[id] < 0) first[id] = node.block;
    }
  }
  std::vector<std::vector<TensorId>> out(static_cast<size_t>(program.blocks()));
  for (TensorId id = 0; id < first.size(); ++id) {
    if (first[id] >= 0) out[static_cast<size_t>(first[id])].push_back(id);
  }
  return out;
}

std::vector<TensorId> TensorsOfBlock(const Program& program, int32_t block) {
  std::vector<std::vector<TensorId>> blocks = TensorsByBlock(program);
  const auto index = static_cast<size_t>(block);
  return block >= 0 && index < blocks.size() ? std::move(blocks[index]) : std::vector<TensorId>();
}

std::vector<int32_t> BlocksOfTables(const Program& program) {
  std::vector<int32_t> out(program.expert_tables.size(), -1);
  for (const Node& node : program.nodes) {
    if (node.kind == NodeKind::kMoe && node.moe.table < out.size()) out[node.moe.table] = node.block;
  }
  return out;
}

int32_t BlockOfTable(const Program& program, uint32_t table) {
  const std::vector<int32_t> blocks = BlocksOfTables(program);
  return table < blocks.size() ? blocks[table] : -1;
}

}  // namespace moepack
