// Keys and values of all sequences for one attention node.
#pragma once

#include <cstdint>
#include <span>

#include "base/status.h"
#include "format/program.h"
#include "runtime-min/buffer.h"
#include "runtime-min/sequences.h"

namespace moepack::runtime {

// How keys and values are kept. kI8: a code from -127 to 127 each, and for each position and head one float32 scale of its
// key and one of its value, the largest magnitude / 127; a number is code * scale.
enum class KvFormat : uint8_t { kF32 = 0, kI8 = 1 };

// In blocks of kBlockPositions positions (runtime-min/sequences.h). A block holds for each kv head its keys with the
// position innermost ([head_dim][kBlockPositions]), so that scores are vertical sums, and then its values
// ([kBlockPositions][value_dim]); of kI8 each of them is codes after scales ([kBlockPositions]).
class KvCache {
 public:
  static constexpr uint32_t kStrip = 64;                                // columns of kI8 that are decoded at once
  static constexpr uint32_t kScratchFloats = kStrip * kBlockPositions;  // for them

  // A part of a block as numbers: row i begins at data + i * stride.
  struct View {
    const float* data = nullptr;
    uint64_t stride = 0;
  };

  KvCache() = default;
  // Of a validated node. kLimit, kNoMemory. Memory of a block is not touched before it is used.
  static Result<KvCache> Create(const AttentionNode& node, KvFormat format, uint32_t blocks);

  // k: [kv_heads * head_dim], v: [kv_heads * value_dim], of the position in `block` at `lane`. Different positions may be
  // stored from different threads.
  void Store(uint32_t block, uint32_t lane, const float* k, const float* v);
  // Rows are columns [first, first + count) of the keys, each of kBlockPositions positions. count <= strip(). scratch
  // [kScratchFloats] holds them where they are not kept as numbers.
  View Keys(uint32_t block, uint32_t kv_head, uint32_t first, uint32_t count, float* scratch) const;
  // Rows are positions [0, positions) of columns [first, first + count) of the values. As above.
  View Values(uint32_t block, uint32_t kv_head, uint32_t first, uint32_t count, uint32_t positions, float* scratch) const;
  // Most columns that Keys and Values give at once.
  uint32_t strip() const { return format_ == KvFormat::kF32 ? UINT32_MAX : kStrip; }

  void CopyBlock(const BlockCopy& copy);
  // The bytes of a block, as they lie in memory.
  std::span<uint8_t> block(uint32_t block) { return {data() + block * block_bytes(), block_bytes()}; }
  // out [block_bytes()]: the block, with zeros for all but its first `positions` positions.
  void ReadBlock(uint32_t block, uint32_t positions, uint8_t* out) const;
  uint64_t block_bytes() const { return kv_heads_ * (key_bytes_ + value_bytes_); }

 private:
  uint8_t* data() { return reinterpret_cast<uint8_t*>(data_.data()); }
  const uint8_t* keys(uint32_t block, uint32_t kv_head) const {
    return reinterpret_cast<const uint8_t*>(data_.data()) + block * block_bytes() + kv_head * (key_bytes_ + value_bytes_);
  }

  KvFormat format_ = KvFormat::kF32;
  uint32_t kv_heads_ = 0, head_dim_ = 0, value_dim_ = 0;
  uint64_t key_bytes_ = 0, value_bytes_ = 0;  // of one head in one block
  FloatBuffer data_;                          // [blocks, kv_heads, key_bytes_ + value_bytes_]
};

}  // namespace moepack::runtime
