// Activations of many tokens, prepared on all threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

#include "runtime-min/kernels/kernels.h"
#include "runtime-min/parallel.h"

namespace moepack::runtime {

// Rows that become the activations of one matrix product.
struct RowsToPrepare {
  const float* x = nullptr;  // [rows, cols], `stride` floats apart
  size_t rows = 0, cols = 0, stride = 0;
  kernels::Activations* out = nullptr;
};

// out->Prepare(isa, x, rows, cols, stride) of every job, row by row on all threads: the same bits. Different jobs have
// different `out`.
inline void PrepareRows(ThreadPool& pool, kernels::Isa isa, std::span<const RowsToPrepare> jobs) {
  size_t rows = 0, cols = 0;
  for (const RowsToPrepare& job : jobs) {
    job.out->Reshape(isa, job.rows, job.cols);
    rows += job.rows;
    cols = std::max(cols, job.cols);
  }
  ForEach(pool, rows, cols * 4, [&](size_t row) {
    size_t j = 0;
    for (; row >= jobs[j].rows; ++j) row -= jobs[j].rows;
    jobs[j].out->Fill(jobs[j].x, jobs[j].stride, row, row + 1);
  });
}

}  // namespace moepack::runtime
