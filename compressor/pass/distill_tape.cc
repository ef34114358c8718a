#include "compressor/pass/distill_tape.h"

namespace moepack {

Matrix& Gradients::Add(const TensorRef& t) {
  Matrix& out = t.is_expert() ? experts[{t.table, t.expert, t.matrix}] : dense[t.dense];
  out.setZero(static_cast<Eigen::Index>(t.shape.rows), static_cast<Eigen::Index>(t.shape.cols));
  return out;
}

void Gradients::SetZero() {
  for (auto& [id, gradient] : dense) gradient.setZero();
  for (auto& [key, gradient] : experts) gradient.setZero();
}

Tape::Tape(const Program& program, int32_t block, const BlockWeights& weights, ThreadPool& pool)
    : program_(program), weights_(weights), pool_(pool), values_(program.values.size()), derivatives_(values_.size()) {
  std::vector<bool> known(values_.size(), false);
  for (const Node& node : program.nodes) {
    if (node.block != block) continue;
    nodes_.push_back(&node);
    for (ValueId id : node.inputs) {
      if (!known[id] && program.values[id].kind != ValueKind::kTokens) imports_.push_back(id);
      known[id] = true;
    }
    known[node.output] = true;
  }
}

Status Tape::Forward(const TokenBatch& part, const Stream& before) {
  positions_.clear();
  sequences_.clear();
  for (uint64_t s = 0; s < part.sequences(); ++s) {
    sequences_.push_back({part.begin(s), part.end(s), part.end(s) - part.begin(s)});
    for (uint64_t t = part.begin(s); t < part.end(s); ++t) positions_.push_back(static_cast<uint32_t>(t - part.begin(s)));
  }
  for (ValueId id : imports_) values_[id] = before.values.at(id);
  for (const Node* node : nodes_) {
    MOEPACK_RETURN_IF_ERROR(RunNode(*node, part));
  }
  return Status::Ok();
}

Status Tape::RunNode(const Node& node, const TokenBatch& part) {
  Matrix* out = &values_[node.output];
  const Matrix& in = values_[node.inputs[0]];
  const Matrix* second = node.inputs.size() > 1 ? &values_[node.inputs[1]] : nullptr;
  switch (node.kind) {
    case NodeKind::kEmbedding:
      return RunEmbedding(*Dense(node.embedding.table), part.tokens, out);
    case NodeKind::kLinear:
      RunLinear(in, *Dense(node.linear.weight), Dense(node.linear.bias), pool_, out);
      break;
    case NodeKind::kNorm:
      RunNorm(node.norm, in, Dense(node.norm.weight), Dense(node.norm.bias), pool_, out);
      break;
    case NodeKind::kRotary:
      RunRotary(node.rotary, sequences_, positions_, in, pool_, out);
      break;
    case NodeKind::kAttention:
      RunAttention(node.attention, sequences_, {in, *second, values_[node.inputs[2]]}, pool_, out);
      break;
    case NodeKind::kMoe:
      RunMoe(node, program_.expert_tables[node.moe.table], weights_, in, *second, pool_, nullptr, &captures_[&node], out);
      break;
    case NodeKind::kElementwise:
      RunElementwise(node.elementwise, in, second, pool_, out);
      break;
    case NodeKind::kSlice:
      *out = in.middleCols(node.slice.begin, program_.values[node.output].width);
      break;
    case NodeKind::kConcat: {
      out->resize(in.rows(), program_.values[node.output].width);
      Eigen::Index column = 0;
      for (ValueId id : node.inputs) {
        out->middleCols(column, values_[id].cols()) = values_[id];
        column += values_[id].cols();
      }
      break;
    }
    case NodeKind::kConvolution:
      break;  // not a plain node
  }
  return Status::Ok();
}

void Tape::FindLearning(bool earlier_learn, const Gradients& gradients) {
  learning_.assign(values_.size(), false);
  for (ValueId id : imports_) learning_[id] = earlier_learn;
  for (const Node* node : nodes_) {
    bool learns = false;
    for (ValueId id : node->inputs) learns = learns || learning_[id];
    for (TensorId id : {node->linear.weight, node->linear.bias, node->norm.weight, node->norm.bias})
      learns = learns || gradients.dense.contains(id);
    for (const auto& [key, gradient] : gradients.experts)
      learns = learns || (node->kind == NodeKind::kMoe && node->moe.table == std::get<0>(key));
    learning_[node->output] = learns;
  }
}

void Tape::Backward(bool earlier_learn, Stream* derivatives, Gradients* gradients) {
  FindLearning(earlier_learn, *gradients);
  const auto begin = [&](ValueId id) {
    const auto found = derivatives->values.find(id);
    if (found != derivatives->values.end()) {
      derivatives_[id] = std::move(found->second);
      derivatives->values.erase(found);
    } else {
      derivatives_[id].setZero(values_[id].rows(), values_[id].cols());
    }
  };
  for (const Node* node : nodes_) begin(node->output);
  for (ValueId id : imports_) begin(id);
  for (auto node = nodes_.rbegin(); node != nodes_.rend(); ++node) {
    if (learning_[(*node)->output]) NodeBackward(**node, gradients);
  }
  for (ValueId id : imports_) {
    if (earlier_learn) derivatives->values[id] = std::move(derivatives_[id]);
  }
}

void Tape::NodeBackward(const Node& node, Gradients* gradients) {
  const auto wanted = [&](TensorId id) -> Matrix* {
    const auto found = gradients->dense.find(id);
    return id == kNone || found == gradients->dense.end() ? nullptr : &found->second;
  };
  const Matrix& d_out = derivatives_[node.output];
  const Matrix& in = values_[node.inputs[0]];
  Matrix* d_in = Derivative(node.inputs[0]);
  switch (node.kind) {
    case NodeKind::kEmbedding:
      break;
    case NodeKind::kLinear:
      LinearBackward(in, *Dense(node.linear.weight), d_out, pool_, d_in, wanted(node.linear.weight),
                     wanted(node.linear.bias));
      break;
    case NodeKind::kNorm:
      NormBackward(node.norm, in, Dense(node.norm.weight), d_out, pool_, d_in, wanted(node.norm.weight),
                   wanted(node.norm.bias));
      break;
    case NodeKind::kRotary:
      if (d_in != nullptr) RotaryBackward(node.rotary, positions_, d_out, pool_, d_in);
      break;
    case NodeKind::kAttention: {
      // q, k and v come from one norm: when one depends on what is learnt, usually all do. The others' sums are dropped.
      Matrix* targets[3];
      Matrix unused[3];
      for (int i = 0; i < 3; ++i) {
        const Matrix& v = values_[node.inputs[i]];
        targets[i] = Derivative(node.inputs[i]);
        if (targets[i] != nullptr) continue;
        unused[i].setZero(v.rows(), v.cols());
        targets[i] = &unused[i];
      }
      AttentionBackward(node.attention, sequences_, in, values_[node.inputs[1]], values_[node.inputs[2]], d_out, pool_,
                        targets[0], targets[1], targets[2]);
      break;
    }
    case NodeKind::kMoe:
      MoeNodeBackward(node, d_out, gradients);
      break;
    case NodeKind::kElementwise: {
      const bool two = node.inputs.size() > 1;
      ElementwiseBackward(node.elementwise, in, two ? &values_[node.inputs[1]] : nullptr, d_out, pool_, d_in,
                          two ? Derivative(node.inputs[1]) : nullptr);
      break;
    }
    case NodeKind::kSlice:
      if (d_in != nullptr) d_in->middleCols(node.slice.begin, d_out.cols()) += d_out;
      break;
    case NodeKind::kConcat: {
      Eigen::Index column = 0;
      for (ValueId id : node.inputs) {
        const Eigen::Index width = values_[id].cols();
        if (Matrix* target = Derivative(id)) *target += d_out.middleCols(column, width);
        column += width;
      }
      break;
    }
    case NodeKind::kConvolution:
      break;  // not a plain node
  }
}

void Tape::MoeNodeBackward(const Node& node, const Matrix& d_out, Gradients* gradients) {
  std::vector<ExpertGradient> wanted(program_.expert_tables[node.moe.table].experts());
  for (auto& [key, gradient] : gradients->experts) {
    const auto& [table, expert, matrix] = key;
    if (table != node.moe.table) continue;
    ExpertGradient& slot = wanted[expert];
    (matrix == ExpertMatrix::kGate ? slot.gate : matrix == ExpertMatrix::kUp ? slot.up : slot.down) = &gradient;
  }
  MoeBackward(node.moe, weights_, captures_.at(&node), d_out, pool_, wanted, Derivative(node.inputs[0]),
              Derivative(node.inputs[1]));
}

}  // namespace moepack
