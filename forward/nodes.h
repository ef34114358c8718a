// One function a node kind. Each computes a whole tile; work is cut into fixed blocks, so results do not depend on the
// number of threads. Shapes follow from a validated program and are not checked again. Outputs are resized as needed and
// must not alias inputs.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "forward/forward.h"

namespace moepack {

// Whole sequences of a tile, as rows of the tile. Positions are those inside the sequence.
struct TileSequence {
  uint64_t begin = 0, end = 0;
  uint64_t length = 0;  // of the whole sequence, of which a block that mixes no tokens may hold a part
};

// out[t] = table[tokens[t]]. kBadInput for a token outside of the table.
Status RunEmbedding(const Matrix& table, std::span<const int32_t> tokens, Matrix* out);

// out = in * weight^T (+ bias). in [n, in], weight [out, in], bias [1, out] or null.
void RunLinear(const Matrix& in, const Matrix& weight, const Matrix* bias, ThreadPool& pool, Matrix* out);

// weight, bias [1, group] or null.
void RunNorm(const NormNode& node, const Matrix& in, const Matrix* weight, const Matrix* bias, ThreadPool& pool,
             Matrix* out);

// positions: one a row; the sequences cover all rows.
void RunRotary(const RotaryNode& node, std::span<const TileSequence> sequences, std::span<const uint32_t> positions,
               const Matrix& in, ThreadPool& pool, Matrix* out);

// q [n, heads * head_dim], k [n, kv_heads * head_dim], v [n, kv_heads * value width], sinks [1, heads] or null.
struct AttentionInputs {
  const Matrix &q, &k, &v;
  const Matrix* sinks = nullptr;
};
// The sequences cover all rows.
void RunAttention(const AttentionNode& node, std::span<const TileSequence> sequences, const AttentionInputs& in,
                  ThreadPool& pool, Matrix* out);

// weight [channels, width], bias [1, channels] or null. The sequences cover all rows, each from its first position.
void RunConvolution(std::span<const TileSequence> sequences, const Matrix& in, const Matrix& weight, const Matrix* bias,
                    ThreadPool& pool, Matrix* out);

// inputs: at least one.
void RunConcat(const ConcatNode& node, std::span<const Matrix* const> inputs, Matrix* out);

// second: of kAdd and kMul, otherwise null.
void RunElementwise(const ElementwiseNode& node, const Matrix& first, const Matrix* second, ThreadPool& pool, Matrix* out);

// capture: null, or filled but for first_token (its pointers refer to the arguments). out: null when only the inputs of
// experts that `wants` are captured; null `wants`: all of them.
void RunMoe(const Node& node, const ExpertTableDecl& table, const BlockWeights& weights, const Matrix& in,
            const Matrix& logits, ThreadPool& pool, const std::function<bool(uint32_t)>& wants, MoeCapture* capture,
            Matrix* out);

// Applies the function in place.
void Activate(Activation function, Eigen::Ref<Matrix> values);

// Rows that one task of a row-wise loop or matrix product takes: fixed, so that block borders are.
inline constexpr size_t kRowBlock = 256;

}  // namespace moepack
