#include "compressor/plan/planner.h"

#include <algorithm>
#include <map>

namespace moepack {

Result<Planner> Planner::Create(const PlannerInput& input) {
  Planner planner(input);
  std::map<std::string, const TensorErrors*> measured;
  if (input.errors != nullptr) {
    for (const TensorErrors& tensor : input.errors->tensors) measured[tensor.name] = &tensor;
  }
  std::map<std::string, Codec> like;
  for (const PlanTensor& tensor : input.like) like[tensor.name] = tensor.codec;
  for (size_t i = 0; i < input.tensors.size(); ++i) {
    const std::vector<Codec>& candidates = input.choices[i].candidates;
    std::vector<double> losses(candidates.size(), 0.0);
    std::vector<bool> old(candidates.size(), false);
    const auto tensor = measured.find(input.tensors[i].name);
    for (size_t c = 0; candidates.size() > 1 && c < candidates.size(); ++c) {
      const auto error = tensor == measured.end() ? std::map<std::string, double>::const_iterator{}
                                                  : tensor->second->errors.find(candidates[c].Name());
      if (tensor == measured.end() || error == tensor->second->errors.end()) {
        return Status(ErrorCode::kInternal,
                      "the error table has no entry for " + input.tensors[i].name + " as " + candidates[c].Name());
      }
      losses[c] = error->second * input.errors->sensitivity.at(tensor->second->group);
      const auto before = like.find(input.tensors[i].name);
      old[c] = before != like.end() && before->second == candidates[c];
    }
    planner.losses_.push_back(std::move(losses));
    planner.is_old_.push_back(std::move(old));
  }
  for (size_t i = 0; i < input.tensors.size();) {
    std::vector<size_t> members;
    const TensorRef& first = input.tensors[i];
    for (; i < input.tensors.size() && input.tensors[i].unit == first.unit && input.tensors[i].block == first.block; ++i)
      members.push_back(i);
    MOEPACK_RETURN_IF_ERROR(planner.AddUnit(std::move(members)));
  }
  // Tables are longest when every unit has as many chunks as its largest option needs.
  std::vector<Codec> largest;
  uint64_t chunks = 0;
  for (size_t u = 0; u < planner.units_.size(); ++u) {
    uint64_t most = 0;
    for (const Option& option : planner.options_[u]) most = std::max(most, option.cost);
    chunks += most;
    for (size_t t = 0; t < planner.units_[u].tensors.size(); ++t) {
      largest.push_back(input.choices[planner.units_[u].tensors[t]].candidates[planner.units_[u].picks.back()[t]]);
    }
  }
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t bytes, BundleBytes(*input.program, input.tensors, largest, input.extras));
  planner.overhead_bytes_ = bytes - chunks;
  return planner;
}

double Planner::LossOf(size_t tensor, size_t candidate) const {
  return losses_[tensor][candidate] * (is_old_[tensor][candidate] ? 1 - kLikeMargin : 1);
}

Status Planner::AddUnit(std::vector<size_t> members) {
  std::vector<std::vector<Option>> tensors;
  for (size_t i : members) {
    std::vector<Option> options;
    for (size_t c = 0; c < input_.choices[i].candidates.size(); ++c) {
      auto bytes = PlainBytes(input_.choices[i].candidates[c], input_.tensors[i].shape);
      if (!bytes.ok()) return bytes.status().With(input_.tensors[i].name + " as " + input_.choices[i].candidates[c].Name());
      options.push_back({*bytes, LossOf(i, c)});
    }
    tensors.push_back(std::move(options));
  }
  const Combined combined = Combine(tensors);
  thinned_ = thinned_ || combined.thinned;
  UnitChoice unit{std::move(members), {}};
  std::vector<Option> stored;
  // Options come by falling loss: of those that fill the same pages the last is the best.
  for (size_t o = 0; o < combined.options.size(); ++o) {
    const Option option{StoredUnitBytes(combined.options[o].cost), combined.options[o].loss};
    if (!stored.empty() && stored.back().cost == option.cost) {
      stored.back() = option;
      unit.picks.back() = combined.picks[o];
    } else {
      stored.push_back(option);
      unit.picks.push_back(combined.picks[o]);
    }
  }
  options_.push_back(std::move(stored));
  units_.push_back(std::move(unit));
  return Status::Ok();
}

Result<Plan> Planner::MakePlan(const std::vector<size_t>& chosen) const {
  Plan plan;
  plan.measured_by = input_.errors != nullptr ? input_.errors->measured_by : "none";
  plan.tensors.resize(input_.tensors.size());
  std::vector<Codec> codecs(input_.tensors.size());
  for (size_t u = 0; u < units_.size(); ++u) {
    for (size_t t = 0; t < units_[u].tensors.size(); ++t) {
      const size_t i = units_[u].tensors[t], pick = units_[u].picks[chosen[u]][t];
      codecs[i] = input_.choices[i].candidates[pick];
      plan.tensors[i] = {input_.tensors[i].name, codecs[i], 0, losses_[i][pick]};
      plan.predicted_kld += losses_[i][pick];
    }
  }
  MOEPACK_RETURN_IF_ERROR(FillSizes(input_.tensors, &plan));
  MOEPACK_ASSIGN_OR_RETURN(plan.bundle_bytes, BundleBytes(*input_.program, input_.tensors, codecs, input_.extras));
  return plan;
}

Result<Plan> Planner::ForSize(uint64_t target_bytes) const {
  MOEPACK_ASSIGN_OR_RETURN(Plan plan, WithOverhead(target_bytes, overhead_bytes_));
  // Tables of other codecs than the largest can be a page longer than was reserved.
  for (uint64_t more = kBundleAlignment; plan.bundle_bytes > target_bytes; more += kBundleAlignment) {
    MOEPACK_ASSIGN_OR_RETURN(plan, WithOverhead(target_bytes, overhead_bytes_ + more));
  }
  return plan;
}

Result<Plan> Planner::WithOverhead(uint64_t target_bytes, uint64_t overhead_bytes) const {
  const uint64_t budget = target_bytes > overhead_bytes ? target_bytes - overhead_bytes : 0;
  auto allocation = Allocate(options_, budget, kBundleAlignment);
  if (!allocation.ok()) {
    uint64_t least = overhead_bytes_;
    for (const std::vector<Option>& unit : options_) least += unit.front().cost;
    return Status(ErrorCode::kGate,
                  StrFormat("the target of %llu bytes cannot be met; the smallest bundle this recipe allows has %llu bytes",
                            static_cast<unsigned long long>(target_bytes), static_cast<unsigned long long>(least)));
  }
  MOEPACK_ASSIGN_OR_RETURN(Plan plan, MakePlan(allocation->chosen));
  if (thinned_) allocation->bound = std::min(allocation->bound, DualBound(options_, budget));
  plan.target_bytes = target_bytes;
  plan.gap = allocation->gap();
  return plan;
}

Result<Plan> Planner::Largest() const {
  std::vector<size_t> chosen;
  for (const std::vector<Option>& unit : options_) chosen.push_back(unit.size() - 1);
  return MakePlan(chosen);
}

Result<Plan> Planner::ForKld(double kld) const {
  MOEPACK_ASSIGN_OR_RETURN(Plan best, Largest());
  uint64_t low = overhead_bytes_ / kBundleAlignment, high = best.bundle_bytes / kBundleAlignment + 1;
  for (const std::vector<Option>& unit : options_) low += unit.front().cost / kBundleAlignment;
  if (best.predicted_kld > kld) return best;
  while (low < high) {
    const uint64_t middle = low + (high - low) / 2;
    MOEPACK_ASSIGN_OR_RETURN(Plan plan, ForSize(middle * kBundleAlignment));
    if (plan.predicted_kld <= kld) {
      best = std::move(plan);
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  best.target_bytes = 0;
  return best;
}

}  // namespace moepack
