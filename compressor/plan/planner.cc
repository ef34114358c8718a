#include "compressor/plan/planner.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "base/checked.h"

namespace moepack {
namespace {

// A budget under blended prices: fine enough that rounding a unit's cost up is nothing beside a byte.
constexpr uint64_t kBlendedBudget = uint64_t{1} << 48;

unsigned long long Print(uint64_t value) { return value; }

}  // namespace

Result<Planner> Planner::Create(const PlannerInput& input) {
  Planner planner(input);
  std::map<std::string, const TensorErrors*> measured;
  if (input.errors != nullptr) {
    for (const TensorErrors& tensor : input.errors->tensors) measured[tensor.name] = &tensor;
  }
  std::map<std::string, const RatedCodec*> like;
  for (const PlanTensor& tensor : input.like) like[tensor.name] = &tensor.codec;
  for (size_t i = 0; i < input.tensors.size(); ++i) {
    const auto errors = measured.find(input.tensors[i].name);
    const auto before = like.find(input.tensors[i].name);
    MOEPACK_RETURN_IF_ERROR(planner.ReadTensor(i, errors == measured.end() ? nullptr : errors->second,
                                               before == like.end() ? nullptr : before->second));
  }
  for (size_t i = 0; i < input.tensors.size();) {
    const TensorRef& first = input.tensors[i];
    planner.members_.emplace_back();
    for (; i < input.tensors.size() && input.tensors[i].unit == first.unit && input.tensors[i].block == first.block; ++i)
      planner.members_.back().push_back(i);
  }
  for (const std::vector<size_t>& members : planner.members_) MOEPACK_RETURN_IF_ERROR(planner.CountSecond(members));
  planner.stored_ = planner.MakeFront({});
  MOEPACK_RETURN_IF_ERROR(planner.SetOverhead());
  return planner;
}

Status Planner::ReadTensor(size_t tensor, const TensorErrors* measured, const RatedCodec* like) {
  const TensorRef& ref = input_.tensors[tensor];
  const std::vector<RatedCodec>& codecs = input_.choices[tensor].candidates;
  candidates_.emplace_back();
  for (const RatedCodec& codec : codecs) {
    Candidate candidate;
    auto plain = PlainBytes(codec, ref.shape);
    if (!plain.ok()) return plain.status().With(ref.name + " as " + codec.Name());
    auto stored = StoredBytes(codec, ref.shape);
    if (!stored.ok()) return stored.status().With(ref.name + " as " + codec.Name());
    auto resident = ResidentBytes(codec, ref.shape);
    if (!resident.ok()) return resident.status().With(ref.name + " as " + codec.Name());
    candidate.plain_bytes = *plain;
    candidate.stored_bytes = *stored;
    candidate.resident_bytes = *resident;
    if (codecs.size() > 1) {
      const auto error =
          measured == nullptr ? std::map<std::string, double>::const_iterator{} : measured->errors.find(codec.Name());
      if (measured == nullptr || error == measured->errors.end()) {
        return Status(ErrorCode::kInternal, "the error table has no entry for " + ref.name + " as " + codec.Name());
      }
      candidate.loss = error->second * input_.errors->sensitivity.at(measured->group);
      candidate.is_old = like != nullptr && *like == codec;
    }
    candidates_.back().push_back(candidate);
  }
  return Status::Ok();
}

Status Planner::CountSecond(const std::vector<size_t>& members) {
  seconds_.emplace_back();
  if (!input_.extras.second || !input_.tensors[members[0]].is_expert()) return Status::Ok();
  const std::vector<RatedCodec> codecs(members.size(), *input_.extras.second);
  MOEPACK_ASSIGN_OR_RETURN(seconds_.back(), BytesOfExpert(input_.tensors.subspan(members[0], members.size()), codecs));
  return Status::Ok();
}

// Tables are longest when every unit has as many chunks as its largest option needs.
Status Planner::SetOverhead() {
  std::vector<RatedCodec> largest(input_.tensors.size());
  uint64_t chunks = 0;
  for (const Unit& unit : stored_.units) {
    uint64_t most = 0;
    for (const Option& option : unit.options) most = std::max(most, option.cost);
    chunks += most;
    for (size_t t = 0; t < unit.tensors.size(); ++t)
      largest[unit.tensors[t]] = input_.choices[unit.tensors[t]].candidates[unit.picks.back()[t]];
  }
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t bytes, BundleBytes(*input_.program, input_.tensors, largest, input_.extras));
  overhead_bytes_ = WholePages(bytes) - chunks;
  return Status::Ok();
}

double Planner::LossOf(size_t tensor, size_t candidate) const {
  const Candidate& c = candidates_[tensor][candidate];
  return c.loss * (c.is_old ? 1 - kLikeMargin : 1);
}

uint64_t Planner::CostOf(uint64_t stored_bytes, uint64_t resident_bytes, const Prices& prices) const {
  if (prices.resident == 0) return stored_bytes;
  if (prices.stored == 0) return resident_bytes;
  return static_cast<uint64_t>(
      std::ceil(prices.stored * static_cast<double>(stored_bytes) + prices.resident * static_cast<double>(resident_bytes)));
}

std::vector<std::vector<Option>> Planner::Front::options() const {
  std::vector<std::vector<Option>> out;
  for (const Unit& unit : units) out.push_back(unit.options);
  return out;
}

Planner::Front Planner::MakeFront(const Prices& prices) const {
  Front front;
  for (size_t unit = 0; unit < members_.size(); ++unit) AddUnit(unit, prices, &front);
  return front;
}

void Planner::AddUnit(size_t index, const Prices& prices, Front* front) const {
  const std::vector<size_t>& members = members_[index];
  const ExpertBytes& second = seconds_[index];
  std::vector<std::vector<Option>> tensors;
  for (size_t i : members) {
    tensors.emplace_back();
    for (size_t c = 0; c < candidates_[i].size(); ++c) {
      const Candidate& candidate = candidates_[i][c];
      tensors.back().push_back({CostOf(candidate.stored_bytes, candidate.resident_bytes, prices), LossOf(i, c)});
    }
  }
  const Combined combined = Combine(tensors);
  front->thinned = front->thinned || combined.thinned;
  Unit unit{members, {}, {}};
  // Options come by falling loss: of those that fill the same pages the last is the best.
  for (size_t o = 0; o < combined.options.size(); ++o) {
    uint64_t stored = 0, plain = 0, resident = 0;
    for (size_t t = 0; t < members.size(); ++t) {
      stored += candidates_[members[t]][combined.picks[o][t]].stored_bytes;
      plain += candidates_[members[t]][combined.picks[o][t]].plain_bytes;
      resident += candidates_[members[t]][combined.picks[o][t]].resident_bytes;
    }
    const uint64_t beside = second.plain > 0 && second.stored < stored ? StoredUnitBytes(second.stored, second.plain) : 0;
    const Option option{CostOf(StoredUnitBytes(stored, plain) + beside, resident, prices), combined.options[o].loss};
    if (!unit.options.empty() && unit.options.back().cost == option.cost) {
      unit.options.back() = option;
      unit.picks.back() = combined.picks[o];
    } else {
      unit.options.push_back(option);
      unit.picks.push_back(combined.picks[o]);
    }
  }
  front->units.push_back(std::move(unit));
}

Result<Plan> Planner::MakePlan(const Front& front, const std::vector<size_t>& chosen) const {
  std::vector<size_t> picks(input_.tensors.size());
  for (size_t u = 0; u < front.units.size(); ++u) {
    const Unit& unit = front.units[u];
    for (size_t t = 0; t < unit.tensors.size(); ++t) picks[unit.tensors[t]] = unit.picks[chosen[u]][t];
  }
  return PlanOf(picks);
}

Result<Plan> Planner::PlanOf(const std::vector<size_t>& picks) const {
  Plan plan;
  plan.measured_by = input_.errors != nullptr ? input_.errors->measured_by : "none";
  std::vector<RatedCodec> codecs;
  for (size_t i = 0; i < picks.size(); ++i) {
    codecs.push_back(input_.choices[i].candidates[picks[i]]);
    plan.tensors.push_back({input_.tensors[i].name, codecs.back(), 0, candidates_[i][picks[i]].loss});
    plan.predicted_kld += candidates_[i][picks[i]].loss;
  }
  MOEPACK_RETURN_IF_ERROR(FillSizes(input_.tensors, &plan));
  MOEPACK_ASSIGN_OR_RETURN(plan.bundle_bytes, BundleBytes(*input_.program, input_.tensors, codecs, input_.extras));
  return plan;
}

Result<Plan> Planner::Solve(const Front& front, uint64_t budget, uint64_t granularity) const {
  const std::vector<std::vector<Option>> options = front.options();
  MOEPACK_ASSIGN_OR_RETURN(Allocation allocation, Allocate(options, budget, granularity));
  MOEPACK_ASSIGN_OR_RETURN(Plan plan, MakePlan(front, allocation.chosen));
  if (front.thinned) allocation.bound = std::min(allocation.bound, DualBound(options, budget));
  plan.gap = allocation.gap();
  return plan;
}

Status Planner::CannotMeet(const SizeLimits& limits) const {
  uint64_t stored = overhead_bytes_, resident = 0;
  for (size_t u = 0; u < members_.size(); ++u) {
    stored += stored_.units[u].options.front().cost;
    for (size_t i : members_[u]) {
      uint64_t least = SizeLimits::kNone;
      for (const Candidate& candidate : candidates_[i]) least = std::min(least, candidate.resident_bytes);
      resident += least;
    }
  }
  std::string text;
  if (limits.stored_bytes != SizeLimits::kNone) {
    text = StrFormat("the target of %llu bytes cannot be met; the smallest bundle this recipe allows has %llu bytes",
                     Print(limits.stored_bytes), Print(stored));
  }
  if (limits.resident_bytes != SizeLimits::kNone) {
    if (!text.empty()) text += "; ";
    text += StrFormat("the resident target of %llu bytes cannot be met; the least this recipe allows is %llu bytes",
                      Print(limits.resident_bytes), Print(resident));
  }
  return Status(ErrorCode::kGate, text);
}

Result<Plan> Planner::ForStored(uint64_t stored_bytes) const {
  // Tables of other codecs than the largest can be a page longer than was reserved.
  const uint64_t pages = WholePages(stored_bytes);
  for (uint64_t overhead = overhead_bytes_;; overhead += kBundleAlignment) {
    const uint64_t budget = pages > overhead ? pages - overhead : 0;
    auto plan = Solve(stored_, budget, kBundleAlignment);
    if (!plan.ok()) return plan.status().code() == ErrorCode::kGate ? CannotMeet({stored_bytes}) : plan.status();
    if (plan->bundle_bytes <= stored_bytes) return plan;
  }
}

Result<Plan> Planner::ForLimits(const SizeLimits& limits) const {
  const bool stored = limits.stored_bytes != SizeLimits::kNone, resident = limits.resident_bytes != SizeLimits::kNone;
  std::optional<Plan> plan;
  double best_possible = 0;  // predicted KLD that either limit alone forces
  if (stored) {
    MOEPACK_ASSIGN_OR_RETURN(plan, ForStored(limits.stored_bytes));
    best_possible = plan->predicted_kld * (1 - plan->gap);
  }
  if (resident && (!stored || plan->resident_bytes > limits.resident_bytes)) {
    auto other = Solve(MakeFront({0, 1}), limits.resident_bytes, 1);
    if (!other.ok())
      return other.status().code() == ErrorCode::kGate ? CannotMeet({SizeLimits::kNone, limits.resident_bytes})
                                                       : other.status();
    best_possible = std::max(best_possible, other->predicted_kld * (1 - other->gap));
    if (stored && other->bundle_bytes > limits.stored_bytes) {
      MOEPACK_ASSIGN_OR_RETURN(other, ForBoth(limits, best_possible));
    }
    plan = *std::move(other);
  }
  if (!plan) return Largest();
  MOEPACK_ASSIGN_OR_RETURN(plan, KeepEarlier(limits, *std::move(plan)));
  plan->target_bytes = stored ? limits.stored_bytes : 0;
  plan->target_resident_bytes = resident ? limits.resident_bytes : 0;
  return *std::move(plan);
}

double Planner::LossFor(const Plan& plan) const {
  double sum = 0;
  for (size_t i = 0; i < plan.tensors.size(); ++i) {
    for (size_t c = 0; c < candidates_[i].size(); ++c) {
      if (input_.choices[i].candidates[c] != plan.tensors[i].codec) continue;
      sum += LossOf(i, c);
      break;
    }
  }
  return sum;
}

Planner Planner::WithoutEarlier() const {
  Planner out = *this;
  out.input_.like = {};
  for (std::vector<Candidate>& tensor : out.candidates_) {
    for (Candidate& candidate : tensor) candidate.is_old = false;
  }
  out.stored_ = out.MakeFront({});
  return out;
}

Result<Plan> Planner::KeepEarlier(const SizeLimits& limits, Plan found) const {
  if (input_.like.empty()) return found;
  std::vector<size_t> picks;
  for (const std::vector<Candidate>& tensor : candidates_) {
    const auto old = std::find_if(tensor.begin(), tensor.end(), [](const Candidate& c) { return c.is_old; });
    if (old == tensor.end() && tensor.size() > 1) return found;
    picks.push_back(tensor.size() > 1 ? static_cast<size_t>(old - tensor.begin()) : 0);
  }
  MOEPACK_ASSIGN_OR_RETURN(Plan earlier, PlanOf(picks));
  const bool fits = earlier.bundle_bytes <= limits.stored_bytes && earlier.resident_bytes <= limits.resident_bytes;
  if (!fits) return found;
  MOEPACK_ASSIGN_OR_RETURN(const Plan best, WithoutEarlier().ForLimits(limits));
  if (LossFor(earlier) * (1 - std::max(found.gap, best.gap)) > LossFor(found)) return found;
  const double best_possible = best.predicted_kld * (1 - best.gap);
  earlier.gap = earlier.predicted_kld > 0 ? std::max(0.0, 1 - best_possible / earlier.predicted_kld) : 0;
  return earlier;
}

// Both limits bind. Every plan within both is also within any blend of them, so each blend's best bounds the answer from
// below; the share of the blend is moved towards the limit that its best plan breaks. When the best of every blend breaks
// one of the two by a little, blends of slightly smaller limits are tried.
Result<Plan> Planner::ForBoth(const SizeLimits& limits, double best_possible) const {
  std::optional<Plan> best;
  for (const double part : {1.0, 0.995, 0.98, 0.95}) {
    MOEPACK_RETURN_IF_ERROR(SearchBlends(limits, part, &best_possible, &best));
    if (best) break;
  }
  if (!best) {
    return Status(ErrorCode::kGate,
                  StrFormat("no plan was found within both the target of %llu bytes and the resident target of %llu bytes; "
                            "each alone can be met",
                            Print(limits.stored_bytes), Print(limits.resident_bytes)));
  }
  best->gap = best->predicted_kld > 0 ? std::max(0.0, 1 - best_possible / best->predicted_kld) : 0;
  return *std::move(best);
}

Status Planner::SearchBlends(const SizeLimits& limits, double part, double* best_possible, std::optional<Plan>* best) const {
  static constexpr int kSteps = 10;
  const uint64_t pages = WholePages(limits.stored_bytes);
  const double stored_budget = static_cast<double>(pages - std::min(pages, overhead_bytes_));
  const auto resident_budget = static_cast<double>(limits.resident_bytes);
  double low = 0, high = 1;
  for (int step = 0; step < kSteps; ++step) {
    const double share = 0.5 * (low + high);
    const Prices prices = {(1 - share) * kBlendedBudget / stored_budget, share * kBlendedBudget / resident_budget};
    auto plan = Solve(MakeFront(prices), static_cast<uint64_t>(part * kBlendedBudget), 1);
    // A blend that nothing meets: no plan is within both of these limits.
    if (!plan.ok()) return plan.status().code() == ErrorCode::kGate ? Status::Ok() : plan.status();
    if (part == 1) *best_possible = std::max(*best_possible, plan->predicted_kld * (1 - plan->gap));
    const bool fits_stored = plan->bundle_bytes <= limits.stored_bytes;
    const bool fits_resident = plan->resident_bytes <= limits.resident_bytes;
    if (fits_stored && fits_resident && (!*best || plan->predicted_kld < (*best)->predicted_kld)) *best = *plan;
    // A plan within both leaves room in one of them: towards the tighter.
    const bool resident_tighter = static_cast<double>(plan->resident_bytes) / resident_budget >
                                  static_cast<double>(plan->bundle_bytes) / static_cast<double>(limits.stored_bytes);
    (fits_stored != fits_resident ? !fits_resident : resident_tighter) ? low = share : high = share;
  }
  return Status::Ok();
}

Result<Plan> Planner::Largest() const {
  std::vector<size_t> chosen;
  for (const Unit& unit : stored_.units) chosen.push_back(unit.options.size() - 1);
  return MakePlan(stored_, chosen);
}

Result<Plan> Planner::ForKld(double kld) const {
  MOEPACK_ASSIGN_OR_RETURN(Plan best, Largest());
  uint64_t low = overhead_bytes_ / kBundleAlignment, high = best.bundle_bytes / kBundleAlignment + 1;
  for (const Unit& unit : stored_.units) low += unit.options.front().cost / kBundleAlignment;
  if (best.predicted_kld > kld) return best;
  while (low < high) {
    const uint64_t middle = low + (high - low) / 2;
    MOEPACK_ASSIGN_OR_RETURN(Plan plan, ForStored(middle * kBundleAlignment));
    if (plan.predicted_kld <= kld) {
      best = std::move(plan);
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return best;
}

}  // namespace moepack
