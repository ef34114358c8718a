#include "runtime-min/stand_ins.h"

#include <cmath>

namespace moepack::runtime {

bool IsUnavailable(const Status& status) {
  switch (status.code()) {
    case ErrorCode::kNotFound:
    case ErrorCode::kTruncated:
    case ErrorCode::kAccess:
      return true;
    default:
      return false;
  }
}

Status MissPolicy::Check() const {
  // Written so that a NaN is refused.
  if (lower_above >= 0 && lower_above <= skip_above && skip_above <= 1) return Status::Ok();
  return Status(ErrorCode::kUsage,
                StrFormat("thresholds %g and %g of misses: expected 0 <= first <= second <= 1", lower_above, skip_above));
}

OnMiss ActionFor(const MissPolicy& policy, double weight_before) {
  if (policy.on_miss == OnMiss::kLoad || weight_before <= policy.lower_above) return OnMiss::kLoad;
  return policy.on_miss == OnMiss::kLower || weight_before <= policy.skip_above ? OnMiss::kLower : OnMiss::kSkip;
}

void WeightsBefore(std::span<const float> weights, std::span<float> before) {
  float all = 0;
  for (const float weight : weights) all += std::fabs(weight);
  for (size_t i = 0; i < weights.size(); ++i) {
    float sum = 0;
    for (size_t j = 0; j < weights.size(); ++j) {
      const float mine = std::fabs(weights[i]), other = std::fabs(weights[j]);
      if (other > mine || (other == mine && j < i)) sum += other;
    }
    before[i] = all > 0 ? sum / all : 0;
  }
}

StandIns::StandIns(const std::vector<ExpertTable>& tables) {
  for (const ExpertTable& table : tables) {
    const std::vector<bool> first = FirstUnits(table.experts);
    is_twin_.emplace_back();
    for (const ExpertEntry& expert : table.experts) {
      std::vector<bool>& twins = is_twin_.back().emplace_back();
      for (const ExpertEntry::Variant& variant : expert.variants) twins.push_back(first[variant.physical]);
      for (size_t v = 1; v < twins.size(); ++v) any_own_ = any_own_ || !twins[v];
    }
  }
}

std::optional<uint32_t> StandIns::Next(uint32_t table, uint32_t expert, uint32_t variant, bool twin) const {
  const std::vector<bool>& twins = is_twin_[table][expert];
  for (uint32_t v = variant + 1; v < twins.size(); ++v) {
    if (twins[v] == twin) return v;
  }
  return std::nullopt;
}

std::optional<uint32_t> StandIns::NextOwn(uint32_t table, uint32_t expert, uint32_t variant) const {
  return Next(table, expert, variant, false);
}
std::optional<uint32_t> StandIns::NextTwin(uint32_t table, uint32_t expert, uint32_t variant) const {
  return Next(table, expert, variant, true);
}

}  // namespace moepack::runtime
