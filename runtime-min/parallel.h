// How loops of the executor are cut into blocks: large enough to be worth a thread, small enough to balance. Results never
// depend on it.
#pragma once

#include <algorithm>
#include <cstddef>

#include "base/thread_pool.h"

namespace moepack::runtime {

// body(i) for i in [0, count); `cost`: elementary operations of one i, roughly. Small loops stay on this thread.
template <typename Body>
void ForEach(ThreadPool& pool, size_t count, size_t cost, const Body& body) {
  constexpr size_t kGrain = 16384;
  pool.ParallelFor(count, std::max<size_t>(1, kGrain / std::max<size_t>(1, cost)), [&body](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) body(i);
  });
}

// Rows of a weight matrix that one block multiplies with `tokens` tokens: a multiple of 16. `all_rows`: rows of all matrices
// of the loop. Long runs of rows let kernels read ahead; enough blocks for every thread keep the last one short.
inline size_t RowsPerBlock(size_t cols, size_t tokens, size_t all_rows, int threads) {
  constexpr size_t kLeastProducts = 16384, kMostProducts = 524288, kBlocksPerThread = 6, kMultiple = 16;
  const size_t row_products = std::max<size_t>(1, cols) * std::clamp<size_t>(tokens, 1, 4);
  const size_t even = all_rows / (kBlocksPerThread * static_cast<size_t>(threads));
  const size_t rows = std::clamp(even, kLeastProducts / row_products, kMostProducts / row_products);
  return std::max(kMultiple, rows / kMultiple * kMultiple);
}

}  // namespace moepack::runtime
