#include <algorithm>
#include <cmath>

#include "forward/forward.h"

namespace moepack {
namespace {

// The k largest logits, largest first, ties to the lower index. Both score functions rise strictly with the logit, so
// choosing by logit is choosing by score, without ties that rounding of the scores would make.
void ChooseLargest(std::span<const float> logits, std::span<uint32_t> ids) {
  size_t chosen = 0;
  for (uint32_t e = 0; e < logits.size(); ++e) {
    if (chosen == ids.size() && !(logits[e] > logits[ids[chosen - 1]])) continue;
    size_t slot = chosen < ids.size() ? chosen++ : chosen - 1;
    for (; slot > 0 && logits[e] > logits[ids[slot - 1]]; --slot) ids[slot] = ids[slot - 1];
    ids[slot] = e;
  }
}

}  // namespace

void Route(const RoutingRecord& routing, std::span<const float> logits, std::span<uint32_t> ids, std::span<float> weights) {
  ChooseLargest(logits, ids);
  const double largest = logits[ids[0]];
  double denominator = 1;
  if (routing.score == ScoreFunction::kSoftmax) {
    denominator = 0;
    if (routing.score_before_topk) {
      for (float logit : logits) denominator += std::exp(logit - largest);
    } else {
      for (uint32_t id : ids) denominator += std::exp(logits[id] - largest);
    }
  }
  const auto score = [&](uint32_t id) {
    const double logit = logits[id];
    return routing.score == ScoreFunction::kSoftmax ? std::exp(logit - largest) / denominator : 1 / (1 + std::exp(-logit));
  };
  double sum = 0;
  if (routing.renormalise) {
    for (uint32_t id : ids) sum += score(id);
    sum += routing.eps;
  }
  for (size_t i = 0; i < ids.size(); ++i) {
    const double value = score(ids[i]);
    weights[i] = static_cast<float>((routing.renormalise ? value / sum : value) * routing.scale);
  }
}

}  // namespace moepack
