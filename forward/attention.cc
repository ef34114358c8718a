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
  if (node.window == 0 || row - s.begin < node.window) return s.begin;
  return row - node.window + 1;
}

void RunTask(const AttentionNode& node, const Task& task, const Matrix& q, const Matrix& k, const Matrix& v, Matrix* out) {
  const uint64_t dim = node.head_dim;
  const uint64_t q_end = std::min(task.query + kQueryBlock, task.sequence.end);
  const uint64_t k_begin = FirstKey(node, task.sequence, task.query);
  const uint64_t queries = q_end - task.query, keys = q_end - k_begin;
  const uint64_t kv_column = task.head / (node.heads / node.kv_heads) * dim;
  const Strided qb(&q(task.query, task.head * dim), queries, dim, Eigen::OuterStride<>(q.cols()));
  const Strided kb(&k(k_begin, kv_column), keys, dim, Eigen::OuterStride<>(k.cols()));
  const Strided vb(&v(k_begin, kv_column), keys, dim, Eigen::OuterStride<>(v.cols()));
  StridedOut ob(&(*out)(task.query, task.head * dim), queries, dim, Eigen::OuterStride<>(out->cols()));

  Matrix scores(queries, keys);
  scores.noalias() = qb * kb.transpose();
  scores *= node.scale;
  if (node.softcap > 0) scores.array() = (scores.array() / node.softcap).tanh() * node.softcap;
  Eigen::VectorXf inverse_sum(queries);
  for (uint64_t i = 0; i < queries; ++i) {
    const uint64_t row = task.query + i;
    const uint64_t first = FirstKey(node, task.sequence, row) - k_begin, seen = row + 1 - k_begin - first;
    auto valid = scores.row(i).segment(first, seen);
    valid.array() = (valid.array() - valid.maxCoeff()).exp();
    inverse_sum[i] = 1 / valid.sum();
    scores.row(i).head(first).setZero();
    scores.row(i).tail(keys - first - seen).setZero();
  }
  ob.noalias() = scores * vb;
  ob.array().colwise() *= inverse_sum.array();
}

}  // namespace

void RunAttention(const AttentionNode& node, std::span<const TileSequence> sequences, const Matrix& q, const Matrix& k,
                  const Matrix& v, ThreadPool& pool, Matrix* out) {
  out->resize(q.rows(), q.cols());
  const std::vector<Task> tasks = CutIntoTasks(node, sequences);
  pool.ParallelFor(tasks.size(), 1, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) RunTask(node, tasks[i], q, k, v, out);
  });
}

}  // namespace moepack
