// Gradients of the functions in forward/nodes.h, one a node kind: what distillation learns by. d_x stands for the derivative
// of the loss by x. Gradients of values and weights are added to what is there, so every target must have its shape; null
// targets are not computed. Sums run in a fixed order, so results do not depend on the number of threads.
#pragma once

#include <span>

#include "forward/forward.h"
#include "forward/nodes.h"

namespace moepack {

// weight [out, in], d_bias [1, out].
void LinearBackward(const Matrix& in, const Matrix& weight, const Matrix& d_out, ThreadPool& pool, Matrix* d_in,
                    Matrix* d_weight, Matrix* d_bias);

// d_weight, d_bias [1, group].
void NormBackward(const NormNode& node, const Matrix& in, const Matrix* weight, const Matrix& d_out, ThreadPool& pool,
                  Matrix* d_in, Matrix* d_weight, Matrix* d_bias);

void RotaryBackward(const RotaryNode& node, std::span<const uint32_t> positions, const Matrix& d_out, ThreadPool& pool,
                    Matrix* d_in);

// All three inputs; out is what RunAttention gave.
void AttentionBackward(const AttentionNode& node, std::span<const TileSequence> sequences, const Matrix& q, const Matrix& k,
                       const Matrix& v, const Matrix& d_out, ThreadPool& pool, Matrix* d_q, Matrix* d_k, Matrix* d_v);

// d_first is always added to; d_second of the nodes with two inputs.
void ElementwiseBackward(const ElementwiseNode& node, const Matrix& first, const Matrix* second, const Matrix& d_out,
                         ThreadPool& pool, Matrix* d_first, Matrix* d_second);

// Gradients of one expert's matrices, null when not wanted.
struct ExpertGradient {
  Matrix* gate = nullptr;
  Matrix* up = nullptr;
  Matrix* down = nullptr;
};

// Matrices of one plain expert (model/plain_nodes.h): gate, null when the activation is not gated, and up [intermediate,
// hidden], down [hidden, intermediate].
struct ExpertMatrices {
  const Matrix* gate;
  const Matrix &up, &down;
};
ExpertMatrices MatricesOf(const MoeNode& node, const BlockWeights& weights, uint32_t expert);

// in [rows, hidden] -> [rows, hidden], not yet times routing weights; down_input [rows, intermediate], null when not wanted.
// On the calling thread, as is ExpertBackward.
Matrix RunPlainExpert(Activation function, const ExpertMatrices& w, const Matrix& in, Matrix* down_input);
// d_out: by what RunPlainExpert gave. d_in is set, not added to; null when not wanted.
void ExpertBackward(Activation function, const ExpertMatrices& w, const Matrix& in, const Matrix& down_input,
                    const Matrix& d_out, const ExpertGradient& gradient, Matrix* d_in);

// capture: of RunMoe on the same weights. d_logits [tokens, experts]; the choice of experts counts as fixed.
// gradients: one an expert of the table.
void MoeBackward(const MoeNode& node, const BlockWeights& weights, const MoeCapture& capture, const Matrix& d_out,
                 ThreadPool& pool, std::span<const ExpertGradient> gradients, Matrix* d_in, Matrix* d_logits);

// d logits of one row from d weights of its k chosen experts, added.
void RouteBackward(const RoutingRecord& routing, std::span<const float> logits, std::span<const uint32_t> ids,
                   std::span<const float> d_weights, std::span<float> d_logits);

// values[i] = derivative of the activation at values[i].
void ActivateDerivative(Activation function, Eigen::Ref<Matrix> values);

}  // namespace moepack
