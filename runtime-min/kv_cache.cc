#include "runtime-min/kv_cache.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/checked.h"
#include "runtime-min/lanes.h"

namespace moepack::runtime {
namespace {

constexpr uint64_t kScaleBytes = kBlockPositions * sizeof(float);

static_assert(kBlockPositions % kLanes == 0 && KvCache::kStrip % kLanes == 0);

// codes[i * stride] = x[i] / scale, rounded to the nearest, ties to even; returns the scale. Numbers too small to divide by
// are 0.
float Quantize(const float* x, uint32_t n, int8_t* codes, uint64_t stride) {
  constexpr float kMostCode = 127, kLeastLargest = 1e-30f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low mantissa bits
  float largest = 0;
  for (uint32_t i = 0; i < n; ++i) largest = std::max(largest, std::fabs(x[i]));
  const bool zero = largest < kLeastLargest;
  const float inverse = zero ? 0.0f : kMostCode / largest;
  for (uint32_t i = 0; i < n; ++i) {
    const uint32_t shifted = std::bit_cast<uint32_t>(x[i] * inverse + kRound) - std::bit_cast<uint32_t>(kRound);
    codes[i * stride] = static_cast<int8_t>(shifted);
  }
  return zero ? 0.0f : largest / kMostCode;
}

// to[i] = codes[i] * scale[i], eight of them.
inline void DecodeLanes(const int8_t* from, const Lanes& scale, float* to) {
  using Codes = int8_t __attribute__((vector_size(kLanes)));
  Codes codes;
  std::memcpy(&codes, from, sizeof(codes));
  const Lanes numbers = __builtin_convertvector(codes, Lanes);
  StoreLanes(to, numbers * scale);
}

}  // namespace

Result<KvCache> KvCache::Create(const AttentionNode& node, KvFormat format, uint32_t blocks) {
  KvCache cache;
  cache.format_ = format;
  cache.kv_heads_ = node.kv_heads;
  cache.head_dim_ = node.head_dim;
  cache.value_dim_ = node.value_width();
  const uint64_t number_bytes = format == KvFormat::kF32 ? sizeof(float) : 1;
  const uint64_t scale_bytes = format == KvFormat::kF32 ? 0 : kScaleBytes;
  const uint64_t column_bytes = kBlockPositions * number_bytes;
  cache.key_bytes_ = scale_bytes + cache.head_dim_ * column_bytes;
  cache.value_bytes_ = scale_bytes + cache.value_dim_ * column_bytes;
  const CheckedU64 bytes =
      CheckedU64(cache.kv_heads_) * CheckedU64(cache.key_bytes_ + cache.value_bytes_) * CheckedU64(blocks);
  if (!bytes.valid()) return Status(ErrorCode::kLimit, "KV cache: size overflows");
  MOEPACK_ASSIGN_OR_RETURN(cache.data_, FloatBuffer::Create(bytes.value() / sizeof(float)));
  return cache;
}

void KvCache::Store(uint32_t block, uint32_t lane, const float* k, const float* v) {
  uint8_t* head = data() + block * block_bytes();
  for (uint32_t h = 0; h < kv_heads_; ++h, k += head_dim_, v += value_dim_, head += key_bytes_ + value_bytes_) {
    if (format_ == KvFormat::kF32) {
      float* keys = reinterpret_cast<float*>(head) + lane;
      for (uint32_t d = 0; d < head_dim_; ++d) keys[uint64_t{d} * kBlockPositions] = k[d];
      std::memcpy(head + key_bytes_ + uint64_t{lane} * value_dim_ * sizeof(float), v, value_dim_ * sizeof(float));
      continue;
    }
    int8_t* keys = reinterpret_cast<int8_t*>(head + kScaleBytes) + lane;
    int8_t* values = reinterpret_cast<int8_t*>(head + key_bytes_ + kScaleBytes) + uint64_t{lane} * value_dim_;
    reinterpret_cast<float*>(head)[lane] = Quantize(k, head_dim_, keys, kBlockPositions);
    reinterpret_cast<float*>(head + key_bytes_)[lane] = Quantize(v, value_dim_, values, 1);
  }
}

KvCache::View KvCache::Keys(uint32_t block, uint32_t kv_head, uint32_t first, uint32_t count, float* scratch) const {
  const uint8_t* head = keys(block, kv_head);
  if (format_ == KvFormat::kF32) {
    return {reinterpret_cast<const float*>(head) + uint64_t{first} * kBlockPositions, kBlockPositions};
  }
  const float* scales = reinterpret_cast<const float*>(head);
  const int8_t* codes = reinterpret_cast<const int8_t*>(head + kScaleBytes) + uint64_t{first} * kBlockPositions;
  for (uint32_t i = 0; i < kBlockPositions; i += kLanes) {
    const Lanes scale = LanesAt(scales + i).lanes;
    for (uint32_t d = 0; d < count; ++d) {
      const uint32_t at = d * kBlockPositions + i;
      DecodeLanes(codes + at, scale, scratch + at);
    }
  }
  return {scratch, kBlockPositions};
}

KvCache::View KvCache::Values(uint32_t block, uint32_t kv_head, uint32_t first, uint32_t count, uint32_t positions,
                              float* scratch) const {
  const uint8_t* part = keys(block, kv_head) + key_bytes_;
  if (format_ == KvFormat::kF32) return {reinterpret_cast<const float*>(part) + first, value_dim_};
  const float* scales = reinterpret_cast<const float*>(part);
  const int8_t* codes = reinterpret_cast<const int8_t*>(part + kScaleBytes) + first;
  for (uint32_t j = 0; j < positions; ++j, codes += value_dim_) {
    float* row = scratch + j * kStrip;
    const Lanes scale = scales[j] - Lanes{};
    uint32_t d = 0;
    for (; d + kLanes <= count; d += kLanes) DecodeLanes(codes + d, scale, row + d);
    for (; d < count; ++d) row[d] = static_cast<float>(codes[d]) * scales[j];
  }
  return {scratch, kStrip};
}

void KvCache::CopyBlock(const BlockCopy& copy) {
  std::memcpy(block(copy.to).data(), block(copy.from).data(), block_bytes());
}

void KvCache::ReadBlock(uint32_t block, uint32_t positions, uint8_t* out) const {
  std::memcpy(out, keys(block, 0), block_bytes());
  const uint64_t scale_bytes = format_ == KvFormat::kF32 ? 0 : kScaleBytes;
  const uint64_t number_bytes = format_ == KvFormat::kF32 ? sizeof(float) : 1;
  const uint64_t unused = kBlockPositions - positions;
  for (uint32_t h = 0; h < kv_heads_; ++h, out += key_bytes_ + value_bytes_) {
    uint8_t* keys = out + scale_bytes;
    for (uint32_t d = 0; d < head_dim_; ++d) {
      std::memset(keys + (uint64_t{d} * kBlockPositions + positions) * number_bytes, 0, unused * number_bytes);
    }
    uint8_t* values = out + key_bytes_;
    std::memset(values + scale_bytes + uint64_t{positions} * value_dim_ * number_bytes, 0,
                unused * value_dim_ * number_bytes);
    if (scale_bytes == 0) continue;
    std::memset(out + positions * sizeof(float), 0, unused * sizeof(float));
    std::memset(values + positions * sizeof(float), 0, unused * sizeof(float));
  }
}

}  // namespace moepack::runtime
