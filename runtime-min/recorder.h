// Measures what a run of any length does, in constant memory, and makes RunMetrics of it.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "runtime-min/energy.h"
#include "runtime-min/metrics.h"

namespace moepack::runtime {

// One thread at a time.
class Recorder {
 public:
  // Percentiles are of this many last decode steps.
  static constexpr size_t kSteps = 65536;

  // Energy counts from here. `sysfs`: EnergyMeter's.
  explicit Recorder(const std::string& sysfs = "/sys") : energy_(sysfs) {}

  void AddPrefill(uint64_t tokens, double ms);
  void SetFirstToken(double ms) { ttft_ms_ = ms; }  // since its prompt was given
  void AddStep(double ms, uint64_t tokens = 1);     // one token each of so many sequences
  // All fields of `metrics` but those that say nothing yet.
  void Fill(const Engine& engine, RunMetrics* metrics);

 private:
  EnergyMeter energy_;
  std::optional<double> ttft_ms_;
  uint64_t prefilled_tokens_ = 0, decoded_tokens_ = 0, steps_ = 0;
  double prefill_ms_ = 0, decode_ms_ = 0;
  std::vector<double> step_ms_;  // the last kSteps, as a ring
};

}  // namespace moepack::runtime
