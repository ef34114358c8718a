#include "runtime-min/kv_cache.h"

#include <gtest/gtest.h>

#include <cmath>

#include "forward/testing/toy_model.h"
#include "runtime-min/attention.h"

namespace moepack::runtime {
namespace {

using testing::ToyValues;

// Wider than a strip of columns, and not a multiple of the lanes.
constexpr uint32_t kKvHeads = 2, kHeads = 6, kHeadDim = KvCache::kStrip + 7, kValueDim = KvCache::kStrip * 2 + 3;
constexpr uint32_t kPositions = 2 * kBlockPositions + 5;
constexpr uint32_t kBlocks[] = {2, 0, 3};  // in the order of positions

AttentionNode Node() {
  return {.heads = kHeads, .kv_heads = kKvHeads, .head_dim = kHeadDim, .scale = 0.3f, .value_dim = kValueDim};
}

KvCache MakeCache(KvFormat format) { return KvCache::Create(Node(), format, 4).value(); }

std::vector<float> KeyOf(uint32_t position) { return ToyValues(kKvHeads * kHeadDim, 2 * position, 1.7f); }
std::vector<float> ValueOf(uint32_t position) { return ToyValues(kKvHeads * kValueDim, 2 * position + 1, 0.4f); }

// What a cache gives back for one position, all heads side by side.
struct Stored {
  std::vector<float> key, value;
};
Stored Load(const KvCache& cache, uint32_t position) {
  std::vector<float> scratch(KvCache::kScratchFloats);
  const uint32_t block = kBlocks[position / kBlockPositions], lane = position % kBlockPositions;
  Stored stored;
  for (uint32_t head = 0; head < kKvHeads; ++head) {
    for (uint32_t first = 0, count = 0; first < kHeadDim; first += count) {
      count = std::min(kHeadDim - first, cache.strip());
      const KvCache::View view = cache.Keys(block, head, first, count, scratch.data());
      for (uint32_t d = 0; d < count; ++d) stored.key.push_back(view.data[d * view.stride + lane]);
    }
    for (uint32_t first = 0, count = 0; first < kValueDim; first += count) {
      count = std::min(kValueDim - first, cache.strip());
      const KvCache::View view = cache.Values(block, head, first, count, lane + 1, scratch.data());
      stored.value.insert(stored.value.end(), view.data + lane * view.stride, view.data + lane * view.stride + count);
    }
  }
  return stored;
}

void Fill(KvCache& cache) {
  for (uint32_t p = 0; p < kPositions; ++p) {
    cache.Store(kBlocks[p / kBlockPositions], p % kBlockPositions, KeyOf(p).data(), ValueOf(p).data());
  }
}

// Of each run of `width`: the nearest multiple of its largest magnitude / 127.
std::vector<float> Rounded(std::vector<float> x, size_t width) {
  for (size_t begin = 0; begin < x.size(); begin += width) {
    float largest = 0;
    for (size_t i = 0; i < width; ++i) largest = std::max(largest, std::fabs(x[begin + i]));
    for (size_t i = 0; i < width; ++i) x[begin + i] = std::nearbyint(x[begin + i] * (127 / largest)) * (largest / 127);
  }
  return x;
}

TEST(KvCache, GivesBackWhatWasStored) {
  KvCache cache = MakeCache(KvFormat::kF32);
  Fill(cache);
  for (uint32_t p = 0; p < kPositions; ++p) {
    EXPECT_EQ(Load(cache, p).key, KeyOf(p));
    EXPECT_EQ(Load(cache, p).value, ValueOf(p));
  }
}

TEST(KvCache, EightBitsRoundToTheLargestOfAHeadByItsPosition) {
  KvCache cache = MakeCache(KvFormat::kI8);
  Fill(cache);
  for (uint32_t p = 0; p < kPositions; ++p) {
    EXPECT_EQ(Load(cache, p).key, Rounded(KeyOf(p), kHeadDim));
    EXPECT_EQ(Load(cache, p).value, Rounded(ValueOf(p), kValueDim));
  }
  const double share =
      static_cast<double>(cache.block_bytes()) / static_cast<double>(MakeCache(KvFormat::kF32).block_bytes());
  EXPECT_LT(share, 0.27);
  std::vector<float> tiny(kKvHeads * kValueDim, 1e-38f);
  tiny[1] = -0.0f;
  cache.Store(kBlocks[0], 0, tiny.data(), tiny.data());
  EXPECT_EQ(Load(cache, 0).value, std::vector<float>(tiny.size(), 0.0f));
}

TEST(KvCache, ABlockIsReadWithoutWhatLiesPastItsPositions) {
  for (const KvFormat format : {KvFormat::kF32, KvFormat::kI8}) {
    KvCache full = MakeCache(format), part = MakeCache(format);
    Fill(full);
    for (uint32_t p = 0; p < 9; ++p) part.Store(kBlocks[0], p, KeyOf(p).data(), ValueOf(p).data());
    Bytes read(full.block_bytes());
    full.ReadBlock(kBlocks[0], 9, read.data());
    const auto expected = part.block(kBlocks[0]);
    EXPECT_EQ(read, Bytes(expected.begin(), expected.end()));
    full.ReadBlock(kBlocks[0], kBlockPositions, read.data());
    const auto whole = full.block(kBlocks[0]);
    EXPECT_EQ(read, Bytes(whole.begin(), whole.end()));
  }
}

// One query alone, and with as many others as a task takes.
std::vector<float> Attended(const KvCache& cache, uint32_t tokens, uint32_t heads) {
  const std::vector<float> q = ToyValues(kPositions * kHeads * kHeadDim, 77, 1.0f);
  std::vector<float> out(kPositions * kHeads * kValueDim);
  for (uint32_t t = 0; t < kPositions; t += tokens) {
    for (uint32_t head = 0; head < kHeads; head += heads) {
      AttentionTask task{.position = t, .tokens = std::min(tokens, kPositions - t), .first_head = head, .heads = heads};
      task.blocks = kBlocks;
      task.q = q.data() + t * kHeads * kHeadDim;
      task.out = out.data() + t * kHeads * kValueDim;
      Attend(Node(), cache, task);
    }
  }
  return out;
}

TEST(KvCache, AttentionOverEightBitsIsAttentionOverTheRoundedNumbers) {
  KvCache eight = MakeCache(KvFormat::kI8), full = MakeCache(KvFormat::kF32);
  Fill(eight);
  for (uint32_t p = 0; p < kPositions; ++p) {
    const Stored stored = Load(eight, p);
    full.Store(kBlocks[p / kBlockPositions], p % kBlockPositions, stored.key.data(), stored.value.data());
  }
  const std::vector<float> expected = Attended(full, 1, 1);
  EXPECT_EQ(Attended(full, 5, 3), expected);
  EXPECT_EQ(Attended(full, 16, 1), expected);
  EXPECT_EQ(Attended(eight, 1, 1), expected);
  EXPECT_EQ(Attended(eight, 5, 3), expected);
}

}  // namespace
}  // namespace moepack::runtime
