// From error table and budget to a plan.
#pragma once

#include <limits>
#include <optional>
#include <vector>

#include "compressor/plan/allocate.h"
#include "compressor/plan/bundle_size.h"
#include "compressor/plan/error_table.h"
#include "compressor/plan/plan.h"
#include "compressor/recipe.h"

namespace moepack {

struct PlannerInput {
  const Program* program = nullptr;
  std::span<const TensorRef> tensors;  // ListTensors of the program
  std::span<const Choice> choices;     // one a tensor
  const ErrorTable* errors = nullptr;  // null: every tensor has one candidate
  BundleExtras extras;
  std::span<const PlanTensor> like;  // an earlier plan's choices, or empty
};

// A choice of the earlier plan stays unless another lowers the predicted loss of its tensor by more than this share.
inline constexpr double kLikeMargin = 0.25;

// What a device has room for: the bundle file, and all weight buffers once loaded (ResidentBytes of every tensor).
struct SizeLimits {
  static constexpr uint64_t kNone = std::numeric_limits<uint64_t>::max();
  uint64_t stored_bytes = kNone, resident_bytes = kNone;
};

class Planner {
 public:
  // kInternal when the table lacks a candidate.
  static Result<Planner> Create(const PlannerInput& input);

  // Least predicted KLD within the limits; kGate with the smallest possible sizes when no plan meets them.
  Result<Plan> ForLimits(const SizeLimits& limits) const;
  // Smallest bundle whose predicted KLD is at most `kld`; the best plan of all when none is.
  Result<Plan> ForKld(double kld) const;
  // Every tensor's least lossy candidate.
  Result<Plan> Largest() const;

 private:
  explicit Planner(const PlannerInput& input) : input_(input) {}
  struct Unit {
    std::vector<size_t> tensors;  // indices into input_.tensors
    std::vector<Option> options;
    std::vector<std::vector<uint8_t>> picks;  // candidate of each tensor under each option
  };
  // What a unit's bytes cost. With one of the shares 0 this is the size in bytes of the other kind.
  struct Prices {
    double stored = 1, resident = 0;
  };
  struct Front {
    std::vector<Unit> units;
    bool thinned = false;
    std::vector<std::vector<Option>> options() const;
  };
  Status ReadTensor(size_t tensor, const TensorErrors* measured, const RatedCodec* like);
  Status CountSecond(const std::vector<size_t>& members);
  Status SetOverhead();
  Front MakeFront(const Prices& prices) const;
  void AddUnit(size_t unit, const Prices& prices, Front* front) const;
  uint64_t CostOf(uint64_t stored_bytes, uint64_t resident_bytes, const Prices& prices) const;
  double LossOf(size_t tensor, size_t candidate) const;
  Result<Plan> MakePlan(const Front& front, const std::vector<size_t>& chosen) const;
  Result<Plan> PlanOf(const std::vector<size_t>& picks) const;  // candidate of each tensor
  // The earlier plan when it is within the limits and `found` is not better by more than the gap that the search leaves
  // open, counting earlier choices as kLikeMargin says: chance alone must not move a plan.
  Result<Plan> KeepEarlier(const SizeLimits& limits, Plan found) const;
  Planner WithoutEarlier() const;
  double LossFor(const Plan& plan) const;
  // Least loss whose cost is at most the budget.
  Result<Plan> Solve(const Front& front, uint64_t budget, uint64_t granularity) const;
  Result<Plan> ForStored(uint64_t stored_bytes) const;
  Result<Plan> ForBoth(const SizeLimits& limits, double best_possible) const;
  // Best plan of blends of `part` (at most 1) of the limits, when it is within both and better than *best.
  Status SearchBlends(const SizeLimits& limits, double part, double* best_possible, std::optional<Plan>* best) const;
  Status CannotMeet(const SizeLimits& limits) const;

  PlannerInput input_;
  struct Candidate {
    uint64_t stored_bytes = 0, plain_bytes = 0, resident_bytes = 0;
    double loss = 0;      // predicted KLD
    bool is_old = false;  // the earlier plan's choice
  };
  std::vector<std::vector<Candidate>> candidates_;  // [tensor][candidate]
  std::vector<std::vector<size_t>> members_;        // tensors of each unit
  std::vector<ExpertBytes> seconds_;                // of each unit in the second precision; zeros: it cannot have one
  Front stored_;                                    // the front when only the file counts
  uint64_t overhead_bytes_ = 0;                     // of everything that is not a unit's chunks, at its largest
};

}  // namespace moepack
