#include "runtime-min/weight_memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <random>

namespace moepack::runtime {
namespace {

TEST(WeightMemory, BlocksAreAlignedAndApart) {
  WeightMemory memory;
  std::mt19937 rng(1);
  std::vector<std::pair<uint8_t*, uint64_t>> blocks;
  for (int i = 0; i < 2000; ++i) {
    if (!blocks.empty() && rng() % 3 == 0) {
      const size_t pick = rng() % blocks.size();
      for (uint64_t b = 0; b < blocks[pick].second; b += 97) ASSERT_EQ(blocks[pick].first[b], uint8_t(blocks[pick].second));
      memory.Release(blocks[pick].first);
      blocks[pick] = blocks.back();
      blocks.pop_back();
      continue;
    }
    const uint64_t bytes = 1 + rng() % 20000;
    const Result<uint8_t*> p = memory.Allocate(bytes);
    ASSERT_TRUE(p.ok());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(*p) % 64, 0u);
    std::memset(*p, static_cast<uint8_t>(bytes), bytes);
    blocks.emplace_back(*p, bytes);
  }
  for (const auto& [p, bytes] : blocks) {
    for (uint64_t b = 0; b < bytes; ++b) ASSERT_EQ(p[b], static_cast<uint8_t>(bytes));
    memory.Release(p);
  }
}

// Neighbours grow together again, so that memory does not run out through being cut up.
TEST(WeightMemory, ReleasedMemoryIsUsedAgain) {
  WeightMemory memory;
  uint8_t* const first = *memory.Allocate(1 << 20);
  uint8_t* const second = *memory.Allocate(1 << 20);
  uint8_t* const third = *memory.Allocate(1 << 20);
  memory.Release(first);
  memory.Release(third);
  memory.Release(second);
  EXPECT_EQ(*memory.Allocate(3 << 20), first);
  memory.Release(first);
}

TEST(WeightMemory, WhatCannotBeHadIsAnError) {
  WeightMemory memory;
  EXPECT_EQ(memory.Allocate(uint64_t{1} << 60).status().code(), ErrorCode::kNoMemory);
  EXPECT_EQ(memory.Allocate(UINT64_MAX).status().code(), ErrorCode::kLimit);
  const Result<uint8_t*> large = memory.Allocate(300 << 20);
  ASSERT_TRUE(large.ok());
  memory.Release(*large);
}

// Experts of unequal sizes that push each other out for long: the gaps between them stay a small share of the budget.
TEST(WeightMemory, ChurnOfMixedSizesStaysNearTheBudget) {
  constexpr uint64_t kBudget = 4 << 20, kUnit = 16 << 10;
  constexpr size_t kExperts = 1000;
  WeightMemory memory;
  std::vector<std::array<uint8_t*, 3>> where(kExperts);
  std::deque<size_t> resident;
  const auto matrix_bytes = [](size_t expert) { return kUnit * (40 + expert * 37 % 61) / 100; };
  uint64_t used = 0, state = 1;
  uintptr_t begin = UINTPTR_MAX, end = 0;
  for (int step = 0; step < 20000; ++step) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const double draw = static_cast<double>(state >> 33) / static_cast<double>(uint64_t{1} << 31);
    const size_t expert = static_cast<size_t>(draw * draw * kExperts);  // some are wanted more often
    if (where[expert][0] != nullptr) {
      std::erase(resident, expert);
      resident.push_back(expert);
      continue;
    }
    for (; used + 3 * matrix_bytes(expert) > kBudget; resident.pop_front()) {
      for (uint8_t* p : where[resident.front()]) memory.Release(p);
      where[resident.front()] = {};
      used -= 3 * matrix_bytes(resident.front());
    }
    for (uint8_t*& p : where[expert]) {
      p = memory.Allocate(matrix_bytes(expert)).value();
      begin = std::min(begin, reinterpret_cast<uintptr_t>(p));
      end = std::max(end, reinterpret_cast<uintptr_t>(p) + matrix_bytes(expert));
    }
    used += 3 * matrix_bytes(expert);
    resident.push_back(expert);
  }
  EXPECT_LT(end - begin, kBudget * 4 / 3);
  RecordProperty("span_over_budget_percent", static_cast<int>(100 * (end - begin) / kBudget));
  for (const size_t expert : resident) {
    for (uint8_t* p : where[expert]) memory.Release(p);
  }
}

}  // namespace
}  // namespace moepack::runtime
