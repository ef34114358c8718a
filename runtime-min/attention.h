// KV cache of one state slot and attention over it.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "format/program.h"
#include "runtime-min/buffer.h"
#include "runtime-min/sequences.h"

namespace moepack::runtime {

// Keys and values of all sequences, float32, in blocks of kBlockPositions positions (runtime-min/sequences.h). A block holds
// for each kv head its keys with the position innermost ([head_dim][kBlockPositions]), so that scores are vertical sums, and
// then its values ([kBlockPositions][value_dim]).
class KvCache {
 public:
  // kLimit, kNoMemory. Memory of a block is not touched before it is used.
  static Result<KvCache> Create(uint32_t kv_heads, uint32_t head_dim, uint32_t value_dim, uint32_t blocks);

  // k: [kv_heads * head_dim], v: [kv_heads * value_dim], of the position in `block` at `lane`. Different positions may be
  // stored from different threads.
  void Store(uint32_t block, uint32_t lane, const float* k, const float* v);
  void CopyBlock(const BlockCopy& copy);
  const float* keys(uint32_t block, uint32_t kv_head) const {
    return data_.data() + (uint64_t{block} * kv_heads_ + kv_head) * head_floats_;
  }
  const float* values(uint32_t block, uint32_t kv_head) const {
    return keys(block, kv_head) + uint64_t{head_dim_} * kBlockPositions;
  }
  uint64_t block_bytes() const { return kv_heads_ * head_floats_ * sizeof(float); }

 private:
  uint32_t kv_heads_ = 0, head_dim_ = 0, value_dim_ = 0;
  uint64_t head_floats_ = 0;  // of one head in one block
  FloatBuffer data_;          // [blocks, kv_heads, head_floats_]
};

// One head of one token at `position`, whose key and value are already stored: q [head_dim], out [value width]. blocks: of
// its sequence. sinks: of all heads, or null. Reads positions up to its own only. Softmax is accumulated block by block
// (Milakov and Gimelshein 2018), in position order.
void AttendHead(const AttentionNode& node, const KvCache& cache, const uint32_t* blocks, const float* sinks, uint32_t head,
                uint32_t position, const float* q, float* out);

}  // namespace moepack::runtime
