#include "runtime-min/metrics.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>

namespace moepack::runtime {

std::optional<double> Percentile(std::span<const double> samples, double percent) {
  if (samples.empty()) return std::nullopt;
  std::vector<double> sorted(samples.begin(), samples.end());
  std::sort(sorted.begin(), sorted.end());
  const double rank = std::ceil(percent / 100.0 * static_cast<double>(sorted.size()));
  return sorted[static_cast<size_t>(std::clamp(rank, 1.0, static_cast<double>(sorted.size()))) - 1];
}

// getrusage would report the peak of a parent process that this one was started from.
std::optional<uint64_t> PeakRssBytes() {
  struct Close {
    void operator()(std::FILE* f) const { std::fclose(f); }
  };
  const std::unique_ptr<std::FILE, Close> file(std::fopen("/proc/self/status", "r"));
  if (file == nullptr) return std::nullopt;
  char line[256];
  unsigned long long kib = 0;
  while (std::fgets(line, sizeof(line), file.get()) != nullptr) {
    if (std::sscanf(line, "VmHWM: %llu kB", &kib) == 1) return uint64_t{kib} * 1024;
  }
  return std::nullopt;
}

void SummarizeDecode(std::span<const double> step_ms, RunMetrics* metrics) {
  double total = 0;
  for (double ms : step_ms) total += ms;
  if (total > 0) metrics->decode_tokens_per_s = static_cast<double>(step_ms.size()) * 1000.0 / total;
  metrics->p50_ms = Percentile(step_ms, 50);
  metrics->p95_ms = Percentile(step_ms, 95);
  metrics->p99_ms = Percentile(step_ms, 99);
}

double MonotonicMs() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::milli>(now).count();
}

}  // namespace moepack::runtime
