// The one list of metrics: --json, JSON lines and Prometheus text are made from it. A metric is a field of RunMetrics and an
// entry here.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <variant>

#include "runtime-min/metrics.h"

namespace moepack::runtime {

// What was not measured has no value.
using MetricValue = std::variant<std::monostate, bool, uint64_t, double, std::string>;

enum class MetricType : uint8_t {
  kGauge,
  kCounter,  // only grows until metrics are reset
  kSummary,  // one sample of a summary: a quantile, the sum or the count
  kLabel,    // text: a label of kInfoFamily
};

struct Metric {
  const char* key;  // in JSON; its unit is that of the field of RunMetrics
  MetricType type;
  const char* family;  // name in Prometheus, with the base unit; of a label its own name
  const char* sample;  // what follows the family's name in a sample: "", "_sum", a label
  double scale;        // from the unit of JSON to that of Prometheus
  const char* help;    // one line
  MetricValue (*value)(const RunMetrics&);
};

inline constexpr const char* kInfoFamily = "moepack_run_info";

// Samples of one family stand together.
std::span<const Metric> MetricList();

// One JSON object on one line without a newline, keys in the order of the list. What has no value and numbers that are not
// finite are null.
std::string MetricsJsonLine(const RunMetrics& metrics);

// Prometheus text exposition format 0.0.4: HELP and TYPE of each family, then its samples; what has no value is left out.
std::string MetricsPrometheusText(const RunMetrics& metrics);

}  // namespace moepack::runtime
