#include "model/frontend/onnx_layers.h"

#include <algorithm>

namespace moepack {
namespace {

class Layers {
 public:
  explicit Layers(Program* program) : program_(*program), nodes_(program->nodes), producer_(program->values.size(), kNone) {
    for (uint32_t i = 0; i < nodes_.size(); ++i) producer_[nodes_[i].output] = i;
    embeds_ = program->values[program->inputs[0]].kind == ValueKind::kTokens;
  }

  Status AssignBlocks() {
    const std::vector<bool> cut = Cuts();
    const std::vector<size_t> anchors = Anchors();
    if (anchors.empty()) return Status(ErrorCode::kUnsupported, "the graph has neither attention nor MoE nodes");
    std::vector<size_t> ends;  // last node of each block but the final one
    if (embeds_) ends.push_back(0);
    for (size_t a = 0; a < anchors.size(); ++a) {
      const size_t limit = a + 1 < anchors.size() ? anchors[a + 1] : nodes_.size() - 1;
      const size_t end =
          a + 1 < anchors.size() ? LastCut(cut, anchors[a], limit, false) : LastCut(cut, anchors[a], limit, true);
      if (end == nodes_.size() && a + 1 == anchors.size() && !embeds_) break;  // experts give the output itself
      if (end == nodes_.size()) {
        return Status(ErrorCode::kUnsupported, StrFormat("no single value leads from decoder layer %zu to the next", a));
      }
      ends.push_back(end);
    }
    head_ = static_cast<int32_t>(ends.size() == anchors.size() + (embeds_ ? 1 : 0) ? ends.size() : kMaxNodes);
    int32_t block = 0;
    for (size_t i = 0; i < nodes_.size(); ++i) {
      nodes_[i].block = block;
      if (static_cast<size_t>(block) < ends.size() && i == ends[static_cast<size_t>(block)]) ++block;
    }
    return Status::Ok();
  }

  void AssignTensors() {
    has_moe_.assign(static_cast<size_t>(nodes_.back().block) + 1, false);
    linear_role_.assign(nodes_.size(), TensorRole::kOther);
    for (const Node& node : nodes_) {
      if (node.kind != NodeKind::kMoe) continue;
      has_moe_[static_cast<size_t>(node.block)] = true;
      program_.expert_tables[node.moe.table].layer = LayerOf(node.block);
    }
    for (size_t i = 0; i < nodes_.size(); ++i) {
      const bool beside_experts = embeds_ && has_moe_[static_cast<size_t>(nodes_[i].block)];
      linear_role_[i] = nodes_[i].block == head_ ? TensorRole::kHead
                        : beside_experts         ? TensorRole::kSharedExpert
                                                 : TensorRole::kDenseFfn;
    }
    for (const Node& node : nodes_) {
      if (node.kind == NodeKind::kAttention) MarkAttention(node);
      if (node.kind == NodeKind::kMoe) MarkBackward(node.inputs[1], node.block, TensorRole::kRouter, true);
    }
    for (size_t i = 0; i < nodes_.size(); ++i) DescribeTensors(i);
  }

 private:
  // cut[i]: exactly one value made by nodes 0..i is read after node i.
  std::vector<bool> Cuts() const {
    std::vector<size_t> last_use(program_.values.size(), 0);
    for (size_t i = 0; i < nodes_.size(); ++i) {
      for (const ValueId id : nodes_[i].inputs) last_use[id] = i;
    }
    last_use[program_.output] = nodes_.size();
    std::vector<uint32_t> dies(nodes_.size() + 1, 0);
    for (ValueId id = 0; id < last_use.size(); ++id) {
      if (producer_[id] != kNone) ++dies[std::max<size_t>(last_use[id], producer_[id])];
    }
    std::vector<bool> cut(nodes_.size());
    uint32_t live = 0;
    for (size_t i = 0; i < nodes_.size(); ++i) {
      live += 1;
      live -= dies[i];
      cut[i] = live == 1;
    }
    return cut;
  }

  std::vector<size_t> Anchors() const {
    for (const NodeKind kind : {NodeKind::kAttention, NodeKind::kMoe}) {
      std::vector<size_t> found;
      for (size_t i = 0; i < nodes_.size(); ++i) {
        if (nodes_[i].kind == kind) found.push_back(i);
      }
      if (!found.empty()) return found;
    }
    return {};
  }

  // Last border in [first, limit), after a residual sum where there is one and `prefer_sum`; nodes_.size() when there is
  // none.
  size_t LastCut(const std::vector<bool>& cut, size_t first, size_t limit, bool prefer_sum) const {
    size_t found = nodes_.size();
    for (size_t i = first; i < limit; ++i) {
      if (cut[i]) found = i;
    }
    for (size_t i = limit; prefer_sum && i-- > first;) {
      const bool sum = nodes_[i].kind == NodeKind::kElementwise && nodes_[i].elementwise.op == ElementOp::kAdd;
      if (cut[i] && sum) return i;
    }
    return found;
  }

  // Gives `role` to the linear nodes of `block` that `value` is made from; only the nearest of each path when `nearest`.
  void MarkBackward(ValueId value, int32_t block, TensorRole role, bool nearest) {
    std::vector<ValueId> open = {value};
    std::vector<bool> seen(program_.values.size(), false);
    while (!open.empty()) {
      const ValueId id = open.back();
      open.pop_back();
      const uint32_t index = producer_[id];
      if (seen[id] || index == kNone || nodes_[index].block != block) continue;
      seen[id] = true;
      const bool linear = nodes_[index].kind == NodeKind::kLinear;
      if (linear) linear_role_[index] = role;
      if (!linear || !nearest) open.insert(open.end(), nodes_[index].inputs.begin(), nodes_[index].inputs.end());
    }
  }

  // What the attention reads, and the first linear nodes that read it.
  void MarkAttention(const Node& attention) {
    for (const ValueId id : attention.inputs) MarkBackward(id, attention.block, TensorRole::kAttention, false);
    std::vector<bool> mixed(program_.values.size(), false);
    mixed[attention.output] = true;
    for (size_t i = producer_[attention.output] + 1; i < nodes_.size() && nodes_[i].block == attention.block; ++i) {
      const Node& node = nodes_[i];
      if (std::none_of(node.inputs.begin(), node.inputs.end(), [&](ValueId id) { return mixed[id]; })) continue;
      const bool sum = node.kind == NodeKind::kElementwise && node.elementwise.op == ElementOp::kAdd;
      if (node.kind == NodeKind::kLinear) linear_role_[i] = TensorRole::kAttention;
      mixed[node.output] = node.kind != NodeKind::kLinear && !sum;
    }
  }

  int32_t LayerOf(int32_t block) const { return block == head_ ? -1 : block - (embeds_ ? 1 : 0); }

  void DescribeTensors(size_t index) {
    const Node& node = nodes_[index];
    const int32_t layer = LayerOf(node.block);
    const auto describe = [&](TensorId id, TensorRole role) {
      if (id == kNone) return;
      TensorDecl& tensor = program_.tensors[id];
      if (tensor.role == TensorRole::kEmbedding) return;
      tensor.role = role;
      tensor.layer = layer;
    };
    if (node.kind == NodeKind::kEmbedding) describe(node.embedding.table, TensorRole::kEmbedding);
    describe(node.linear.weight, linear_role_[index]);
    describe(node.linear.bias, TensorRole::kBias);
    describe(node.norm.weight, TensorRole::kNorm);
    describe(node.norm.bias, TensorRole::kNorm);
    describe(node.attention.sinks, TensorRole::kBias);
    for (const TensorId bias : {node.moe.gate_bias, node.moe.up_bias, node.moe.down_bias}) describe(bias, TensorRole::kBias);
    describe(node.moe.selection_bias, TensorRole::kBias);
  }

  Program& program_;
  std::vector<Node>& nodes_;
  std::vector<uint32_t> producer_;       // node index by value, kNone for inputs
  bool embeds_ = true;                   // the first block is an embedding
  int32_t head_ = 0;                     // block of the final norm and head
  std::vector<bool> has_moe_;            // by block
  std::vector<TensorRole> linear_role_;  // by node
};

}  // namespace

Status AssignLayers(Program* program) {
  Layers layers(program);
  MOEPACK_RETURN_IF_ERROR(layers.AssignBlocks());
  layers.AssignTensors();
  return Status::Ok();
}

}  // namespace moepack
