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

double ErrorOf(std::span<const float> targets, std::span<const float> importance, uint32_t window,
               std::span<const uint8_t> codes) {
  double sum = 0;
  for (size_t c = 0; c < targets.size(); ++c) {
    window = NextTrellisWindow(window, codes[c]);
    const double error = static_cast<double>(targets[c]) - TrellisValue(window);
    sum += static_cast<double>(importance[c]) * error * error;
  }
  return sum;
}

TEST(TrellisSearch, FindsTheBestOfAllPaths) {
  constexpr size_t kColumns = 7;
  TrellisSearch search;
  for (uint32_t seed = 0; seed < 12; ++seed) {
    const std::vector<float> targets = Normal(kColumns, seed, 50);
    std::vector<float> importance = Normal(kColumns, seed + 100);
    for (float& v : importance) v = v * v;
    const uint32_t window = seed * 97 % kTrellisWindows;
    double best = INFINITY, best_with_end = INFINITY;
    const uint8_t end = static_cast<uint8_t>(seed * 41);
    std::vector<uint8_t> path(kColumns);
    for (uint32_t all = 0; all < 1u << (2 * kColumns); ++all) {
      for (size_t c = 0; c < kColumns; ++c) path[c] = all >> (2 * c) & 3;
      const double error = ErrorOf(targets, importance, window, path);
      best = std::min(best, error);
      if (all >> (2 * kColumns - 8) == end) best_with_end = std::min(best_with_end, error);
    }
    search.Find(targets, importance, window, std::nullopt, path);
    EXPECT_NEAR(ErrorOf(targets, importance, window, path), best, 1e-5 * best);
    search.Find(targets, importance, window, end, path);
    EXPECT_NEAR(ErrorOf(targets, importance, window, path), best_with_end, 1e-5 * best_with_end);
    for (size_t i = 0; i < 4; ++i) EXPECT_EQ(path[kColumns - 4 + i], end >> (2 * i) & 3);
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

// Gaussian weights: 2^-4 of the energy is the rate-distortion bound at 2 bits, the best uniform grid loses 0.119.
TEST(TrellisRows, LosesAThirdLessThanAGridOfTwoBits) {
  const Matrix weights = RandomRows(32, 256, 5);
  double loss[2];
  for (const char* name : {"t2g128", "i2g128"}) {
    QuantizedMatrix out = MakeQuantized(*ParseCodec(name), {32, 256});
    QuantizeRowsNearest(weights, {}, 0, 32, &out);
    EXPECT_TRUE(ToPlain(out).ok());
    loss[name[0] == 'i'] = (Decoded(out) - weights).squaredNorm() / weights.squaredNorm();
  }
  EXPECT_LT(loss[0], 0.085);
  EXPECT_LT(loss[0], 0.72 * loss[1]);
}

TEST(TrellisRows, ZerosAndShortGroups) {
  Matrix weights = RandomRows(3, 75, 6);
  weights.row(1).setZero();
  for (const char* name : {"t2g16", "t2g64", "t2r"}) {
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
  const Matrix weights = RandomRows(kRows, kCols, 7), inputs = RandomRows(400, 12, 8) * RandomRows(12, kCols, 9) * 2500 +
                                                                 RandomRows(400, kCols, 10) * 10;
  const Matrix hessian = inputs.transpose() * inputs;
  const auto factor = FactorHessian(hessian);
  ASSERT_TRUE(factor.ok());
  const auto loss = [&](const QuantizedMatrix& q) {
    const Matrix error = Decoded(q) - weights;
    return (error * hessian).cwiseProduct(error).sum();
  };
  for (const char* name : {"t2g64", "t2r"}) {
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
