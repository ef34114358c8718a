// Dense stand-ins: one feed-forward network for a layer's experts of one width, which gives for any token about what the
// experts that the router chose for it would give. A device uses it for an expert that it cannot read, if the signer allows
// that (format/SPEC.md, section 5).
//
// Of all their neurons (a row of gate and up, a column of down) it takes as many as one expert has, those whose output has
// the most energy; its down matrix is then fitted: the minimum over W of
//   sum over tokens t and their experts e of v_t g_te^2 |E_e(x_t) - W h(x_t)|^2 + ridge |W|^2
// with g the routing weight, v the token's weight, h the chosen neurons, in closed form.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "forward/forward.h"

namespace moepack {

struct DenseFallback {
  Matrix gate, up;                // [width, hidden]; gate is empty for experts without gates
  Matrix down;                    // [hidden, width]
  std::vector<float> down_input;  // [width] second moments of what `down` multiplies
  // Weighted energy of what the experts gave and of what it lacks to them, on the tokens that it was fitted to.
  double energy = 0, error = 0;
};

struct DenseFallbackInput {
  const Node* node = nullptr;         // of kind kMoe
  std::span<const uint32_t> experts;  // of its table, all of one width
  const BlockWeights* weights = nullptr;
  std::span<const float> token_weights;  // one a token of the batch
  // Runs the block over the batch (Forward::Observe); called twice.
  std::function<Status(Observer*)> observe;
};

// The same result on any number of threads. Holds two matrices of [width, width], one of [hidden, width] and the
// experts' outputs for a tile.
// Zeros where no token with a weight was routed to any of the experts.
Result<DenseFallback> FitDenseFallback(const DenseFallbackInput& input, ThreadPool& pool);

}  // namespace moepack
