// GPTQ (2210.17323): rounding column by column, each column's error pushed onto the columns that are still free through
// the Cholesky factor of the inverse Hessian; then coordinate descent on codes and scales under the same Hessian.
#pragma once

#include <span>
#include <vector>

#include "base/status.h"
#include "compressor/pass/quantize.h"

namespace moepack {

// What GPTQ needs of one Hessian H = sum_t w_t x_t x_t^T [cols, cols]. Shared by all matrices with that input; read-only
// while in use.
struct GptqFactor {
  Matrix hessian;             // damped
  Matrix upper;               // U upper triangular with H^-1 = U^T U
  std::vector<float> weight;  // by column: 1 / U_jj^2, the loss that one unit of rounding error in it costs
};

// One percent of the mean diagonal is added to the diagonal, ten times as much until the factorisation succeeds. kInternal
// when no damping up to 100 % makes the Hessian positive definite. An all-zero Hessian counts as the identity.
Result<GptqFactor> FactorHessian(const Matrix& hessian);

// H blended with a prior of the same trace: H * (1 - a) + prior * a, a = cols / (cols + tokens), since H has rank at most
// `tokens`. `pooled`: the sum over all experts of a layer where columns mean the same in all of them, or empty: a multiple
// of the identity.
Matrix ShrinkHessian(const Matrix& hessian, double tokens, const Matrix& pooled);

struct StepPlan;  // compressor/pass/rated.h

// Rows [row_begin, row_end) of `weights` into `out` (made by MakeQuantized, mask set when sparse). Masked weights become 0
// and their error is pushed on like any other. steps: the grid to use for codes that will be entropy coded; null: a grid a
// group is searched. Thread-safe for disjoint rows.
void GptqRows(const Matrix& weights, const GptqFactor& factor, const StepPlan* steps, int sweeps, size_t row_begin,
              size_t row_end, QuantizedMatrix* out);

// One matrix to encode, and what came out.
struct MatrixJob {
  const Matrix* weights = nullptr;
  Codec codec;
  std::vector<uint8_t> mask;           // sparse codecs: [rows * cols]
  const GptqFactor* factor = nullptr;  // null: round to nearest, weighted by `importance`
  std::vector<float> importance;       // [cols] second moments of the inputs, or empty
  const Matrix* hessian = nullptr;     // undamped, to measure errors with; null: the diagonal `importance`
  std::vector<float> row_weights;      // [rows] how often each row is used (embedding, head), or empty: all 1
  uint64_t stored_bytes = 0;           // most bytes that the codes may take once entropy coded; 0: no matter
  uint64_t rows_of_whole = 0;          // when `weights` is a sample of rows: how many the matrix has, which the limit is for
  QuantizedMatrix out;
  double error = 0, energy = 0;  // sum over rows of dw H dw^T and w H w^T
};

// Encodes all jobs on the pool. Errors are summed in a fixed order. A job with a limit on its stored bytes ends within it,
// unless every code is zero.
void RunJobs(std::span<MatrixJob> jobs, int sweeps, ThreadPool& pool);

}  // namespace moepack
