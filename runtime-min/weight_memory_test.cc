#include "runtime-min/weight_memory.h"

#include <gtest/gtest.h>

#include <cstring>
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

}  // namespace
}  // namespace moepack::runtime
