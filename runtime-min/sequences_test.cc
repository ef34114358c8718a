#include "runtime-min/sequences.h"

#include <gtest/gtest.h>

namespace moepack::runtime {
namespace {

constexpr uint32_t kContext = 4 * kBlockPositions;

Sequences MakeSequences(uint32_t count, uint64_t positions = UINT64_MAX) {
  return Sequences::Create(count, kContext, positions).value();
}

// Appends `tokens` positions and returns the copy that was asked for.
std::optional<BlockCopy> Append(Sequences& sequences, SequenceId id, uint32_t tokens) {
  const auto copy = sequences.Extend(id, tokens);
  EXPECT_TRUE(copy.ok()) << copy.status().message();
  sequences.Advance(id, tokens);
  return *copy;
}

TEST(Sequences, TakeBlocksAsTheyGrowAndGiveThemBack) {
  Sequences sequences = MakeSequences(2);
  EXPECT_EQ(sequences.all_blocks(), 8u);
  const SequenceId a = sequences.Open().value(), b = sequences.Open().value();
  EXPECT_EQ(sequences.Open().status().code(), ErrorCode::kLimit);
  EXPECT_EQ(sequences.used_blocks(), 0u);
  EXPECT_FALSE(Append(sequences, a, 1).has_value());
  EXPECT_FALSE(Append(sequences, b, kBlockPositions).has_value());
  EXPECT_EQ(sequences.used_blocks(), 2u);
  EXPECT_FALSE(Append(sequences, a, kBlockPositions).has_value());
  EXPECT_EQ(sequences.used_blocks(), 3u);
  EXPECT_NE(sequences.blocks(a)[0], sequences.blocks(b)[0]);
  sequences.Close(a);
  EXPECT_EQ(sequences.used_blocks(), 1u);
  EXPECT_FALSE(sequences.is_open(a));
  EXPECT_EQ(sequences.Open().value(), a);
  EXPECT_EQ(sequences.position(a), 0u);
  sequences.Empty(b);
  EXPECT_EQ(sequences.used_blocks(), 0u);
}

TEST(Sequences, WhoWritesASharedBlockGetsACopyOfIt) {
  Sequences sequences = MakeSequences(3);
  const SequenceId a = sequences.Open().value();
  Append(sequences, a, kBlockPositions + 9);
  const SequenceId b = sequences.Fork(a, kBlockPositions + 5).value(), c = sequences.Fork(a, kBlockPositions).value();
  EXPECT_EQ(sequences.used_blocks(), 2u);
  const uint32_t shared = sequences.blocks(a)[1];
  EXPECT_EQ(sequences.blocks(b)[1], shared);
  const auto copy = Append(sequences, b, 1);
  ASSERT_TRUE(copy.has_value());
  EXPECT_EQ(copy->from, shared);
  EXPECT_EQ(copy->to, sequences.blocks(b)[1]);
  EXPECT_NE(copy->to, shared);
  EXPECT_EQ(sequences.blocks(b)[0], sequences.blocks(a)[0]);
  EXPECT_FALSE(Append(sequences, a, 1).has_value()) << "the block is its own again";
  EXPECT_FALSE(Append(sequences, c, 1).has_value()) << "nothing but whole blocks was shared";
  EXPECT_EQ(sequences.used_blocks(), 4u);
  sequences.Close(a);
  EXPECT_EQ(sequences.used_blocks(), 3u) << "the first block is still shared by two";
  sequences.Close(b);
  sequences.Close(c);
  EXPECT_EQ(sequences.used_blocks(), 0u);
}

TEST(Sequences, BlocksOfAllTogetherAreLimited) {
  Sequences sequences = MakeSequences(3, 2 * kBlockPositions);
  EXPECT_EQ(sequences.all_blocks(), 2u);
  const SequenceId a = sequences.Open().value(), b = sequences.Open().value();
  Append(sequences, a, kBlockPositions - 1);
  EXPECT_EQ(sequences.Extend(b, 2 * kBlockPositions).status().code(), ErrorCode::kLimit);
  EXPECT_EQ(sequences.used_blocks(), 1u);
  Append(sequences, b, kBlockPositions);
  const SequenceId c = sequences.Fork(a, kBlockPositions - 1).value();
  EXPECT_EQ(sequences.Extend(c, 1).status().code(), ErrorCode::kLimit) << "no block left for the copy";
  EXPECT_EQ(sequences.blocks(c)[0], sequences.blocks(a)[0]);
  sequences.Close(b);
  EXPECT_TRUE(Append(sequences, c, 1).has_value());
}

TEST(Sequences, RoomThatWasNotUsedIsGivenBack) {
  Sequences sequences = MakeSequences(1);
  const SequenceId a = sequences.Open().value();
  ASSERT_TRUE(sequences.Extend(a, kContext).ok());
  EXPECT_EQ(sequences.used_blocks(), 4u);
  sequences.Trim(a);
  EXPECT_EQ(sequences.used_blocks(), 0u);
  EXPECT_EQ(Sequences::Create(1u << 20, 1u << 24, UINT64_MAX).status().code(), ErrorCode::kLimit);
}

}  // namespace
}  // namespace moepack::runtime
