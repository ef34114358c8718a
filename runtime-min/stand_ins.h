// What takes the place of an expert that is not there: lossy stand-ins on a miss, when the user asks for speed, and what the
// signed policy of a bundle lets stand in for bytes that cannot be had. Wrong bytes never have a stand-in.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "format/manifest/manifest.h"

namespace moepack::runtime {

// Whether an error of reading says that bytes could not be had: a chunk that is not there, a file that ends too early, an
// I/O error. Anything else, a wrong digest above all, is about bytes that were read.
bool IsUnavailable(const Status& status);

// What to do about a chosen expert that is not resident when the router has decided. kLower and kSkip change results: which
// experts are resident depends on the cache's history.
enum class OnMiss : uint8_t {
  kLoad,   // load it
  kLower,  // load a lower precision of it where it matters less
  kSkip,   // the same, and leave it out where it matters least
};

// HOBBIT (arXiv 2411.01433): with a token's chosen experts sorted by falling weight, s of an expert is the sum of the
// weights before it over the sum of all. s <= lower_above: the expert itself; s <= skip_above, or kLower: its lower
// precision, where the bundle has one; above: nothing. The first of a token always has s = 0.
struct MissPolicy {
  OnMiss on_miss = OnMiss::kLoad;
  double lower_above = 0.6, skip_above = 0.9;  // HOBBIT's, of two experts a token
  // kUsage unless 0 <= lower_above <= skip_above <= 1.
  Status Check() const;
};
OnMiss ActionFor(const MissPolicy& policy, double weight_before);

// s of each of a token's choices. Sizes are equal; weights are counted by their absolute values; all 0: s is 0.
void WeightsBefore(std::span<const float> weights, std::span<float> before);

// The variants of every expert by what they are.
class StandIns {
 public:
  explicit StandIns(const std::vector<ExpertTable>& tables);
  // The next variant after `variant` of that kind; none: there is no more.
  std::optional<uint32_t> Next(uint32_t table, uint32_t expert, uint32_t variant, VariantKind kind) const;
  // Whether any expert has a lower precision.
  bool any_lower() const { return any_lower_; }

 private:
  std::vector<std::vector<std::vector<VariantKind>>> kinds_;  // [table][expert][variant]
  bool any_lower_ = false;
};

// Counted in lookups: an expert that one run of a node needs, for however many tokens.
struct StandInStats {
  uint64_t lowered = 0, skipped = 0;  // on a miss, by MissPolicy
  // Experts that could not be read at once, by the step that bridged it.
  uint64_t retried = 0, bridged_lower = 0, bridged_twin = 0, renormalised = 0, bridged_dense = 0;
  uint64_t bridged() const { return retried + bridged_lower + bridged_twin + renormalised + bridged_dense; }
};

// Called with a sentence for a log, by the thread that runs the engine.
using Notice = std::function<void(const std::string&)>;

struct StandInOptions {
  MissPolicy misses;
  std::vector<Unavailable> unavailable;  // the bundle's steps
  Notice notice;                         // of the first time that a step bridges an expert; may be empty
};

}  // namespace moepack::runtime
