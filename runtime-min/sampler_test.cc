#include "runtime-min/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace moepack::runtime {
namespace {

TEST(Random, IsXoshiro256StarStarSeededBySplitmix64) {
  // Computed from the published algorithms with another program.
  Random zero(0);
  EXPECT_EQ(zero.Next(), 0x99ec5f36cb75f2b4u);
  EXPECT_EQ(zero.Next(), 0xbf6e1f784956452au);
  EXPECT_EQ(zero.Next(), 0x1a5f849d4933e6e0u);
  Random other(0xdeadbeef);
  EXPECT_NE(other.Next(), 0x99ec5f36cb75f2b4u);
  for (int i = 0; i < 1000; ++i) {
    const double u = other.NextDouble();
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
  }
}

TEST(Sampler, GreedyTakesTheLargestAndTheLowerIdOfATie) {
  Sampler sampler({});
  EXPECT_EQ(sampler.Sample(std::vector<float>{1, 3, 2, 3}), 1);
  EXPECT_EQ(sampler.Sample(std::vector<float>{-5, -9, -4}), 2);
  EXPECT_EQ(sampler.Sample(std::vector<float>{7}), 0);
}

TEST(Sampler, ArgmaxIsTheFirstOfTheLargestWhereverItStands) {
  for (const size_t size : {15, 16, 17, 1023, 1024, 1025, 3000}) {
    std::vector<float> logits(size);
    for (size_t i = 0; i < size; ++i) logits[i] = static_cast<float>((i * 7919) % 1000);
    for (const size_t at : {size_t{0}, size / 3, size / 2, size - 1}) {
      std::vector<float> with = logits;
      with[at] = with[size - 1] = 2000;
      EXPECT_EQ(Argmax(with), static_cast<int32_t>(at)) << size;
      with[at] = with[size - 1] = std::numeric_limits<float>::quiet_NaN();
      const auto less = [](float a, float b) { return a < b || std::isnan(a); };
      EXPECT_EQ(Argmax(with), std::max_element(with.begin(), with.end(), less) - with.begin()) << size;
    }
    EXPECT_EQ(Argmax(std::vector<float>(size, -INFINITY)), 0);
  }
}

TEST(Sampler, LogitsThatAreNotFiniteNeverWin) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(Argmax(std::vector<float>{nan, 1, 2, nan}), 2);
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Sampler sampler({.temperature = 1, .top_p = 0.9f, .seed = seed});
    EXPECT_EQ(sampler.Sample(std::vector<float>{nan, -inf, 2, nan}), 2);
    EXPECT_EQ(sampler.Sample(std::vector<float>{1, inf, 2, 0}), 1) << "not the least likely one, which NaN shares gave";
    EXPECT_EQ(sampler.Sample(std::vector<float>{nan, nan, nan}), 0);
  }
}

// Shares of each token over many draws.
std::vector<double> Shares(const SamplerOptions& options, const std::vector<float>& logits, int draws) {
  Sampler sampler(options);
  std::vector<double> shares(logits.size(), 0);
  for (int i = 0; i < draws; ++i) shares[static_cast<size_t>(sampler.Sample(logits))] += 1.0 / draws;
  return shares;
}

TEST(Sampler, DrawsBySoftmaxOfLogitsOverTemperature) {
  const std::vector<float> logits = {0.5f, -1, 2, 1, 0};
  constexpr int kDraws = 100000;
  for (const float temperature : {0.5f, 1.0f, 2.0f}) {
    const std::vector<double> shares = Shares({.temperature = temperature, .seed = 3}, logits, kDraws);
    double sum = 0;
    for (float l : logits) sum += std::exp(l / temperature);
    for (size_t i = 0; i < logits.size(); ++i) {
      const double p = std::exp(logits[i] / temperature) / sum;
      EXPECT_NEAR(shares[i], p, 5 * std::sqrt(p * (1 - p) / kDraws)) << temperature << " token " << i;
    }
  }
}

TEST(Sampler, TopKKeepsTheMostLikely) {
  const std::vector<float> logits = {0.5f, -1, 2, 1, 0};
  const std::vector<double> shares = Shares({.temperature = 1, .top_k = 2, .seed = 1}, logits, 20000);
  EXPECT_EQ(shares[0] + shares[1] + shares[4], 0);
  EXPECT_NEAR(shares[2], 1 / (1 + std::exp(-1.0)), 0.02);
  EXPECT_NEAR(Shares({.temperature = 100, .top_k = 1, .seed = 1}, logits, 100)[2], 1, 1e-9);
}

TEST(Sampler, TopPKeepsTheFewestThatReachIt) {
  const std::vector<float> logits = {std::log(0.1f), std::log(0.5f), std::log(0.3f), std::log(0.06f), std::log(0.04f)};
  const auto kept = [&](float top_p, uint32_t top_k) {
    int count = 0;
    for (double share : Shares({.temperature = 1, .top_k = top_k, .top_p = top_p, .seed = 9}, logits, 5000))
      count += share > 0;
    return count;
  };
  EXPECT_EQ(kept(0.3f, 0), 1);
  EXPECT_EQ(kept(0.7f, 0), 2);
  EXPECT_EQ(kept(0.85f, 0), 3);
  EXPECT_EQ(kept(0.85f, 2), 2);  // of what top_k left, 0.5 / 0.8 is not enough
  EXPECT_EQ(kept(1.0f, 0), 5);
}

TEST(Sampler, TheSameSeedGivesTheSameTokens) {
  std::vector<float> logits(500);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = std::sin(static_cast<float>(i * i));
  const SamplerOptions options{.temperature = 0.9f, .top_k = 100, .top_p = 0.95f, .seed = 42};
  Sampler a(options), b(options), c({.temperature = 0.9f, .top_k = 100, .top_p = 0.95f, .seed = 43});
  bool differs = false;
  for (int i = 0; i < 200; ++i) {
    const int32_t token = a.Sample(logits);
    ASSERT_EQ(token, b.Sample(logits));
    differs |= token != c.Sample(logits);
  }
  EXPECT_TRUE(differs);
}

// Sorts everything, as the definition says.
int32_t SampleByDefinition(const SamplerOptions& options, const std::vector<float>& logits, double random) {
  std::vector<std::pair<double, int32_t>> sorted;
  for (size_t i = 0; i < logits.size(); ++i) sorted.emplace_back(-double{logits[i]}, static_cast<int32_t>(i));
  std::sort(sorted.begin(), sorted.end());
  if (options.top_k > 0 && options.top_k < sorted.size()) sorted.resize(options.top_k);
  const double largest = sorted[0].first;
  double total = 0, sum = 0;
  for (auto& [weight, id] : sorted) total += weight = std::exp((largest - weight) / double{options.temperature});
  for (size_t i = 0; i < sorted.size(); ++i) {
    sum += sorted[i].first;
    if (sum >= options.top_p * total) sorted.resize(i + 1);
  }
  double left = random * sum;
  for (const auto& [weight, id] : sorted) {
    if ((left -= weight) < 0) return id;
  }
  return sorted.back().second;
}

// Flat and steep logits over more tokens than are sorted at first, with ties.
TEST(Sampler, DrawsWhatTheFullOrderGives) {
  for (const float spread : {0.0f, 0.3f, 4.0f}) {
    std::vector<float> logits(3000);
    for (size_t i = 0; i < logits.size(); ++i) logits[i] = spread * std::sin(static_cast<float>(i * i % 1999));
    for (const uint32_t top_k : {0u, 1u, 50u, 2000u}) {
      for (const float top_p : {0.05f, 0.5f, 0.95f, 1.0f}) {
        const SamplerOptions options{.temperature = 0.8f, .top_k = top_k, .top_p = top_p, .seed = 5};
        Sampler sampler(options);
        Random random(options.seed);
        for (int i = 0; i < 20; ++i) {
          ASSERT_EQ(sampler.Sample(logits), SampleByDefinition(options, logits, random.NextDouble()))
              << spread << " " << top_k << " " << top_p;
        }
      }
    }
  }
}

TEST(Sampler, RefusesOptionsThatCannotBe) {
  EXPECT_TRUE(ValidateSamplerOptions({.temperature = 0.7f, .top_k = 5, .top_p = 0.9f}).ok());
  const SamplerOptions wrong[] = {{.temperature = -1},
                                  {.temperature = std::numeric_limits<float>::infinity()},
                                  {.temperature = std::numeric_limits<float>::quiet_NaN()},
                                  {.top_p = 0},
                                  {.top_p = 1.5f},
                                  {.top_p = std::numeric_limits<float>::quiet_NaN()}};
  for (const SamplerOptions& options : wrong) EXPECT_EQ(ValidateSamplerOptions(options).code(), ErrorCode::kUsage);
}

}  // namespace
}  // namespace moepack::runtime
