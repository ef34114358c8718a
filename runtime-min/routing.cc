#include "runtime-min/routing.h"

#include <algorithm>
#include <cmath>

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

// Experts of all groups but the best ones become -infinity. The original indices rise, so a group is a run of `selection`.
void KeepBestGroups(const RoutingRecord& routing, std::span<const uint32_t> original, std::span<float> selection) {
  const auto group_end = [&](size_t begin) {
    size_t end = begin + 1;
    while (end < original.size() && original[end] / routing.group_size == original[begin] / routing.group_size) ++end;
    return end;
  };
  const auto score = [&](size_t begin, size_t end) {
    float first = -INFINITY, second = -INFINITY;
    for (size_t e = begin; e < end; ++e) {
      second = std::max(second, std::min(first, selection[e]));
      first = std::max(first, selection[e]);
    }
    return routing.group_rule == GroupRule::kTwoLargest && end - begin > 1 ? first + second : first;
  };
  // A group stays when fewer than top_groups others are better; of equals the earlier one is. That groups before it may be
  // dropped already changes nothing: the best top_groups never are, and they alone decide.
  for (size_t begin = 0; begin < selection.size();) {
    const size_t end = group_end(begin);
    const float own = score(begin, end);
    uint32_t better = 0;
    for (size_t other = 0; other < selection.size();) {
      const size_t other_end = group_end(other);
      const float theirs = score(other, other_end);
      if (theirs > own || (theirs == own && other < begin)) ++better;
      other = other_end;
    }
    if (better >= routing.top_groups) std::fill(selection.begin() + begin, selection.begin() + end, -INFINITY);
    begin = end;
  }
}

// The largest of `scores`, the first of equals, but for those in `taken`. Where scores are no numbers it is some other.
uint32_t LargestBut(std::span<const uint32_t> taken, std::span<const float> scores) {
  uint32_t best = kNone;
  for (uint32_t e = 0; e < scores.size(); ++e) {
    if (best != kNone && !(scores[e] > scores[best])) continue;
    if (std::find(taken.begin(), taken.end(), e) == taken.end()) best = e;
  }
  return best;
}

void RouteBySparseMixer(const RoutingRecord& routing, std::span<float> left, std::span<uint32_t> ids,
                        std::span<float> weights) {
  for (size_t slot = 0; slot < ids.size(); ++slot) {
    ids[slot] = LargestBut(ids.first(slot), left);
    const float largest = left[ids[slot]];
    float sum = 0;
    for (const float logit : left) {
      const bool near = (largest - logit) / std::max(std::abs(logit), largest) <= 2 * routing.mixer_eps;
      if (logit != -INFINITY && near) sum += Exp(logit - largest);
    }
    weights[slot] = 1 / sum;
    left[ids[slot]] = -INFINITY;
  }
}

}  // namespace

void Route(const RoutingRecord& routing, const RoutingTables& tables, std::span<float> scores, std::span<uint32_t> ids,
           std::span<float> weights) {
  const size_t experts = scores.size() / 2;
  const std::span<float> logits = scores.first(experts), selection = scores.last(experts);
  const bool plain = tables.selection_bias == nullptr && routing.group_size == 0;
  if (routing.score == ScoreFunction::kSparseMixer) {
    RouteBySparseMixer(routing, logits, ids, weights);
  } else if (plain) {
    // Both score functions rise strictly with the logit, but their float32 values tie where logits do not.
    TopK(logits, ids, weights);
    if (routing.score_before_topk) Score(routing.score, logits);
    for (size_t i = 0; i < ids.size(); ++i) weights[i] = logits[ids[i]];
  } else {
    if (routing.score_before_topk) Score(routing.score, logits);
    std::copy(logits.begin(), logits.end(), selection.begin());
    for (size_t e = 0; tables.selection_bias != nullptr && e < experts; ++e) selection[e] += tables.selection_bias[e];
    if (routing.group_size > 0) KeepBestGroups(routing, tables.original, selection);
    TopK(selection, ids, weights);
    for (size_t i = 0; i < ids.size(); ++i) weights[i] = logits[ids[i]];
  }
  if (!routing.score_before_topk) Score(routing.score, weights);
  if (routing.renormalise) {
    float sum = 0;
    for (float w : weights) sum += w;
    for (float& w : weights) w /= sum + routing.eps;
  }
  for (float& w : weights) w *= routing.scale;
}

}  // namespace moepack::runtime
