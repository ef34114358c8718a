#include "runtime-min/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "runtime-min/vector_math.h"

namespace moepack::runtime {
namespace {

constexpr size_t kLanes = 8;
using Lanes = float __attribute__((vector_size(kLanes * sizeof(float))));

inline Lanes Load(const float* p) {
  Lanes v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
inline void Store(float* p, const Lanes& v) { std::memcpy(p, &v, sizeof(v)); }

// scores[j] = sum over d of q[d] * keys[d][j].
void BlockScores(const float* q, const float* keys, uint32_t head_dim, float* scores) {
  constexpr size_t kVectors = KvCache::kKeyBlock / kLanes;
  Lanes sums[kVectors] = {};
  for (uint32_t d = 0; d < head_dim; ++d, keys += KvCache::kKeyBlock) {
    for (size_t i = 0; i < kVectors; ++i) sums[i] += q[d] * Load(keys + i * kLanes);
  }
  for (size_t i = 0; i < kVectors; ++i) Store(scores + i * kLanes, sums[i]);
}

// out[d] = out[d] * keep + sum over j of p[j] * values[j][d], j in [0, count).
void Accumulate(const float* p, const float* values, uint32_t count, uint32_t head_dim, float keep, float* out) {
  uint32_t d = 0;
  for (; d + kLanes <= head_dim; d += kLanes) {
    Lanes sum = Load(out + d) * keep;
    for (uint32_t j = 0; j < count; ++j) sum += p[j] * Load(values + uint64_t{j} * head_dim + d);
    Store(out + d, sum);
  }
  for (; d < head_dim; ++d) {
    float sum = out[d] * keep;
    for (uint32_t j = 0; j < count; ++j) sum += p[j] * values[uint64_t{j} * head_dim + d];
    out[d] = sum;
  }
}

}  // namespace

Result<KvCache> KvCache::Create(uint32_t kv_heads, uint32_t head_dim, uint32_t positions) {
  KvCache cache;
  cache.kv_heads_ = kv_heads;
  cache.head_dim_ = head_dim;
  cache.positions_ = positions;
  cache.blocks_ = static_cast<uint32_t>(CeilDiv(positions, kKeyBlock));
  const CheckedU64 row = CheckedU64(kv_heads) * CheckedU64(head_dim);
  const CheckedU64 keys = row * CheckedU64(cache.blocks_) * CheckedU64(kKeyBlock), values = row * CheckedU64(positions);
  if (!keys.valid() || !values.valid()) return Status(ErrorCode::kLimit, "KV cache: size overflows");
  MOEPACK_ASSIGN_OR_RETURN(cache.keys_, FloatBuffer::Create(keys.value()));
  MOEPACK_ASSIGN_OR_RETURN(cache.values_, FloatBuffer::Create(values.value()));
  return cache;
}

void KvCache::Store(uint32_t position, const float* k, const float* v) {
  const uint32_t block = position / kKeyBlock, lane = position % kKeyBlock;
  for (uint32_t h = 0; h < kv_heads_; ++h, k += head_dim_, v += head_dim_) {
    float* keys = keys_.data() + (uint64_t{h} * blocks_ + block) * head_dim_ * kKeyBlock + lane;
    for (uint32_t d = 0; d < head_dim_; ++d) keys[uint64_t{d} * kKeyBlock] = k[d];
    std::memcpy(values_.data() + (uint64_t{h} * positions_ + position) * head_dim_, v, head_dim_ * sizeof(float));
  }
}

void AttendHead(const AttentionNode& node, const KvCache& cache, uint32_t head, uint32_t position, const float* q,
                float* out) {
  const uint32_t kv_head = head / (node.heads / node.kv_heads);
  const uint32_t first = node.window > 0 && position >= node.window ? position - node.window + 1 : 0;
  const float* values = cache.values(kv_head);
  float scores[KvCache::kKeyBlock];
  float largest = -INFINITY, sum = 0;
  std::fill(out, out + node.head_dim, 0.0f);
  for (uint32_t block = first / KvCache::kKeyBlock; block <= position / KvCache::kKeyBlock; ++block) {
    const uint32_t base = block * KvCache::kKeyBlock;
    const uint32_t begin = std::max(first, base) - base, end = std::min(position - base + 1, KvCache::kKeyBlock);
    BlockScores(q, cache.key_block(kv_head, block), node.head_dim, scores);
    float block_largest = largest;
    for (uint32_t j = begin; j < end; ++j) {
      scores[j] *= node.scale;
      if (node.softcap > 0) scores[j] = node.softcap * std::tanh(scores[j] / node.softcap);
      block_largest = std::max(block_largest, scores[j]);
    }
    const float keep = largest == -INFINITY ? 0.0f : Exp(largest - block_largest);
    largest = block_largest;
    sum *= keep;
    for (uint32_t j = begin; j < end; ++j) scores[j] = Exp(scores[j] - largest);
    for (uint32_t j = begin; j < end; ++j) sum += scores[j];
    Accumulate(scores + begin, values + (uint64_t{base} + begin) * node.head_dim, end - begin, node.head_dim, keep, out);
  }
  const float inverse = 1.0f / sum;
  for (uint32_t d = 0; d < node.head_dim; ++d) out[d] *= inverse;
}

}  // namespace moepack::runtime
