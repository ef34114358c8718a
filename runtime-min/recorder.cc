#include "runtime-min/recorder.h"

namespace moepack::runtime {

void Recorder::AddPrefill(uint64_t tokens, double ms) {
  prefilled_tokens_ += tokens;
  prefill_ms_ += ms;
  energy_.SampleInTime(MonotonicMs());
}

void Recorder::AddStep(double ms, uint64_t tokens) {
  if (step_ms_.size() < kSteps) {
    step_ms_.push_back(ms);
  } else {
    step_ms_[steps_ % kSteps] = ms;
  }
  ++steps_;
  decoded_tokens_ += tokens;
  decode_ms_ += ms;
  energy_.SampleInTime(MonotonicMs());
}

void Recorder::Fill(const Engine& engine, RunMetrics* metrics) {
  SummarizeDecode(step_ms_, metrics);
  metrics->decode_ms = decode_ms_;
  metrics->decoded_tokens = decoded_tokens_;
  if (decode_ms_ > 0) metrics->decode_tokens_per_s = static_cast<double>(decoded_tokens_) * 1000.0 / decode_ms_;
  metrics->ttft_ms = ttft_ms_;
  metrics->prefilled_tokens = prefilled_tokens_;
  if (prefill_ms_ > 0) metrics->prefill_tokens_per_s = static_cast<double>(prefilled_tokens_) * 1000.0 / prefill_ms_;
  energy_.Sample(MonotonicMs());
  metrics->energy_joules = energy_.joules();
  metrics->energy_source = energy_.source();
  FillFromEngine(engine, metrics);
}

}  // namespace moepack::runtime
