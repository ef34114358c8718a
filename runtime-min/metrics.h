// What a run is measured by. Keys of the JSON output are the field names; metric_list.h makes every output.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace moepack::runtime {

class Engine;

// A value that was not measured has none, and is printed as null.
struct RunMetrics {
  std::optional<double> ttft_ms;                 // prompt given to first token chosen
  std::optional<uint64_t> prefilled_tokens;      // of prompts
  std::optional<double> prefill_tokens_per_s;    // prompt tokens / time of prefill
  std::optional<double> decode_tokens_per_s;     // tokens of all sequences / time of the steps
  std::optional<double> p50_ms, p95_ms, p99_ms;  // of one decode step
  std::optional<double> decode_ms;               // of all of them
  std::optional<uint64_t> decoded_tokens;        // how many
  std::optional<double> hit_rate;                // experts that the router chose: expert_hits / (all of them), 0..1
  std::optional<uint64_t> expert_loads;          // experts read and verified, preloads included
  std::optional<uint64_t> expert_bytes_read;     // stored bytes of those
  // The expert cache since its statistics were reset.
  std::optional<std::string> cache_policy;  // DescribeCachePolicy
  // Experts by what the router found: resident; resident since they were loaded ahead, and used for the first time; not
  // resident. Of those: being loaded ahead; named by the prediction.
  std::optional<uint64_t> expert_hits, experts_prefetched, expert_misses, experts_prefetched_late, experts_foreseen;
  std::optional<uint64_t> prefetch_depth;       // layers ahead; 0: none
  std::optional<uint64_t> prefetches;           // experts loaded ahead
  std::optional<uint64_t> prefetches_wasted;    // of those: not used
  std::optional<uint64_t> prefetch_bytes_read;  // of expert_bytes_read: loaded ahead
  std::optional<uint64_t> expert_evictions;
  std::optional<uint64_t> experts_pinned;             // hot ones that never leave
  std::optional<uint64_t> expert_budget_bytes;        // now
  std::optional<uint64_t> expert_budget_limit_bytes;  // what it may grow to
  // StandInStats
  std::optional<uint64_t> experts_lowered, experts_skipped;
  std::optional<uint64_t> experts_bridged_retry, experts_bridged_lower, experts_bridged_twin, experts_bridged_renormalise,
      experts_bridged_dense;
  std::optional<uint64_t> peak_rss_bytes;    // of the process
  std::optional<double> energy_joules;       // of the whole machine meanwhile
  std::optional<std::string> energy_source;  // what told it
  bool verified = false;                     // every byte used was checked against the signed manifest
};

// Value at or below which `percent` of the samples lie (nearest rank); none for no samples. Sorts a copy.
std::optional<double> Percentile(std::span<const double> samples, double percent);

// VmHWM of this process; none where the system does not tell.
std::optional<uint64_t> PeakRssBytes();

// Bytes that this process could still take without pushing others out: what Linux estimates, or what the limit of its
// control group leaves, whichever is less; none where the system does not tell.
std::optional<uint64_t> AvailableMemoryBytes();

// Fills what is about decoding from the durations of decode steps in milliseconds.
void SummarizeDecode(std::span<const double> step_ms, RunMetrics* metrics);

// Fills what the expert cache, the process and `verified` tell.
void FillFromEngine(const Engine& engine, RunMetrics* metrics);

// Milliseconds since some fixed moment; never goes back.
double MonotonicMs();

}  // namespace moepack::runtime
