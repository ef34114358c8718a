#include "compressor/pass/trellis.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "compressor/pass/gptq.h"

namespace moepack {
namespace {

std::vector<float> Normal(size_t count, uint32_t seed, float spread = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> out(count);
  for (float& v : out) v = normal(random);
  return out;
}

double ErrorOf(int bits, std::span<const float> targets, std::span<const float> importance, uint32_t window,
               std::span<const uint8_t> codes) {
  double sum = 0;
  for (size_t c = 0; c < targets.size(); ++c) {
    window = NextTrellisWindow(bits, window, codes[c]);
    const double error = static_cast<double>(targets[c]) - TrellisValue(bits, window);
    sum += static_cast<double>(importance[c]) * error * error;
  }
  return sum;
}

uint32_t LastWindow(int bits, uint32_t window, std::span<const uint8_t> codes) {
  for (const uint8_t code : codes) window = NextTrellisWindow(bits, window, code);
  return window;
}

TEST(TrellisSearch, FindsTheBestOfAllPaths) {
  for (const int bits : {2, 3, 4, 5, 6}) {
    const size_t columns = bits == 2 ? 7 : bits == 3 ? 5 : bits == 4 ? 4 : 3;
    const uint32_t top = (1u << bits) - 1;
    TrellisSearch search(bits);
    for (uint32_t seed = 0; seed < 12; ++seed) {
      const std::vector<float> targets = Normal(columns, seed, 50);
      std::vector<float> importance = Normal(columns, seed + 100);
      for (float& v : importance) v = v * v;
      const uint32_t window = seed * 97 % kTrellisWindows, end = seed * 241 % kTrellisWindows;
      double best = INFINITY, best_with_end = INFINITY;
      std::vector<uint8_t> path(columns);
      for (uint32_t all = 0; all < 1u << (bits * columns); ++all) {
        for (size_t c = 0; c < columns; ++c) path[c] = all >> (bits * c) & top;
        const double error = ErrorOf(bits, targets, importance, window, path);
        best = std::min(best, error);
        if (NextTrellisWindow(bits, LastWindow(bits, window, path), 0) == NextTrellisWindow(bits, end, 0))
          best_with_end = std::min(best_with_end, error);
      }
      search.Find(targets, importance, window, std::nullopt, path);
      EXPECT_NEAR(ErrorOf(bits, targets, importance, window, path), best, 1e-5 * best);
      search.Find(targets, importance, window, end, path);
      EXPECT_NEAR(ErrorOf(bits, targets, importance, window, path), best_with_end, 1e-5 * best_with_end);
      // What lies behind reads the same values as after `end`.
      uint32_t found = LastWindow(bits, window, path), wanted = end;
      for (const uint32_t code : {1u, 0u, top, 2u}) {
        found = NextTrellisWindow(bits, found, code);
        wanted = NextTrellisWindow(bits, wanted, code);
        EXPECT_EQ(found, wanted);
      }
    }
  }
}

Matrix RandomRows(Eigen::Index rows, Eigen::Index cols, uint32_t seed) {
  const std::vector<float> values = Normal(static_cast<size_t>(rows * cols), seed, 0.02f);
  return Eigen::Map<const Matrix>(values.data(), rows, cols);
}

Matrix Decoded(const QuantizedMatrix& q) {
  Matrix out(q.shape.rows, q.shape.cols);
  Dequantize(q, {out.data(), static_cast<size_t>(out.size())});
  return out;
}

// Gaussian weights: the rate-distortion bound is 4^-bits of the energy; the best uniform grids lose 0.119, 0.0374, 0.0115,
// 0.0035 and 0.0010.
TEST(TrellisRows, LosesFarLessThanAGridOfItsBits) {
  const Matrix weights = RandomRows(32, 256, 5);
  const auto loss = [&weights](const std::string& name) {
    QuantizedMatrix out = MakeQuantized(*ParseCodec(name), {32, 256});
    QuantizeRowsNearest(weights, {}, 0, 32, &out);
    EXPECT_TRUE(ToPlain(out).ok());
    return (Decoded(out) - weights).squaredNorm() / weights.squaredNorm();
  };
  const double most[] = {0.085, 0.0225, 0.0065, 0.0018, 0.0005}, of_grid[] = {0.72, 0.65, 0.62, 0.65, 0.67};
  for (int bits = 2; bits <= 6; ++bits) {
    const double trellis = loss("t" + std::to_string(bits) + "g128"), grid = loss("i" + std::to_string(bits) + "g128");
    EXPECT_LT(trellis, most[bits - 2]) << bits;
    EXPECT_LT(trellis, of_grid[bits - 2] * grid) << bits;
  }
}

TEST(TrellisRows, ZerosAndShortGroups) {
  Matrix weights = RandomRows(3, 75, 6);
  weights.row(1).setZero();
  for (const char* name : {"t2g16", "t2g64", "t2r", "t3g16", "t3r", "t4g64", "t4r", "t5g32", "t6r"}) {
    QuantizedMatrix out = MakeQuantized(*ParseCodec(name), {3, 75});
    QuantizeRowsNearest(weights, {}, 0, 3, &out);
    EXPECT_TRUE(ToPlain(out).ok());
    const Matrix decoded = Decoded(out);
    EXPECT_EQ(decoded.row(1).squaredNorm(), 0);
    EXPECT_LT((decoded - weights).squaredNorm(), 0.15 * weights.squaredNorm()) << name;
  }
}

// Inputs that depend on each other: the passes must use what the Hessian tells.
TEST(TrellisRows, FeedbackAndSweepsLowerTheLossUnderTheHessian) {
  constexpr Eigen::Index kRows = 16, kCols = 130;
  const Matrix weights = RandomRows(kRows, kCols, 7),
               inputs = RandomRows(400, 12, 8) * RandomRows(12, kCols, 9) * 2500 + RandomRows(400, kCols, 10) * 10;
  const Matrix hessian = inputs.transpose() * inputs;
  const auto factor = FactorHessian(hessian);
  ASSERT_TRUE(factor.ok());
  const auto loss = [&](const QuantizedMatrix& q) {
    const Matrix error = Decoded(q) - weights;
    return (error * hessian).cwiseProduct(error).sum();
  };
  for (const char* name : {"t2g64", "t2r", "t3g64", "t4r", "t5g64", "t6r"}) {
    QuantizedMatrix plain = MakeQuantized(*ParseCodec(name), {kRows, kCols}), fed = plain, swept = plain, halves = plain;
    const Eigen::RowVectorXf diagonal = hessian.diagonal();
    QuantizeRowsNearest(weights, {diagonal.data(), static_cast<size_t>(kCols)}, 0, kRows, &plain);
    GptqRows(weights, *factor, nullptr, 0, 0, kRows, &fed);
    GptqRows(weights, *factor, nullptr, 3, 0, kRows, &swept);
    GptqRows(weights, *factor, nullptr, 3, 0, 8, &halves);
    GptqRows(weights, *factor, nullptr, 3, 8, kRows, &halves);
    EXPECT_LT(loss(fed), 0.8f * loss(plain)) << name;
    EXPECT_LT(loss(swept), 0.95f * loss(fed)) << name;
    EXPECT_EQ(halves.codes, swept.codes);
    EXPECT_EQ(halves.scales, swept.scales);
    EXPECT_TRUE(ToPlain(swept).ok());
  }
}

}  // namespace
}  // namespace moepack
