#include <algorithm>
#include <cmath>

#include "forward/nodes.h"

namespace moepack {
namespace {

using Strided = Eigen::Map<const Matrix, 0, Eigen::OuterStride<>>;
using StridedOut = Eigen::Map<Matrix, 0, Eigen::OuterStride<>>;

// Queries that share one matrix product with their keys.
constexpr uint64_t kQueryBlock = 128;

struct Task {
  TileSequence sequence;
  uint64_t query = 0;  // first row, in the tile
  uint32_t head = 0;
};

std::vector<Task> CutIntoTasks(const AttentionNode& node, std::span<const TileSequence> sequences) {
  std::vector<Task> tasks;
  for (const TileSequence& s : sequences) {
    for (uint32_t head = 0; head < node.heads; ++head) {
      for (uint64_t query = s.begin; query < s.end; query += kQueryBlock) tasks.push_back({s, query, head});
    }
  }
  return tasks;
}

// First key row that the query at `row` sees.
uint64_t FirstKey(const AttentionNode& node, const TileSequence& s, uint64_t row) {
  const uint64_t position = row - s.begin;
  uint64_t first = node.window == 0 || position < node.window ? 0 : position - node.window + 1;
  if (node.chunk > 0) first = std::max(first, position / node.chunk * node.chunk);
  return s.begin + first;
}

// What position_scale makes of the scores of the query at `position`.
float PositionFactor(const AttentionNode& node, uint64_t position) {
  if (node.position_scale == 0) return 1;
  const double steps = std::floor(static_cast<double>(position + 1) / node.position_floor);
  return static_cast<float>(1 + static_cast<double>(node.position_scale) * std::log1p(steps));
}

void RunTask(const AttentionNode& node, const Task& task, const AttentionInputs& in, Matrix* out) {
  const Matrix &q = in.q, &k = in.k, &v = in.v;
  const uint64_t dim = node.head_dim, value_dim = node.value_width();
  const uint64_t q_end = std::min(task.query + kQueryBlock, task.sequence.end);
  const uint64_t k_begin = FirstKey(node, task.sequence, task.query);
  const uint64_t queries = q_end - task.query, keys = q_end - k_begin;
  const uint64_t kv_head = task.head / (node.heads / node.kv_heads);
  const Strided qb(&q(task.query, task.head * dim), queries, dim, Eigen::OuterStride<>(q.cols()));
  const Strided kb(&k(k_begin, kv_head * dim), keys, dim, Eigen::OuterStride<>(k.cols()));
  const Strided vb(&v(k_begin, kv_head * value_dim), keys, value_dim, Eigen::OuterStride<>(v.cols()));
  StridedOut ob(&(*out)(task.query, task.head * value_dim), queries, value_dim, Eigen::OuterStride<>(out->cols()));

  Matrix scores(queries, keys);
  scores.noalias() = qb * kb.transpose();
  scores *= node.scale;
  for (uint64_t i = 0; i < queries && node.position_scale > 0; ++i) {
    scores.row(i) *= PositionFactor(node, task.query + i - task.sequence.begin);
  }
  if (node.softcap > 0) scores.array() = (scores.array() / node.softcap).tanh() * node.softcap;
  Eigen::VectorXf inverse_sum(queries);
  for (uint64_t i = 0; i < queries; ++i) {
    const uint64_t row = task.query + i;
    const uint64_t first = FirstKey(node, task.sequence, row) - k_begin, seen = row + 1 - k_begin - first;
    auto valid = scores.row(i).segment(first, seen);
    float largest = valid.maxCoeff(), sum = 0;
    if (in.sinks != nullptr) {
      const float sink = (*in.sinks)(0, task.head);
      largest = std::max(largest, sink);
      sum = std::exp(sink - largest);
    }
    valid.array() = (valid.array() - largest).exp();
    inverse_sum[i] = 1 / (sum + valid.sum());
    scores.row(i).head(first).setZero();
    scores.row(i).tail(keys - first - seen).setZero();
  }
  ob.noalias() = scores * vb;
  ob.array().colwise() *= inverse_sum.array();
}

}  // namespace

void RunAttention(const AttentionNode& node, std::span<const TileSequence> sequences, const AttentionInputs& in,
                  ThreadPool& pool, Matrix* out) {
  out->resize(in.q.rows(), static_cast<Eigen::Index>(uint64_t{node.heads} * node.value_width()));
  const std::vector<Task> tasks = CutIntoTasks(node, sequences);
  pool.ParallelFor(tasks.size(), 1, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) RunTask(node, tasks[i], in, out);
  });
}

}  // namespace moepack
