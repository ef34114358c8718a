#include "runtime-min/vector_math.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "runtime-min/metrics.h"
#include "runtime-min/routing.h"

namespace moepack::runtime {
namespace {

TEST(VectorMath, ExpIsWithinItsBound) {
  for (double x = -87; x <= 88; x += 0.00731) {
    const float argument = static_cast<float>(x);
    const double expected = std::exp(static_cast<double>(argument));
    ASSERT_NEAR(Exp(argument) / expected, 1.0, 3e-7) << x;
  }
  EXPECT_EQ(Exp(0), 1.0f);
  EXPECT_GT(Exp(-INFINITY), 0.0f);
  EXPECT_LT(Exp(-INFINITY), 1e-37f);
  EXPECT_TRUE(std::isfinite(Exp(INFINITY)));
}

TEST(VectorMath, SoftmaxSumsToOneForAnyLogits) {
  for (const float scale : {0.01f, 1.0f, 30.0f, 1e6f}) {
    std::vector<float> x(37);
    for (size_t i = 0; i < x.size(); ++i) x[i] = scale * std::sin(static_cast<float>(i * 5));
    Softmax(x.data(), x.size());
    EXPECT_NEAR(std::accumulate(x.begin(), x.end(), 0.0), 1.0, 1e-6);
  }
}

TEST(VectorMath, ActivationsMayOverwriteEitherOperand) {
  for (const Activation f :
       {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh, Activation::kRelu, Activation::kIdentity}) {
    std::vector<float> gate(150), up(150), expected(150);
    for (size_t i = 0; i < gate.size(); ++i) {
      gate[i] = std::sin(static_cast<float>(i)) * 3;
      up[i] = std::cos(static_cast<float>(i)) * 2;
    }
    ActivateGated({.function = f}, gate.data(), up.data(), gate.size(), expected.data());
    std::vector<float> over_up = up, over_gate = gate;
    ActivateGated({.function = f}, gate.data(), over_up.data(), gate.size(), over_up.data());
    ActivateGated({.function = f}, over_gate.data(), up.data(), gate.size(), over_gate.data());
    EXPECT_EQ(over_up, expected);
    EXPECT_EQ(over_gate, expected);
  }
}

struct Routed {
  std::vector<uint32_t> ids;
  std::vector<float> weights;
};

Routed RouteOne(const RoutingRecord& routing, std::vector<float> logits, const RoutingTables& tables = {}) {
  Routed r{std::vector<uint32_t>(routing.k), std::vector<float>(routing.k)};
  logits.resize(2 * logits.size());
  Route(routing, tables, logits, r.ids, r.weights);
  return r;
}

TEST(Routing, TakesTheLargestAndTheLowerIndexOfATie) {
  const Routed r = RouteOne({.k = 4}, {1, 3, 2, 3, -1, 2});
  EXPECT_EQ(r.ids, (std::vector<uint32_t>{1, 3, 2, 5}));
  EXPECT_EQ(r.weights[0], r.weights[1]);
  EXPECT_GT(r.weights[1], r.weights[2]);
}

// In float32 both sigmoids are 1.
TEST(Routing, ALargerLogitWinsWhereScoresTie) {
  EXPECT_EQ(RouteOne({.score = ScoreFunction::kSigmoid, .k = 1}, {18, 20}).ids[0], 1u);
  EXPECT_EQ(RouteOne({.k = 2}, {-200, 0, -190}).ids, (std::vector<uint32_t>{1, 2})) << "a softmax below the least float";
}

TEST(Routing, WeightsFollowTheRecord) {
  const std::vector<float> logits = {0.3f, -1, 2, 0.5f};
  double all = 0;
  for (float l : logits) all += std::exp(l);
  const double best = std::exp(2.0), second = std::exp(0.5);
  EXPECT_NEAR(RouteOne({.k = 2}, logits).weights[1], second / all, 1e-6);
  EXPECT_NEAR(RouteOne({.k = 2, .renormalise = true}, logits).weights[1], second / (best + second), 1e-6);
  EXPECT_NEAR(RouteOne({.score_before_topk = false, .k = 2}, logits).weights[0], best / (best + second), 1e-6);
  const double sigmoid = 1 / (1 + std::exp(-2.0));
  EXPECT_NEAR(RouteOne({.score = ScoreFunction::kSigmoid, .k = 1, .scale = 2.5f}, logits).weights[0], 2.5 * sigmoid, 1e-6);
}

TEST(RoundTo8Bits, TakesTheNearestOf255Values) {
  std::vector<float> x = {-2, 0, 0.5f, 1.999f, 0.0079f, 0.0078f}, y(x.size());
  RoundTo8Bits(x.data(), x.size(), y.data());
  const float step = 2.0f / 127;
  EXPECT_EQ(y, (std::vector<float>{-127 * step, 0, 32 * step, 127 * step, step, 0}));
  RoundTo8Bits(y.data(), y.size(), x.data());
  EXPECT_EQ(x, y) << "values that are rounded already stay";
  const std::vector<float> zeros(3, 0);
  y.resize(3);
  RoundTo8Bits(zeros.data(), 3, y.data());
  EXPECT_EQ(y, zeros);
  for (const float odd : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    x = {1, odd, 0.3f};
    RoundTo8Bits(x.data(), 3, y.data());
    EXPECT_EQ(std::memcmp(x.data(), y.data(), 3 * sizeof(float)), 0) << "what is not finite must show in the product";
  }
}

TEST(Metrics, PercentilesAreNearestRanks) {
  const std::vector<double> samples = {5, 1, 4, 2, 3};
  EXPECT_EQ(Percentile(samples, 50), 3);
  EXPECT_EQ(Percentile(samples, 99), 5);
  EXPECT_EQ(Percentile(samples, 0), 1);
  EXPECT_EQ(Percentile({}, 50), std::nullopt);
}

TEST(Metrics, NothingDecodedIsNotMeasured) {
  RunMetrics metrics;
  SummarizeDecode({}, &metrics);
  EXPECT_FALSE(metrics.decode_tokens_per_s.has_value());
  EXPECT_FALSE(metrics.p50_ms.has_value());
  SummarizeDecode(std::vector<double>{2, 2}, &metrics);
  EXPECT_EQ(metrics.decode_tokens_per_s, 500);
  EXPECT_GT(PeakRssBytes().value_or(1 << 20), 1u << 19);
}

}  // namespace
}  // namespace moepack::runtime
