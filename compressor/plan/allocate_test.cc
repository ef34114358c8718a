#include "compressor/plan/allocate.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <limits>
#include <random>

namespace moepack {
namespace {

using Units = std::vector<std::vector<Option>>;

Units RandomUnits(uint32_t seed, size_t count, size_t most_options) {
  std::mt19937 random(seed);
  Units units(count);
  for (auto& unit : units) {
    unit.resize(1 + random() % most_options);
    for (Option& option : unit) option = {1 + random() % 40, static_cast<double>(random() % 1000) / 10};
  }
  return units;
}

// Least loss over every combination; infinity when none fits.
double BruteForce(const Units& units, size_t unit, uint64_t budget) {
  if (unit == units.size()) return 0;
  double best = std::numeric_limits<double>::infinity();
  for (const Option& option : units[unit]) {
    if (option.cost <= budget) best = std::min(best, option.loss + BruteForce(units, unit + 1, budget - option.cost));
  }
  return best;
}

TEST(Allocate, EqualsBruteForce) {
  for (uint32_t seed = 0; seed < 200; ++seed) {
    const Units units = RandomUnits(seed, 5, 5);
    const uint64_t budget = 20 + seed;
    const double best = BruteForce(units, 0, budget);
    const auto found = Allocate(units, budget, 1);
    ASSERT_EQ(found.ok(), best < 1e9) << seed;
    if (!found.ok()) {
      EXPECT_EQ(found.status().code(), ErrorCode::kGate);
      continue;
    }
    EXPECT_NEAR(found->loss, best, 1e-9) << seed;
    EXPECT_LE(found->cost, budget);
    EXPECT_EQ(found->gap(), 0);
  }
}

TEST(Allocate, DualBoundNeverExceedsTheOptimum) {
  for (uint32_t seed = 0; seed < 200; ++seed) {
    const Units units = RandomUnits(seed, 5, 5);
    const double best = BruteForce(units, 0, 60);
    if (best < 1e9) {
      EXPECT_LE(DualBound(units, 60), best + 1e-9) << seed;
    }
  }
}

TEST(Allocate, LargeInstancesComeWithAProvenGap) {
  std::mt19937 random(3);
  Units units(3000);
  uint64_t most = 0;
  for (auto& unit : units) {
    double loss = 1 + static_cast<double>(random() % 100);
    uint64_t cost = 100000 + random() % 10000;
    for (int i = 0; i < 12; ++i, cost = cost * 5 / 4, loss /= 3) unit.push_back({cost, loss});
    most += unit.back().cost;
  }
  const auto found = Allocate(units, most / 3, 1);
  ASSERT_TRUE(found.ok());
  EXPECT_LE(found->cost, most / 3);
  EXPECT_GT(found->bound, 0);
  EXPECT_LT(found->gap(), 1e-3);
}

// A table of 4e8 cells would take 800 MB.
TEST(Allocate, MemoryIsBoundedAndTheGapSaysSo) {
  Units units;
  for (uint64_t u = 0; u < 2000; ++u) units.push_back({{10, 9.0 + static_cast<double>(u % 7)}, {110 + u % 13, 1.0}});
  const auto peak_kib = [] {
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss;
  };
  const auto before = peak_kib();
  const auto found = Allocate(units, 200'000, 1);
  ASSERT_TRUE(found.ok());
  EXPECT_LT(peak_kib() - before, 200 * 1024);
  EXPECT_LE(found->cost, 200'000u);
  EXPECT_GT(found->bound, 0);
  EXPECT_LE(found->bound, found->loss);
  EXPECT_LT(found->gap(), 1e-3);
}

TEST(Allocate, CostsAreWholePages) {
  const Units units = {{{5, 10.0}, {9, 1.0}}, {{5, 10.0}, {8, 1.0}}};
  const auto found = Allocate(units, 24, 8);  // three pages: one unit may take two
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(found->chosen, (std::vector<size_t>{1, 1}));
  EXPECT_EQ(found->cost, 24u);
}

TEST(Combine, KeepsEveryUndominatedSum) {
  const Units tensors = {{{1, 9.0}, {2, 4.0}, {4, 1.0}}, {{1, 5.0}, {3, 2.0}}};
  const Combined combined = Combine(tensors);
  ASSERT_EQ(combined.options.size(), combined.picks.size());
  for (const Option& a : tensors[0]) {
    for (const Option& b : tensors[1]) {
      bool covered = false;
      for (const Option& c : combined.options) covered = covered || (c.cost <= a.cost + b.cost && c.loss <= a.loss + b.loss);
      EXPECT_TRUE(covered);
    }
  }
  for (size_t i = 0; i < combined.options.size(); ++i) {
    EXPECT_EQ(combined.options[i].cost, tensors[0][combined.picks[i][0]].cost + tensors[1][combined.picks[i][1]].cost);
    if (i > 0) {
      EXPECT_LT(combined.options[i].loss, combined.options[i - 1].loss);
    }
  }
}

}  // namespace
}  // namespace moepack
