#include "runtime-min/routing.h"

#include <algorithm>

#include "runtime-min/vector_math.h"

namespace moepack::runtime {
namespace {

void Score(ScoreFunction function, std::span<float> values) {
  if (function == ScoreFunction::kSoftmax) return Softmax(values.data(), values.size());
  const ElementwiseNode sigmoid{.op = ElementOp::kSigmoid};
  ElementwiseRow(sigmoid, values.data(), nullptr, false, values.size(), values.data());
}

// The k largest of `scores` by insertion: k is small, and the order is total (larger first, then lower index).
void TopK(std::span<const float> scores, std::span<uint32_t> ids, std::span<float> best) {
  size_t filled = 0;
  for (uint32_t e = 0; e < scores.size(); ++e) {
    size_t at = filled;
    while (at > 0 && scores[e] > best[at - 1]) --at;
    if (at == ids.size()) continue;
    if (filled < ids.size()) ++filled;
    for (size_t i = filled - 1; i > at; --i) {
      ids[i] = ids[i - 1];
      best[i] = best[i - 1];
    }
    ids[at] = e;
    best[at] = scores[e];
  }
}

}  // namespace

void Route(const RoutingRecord& routing, std::span<float> logits, std::span<uint32_t> ids, std::span<float> weights) {
  if (routing.score_before_topk) Score(routing.score, logits);
  TopK(logits, ids, weights);
  if (!routing.score_before_topk) Score(routing.score, weights);
  if (routing.renormalise) {
    float sum = 0;
    for (float w : weights) sum += w;
    for (float& w : weights) w /= sum + routing.eps;
  }
  for (float& w : weights) w *= routing.scale;
}

}  // namespace moepack::runtime
