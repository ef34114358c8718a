// KV cache of one state slot and attention over it.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "format/program.h"
#include "runtime-min/buffer.h"

namespace moepack::runtime {

// Keys and values of all positions of one sequence, float32. Keys lie in blocks of kKeyBlock positions with the position
// innermost ([kv_head][block][head_dim][kKeyBlock]), so that the scores of a block are vertical sums; values are
// [kv_head][position][value_dim].
class KvCache {
 public:
  static constexpr uint32_t kKeyBlock = 32;

  // kNoMemory when it does not fit. `positions` is the longest sequence.
  static Result<KvCache> Create(uint32_t kv_heads, uint32_t head_dim, uint32_t value_dim, uint32_t positions);

  // k: [kv_heads * head_dim], v: [kv_heads * value_dim]. Different positions may be stored from different threads.
  void Store(uint32_t position, const float* k, const float* v);
  const float* key_block(uint32_t kv_head, uint32_t block) const {
    return keys_.data() + (uint64_t{kv_head} * blocks_ + block) * head_dim_ * kKeyBlock;
  }
  const float* values(uint32_t kv_head) const { return values_.data() + uint64_t{kv_head} * positions_ * value_dim_; }
  uint64_t size_bytes() const { return (keys_.size() + values_.size()) * sizeof(float); }

 private:
  uint32_t kv_heads_ = 0, head_dim_ = 0, value_dim_ = 0, positions_ = 0, blocks_ = 0;
  FloatBuffer keys_, values_;
};

// One head of one token at `position`, whose key and value are already stored: q [head_dim], out [value width]. sinks: of
// all heads, or null. Reads positions up to its own only. Softmax is accumulated block by block (Milakov and Gimelshein
// 2018), in position order.
void AttendHead(const AttentionNode& node, const KvCache& cache, const float* sinks, uint32_t head, uint32_t position,
                const float* q, float* out);

}  // namespace moepack::runtime
