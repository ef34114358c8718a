// What to remove: single weights (MoE-Pruner, Wanda, magnitude), whole experts (REAP), intermediate channels.
// Metrics are pure functions; ties are broken towards removing the higher index, so results are reproducible.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "forward/forward.h"
#include "model/profile.h"

namespace moepack {

enum class PruneMethod : uint8_t {
  kMoePruner = 0,  // |W_ij| * || X_j * g ||_2  (2410.12013)
  kWanda = 1,      // |W_ij| * || X_j ||_2      (2306.11695)
  kMagnitude = 2,  // |W_ij|
};

// Scores [rows, cols] of single weights. in_sq [cols]: sum x_j^2 over the tokens routed to the matrix; gate_sq [cols]: the
// same with each token scaled by its routing weight. Outside of experts both are the same.
Matrix PruneScores(PruneMethod method, const Matrix& weights, std::span<const double> in_sq, std::span<const float> gate_sq);

// Mask [rows * cols] that keeps the `kept` highest scores of every row.
std::vector<uint8_t> MaskRows(const Matrix& scores, uint32_t kept, ThreadPool& pool);
// Mask that keeps the n highest scores of every m consecutive columns; cols is a multiple of m.
std::vector<uint8_t> MaskNM(const Matrix& scores, uint8_t n, uint8_t m, ThreadPool& pool);

// Experts of one table that stay when `drop` of them go: the lowest REAP saliency goes first (2510.13999). Increasing.
std::vector<uint32_t> KeepExpertsByReap(const TableProfile& profile, uint32_t drop);

// Score of each intermediate channel j of an expert: ||down column j||_2 * sqrt(sum (g h_j)^2), the size of what the
// channel adds to the layer's output over the calibration tokens.
std::vector<double> ChannelScores(const Matrix& down, std::span<const float> down_gate_sq);
// The `kept` channels with the highest scores, increasing.
std::vector<uint32_t> KeepChannels(std::span<const double> scores, uint32_t kept);

}  // namespace moepack
