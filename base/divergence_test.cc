#include "base/divergence.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace moepack {
namespace {

using Row = std::vector<float>;

Row PseudoRandomRow(size_t n, uint64_t seed, float scale) {
  Row row(n);
  uint64_t state = seed * 0x9e3779b97f4a7c15ull + 1;
  for (float& x : row) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    x = (static_cast<float>(state >> 40) / 8388608.0f - 1.0f) * scale;
  }
  return row;
}

// p_i of the textbook, in long double.
std::vector<long double> Softmax(const Row& logits) {
  std::vector<long double> p;
  long double sum = 0;
  for (float x : logits) sum += std::exp(static_cast<long double>(x));
  for (float x : logits) p.push_back(std::exp(static_cast<long double>(x)) / sum);
  return p;
}

TEST(DivergenceTest, MatchesTheDefinition) {
  constexpr size_t kVocabulary = 301, kRows = 57;
  Divergence divergence;
  std::vector<long double> kld, nll, nll_base, delta;
  size_t same = 0;
  for (size_t r = 0; r < kRows; ++r) {
    const Row base = PseudoRandomRow(kVocabulary, r, 6);
    Row other = PseudoRandomRow(kVocabulary, 1000 + r, 1);
    for (size_t i = 0; i < kVocabulary; ++i) other[i] += base[i];
    const size_t target = r * 5 % kVocabulary;
    divergence.Add(base, other, static_cast<int32_t>(target));
    const auto p = Softmax(base), q = Softmax(other);
    long double d = 0;
    for (size_t i = 0; i < kVocabulary; ++i) d += p[i] * (std::log(p[i]) - std::log(q[i]));
    kld.push_back(d);
    nll_base.push_back(-std::log(p[target]));
    nll.push_back(-std::log(q[target]));
    delta.push_back(q[target] - p[target]);
    same += std::max_element(p.begin(), p.end()) - p.begin() == std::max_element(q.begin(), q.end()) - q.begin();
    EXPECT_NEAR(NegativeLogLikelihood(base, static_cast<int32_t>(target)), static_cast<double>(nll_base.back()), 1e-12);
  }
  const auto mean = [](const std::vector<long double>& v) {
    long double sum = 0;
    for (long double x : v) sum += x;
    return static_cast<double>(sum / v.size());
  };
  const auto standard_error = [&](const std::vector<long double>& v) {
    long double sum = 0;
    for (long double x : v) sum += (x - mean(v)) * (x - mean(v));
    return static_cast<double>(std::sqrt(sum / (v.size() - 1) / v.size()));
  };
  std::vector<long double> difference, squares;
  for (size_t i = 0; i < kRows; ++i) {
    difference.push_back(nll[i] - nll_base[i]);
    squares.push_back(delta[i] * delta[i]);
  }
  const DivergenceReport report = divergence.Report();
  EXPECT_EQ(report.tokens, kRows);
  EXPECT_NEAR(report.ppl, std::exp(mean(nll)), 1e-9 * report.ppl);
  EXPECT_NEAR(report.ppl_base, std::exp(mean(nll_base)), 1e-9 * report.ppl_base);
  EXPECT_NEAR(report.ln_ratio_stderr, standard_error(difference), 1e-12);
  EXPECT_NEAR(report.kld_mean, mean(kld), 1e-12);
  EXPECT_NEAR(report.kld_stderr, standard_error(kld), 1e-12);
  EXPECT_DOUBLE_EQ(report.same_top1, static_cast<double>(same) / kRows);
  EXPECT_NEAR(report.delta_p_mean, mean(delta), 1e-12);
  EXPECT_NEAR(report.delta_p_rms, std::sqrt(mean(squares)), 1e-12);
  std::sort(kld.begin(), kld.end());
  EXPECT_NEAR(report.kld_median, static_cast<double>(kld[28]), 1e-12);                        // 56 * 0.5
  EXPECT_NEAR(report.kld_p90, static_cast<double>(kld[50] * 0.6L + kld[51] * 0.4L), 1e-9);    // 56 * 0.9 = 50.4
  EXPECT_NEAR(report.kld_p99, static_cast<double>(kld[55] * 0.56L + kld[56] * 0.44L), 1e-9);  // 55.44
  EXPECT_NEAR(report.kld_max, static_cast<double>(kld[56]), 1e-12);
}

TEST(DivergenceTest, EqualModelsDivergeByExactlyZero) {
  Divergence divergence;
  for (uint64_t r = 0; r < 10; ++r) {
    const Row row = PseudoRandomRow(4096, r, 30);
    divergence.Add(row, row, 7);
  }
  const DivergenceReport report = divergence.Report();
  EXPECT_EQ(report.kld_max, 0);
  EXPECT_EQ(report.delta_p_rms, 0);
  EXPECT_EQ(report.same_top1, 1);
  EXPECT_EQ(report.ppl, report.ppl_base);
}

TEST(DivergenceTest, AccuracyCountsTheTargetsThatEachModelPutsFirst) {
  Divergence divergence;
  const Row first = {3, 1, 0}, second = {1, 3, 0};
  divergence.Add(first, first, 0);
  divergence.Add(first, second, 0);
  divergence.Add(second, first, 1);
  divergence.Add(second, first, 2);
  EXPECT_EQ(divergence.Report().top1_accuracy_base, 0.75);
  EXPECT_EQ(divergence.Report().top1_accuracy, 0.25);
}

TEST(DivergenceTest, AShiftOfAllLogitsChangesNothing) {
  const Row base = PseudoRandomRow(64, 1, 4);
  Row shifted = base;
  for (float& x : shifted) x += 512;
  Divergence divergence;
  divergence.Add(base, shifted, 3);
  EXPECT_NEAR(divergence.Report().kld_mean, 0, 1e-4);  // float32 holds 512 + x to about 3e-5
}

TEST(DivergenceTest, NothingAddedAndNotFiniteAreReported) {
  EXPECT_EQ(Divergence().Report().tokens, 0u);
  Divergence divergence;
  Row row(16, 0.0f), broken(16, std::numeric_limits<float>::quiet_NaN());
  divergence.Add(row, row, 0);
  divergence.Add(row, broken, 0);
  EXPECT_TRUE(std::isnan(divergence.Report().kld_mean));
  EXPECT_EQ(divergence.Report().tokens, 2u);
}

TEST(EvalChunksTest, SecondHalfOfEachChunkIsScored) {
  const EvalChunks chunks(37707, 256);
  EXPECT_EQ(chunks.chunks, 147u);
  EXPECT_EQ(chunks.rows(), 127u);
  EXPECT_EQ(chunks.token(0, 0), 128u);
  EXPECT_EQ(chunks.token(2, 126), 2 * 256 + 254u);
  uint64_t scored = 0;
  for (uint64_t t = 0; t < 37707; ++t) scored += chunks.scored(t);
  EXPECT_EQ(scored, chunks.total_rows());
  EXPECT_TRUE(chunks.scored(128));
  EXPECT_FALSE(chunks.scored(127));
  EXPECT_FALSE(chunks.scored(255));
  const EvalChunks odd(10, 5);
  EXPECT_EQ(odd.rows(), 2u);
  EXPECT_EQ(odd.token(1, 1), 8u);
}

}  // namespace
}  // namespace moepack
