#include "runtime-min/metric_list.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <set>

namespace moepack::runtime {
namespace {

TEST(MetricList, NamesSayUnitsAndCountersEndInTotal) {
  std::set<std::string> keys, samples, closed;
  std::string family;
  for (const Metric& metric : MetricList()) {
    EXPECT_TRUE(keys.insert(metric.key).second) << metric.key;
    if (metric.type == MetricType::kLabel) continue;
    const std::string name = metric.family;
    EXPECT_TRUE(samples.insert(name + metric.sample).second) << name;
    EXPECT_EQ(name.rfind("moepack_", 0), 0u) << name;
    EXPECT_EQ(name.ends_with("_total"), metric.type == MetricType::kCounter) << name;
    EXPECT_EQ(std::string(metric.key).ends_with("_ms"), metric.scale == 1e-3) << metric.key;
    if (metric.scale == 1e-3) {
      EXPECT_NE(name.find("_seconds"), std::string::npos) << name;
    }
    if (name != family) {
      EXPECT_TRUE(closed.insert(name).second) << name << ": samples of a family stand together";
      EXPECT_STRNE(metric.help, "") << name;
    }
    family = name;
  }
}

TEST(MetricList, WhatWasNotMeasuredIsNullAndHasNoSample) {
  const RunMetrics nothing;
  const std::string line = MetricsJsonLine(nothing);
  for (const Metric& metric : MetricList()) {
    EXPECT_NE(line.find(std::string("\"") + metric.key + "\": "), std::string::npos) << metric.key;
  }
  EXPECT_NE(line.find("\"energy_joules\": null"), std::string::npos) << line;
  EXPECT_EQ(MetricsPrometheusText(nothing),
            "# HELP moepack_verified 1: every byte used was checked against the signed manifest.\n"
            "# TYPE moepack_verified gauge\nmoepack_verified 0\n"
            "# HELP moepack_run_info What this run is, in labels.\n# TYPE moepack_run_info gauge\nmoepack_run_info 1\n");
}

TEST(MetricList, PrometheusTakesBaseUnits) {
  RunMetrics metrics;
  metrics.p95_ms = 250;
  metrics.decode_ms = 1500;
  metrics.decoded_tokens = 12;
  metrics.expert_hits = UINT64_MAX;
  const std::string text = MetricsPrometheusText(metrics);
  EXPECT_EQ(text.rfind("# HELP moepack_decode_token_seconds Time of one generated token.\n"
                       "# TYPE moepack_decode_token_seconds summary\n"
                       "moepack_decode_token_seconds{quantile=\"0.95\"} 0.25\n"
                       "moepack_decode_token_seconds_sum 1.5\n"
                       "moepack_decode_token_seconds_count 12\n",
                       0),
            0u)
      << text;
  EXPECT_NE(text.find("\nmoepack_expert_hits_total 18446744073709551615\n"), std::string::npos) << text;
}

TEST(MetricList, WhatFallsAgainIsNoCounter) {
  RunMetrics metrics;
  metrics.prefetches_wasted = 3;  // experts that may still be used
  const std::string text = MetricsPrometheusText(metrics);
  EXPECT_NE(text.find("# TYPE moepack_prefetches_wasted gauge\nmoepack_prefetches_wasted 3\n"), std::string::npos) << text;
}

TEST(MetricList, TextIsEscapedAndNumbersAreNumbers) {
  RunMetrics metrics;
  metrics.cache_policy = "a\"b\\c\nd\x01";
  metrics.energy_source = "rapl";
  metrics.hit_rate = std::nan("");
  metrics.ttft_ms = 0.1;
  const std::string line = MetricsJsonLine(metrics);
  EXPECT_NE(line.find(R"("cache_policy": "a\"b\\c\nd\u0001")"), std::string::npos) << line;
  EXPECT_NE(line.find("\"hit_rate\": null"), std::string::npos) << line;
  EXPECT_NE(line.find("\"ttft_ms\": 0.1,"), std::string::npos) << line;
  EXPECT_EQ(line.find('\n'), std::string::npos);
  const std::string text = MetricsPrometheusText(metrics);
  EXPECT_NE(text.find("moepack_run_info{cache_policy=\"a\\\"b\\\\c\\nd\x01\",energy_source=\"rapl\"} 1\n"),
            std::string::npos)
      << text;
  EXPECT_EQ(text.find("hit_ratio"), std::string::npos);
}

}  // namespace
}  // namespace moepack::runtime
