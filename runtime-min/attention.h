// Attention over the keys and values of a sequence.
#pragma once

#include <cstdint>

#include "format/program.h"
#include "runtime-min/kv_cache.h"

namespace moepack::runtime {

// Queries that go over the keys of one kv head together, so that each block is read once for all of them: of consecutive
// tokens of one sequence, those of heads [first_head, first_head + heads), which all read the same kv head.
struct AttentionTask {
  static constexpr uint32_t kMaxQueries = 16;

  uint32_t position = 0, tokens = 0;  // of the first token; tokens * heads is 1..kMaxQueries
  uint32_t first_head = 0, heads = 0;
  const uint32_t* blocks = nullptr;  // of the sequence
  const float* sinks = nullptr;      // of all heads, or null
  const float* q = nullptr;          // [tokens, node.heads * head_dim]
  float* out = nullptr;              // [tokens, node.heads * value width]; only columns of these heads are written
};

// Keys and values of every token up to the last are stored. Each query reads positions up to its own only. Softmax is
// accumulated block by block (Milakov and Gimelshein 2018), in position order, so a query's result does not depend on those
// it goes with (blocks of queries as in FlashAttention, 2205.14135).
void Attend(const AttentionNode& node, const KvCache& cache, const AttentionTask& task);

}  // namespace moepack::runtime
