#include "compressor/pass/hessian.h"

#include <algorithm>
#include <cmath>
#include <set>

namespace moepack {
namespace {

// Columns of a Hessian that one task updates.
constexpr Eigen::Index kPanel = 128;

bool HasMatrixInput(const TensorRef& tensor) {
  return tensor.is_expert() || (tensor.shape.rows > 1 && tensor.shape.cols > 1);
}

}  // namespace

std::vector<float> InputMoments::diagonal() const {
  std::vector<float> out(static_cast<size_t>(hessian.rows()));
  for (size_t i = 0; i < out.size(); ++i) out[i] = hessian(i, i);
  return out;
}

HessianCollector::HessianCollector(const Program& program, std::span<const TensorRef> wanted,
                                   std::span<const float> token_weights, ThreadPool& pool)
    : token_weights_(token_weights), pool_(pool) {
  std::set<TensorId> linear;
  for (const TensorRef& tensor : wanted) {
    if (tensor.is_expert()) {
      experts_[{tensor.table, tensor.expert, tensor.matrix == ExpertMatrix::kDown}];
    } else if (HasMatrixInput(tensor)) {
      linear.insert(tensor.dense);
    }
  }
  std::map<uint32_t, size_t> readers;  // experts of a table whose gate and up inputs are collected
  for (const auto& [key, moments] : experts_) readers[std::get<0>(key)] += !std::get<2>(key);
  for (const auto& [table, count] : readers) {
    if (count > 0 && count < program.expert_tables[table].experts()) pooled_[table];
  }
  for (const Node& node : program.nodes) {
    if (node.kind != NodeKind::kLinear || !linear.contains(node.linear.weight)) continue;
    input_of_.emplace(node.linear.weight, node.inputs[0]);
    dense_[node.inputs[0]];
    first_reader_.emplace(node.inputs[0], &node);
  }
}

std::vector<std::vector<size_t>> HessianCollector::CutByMoments(const Program& program, std::span<const TensorRef> wanted,
                                                                uint64_t most_bytes) {
  std::map<TensorId, ValueId> inputs;
  for (const Node& node : program.nodes) {
    if (node.kind == NodeKind::kLinear) inputs.emplace(node.linear.weight, node.inputs[0]);
  }
  std::vector<std::vector<size_t>> runs;
  std::set<std::tuple<bool, uint32_t, uint32_t, bool>> seen;  // inputs of the run
  uint64_t bytes = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const TensorRef& t = wanted[i];
    const bool down = t.matrix == ExpertMatrix::kDown, collected = t.is_expert() || inputs.contains(t.dense);
    const auto key = t.is_expert() ? std::tuple(true, t.table, t.expert, down)
                                   : std::tuple(false, collected ? inputs.at(t.dense) : kNone, 0u, false);
    const uint64_t own = collected ? t.shape.cols * t.shape.cols * sizeof(float) : 0;
    if (runs.empty() || bytes + (seen.contains(key) ? 0 : own) > most_bytes) {
      runs.emplace_back();
      seen.clear();
      bytes = 0;
    }
    runs.back().push_back(i);
    if (seen.insert(key).second) bytes += own;
  }
  return runs;
}

void HessianCollector::AddRows(const Matrix& input, std::span<const float> token_weight, std::span<const float> gates,
                               InputMoments* moments, std::vector<Rows>* batches) {
  const Eigen::Index cols = input.cols();
  if (moments->hessian.size() == 0) {
    moments->hessian.setZero(cols, cols);
    moments->in_sq.assign(static_cast<size_t>(cols), 0.0);
  }
  batches->push_back({moments, Matrix(input.rows(), cols)});
  Matrix& scaled = batches->back().scaled;
  Eigen::Map<Eigen::RowVectorXd> in_sq(moments->in_sq.data(), cols);
  for (Eigen::Index i = 0; i < input.rows(); ++i) {
    const float v = token_weight[i], g = gates.empty() ? 1.0f : gates[i];
    scaled.row(i) = input.row(i) * (std::sqrt(v) * g);
    if (v == 0) continue;
    in_sq += static_cast<double>(v) * input.row(i).cast<double>().array().square().matrix();
    moments->tokens += 1;
  }
}

void HessianCollector::Accumulate(std::vector<Rows>& batches) {
  struct Task {
    Rows* rows;
    Eigen::Index begin, end;
  };
  std::vector<Task> tasks;
  for (Rows& rows : batches) {
    const Eigen::Index cols = rows.scaled.cols();
    for (Eigen::Index c = 0; c < cols; c += kPanel) tasks.push_back({&rows, c, std::min(c + kPanel, cols)});
  }
  pool_.ParallelFor(tasks.size(), 1, [&](size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) {
      const auto& [rows, begin, end] = tasks[i];
      const auto panel = rows->scaled.middleCols(begin, end - begin);
      // Rows [begin, end) from column 0 to the diagonal block: the lower half.
      rows->moments->hessian.block(begin, 0, end - begin, end).noalias() += panel.transpose() * rows->scaled.leftCols(end);
    }
  });
}

void HessianCollector::OnLinear(const Node& node, uint64_t first_token, const Matrix& input, const Matrix&) {
  const auto reader = first_reader_.find(node.inputs[0]);
  if (reader == first_reader_.end() || reader->second != &node) return;
  std::vector<Rows> batches;
  AddRows(input, token_weights_.subspan(first_token, static_cast<size_t>(input.rows())), {}, &dense_.at(node.inputs[0]),
          &batches);
  Accumulate(batches);
}

bool HessianCollector::wants_node(const Node& node) const {
  if (node.kind == NodeKind::kMoe) {
    const auto first = experts_.lower_bound({node.moe.table, 0, false});
    return first != experts_.end() && std::get<0>(first->first) == node.moe.table;
  }
  const auto reader = node.kind == NodeKind::kLinear ? first_reader_.find(node.inputs[0]) : first_reader_.end();
  return reader != first_reader_.end() && reader->second == &node;
}

bool HessianCollector::wants_expert(uint32_t table, uint32_t expert) const {
  return experts_.contains({table, expert, false}) || experts_.contains({table, expert, true});
}

void HessianCollector::OnMoe(const MoeCapture& capture) {
  std::vector<Rows> batches;
  batches.reserve(capture.experts.size() * 2 + 1);
  const auto pooled = pooled_.find(capture.node->moe.table);
  if (pooled != pooled_.end()) {
    const auto tokens = static_cast<size_t>(capture.input->rows());
    const size_t k = capture.weights.size() / std::max<size_t>(tokens, 1);
    std::vector<float> gates(tokens);
    for (size_t t = 0; t < tokens; ++t) {
      double sum = 0;
      for (size_t i = t * k; i < (t + 1) * k; ++i) sum += static_cast<double>(capture.weights[i]) * capture.weights[i];
      gates[t] = static_cast<float>(std::sqrt(sum));
    }
    AddRows(*capture.input, token_weights_.subspan(capture.first_token, tokens), gates, &pooled->second, &batches);
  }
  for (const ExpertCapture& expert : capture.experts) {
    std::vector<float> weights(expert.rows.size());
    for (size_t i = 0; i < weights.size(); ++i) weights[i] = token_weights_[capture.first_token + expert.rows[i]];
    for (const bool down : {false, true}) {
      const auto slot = experts_.find({capture.node->moe.table, expert.expert, down});
      if (slot != experts_.end())
        AddRows(down ? expert.down_input : expert.input, weights, expert.gates, &slot->second, &batches);
    }
  }
  Accumulate(batches);
}

void HessianCollector::Complete() {
  if (complete_) return;
  complete_ = true;
  const auto mirror = [](InputMoments& moments) {
    Matrix& h = moments.hessian;
    for (Eigen::Index i = 0; i < h.rows(); ++i) {
      for (Eigen::Index j = i + 1; j < h.cols(); ++j) h(i, j) = h(j, i);
    }
  };
  for (auto& [value, moments] : dense_) mirror(moments);
  for (auto& [key, moments] : experts_) mirror(moments);
  for (auto& [table, moments] : pooled_) mirror(moments);
}

const InputMoments* HessianCollector::Find(const TensorRef& tensor) {
  Complete();
  if (tensor.is_expert()) {
    const auto found = experts_.find({tensor.table, tensor.expert, tensor.matrix == ExpertMatrix::kDown});
    if (found == experts_.end()) return nullptr;
    // An expert that no calibration token reached has moments of zero.
    if (found->second.hessian.size() == 0) {
      found->second.hessian.setZero(static_cast<Eigen::Index>(tensor.shape.cols),
                                    static_cast<Eigen::Index>(tensor.shape.cols));
      found->second.in_sq.assign(tensor.shape.cols, 0.0);
    }
    return &found->second;
  }
  const auto input = input_of_.find(tensor.dense);
  return input == input_of_.end() ? nullptr : &dense_.at(input->second);
}

Matrix HessianCollector::Pooled(uint32_t table) {
  Complete();
  if (const auto found = pooled_.find(table); found != pooled_.end()) return found->second.hessian;
  Matrix pooled;
  for (const auto& [key, moments] : experts_) {
    if (std::get<0>(key) != table || std::get<2>(key) || moments.hessian.size() == 0) continue;
    if (pooled.size() == 0) {
      pooled = moments.hessian;
    } else {
      pooled += moments.hessian;
    }
  }
  return pooled;
}

}  // namespace moepack
