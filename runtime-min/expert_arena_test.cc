#include "runtime-min/expert_arena.h"

#include <gtest/gtest.h>

#include <cstring>
#include <deque>

namespace moepack::runtime {
namespace {

constexpr uint64_t kUnit = kExpertAlignment;

void Fill(const ExpertArena& arena, uint32_t owner, uint64_t bytes) {
  std::memset(arena.data(owner), static_cast<int>(owner % 251), bytes);
}

void ExpectFilled(const ExpertArena& arena, uint32_t owner, uint64_t bytes) {
  for (uint64_t b = 0; b < bytes; b += 31) ASSERT_EQ(arena.data(owner)[b], owner % 251) << owner;
  ASSERT_EQ(arena.data(owner)[bytes - 1], owner % 251) << owner;
}

TEST(ExpertArena, MovesTheFewestBytesThatMakeAGap) {
  ExpertArena arena;
  ASSERT_TRUE(arena.Reserve(20 * kUnit, 8).ok());
  // 0: 4 units, 1: 6, 2: 3, 3: 1, 4: 2, 5: 4.
  const uint64_t sizes[] = {4, 6, 3, 1, 2, 4};
  for (uint32_t o = 0; o < 6; ++o) {
    EXPECT_TRUE(arena.Place(o, sizes[o] * kUnit, 20 * kUnit)->empty());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(arena.data(o)) % kUnit, 0u);
    Fill(arena, o, sizes[o] * kUnit);
  }
  for (const uint32_t gone : {0u, 2u, 4u}) arena.Remove(gone);  // gaps of 4, 3 and 2 units
  const auto moved = *arena.Place(6, 5 * kUnit, 20 * kUnit);
  EXPECT_EQ(std::vector<uint32_t>(moved.begin(), moved.end()), std::vector<uint32_t>{3}) << "1 unit instead of 6";
  for (const uint32_t kept : {1u, 3u, 5u}) ExpectFilled(arena, kept, sizes[kept] * kUnit);
  EXPECT_TRUE(arena.Place(7, 4 * kUnit, 20 * kUnit)->empty()) << "the lowest gap is large enough";
}

TEST(ExpertArena, FixedBlocksStayWhereTheyAre) {
  ExpertArena arena;
  ASSERT_TRUE(arena.Reserve(16 * kUnit, 8).ok());
  // 0: 3 units, 1: 2, 2: 3, 3: 2, 4: 3, 5: 3.
  const uint64_t sizes[] = {3, 2, 3, 2, 3, 3};
  for (uint32_t o = 0; o < 6; ++o) {
    ASSERT_TRUE(arena.Place(o, sizes[o] * kUnit, 16 * kUnit)->empty());
    Fill(arena, o, sizes[o] * kUnit);
  }
  arena.Fix(3, true);
  for (const uint32_t gone : {0u, 2u, 4u}) arena.Remove(gone);  // gaps of 3 units, 3 before the fixed block, 3 behind it
  uint8_t* const fixed = arena.data(3);
  const auto moved = *arena.Place(6, 6 * kUnit, 16 * kUnit);
  EXPECT_EQ(std::vector<uint32_t>(moved.begin(), moved.end()), std::vector<uint32_t>{1}) << "the only one between gaps";
  Fill(arena, 6, 6 * kUnit);
  arena.Remove(6);
  const auto expect_as_before = [&] {
    EXPECT_EQ(arena.data(3), fixed);
    for (const uint32_t kept : {1u, 3u, 5u}) ExpectFilled(arena, kept, sizes[kept] * kUnit);
  };
  expect_as_before();
  const uint8_t* const before = arena.data(1);
  EXPECT_FALSE(arena.Place(7, 7 * kUnit, 16 * kUnit).has_value()) << "9 units are free, 6 and 3 on the two sides";
  EXPECT_EQ(arena.data(1), before) << "and nothing moved for it";
  expect_as_before();
  arena.Fix(3, false);
  ASSERT_TRUE(arena.Place(7, 7 * kUnit, 16 * kUnit).has_value());
  Fill(arena, 7, 7 * kUnit);
  for (const uint32_t kept : {1u, 3u, 5u}) ExpectFilled(arena, kept, sizes[kept] * kUnit);
}

// Experts of unequal sizes that push each other out for long stay below the budget, to the last byte of it.
TEST(ExpertArena, ChurnOfMixedSizesStaysWithinTheBudget) {
  constexpr uint64_t kBudget = (1 << 20) + 17;
  constexpr uint32_t kExperts = 300;
  ExpertArena arena;
  ASSERT_TRUE(arena.Reserve(kBudget, kExperts).ok());
  const auto bytes_of = [](uint32_t expert) { return (100 + expert * 37 % 161) * kUnit; };
  std::vector<bool> is_resident(kExperts);
  std::deque<uint32_t> resident;
  const uint8_t* begin = nullptr;
  uint64_t used = 0, state = 1, moves = 0;
  for (int step = 0; step < 5000; ++step) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const uint32_t expert = static_cast<uint32_t>((state >> 33) % kExperts);
    if (is_resident[expert]) continue;
    for (; used + bytes_of(expert) > kBudget / kUnit * kUnit; resident.pop_front()) {
      ExpectFilled(arena, resident.front(), bytes_of(resident.front()));
      arena.Remove(resident.front());
      is_resident[resident.front()] = false;
      used -= bytes_of(resident.front());
    }
    moves += !arena.Place(expert, bytes_of(expert), kBudget)->empty();
    if (begin == nullptr) begin = arena.data(expert);
    Fill(arena, expert, bytes_of(expert));
    ASSERT_LE(arena.data(expert) + bytes_of(expert), begin + kBudget);
    is_resident[expert] = true;
    resident.push_back(expert);
    used += bytes_of(expert);
  }
  EXPECT_GT(moves, 100u);
  for (const uint32_t expert : resident) ExpectFilled(arena, expert, bytes_of(expert));
}

TEST(ExpertArena, GrowsWithItsCapacity) {
  ExpertArena arena;
  ASSERT_TRUE(arena.Reserve(8 * kUnit, 3).ok());
  arena.Place(0, 4 * kUnit, 4 * kUnit);
  arena.Place(1, 4 * kUnit, 8 * kUnit);
  EXPECT_EQ(arena.data(1), arena.data(0) + 4 * kUnit);
  arena.Remove(0);
  arena.Place(2, 2 * kUnit, 8 * kUnit);
  EXPECT_EQ(arena.data(2), arena.data(1) - 4 * kUnit);
}

TEST(ExpertArena, WhatCannotBeHadIsAnError) {
  ExpertArena arena;
  EXPECT_EQ(arena.Reserve(uint64_t{1} << 60, 1).code(), ErrorCode::kNoMemory);
  EXPECT_EQ(arena.Reserve(UINT64_MAX, 1).code(), ErrorCode::kLimit);
}

}  // namespace
}  // namespace moepack::runtime
