#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "forward/forward.h"

namespace moepack {
namespace {

constexpr double kExcluded = -std::numeric_limits<double>::infinity();

// The k largest values that are not excluded, largest first, ties to the lower index.
void ChooseLargest(std::span<const double> values, std::span<uint32_t> ids) {
  size_t chosen = 0;
  for (uint32_t e = 0; e < values.size(); ++e) {
    if (values[e] == kExcluded) continue;
    if (chosen == ids.size() && !(values[e] > values[ids[chosen - 1]])) continue;
    size_t slot = chosen < ids.size() ? chosen++ : chosen - 1;
    for (; slot > 0 && values[e] > values[ids[slot - 1]]; --slot) ids[slot] = ids[slot - 1];
    ids[slot] = e;
  }
}

std::vector<double> Scores(const RoutingRecord& routing, std::span<const float> logits, std::span<const uint32_t> over) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double denominator = 0;
  if (over.empty()) {
    for (float logit : logits) denominator += std::exp(logit - largest);
  } else {
    for (uint32_t id : over) denominator += std::exp(logits[id] - largest);
  }
  std::vector<double> scores(logits.size());
  for (size_t e = 0; e < scores.size(); ++e) {
    const double logit = logits[e];
    scores[e] =
        routing.score == ScoreFunction::kSoftmax ? std::exp(logit - largest) / denominator : 1 / (1 + std::exp(-logit));
  }
  return scores;
}

// Excludes the experts of all groups but the best ones.
void KeepBestGroups(const RoutingRecord& routing, std::span<const uint32_t> original, std::span<double> selection) {
  std::map<uint32_t, std::pair<double, double>> best;  // by group: largest and second largest
  for (size_t e = 0; e < selection.size(); ++e) {
    auto& [first, second] = best.try_emplace(original[e] / routing.group_size, kExcluded, kExcluded).first->second;
    if (selection[e] > first) {
      second = first;
      first = selection[e];
    } else {
      second = std::max(second, selection[e]);
    }
  }
  std::vector<uint32_t> groups;
  std::vector<double> scores;
  for (const auto& [group, top] : best) {
    const bool two = routing.group_rule == GroupRule::kTwoLargest && top.second != kExcluded;
    groups.push_back(group);
    scores.push_back(top.first + (two ? top.second : 0));
  }
  std::vector<uint32_t> kept(std::min<size_t>(routing.top_groups, groups.size()));
  ChooseLargest(scores, kept);
  for (size_t e = 0; e < selection.size(); ++e) {
    const uint32_t group = original[e] / routing.group_size;
    const bool in = std::any_of(kept.begin(), kept.end(), [&](uint32_t place) { return groups[place] == group; });
    if (!in) selection[e] = kExcluded;
  }
}

void RouteBySparseMixer(const RoutingRecord& routing, std::span<const float> logits, std::span<uint32_t> ids,
                        std::span<double> weights) {
  std::vector<double> left(logits.begin(), logits.end());
  for (size_t slot = 0; slot < ids.size(); ++slot) {
    ChooseLargest(left, ids.subspan(slot, 1));
    const double largest = left[ids[slot]];
    double sum = 0;
    for (const double logit : left) {
      if (logit == kExcluded) continue;
      const double factor = std::max(std::abs(logit), largest);
      if ((largest - logit) / factor > 2 * static_cast<double>(routing.mixer_eps)) continue;
      sum += std::exp(logit - largest);
    }
    weights[slot] = 1 / sum;
    left[ids[slot]] = kExcluded;
  }
}

}  // namespace

void Route(const RoutingRecord& routing, const RoutingTables& tables, std::span<const float> logits, std::span<uint32_t> ids,
           std::span<float> weights) {
  std::vector<double> chosen(ids.size());
  if (routing.score == ScoreFunction::kSparseMixer) {
    RouteBySparseMixer(routing, logits, ids, chosen);
  } else {
    // Both score functions rise strictly with the logit: without a bias, choosing by logit is choosing by score, without
    // ties that rounding of the scores would make.
    std::vector<double> scores = Scores(routing, logits, {});
    const bool plain = tables.selection_bias.empty() && routing.group_size == 0;
    std::vector<double> selection = scores;
    if (plain || !routing.score_before_topk) selection.assign(logits.begin(), logits.end());
    for (size_t e = 0; e < tables.selection_bias.size(); ++e) selection[e] += tables.selection_bias[e];
    if (routing.group_size > 0) KeepBestGroups(routing, tables.original, selection);
    ChooseLargest(selection, ids);
    if (!routing.score_before_topk) scores = Scores(routing, logits, ids);
    for (size_t i = 0; i < ids.size(); ++i) chosen[i] = scores[ids[i]];
  }
  double sum = routing.eps;
  for (const double weight : chosen) sum += weight;
  for (size_t i = 0; i < ids.size(); ++i) {
    weights[i] = static_cast<float>((routing.renormalise ? chosen[i] / sum : chosen[i]) * routing.scale);
  }
}

}  // namespace moepack
