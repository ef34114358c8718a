#include "compressor/pass/prune.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace moepack {
namespace {

// Indices of the `kept` largest of `scores`, lower index first among equals; in increasing order.
template <typename T>
std::vector<uint32_t> Largest(std::span<const T> scores, size_t kept) {
  std::vector<uint32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return scores[a] > scores[b]; });
  order.resize(std::min(kept, order.size()));
  std::sort(order.begin(), order.end());
  return order;
}

// As Largest for a few scores: those that fewer than `kept` others come before.
void MarkLargest(std::span<const float> scores, size_t kept, uint8_t* mask) {
  for (size_t i = 0; i < scores.size(); ++i) {
    size_t before = 0;
    for (size_t j = 0; j < scores.size(); ++j) before += scores[j] > scores[i] || (scores[j] == scores[i] && j < i);
    mask[i] = before < kept ? 1 : 0;
  }
}

constexpr size_t kRowsPerTask = 16;

}  // namespace

Matrix PruneScores(PruneMethod method, const Matrix& weights, std::span<const double> in_sq,
                   std::span<const float> gate_sq) {
  Eigen::RowVectorXf norms = Eigen::RowVectorXf::Ones(weights.cols());
  for (Eigen::Index j = 0; j < weights.cols(); ++j) {
    if (method == PruneMethod::kMoePruner) norms[j] = std::sqrt(gate_sq[j]);
    if (method == PruneMethod::kWanda) norms[j] = static_cast<float>(std::sqrt(in_sq[j]));
  }
  return weights.array().abs().rowwise() * norms.array();
}

std::vector<uint8_t> MaskRows(const Matrix& scores, uint32_t kept, ThreadPool& pool) {
  const auto cols = static_cast<size_t>(scores.cols());
  std::vector<uint8_t> mask(static_cast<size_t>(scores.size()), 0);
  pool.ParallelFor(static_cast<size_t>(scores.rows()), kRowsPerTask, [&](size_t begin, size_t end) {
    for (size_t r = begin; r < end; ++r) {
      const std::span<const float> row(scores.data() + r * cols, cols);
      for (uint32_t c : Largest(row, kept)) mask[r * cols + c] = 1;
    }
  });
  return mask;
}

std::vector<uint8_t> MaskNM(const Matrix& scores, uint8_t n, uint8_t m, ThreadPool& pool) {
  const auto cols = static_cast<size_t>(scores.cols());
  std::vector<uint8_t> mask(static_cast<size_t>(scores.size()), 0);
  pool.ParallelFor(static_cast<size_t>(scores.rows()), kRowsPerTask, [&](size_t begin, size_t end) {
    for (size_t i = begin * cols; i + m <= end * cols; i += m) MarkLargest({scores.data() + i, m}, n, mask.data() + i);
  });
  return mask;
}

std::vector<uint32_t> KeepExpertsByReap(const TableProfile& profile, uint32_t drop) {
  return Largest(std::span<const double>(profile.reap), profile.reap.size() - std::min<size_t>(drop, profile.reap.size()));
}

std::vector<double> ChannelScores(const Matrix& down, std::span<const float> down_gate_sq) {
  std::vector<double> scores(static_cast<size_t>(down.cols()));
  for (Eigen::Index j = 0; j < down.cols(); ++j) {
    scores[j] = std::sqrt(down.col(j).cast<double>().squaredNorm() * static_cast<double>(down_gate_sq[j]));
  }
  return scores;
}

std::vector<uint32_t> KeepChannels(std::span<const double> scores, uint32_t kept) { return Largest(scores, kept); }

}  // namespace moepack
