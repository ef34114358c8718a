// From error table and budget to a plan.
#pragma once

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

class Planner {
 public:
  // kInternal when the table lacks a candidate.
  static Result<Planner> Create(const PlannerInput& input);

  // Least predicted KLD with a bundle of at most `target_bytes`; kGate with the smallest possible size otherwise.
  Result<Plan> ForSize(uint64_t target_bytes) const;
  // The same with so many bytes set aside for tables and blobs; the plan may exceed the target when they were too few.
  Result<Plan> WithOverhead(uint64_t target_bytes, uint64_t overhead_bytes) const;
  // Smallest bundle whose predicted KLD is at most `kld`; the best plan of all when none is.
  Result<Plan> ForKld(double kld) const;
  // Every tensor's least lossy candidate.
  Result<Plan> Largest() const;

 private:
  explicit Planner(const PlannerInput& input) : input_(input) {}
  struct UnitChoice {
    std::vector<size_t> tensors;  // indices into input_.tensors
    std::vector<std::vector<uint8_t>> picks;
  };
  Status AddUnit(std::vector<size_t> members);
  double LossOf(size_t tensor, size_t candidate) const;
  Result<Plan> MakePlan(const std::vector<size_t>& chosen) const;

  PlannerInput input_;
  std::vector<std::vector<double>> losses_;  // [tensor][candidate] predicted KLD
  std::vector<std::vector<bool>> is_old_;    // [tensor][candidate]: the earlier plan's choice
  std::vector<UnitChoice> units_;
  std::vector<std::vector<Option>> options_;  // one list a unit
  bool thinned_ = false;
  uint64_t overhead_bytes_ = 0;  // of everything that is not a unit's chunks, at its largest
};

}  // namespace moepack
