#include "compressor/pass/prune.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "compressor/pass/hessian.h"

namespace moepack {
namespace {

constexpr int kTokens = 40, kIn = 12, kOut = 5;

struct Expert {
  Matrix w{kOut, kIn}, x{kTokens, kIn};
  std::vector<float> gates = std::vector<float>(kTokens);
  std::vector<double> in_sq = std::vector<double>(kIn, 0.0);
  std::vector<float> gate_sq = std::vector<float>(kIn, 0.0f);

  Expert() {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    std::uniform_real_distribution<float> uniform(0.05f, 0.9f);
    for (Eigen::Index i = 0; i < w.size(); ++i) w.data()[i] = normal(random);
    for (Eigen::Index i = 0; i < x.size(); ++i) x.data()[i] = normal(random);
    for (float& g : gates) g = uniform(random);
    for (int t = 0; t < kTokens; ++t) {
      for (int j = 0; j < kIn; ++j) {
        in_sq[j] += static_cast<double>(x(t, j)) * x(t, j);
        gate_sq[j] += gates[t] * x(t, j) * gates[t] * x(t, j);
      }
    }
  }
};

// The papers' formulas, written out in float64 from weights, inputs and routing weights.
double Direct(const Expert& e, PruneMethod method, int i, int j) {
  double norm = 0;
  for (int t = 0; t < kTokens; ++t) {
    const double g = method == PruneMethod::kMoePruner ? static_cast<double>(e.gates[t]) : 1.0;
    norm += (static_cast<double>(e.x(t, j)) * g) * (static_cast<double>(e.x(t, j)) * g);
  }
  const double magnitude = std::fabs(static_cast<double>(e.w(i, j)));
  return method == PruneMethod::kMagnitude ? magnitude : magnitude * std::sqrt(norm);
}

TEST(PruneScores, EachMetricEqualsItsFormula) {
  const Expert e;
  for (PruneMethod method : {PruneMethod::kMoePruner, PruneMethod::kWanda, PruneMethod::kMagnitude}) {
    const Matrix scores = PruneScores(method, e.w, e.in_sq, e.gate_sq);
    for (int i = 0; i < kOut; ++i) {
      for (int j = 0; j < kIn; ++j) {
        const double direct = Direct(e, method, i, j);
        EXPECT_NEAR(scores(i, j), direct, 1e-5 * direct) << static_cast<int>(method) << " " << i << " " << j;
      }
    }
  }
}

TEST(PruneScores, MetricsDisagreeWhereGatesMatter) {
  Expert e;
  // A column that is large only for tokens the router hardly weighs.
  const Matrix wanda = PruneScores(PruneMethod::kWanda, e.w, e.in_sq, e.gate_sq);
  e.gate_sq[3] = 0;
  EXPECT_EQ(PruneScores(PruneMethod::kMoePruner, e.w, e.in_sq, e.gate_sq)(0, 3), 0.0f);
  EXPECT_GT(wanda(0, 3), 0.0f);
}

TEST(Mask, KeepsTheHighestOfEveryRow) {
  Matrix scores(2, 5);
  scores << 1, 5, 3, 4, 2, 7, 7, 7, 7, 7;
  ThreadPool pool(2);
  EXPECT_EQ(MaskRows(scores, 2, pool), (std::vector<uint8_t>{0, 1, 0, 1, 0, 1, 1, 0, 0, 0}));
}

TEST(Mask, KeepsNOfEveryM) {
  Matrix scores(1, 8);
  scores << 1, 2, 3, 4, 9, 8, 1, 8;
  ThreadPool pool(2);
  EXPECT_EQ(MaskNM(scores, 2, 4, pool), (std::vector<uint8_t>{0, 0, 1, 1, 1, 1, 0, 0}));
  // Ties go to the lower index, in every row.
  EXPECT_EQ(MaskNM(Matrix::Ones(40, 8), 3, 4, pool), MaskNM(Matrix::Constant(40, 8, 7), 3, 4, pool));
  EXPECT_EQ(MaskNM(Matrix::Ones(1, 8), 3, 4, pool), (std::vector<uint8_t>{1, 1, 1, 0, 1, 1, 1, 0}));
}

TEST(Reap, DropsTheLowestSaliency) {
  TableProfile profile;
  profile.reap = {0.5, 0.1, 0.9, 0.1, 0.3};
  EXPECT_EQ(KeepExpertsByReap(profile, 2), (std::vector<uint32_t>{0, 2, 4}));
  EXPECT_EQ(KeepExpertsByReap(profile, 1), (std::vector<uint32_t>{0, 1, 2, 4}));
}

TEST(Channels, ScoreEqualsTheFormula) {
  const Expert e;
  const std::vector<double> scores = ChannelScores(e.w, e.gate_sq);
  for (int j = 0; j < kIn; ++j) {
    double column = 0, rms = 0;
    for (int i = 0; i < kOut; ++i) column += static_cast<double>(e.w(i, j)) * e.w(i, j);
    for (int t = 0; t < kTokens; ++t) rms += std::pow(static_cast<double>(e.gates[t]) * e.x(t, j), 2);
    EXPECT_NEAR(scores[j], std::sqrt(column) * std::sqrt(rms), 1e-5 * scores[j]);
  }
  EXPECT_EQ(KeepChannels(std::vector<double>{3, 1, 2}, 2), (std::vector<uint32_t>{0, 2}));
}

}  // namespace
}  // namespace moepack
