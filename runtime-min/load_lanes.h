// Threads of their own that load experts ahead of time, while the threads of the pool compute.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>

#include "base/status.h"
#include "runtime-min/expert_load.h"

namespace moepack::runtime {

// What a lane made of an expert.
struct LaneResult {
  uint32_t id = 0;
  ExpertWeights weights;  // at the place that was given; empty or in part when the status is an error
  Status status;
};

// A queue of loads, begun in the order they came. One thread at a time calls it; it alone decides what becomes of a result.
// A lane writes to the place of its load and to nothing else that the caller sees.
class LoadLanes {
 public:
  // `source` must outlive it. lanes, most_loads: at least 1. kNoMemory when the system does not start the threads.
  static Result<std::unique_ptr<LoadLanes>> Start(UnitSource& source, uint32_t lanes, uint32_t most_loads);
  // Drops loads that have not begun and waits for those that have.
  ~LoadLanes();
  LoadLanes(const LoadLanes&) = delete;
  LoadLanes& operator=(const LoadLanes&) = delete;

  // most_loads loads are queued, under way, or done and not taken.
  bool full() const { return outstanding_ == most_loads_; }
  bool empty() const { return outstanding_ == 0; }
  // LoadExpert of (table, physical) to `place`, under a number of the caller's that no outstanding load has. Not full().
  void Submit(uint32_t id, uint32_t table, uint32_t physical, uint8_t* place);
  // True when the load had not begun: it is forgotten. False: it is under way or done.
  bool Cancel(uint32_t id);
  // The result of any load that is done; none when there is none.
  std::optional<LaneResult> TakeDone();
  // The result of a load that was submitted, as soon as it is done.
  LaneResult Wait(uint32_t id);

 private:
  struct State;
  explicit LoadLanes(std::unique_ptr<State> state, uint32_t most_loads);
  std::unique_ptr<State> state_;
  uint32_t most_loads_ = 0, outstanding_ = 0;
};

}  // namespace moepack::runtime
