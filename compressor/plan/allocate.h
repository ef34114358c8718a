// The allocator: one option for every unit, least total loss within a budget (multiple-choice knapsack).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"

namespace moepack {

// One way to encode a tensor or a whole unit.
struct Option {
  uint64_t cost = 0;  // bytes
  double loss = 0;    // predicted KLD, not negative
};

struct Allocation {
  std::vector<size_t> chosen;  // option of each unit
  uint64_t cost = 0;
  double loss = 0;
  double bound = 0;  // no choice within the budget has a smaller loss
  double gap() const { return loss > 0 ? (loss - bound) / loss : 0; }
};

// Costs are rounded up to multiples of `granularity` (> 0). Exact by dynamic programming (bound = loss) while the table
// stays small (a second of work, 128 MiB); otherwise Lagrangian relaxation with greedy filling, and `bound` from the dual.
// Ties go to the smaller cost, then to the lower index. kGate with the smallest possible cost when no choice fits.
Result<Allocation> Allocate(std::span<const std::vector<Option>> units, uint64_t budget, uint64_t granularity);

// A loss that no choice within the budget can undercut, from the Lagrangian dual; costs in bytes, not rounded.
double DualBound(std::span<const std::vector<Option>> units, uint64_t budget);

// The options of a unit whose tensors are chosen independently: every undominated sum. picks[i][t] is the option of tensor
// t in options[i]; options come by increasing cost and falling loss. Above kMaxFront points the front is thinned evenly;
// the points of its convex hull always stay, so DualBound over what is left holds for all of it.
struct Combined {
  std::vector<Option> options;
  std::vector<std::vector<uint8_t>> picks;
  bool thinned = false;
};
inline constexpr size_t kMaxFront = 4096;
Combined Combine(std::span<const std::vector<Option>> tensors);

}  // namespace moepack
