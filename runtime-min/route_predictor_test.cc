#include "runtime-min/route_predictor.h"

#include <gtest/gtest.h>

#include <cmath>

#include "runtime-min/testing/toy_engine.h"

namespace moepack::runtime {
namespace {

constexpr uint32_t kExperts = 7, kWidth = 48, kLanes = 1;

// The experts of the second layer that are loaded first when `rows` are what its router is foretold from.
std::vector<uint32_t> FirstAhead(const Program& program, const std::vector<float>& rows) {
  const auto source = testing::ToyUnits(program, "i8g64");
  ThreadPool pool(1);
  const uint32_t top_k[] = {3, 3};
  ExpertCache cache = std::move(*ExpertCache::Create(*source, pool, top_k, {}));
  EXPECT_TRUE(cache.StartPrefetch(kLanes).ok());
  const DenseWeights weights = std::move(*DenseWeights::Load(*source, pool));
  const auto predictor = RoutePredictor::Create(program, weights, cache, pool, kernels::Isa::kScalar, 1).value();
  uint32_t node = 0;
  while (predictor->ValueFor(node) == kNone) ++node;
  predictor->Run(node, rows.data(), rows.size() / kWidth);
  EXPECT_EQ(cache.Pin(0, {}).value(), 0u);  // hands what is expected to the lane
  std::vector<uint32_t> coming;
  for (uint32_t e = 0; e < kExperts; ++e) {
    if (cache.IsComing(1, e)) coming.push_back(e);
  }
  return coming;
}

std::vector<float> Row(uint32_t seed) {
  std::vector<float> row;
  for (uint32_t i = 0; i < kWidth; ++i) row.push_back(std::sin(static_cast<float>(i * seed + 1)));
  return row;
}

TEST(RoutePredictor, RowsThatAreNoNumbersDoNotDisturbTheOthers) {
  const Program program = testing::ToyLanguageModel();
  const std::vector<float> no_numbers(kWidth, NAN);
  const std::vector<uint32_t> of_no_numbers = FirstAhead(program, no_numbers);
  EXPECT_FALSE(of_no_numbers.empty());
  int different = 0;
  for (uint32_t seed = 1; seed < 20; ++seed) {
    const std::vector<float> row = Row(seed);
    const std::vector<uint32_t> alone = FirstAhead(program, row);
    different += alone != of_no_numbers;
    for (const bool first : {false, true}) {
      std::vector<float> both = first ? no_numbers : row;
      const std::vector<float>& second = first ? row : no_numbers;
      both.insert(both.end(), second.begin(), second.end());
      EXPECT_EQ(FirstAhead(program, both), alone) << seed;
    }
  }
  EXPECT_GT(different, 0);
}

}  // namespace
}  // namespace moepack::runtime
