#include "runtime-min/metrics.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>

#include "runtime-min/engine.h"
#include "runtime-min/stdio_file.h"

namespace moepack::runtime {

std::optional<double> Percentile(std::span<const double> samples, double percent) {
  if (samples.empty()) return std::nullopt;
  std::vector<double> sorted(samples.begin(), samples.end());
  std::sort(sorted.begin(), sorted.end());
  const double rank = std::ceil(percent / 100.0 * static_cast<double>(sorted.size()));
  return sorted[static_cast<size_t>(std::clamp(rank, 1.0, static_cast<double>(sorted.size()))) - 1];
}

namespace {

// The first number that `format` reads in a line of a file; none without the file or the line.
std::optional<uint64_t> NumberIn(const char* path, const char* format) {
  const StdioFile file(std::fopen(path, "r"));
  if (file == nullptr) return std::nullopt;
  char line[256];
  unsigned long long number = 0;
  while (std::fgets(line, sizeof(line), file.get()) != nullptr) {
    if (std::sscanf(line, format, &number) == 1) return number;
  }
  return std::nullopt;
}

}  // namespace

// getrusage would report the peak of a parent process that this one was started from.
std::optional<uint64_t> PeakRssBytes() {
  const std::optional<uint64_t> kib = NumberIn("/proc/self/status", "VmHWM: %llu kB");
  return kib ? std::optional<uint64_t>(*kib * 1024) : std::nullopt;
}

std::optional<uint64_t> AvailableMemoryBytes() {
  std::optional<uint64_t> available = NumberIn("/proc/meminfo", "MemAvailable: %llu kB");
  if (!available) return std::nullopt;
  *available *= 1024;
  struct Group {
    const char *limit, *usage;
  };
  for (const Group& group :
       {Group{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"},
        Group{"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"}}) {
    const std::optional<uint64_t> limit = NumberIn(group.limit, "%llu"), usage = NumberIn(group.usage, "%llu");
    if (limit && usage) available = std::min(*available, *limit - std::min(*limit, *usage));
  }
  return available;
}

void SummarizeDecode(std::span<const double> step_ms, RunMetrics* metrics) {
  double total = 0;
  for (double ms : step_ms) total += ms;
  metrics->decode_ms = total;
  metrics->decoded_tokens = step_ms.size();
  if (total > 0) metrics->decode_tokens_per_s = static_cast<double>(step_ms.size()) * 1000.0 / total;
  metrics->p50_ms = Percentile(step_ms, 50);
  metrics->p95_ms = Percentile(step_ms, 95);
  metrics->p99_ms = Percentile(step_ms, 99);
}

void FillFromEngine(const Engine& engine, RunMetrics* metrics) {
  const ExpertCache& experts = engine.experts();
  const ExpertCacheStats& stats = experts.stats();
  const uint64_t lookups = stats.hits + stats.prefetched + stats.misses;
  if (lookups > 0) metrics->hit_rate = static_cast<double>(stats.hits) / static_cast<double>(lookups);
  metrics->expert_loads = stats.loads;
  metrics->expert_bytes_read = stats.bytes_read;
  metrics->cache_policy = DescribeCachePolicy(experts.policy());
  metrics->expert_hits = stats.hits;
  metrics->experts_prefetched = stats.prefetched;
  metrics->expert_misses = stats.misses;
  metrics->experts_prefetched_late = stats.late;
  metrics->experts_foreseen = stats.foreseen;
  metrics->prefetch_depth = engine.prefetch();
  metrics->prefetches = stats.prefetch_loads;
  metrics->prefetches_wasted = stats.wasted;
  metrics->prefetch_bytes_read = stats.prefetch_bytes_read;
  metrics->expert_evictions = stats.evictions;
  metrics->experts_pinned = experts.kept_experts();
  metrics->expert_budget_bytes = experts.budget_bytes();
  metrics->expert_budget_limit_bytes = experts.limit_bytes();
  const StandInStats& stand_ins = engine.stand_ins();
  metrics->experts_lowered = stand_ins.lowered;
  metrics->experts_skipped = stand_ins.skipped;
  metrics->experts_bridged_retry = stand_ins.retried;
  metrics->experts_bridged_lower = stand_ins.bridged_lower;
  metrics->experts_bridged_twin = stand_ins.bridged_twin;
  metrics->experts_bridged_renormalise = stand_ins.renormalised;
  metrics->experts_bridged_dense = stand_ins.bridged_dense;
  metrics->peak_rss_bytes = PeakRssBytes();
  metrics->verified = true;  // an engine is made from a verified bundle only
}

double MonotonicMs() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::milli>(now).count();
}

}  // namespace moepack::runtime
