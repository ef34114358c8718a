#include "runtime-min/metric_list.h"

#include <charconv>
#include <cmath>
#include <cstring>

#include "base/status.h"

namespace moepack::runtime {
namespace {

constexpr double kMilli = 1e-3;

template <typename T>
MetricValue ValueOf(const std::optional<T>& field) {
  return field.has_value() ? MetricValue(*field) : MetricValue();
}

// The value of one field of RunMetrics.
template <auto field>
MetricValue Field(const RunMetrics& metrics) {
  return ValueOf(metrics.*field);
}

using M = RunMetrics;
constexpr Metric kMetrics[] = {
    {"ttft_ms", MetricType::kGauge, "moepack_time_to_first_token_seconds", "", kMilli,
     "From the prompt to the first token chosen.", &Field<&M::ttft_ms>},
    {"prefilled_tokens", MetricType::kCounter, "moepack_prefilled_tokens_total", "", 1, "Prompt tokens computed.",
     &Field<&M::prefilled_tokens>},
    {"prefill_tokens_per_s", MetricType::kGauge, "moepack_prefill_tokens_per_second", "", 1, "Speed of the prompt.",
     &Field<&M::prefill_tokens_per_s>},
    {"decode_tokens_per_s", MetricType::kGauge, "moepack_decode_tokens_per_second", "", 1, "Speed of generated tokens.",
     &Field<&M::decode_tokens_per_s>},
    {"p50_ms", MetricType::kSummary, "moepack_decode_token_seconds", "{quantile=\"0.5\"}", kMilli,
     "Time of one generated token.", &Field<&M::p50_ms>},
    {"p95_ms", MetricType::kSummary, "moepack_decode_token_seconds", "{quantile=\"0.95\"}", kMilli, "", &Field<&M::p95_ms>},
    {"p99_ms", MetricType::kSummary, "moepack_decode_token_seconds", "{quantile=\"0.99\"}", kMilli, "", &Field<&M::p99_ms>},
    {"decode_ms", MetricType::kSummary, "moepack_decode_token_seconds", "_sum", kMilli, "", &Field<&M::decode_ms>},
    {"decoded_tokens", MetricType::kSummary, "moepack_decode_token_seconds", "_count", 1, "", &Field<&M::decoded_tokens>},
    {"hit_rate", MetricType::kGauge, "moepack_expert_hit_ratio", "", 1,
     "Share of the experts that the router chose that were resident, those apart that had been loaded ahead of their first "
     "use.",
     &Field<&M::hit_rate>},
    {"expert_hits", MetricType::kCounter, "moepack_expert_hits_total", "", 1, "Experts resident when the router chose them.",
     &Field<&M::expert_hits>},
    {"experts_prefetched", MetricType::kCounter, "moepack_experts_prefetched_total", "", 1,
     "Experts that the router chose first after they had been loaded ahead.", &Field<&M::experts_prefetched>},
    {"expert_misses", MetricType::kCounter, "moepack_expert_misses_total", "", 1,
     "Experts not resident when the router chose them.", &Field<&M::expert_misses>},
    {"experts_prefetched_late", MetricType::kCounter, "moepack_experts_prefetched_late_total", "", 1,
     "Of those: experts that were being loaded ahead and were waited for.", &Field<&M::experts_prefetched_late>},
    {"experts_foreseen", MetricType::kCounter, "moepack_experts_foreseen_total", "", 1,
     "Experts that the router chose and the prediction had named.", &Field<&M::experts_foreseen>},
    {"prefetch_depth", MetricType::kGauge, "moepack_prefetch_layers", "", 1,
     "Layers ahead that experts are predicted for; 0: none are loaded ahead.", &Field<&M::prefetch_depth>},
    {"prefetches", MetricType::kCounter, "moepack_prefetches_total", "", 1, "Experts loaded ahead.", &Field<&M::prefetches>},
    {"prefetches_wasted", MetricType::kGauge, "moepack_prefetches_wasted", "", 1,
     "Of those: not used so far, evicted or not. Falls when one is used.", &Field<&M::prefetches_wasted>},
    {"prefetch_bytes_read", MetricType::kCounter, "moepack_prefetch_read_bytes_total", "", 1,
     "Stored bytes of experts loaded ahead.", &Field<&M::prefetch_bytes_read>},
    {"expert_loads", MetricType::kCounter, "moepack_expert_loads_total", "", 1,
     "Experts read and verified, preloads included.", &Field<&M::expert_loads>},
    {"expert_bytes_read", MetricType::kCounter, "moepack_expert_read_bytes_total", "", 1, "Stored bytes of those experts.",
     &Field<&M::expert_bytes_read>},
    {"expert_evictions", MetricType::kCounter, "moepack_expert_evictions_total", "", 1, "Experts that made room.",
     &Field<&M::expert_evictions>},
    {"cache_policy", MetricType::kLabel, "cache_policy", "", 1, "", &Field<&M::cache_policy>},
    {"experts_pinned", MetricType::kGauge, "moepack_experts_pinned", "", 1, "Hot experts that never leave.",
     &Field<&M::experts_pinned>},
    {"expert_budget_bytes", MetricType::kGauge, "moepack_expert_budget_bytes", "", 1, "Bytes that experts may take now.",
     &Field<&M::expert_budget_bytes>},
    {"expert_budget_limit_bytes", MetricType::kGauge, "moepack_expert_budget_limit_bytes", "", 1,
     "What the budget may grow to.", &Field<&M::expert_budget_limit_bytes>},
    {"experts_lowered", MetricType::kCounter, "moepack_experts_lowered_total", "", 1,
     "Experts used in a lower precision because they were not resident.", &Field<&M::experts_lowered>},
    {"experts_skipped", MetricType::kCounter, "moepack_experts_skipped_total", "", 1,
     "Experts left out because they were not resident.", &Field<&M::experts_skipped>},
    {"experts_bridged_retry", MetricType::kCounter, "moepack_experts_bridged_total", "{step=\"retry\"}", 1,
     "Experts that could not be read, by the step of the signed policy that bridged it.", &Field<&M::experts_bridged_retry>},
    {"experts_bridged_lower", MetricType::kCounter, "moepack_experts_bridged_total", "{step=\"lower\"}", 1, "",
     &Field<&M::experts_bridged_lower>},
    {"experts_bridged_twin", MetricType::kCounter, "moepack_experts_bridged_total", "{step=\"twin\"}", 1, "",
     &Field<&M::experts_bridged_twin>},
    {"experts_bridged_renormalise", MetricType::kCounter, "moepack_experts_bridged_total", "{step=\"renormalise\"}", 1, "",
     &Field<&M::experts_bridged_renormalise>},
    {"experts_bridged_dense", MetricType::kCounter, "moepack_experts_bridged_total", "{step=\"dense\"}", 1, "",
     &Field<&M::experts_bridged_dense>},
    {"peak_rss_bytes", MetricType::kGauge, "moepack_peak_resident_memory_bytes", "", 1,
     "Most resident memory of the process.", &Field<&M::peak_rss_bytes>},
    {"energy_joules", MetricType::kCounter, "moepack_energy_joules_total", "", 1,
     "Energy of the whole machine while this ran, by energy_source.", &Field<&M::energy_joules>},
    {"energy_source", MetricType::kLabel, "energy_source", "", 1, "", &Field<&M::energy_source>},
    {"verified", MetricType::kGauge, "moepack_verified", "", 1,
     "1: every byte used was checked against the signed manifest.",
     [](const RunMetrics& m) { return MetricValue(m.verified); }},
};

// The shortest decimal that reads back as the same double.
std::string NumberText(double value) {
  char text[40];
  const auto end = std::to_chars(text, text + sizeof(text), value).ptr;
  return std::string(text, end);
}

// `text` between quotes. Both formats know \" \\ and \n; JSON wants other control characters escaped as well.
std::string Quoted(const std::string& text, bool json) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (json && static_cast<unsigned char>(c) < 0x20) {
      out += StrFormat("\\u%04x", static_cast<unsigned>(c));
    } else {
      out += c;
    }
  }
  return out + '"';
}

std::string JsonText(const MetricValue& value) {
  if (const auto* flag = std::get_if<bool>(&value)) return *flag ? "true" : "false";
  if (const auto* count = std::get_if<uint64_t>(&value)) return std::to_string(*count);
  if (const auto* number = std::get_if<double>(&value)) return std::isfinite(*number) ? NumberText(*number) : "null";
  if (const auto* text = std::get_if<std::string>(&value)) return Quoted(*text, true);
  return "null";
}

// Empty: no sample.
std::string SampleText(const MetricValue& value, double scale) {
  if (const auto* flag = std::get_if<bool>(&value)) return *flag ? "1" : "0";
  if (const auto* count = std::get_if<uint64_t>(&value)) return std::to_string(*count);
  if (const auto* number = std::get_if<double>(&value)) return std::isfinite(*number) ? NumberText(*number * scale) : "";
  return "";
}

const char* TypeName(MetricType type) {
  if (type == MetricType::kCounter) return "counter";
  return type == MetricType::kSummary ? "summary" : "gauge";
}

std::string Heading(const char* family, const char* help, MetricType type) {
  return StrFormat("# HELP %s %s\n# TYPE %s %s\n", family, help, family, TypeName(type));
}

std::string InfoText(const RunMetrics& metrics) {
  std::string labels;
  for (const Metric& metric : kMetrics) {
    if (metric.type != MetricType::kLabel) continue;
    const MetricValue value = metric.value(metrics);
    if (const auto* text = std::get_if<std::string>(&value)) {
      labels += (labels.empty() ? "" : ",") + (metric.family + ("=" + Quoted(*text, false)));
    }
  }
  return Heading(kInfoFamily, "What this run is, in labels.", MetricType::kGauge) + kInfoFamily +
         (labels.empty() ? "" : "{" + labels + "}") + " 1\n";
}

}  // namespace

std::span<const Metric> MetricList() { return kMetrics; }

std::string MetricsJsonLine(const RunMetrics& metrics) {
  std::string line = "{";
  for (const Metric& metric : kMetrics) {
    line += (line.size() > 1 ? ", \"" : "\"") + (metric.key + ("\": " + JsonText(metric.value(metrics))));
  }
  return line + "}";
}

std::string MetricsPrometheusText(const RunMetrics& metrics) {
  std::string text;
  const char* family = "";
  for (const Metric& metric : kMetrics) {
    const std::string sample = SampleText(metric.value(metrics), metric.scale);
    if (sample.empty()) continue;
    if (std::strcmp(family, metric.family) != 0) {
      family = metric.family;
      const Metric* first = &metric;  // its help is the family's
      while (first != kMetrics && std::strcmp(first[-1].family, family) == 0) --first;
      text += Heading(family, first->help, metric.type);
    }
    text += std::string(family) + metric.sample + " " + sample + "\n";
  }
  return text + InfoText(metrics);
}

}  // namespace moepack::runtime
