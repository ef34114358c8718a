#include "runtime-min/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "runtime-min/lanes.h"
#include "runtime-min/vector_math.h"

namespace moepack::runtime {
namespace {

// scores[j] = sum over d of q[d] * keys[d][j].
void BlockScores(const float* q, const float* keys, uint32_t head_dim, float* scores) {
  constexpr size_t kVectors = kBlockPositions / kLanes;
  Lanes sums[kVectors] = {};
  for (uint32_t d = 0; d < head_dim; ++d, keys += kBlockPositions) {
    for (size_t i = 0; i < kVectors; ++i) sums[i] += q[d] * LanesAt(keys + i * kLanes);
  }
  for (size_t i = 0; i < kVectors; ++i) StoreLanes(scores + i * kLanes, sums[i]);
}

float Largest(const float* scores) {
  Lanes largest = LanesAt(scores);
  for (size_t i = kLanes; i < kBlockPositions; i += kLanes) {
    const Lanes v = LanesAt(scores + i);
    largest = v > largest ? v : largest;
  }
  return std::max(std::max(std::max(largest[0], largest[1]), std::max(largest[2], largest[3])),
                  std::max(std::max(largest[4], largest[5]), std::max(largest[6], largest[7])));
}

// p[j] -> e^(p[j] - largest) for positions [begin, end) of a block, 0 outside; returns their sum.
float Exponentials(float largest, uint32_t begin, uint32_t end, float* p) {
  MapLanes(p, kBlockPositions, p, [largest](Lanes* v) {
    *v -= largest;
    ExpLanes(v);
  });
  std::fill(p, p + begin, 0.0f);
  std::fill(p + end, p + kBlockPositions, 0.0f);
  Lanes sum = LanesAt(p);
  for (size_t i = kLanes; i < kBlockPositions; i += kLanes) sum += LanesAt(p + i);
  return SumLanes(sum);
}

// out[d] = out[d] * keep + sum over j of p[j] * values[j][d], j in [0, count), d in [0, kVectors * kLanes).
template <size_t kVectors>
void AccumulateVectors(const float* p, const float* values, uint32_t count, uint32_t head_dim, float keep, float* out) {
  Lanes sums[kVectors];
  for (size_t i = 0; i < kVectors; ++i) sums[i] = LanesAt(out + i * kLanes) * keep;
  for (uint32_t j = 0; j < count; ++j, values += head_dim) {
    for (size_t i = 0; i < kVectors; ++i) sums[i] += p[j] * LanesAt(values + i * kLanes);
  }
  for (size_t i = 0; i < kVectors; ++i) StoreLanes(out + i * kLanes, sums[i]);
}

// All head_dim columns; each is summed in the order of j.
void Accumulate(const float* p, const float* values, uint32_t count, uint32_t head_dim, float keep, float* out) {
  uint32_t d = 0;
  for (; d + 8 * kLanes <= head_dim; d += 8 * kLanes) AccumulateVectors<8>(p, values + d, count, head_dim, keep, out + d);
  for (; d + 4 * kLanes <= head_dim; d += 4 * kLanes) AccumulateVectors<4>(p, values + d, count, head_dim, keep, out + d);
  for (; d + kLanes <= head_dim; d += kLanes) AccumulateVectors<1>(p, values + d, count, head_dim, keep, out + d);
  for (; d < head_dim; ++d) {
    float sum = out[d] * keep;
    for (uint32_t j = 0; j < count; ++j) sum += p[j] * values[uint64_t{j} * head_dim + d];
    out[d] = sum;
  }
}

// What a query's scores are multiplied with.
float ScoreScale(const AttentionNode& node, uint32_t position) {
  if (node.position_scale == 0) return node.scale;
  const double steps = (uint64_t{position} + 1) / node.position_floor;
  return node.scale * static_cast<float>(1 + static_cast<double>(node.position_scale) * std::log1p(steps));
}

// First position that the query at `position` sees.
uint32_t FirstPosition(const AttentionNode& node, uint32_t position) {
  const uint32_t first = node.window > 0 && position >= node.window ? position - node.window + 1 : 0;
  return node.chunk > 0 ? std::max(first, position / node.chunk * node.chunk) : first;
}

// Scores of one block; -infinity outside of positions [begin, end) of it.
void MaskedScores(const AttentionNode& node, float scale, const float* q, const float* keys, uint32_t begin, uint32_t end,
                  float* scores) {
  BlockScores(q, keys, node.head_dim, scores);
  for (uint32_t j = 0; j < kBlockPositions; ++j) scores[j] *= scale;
  if (node.softcap > 0) {
    for (uint32_t j = begin; j < end; ++j) scores[j] = node.softcap * std::tanh(scores[j] / node.softcap);
  }
  std::fill(scores, scores + begin, -INFINITY);
  std::fill(scores + end, scores + kBlockPositions, -INFINITY);
}

}  // namespace

Result<KvCache> KvCache::Create(uint32_t kv_heads, uint32_t head_dim, uint32_t value_dim, uint32_t blocks) {
  KvCache cache;
  cache.kv_heads_ = kv_heads;
  cache.head_dim_ = head_dim;
  cache.value_dim_ = value_dim;
  cache.head_floats_ = (uint64_t{head_dim} + value_dim) * kBlockPositions;
  const CheckedU64 floats = CheckedU64(kv_heads) * CheckedU64(cache.head_floats_) * CheckedU64(blocks);
  if (!floats.valid()) return Status(ErrorCode::kLimit, "KV cache: size overflows");
  MOEPACK_ASSIGN_OR_RETURN(cache.data_, FloatBuffer::Create(floats.value()));
  return cache;
}

void KvCache::Store(uint32_t block, uint32_t lane, const float* k, const float* v) {
  float* keys = data_.data() + uint64_t{block} * kv_heads_ * head_floats_;
  for (uint32_t h = 0; h < kv_heads_; ++h, k += head_dim_, v += value_dim_, keys += head_floats_) {
    for (uint32_t d = 0; d < head_dim_; ++d) keys[uint64_t{d} * kBlockPositions + lane] = k[d];
    float* values = keys + uint64_t{head_dim_} * kBlockPositions;
    std::memcpy(values + uint64_t{lane} * value_dim_, v, value_dim_ * sizeof(float));
  }
}

void KvCache::CopyBlock(const BlockCopy& copy) {
  const uint64_t floats = kv_heads_ * head_floats_;
  std::memcpy(data_.data() + copy.to * floats, data_.data() + copy.from * floats, block_bytes());
}

void AttendHead(const AttentionNode& node, const KvCache& cache, const uint32_t* blocks, const float* sinks, uint32_t head,
                uint32_t position, const float* q, float* out) {
  const uint32_t kv_head = head / (node.heads / node.kv_heads);
  const uint32_t first = FirstPosition(node, position), value_dim = node.value_width();
  const float scale = ScoreScale(node, position);
  float scores[kBlockPositions];
  float largest = sinks == nullptr ? -INFINITY : sinks[head], sum = sinks == nullptr ? 0.0f : 1.0f;
  std::fill(out, out + value_dim, 0.0f);
  for (uint32_t block = first / kBlockPositions; block <= position / kBlockPositions; ++block) {
    const uint32_t base = block * kBlockPositions;
    const uint32_t begin = std::max(first, base) - base, end = std::min(position - base + 1, kBlockPositions);
    MaskedScores(node, scale, q, cache.keys(blocks[block], kv_head), begin, end, scores);
    const float block_largest = std::max(largest, Largest(scores));
    const float keep = largest == -INFINITY ? 0.0f : Exp(largest - block_largest);
    largest = block_largest;
    sum = sum * keep + Exponentials(largest, begin, end, scores);
    const float* values = cache.values(blocks[block], kv_head) + uint64_t{begin} * value_dim;
    Accumulate(scores + begin, values, end - begin, value_dim, keep, out);
  }
  const float inverse = 1.0f / sum;
  for (uint32_t d = 0; d < value_dim; ++d) out[d] *= inverse;
}

}  // namespace moepack::runtime
