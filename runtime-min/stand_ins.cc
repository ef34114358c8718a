#include "runtime-min/stand_ins.h"

#include <algorithm>
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
    kinds_.push_back(VariantKinds(table.experts));
    for (const std::vector<VariantKind>& kinds : kinds_.back())
      any_lower_ = any_lower_ || std::count(kinds.begin(), kinds.end(), VariantKind::kLower) > 0;
  }
}

std::optional<uint32_t> StandIns::Next(uint32_t table, uint32_t expert, uint32_t variant, VariantKind kind) const {
  const std::vector<VariantKind>& kinds = kinds_[table][expert];
  for (uint32_t v = variant + 1; v < kinds.size(); ++v) {
    if (kinds[v] == kind) return v;
  }
  return std::nullopt;
}

}  // namespace moepack::runtime
