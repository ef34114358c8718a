#include "runtime-min/golden.h"

#include <algorithm>
#include <cmath>

namespace moepack::runtime {
namespace {

std::vector<int32_t> Signed(const std::vector<uint32_t>& tokens) { return {tokens.begin(), tokens.end()}; }

Status NextStep(Engine& engine, uint32_t token) {
  const int32_t next = static_cast<int32_t>(token);
  return engine.Run({&next, 1});
}

// The most likely tokens, ties to the lower id as in Argmax.
GoldenStep MostLikely(std::span<const float> logits) {
  std::vector<uint32_t> ids(logits.size());
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<uint32_t>(i);
  const size_t count = std::min<size_t>(kGoldenLogitsRecorded, ids.size());
  std::partial_sort(ids.begin(), ids.begin() + static_cast<ptrdiff_t>(count), ids.end(),
                    [&](uint32_t a, uint32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; });
  ids.resize(count);
  GoldenStep step;
  for (const uint32_t id : ids) step.logits.push_back(logits[id]);
  step.tokens = std::move(ids);
  return step;
}

// Raises `*largest` to the largest absolute value of a logit that was seen.
Result<GoldenPrompt> RecordPrompt(Engine& engine, const std::vector<uint32_t>& tokens, uint32_t steps, float* largest) {
  GoldenPrompt out;
  out.tokens = tokens;
  engine.Reset();
  MOEPACK_RETURN_IF_ERROR(engine.Prefill(Signed(tokens)));
  for (;;) {
    const std::span<const float> logits = engine.logits();
    for (const float logit : logits) {
      if (!std::isfinite(logit)) return Status(ErrorCode::kNotFinite, "the model answers with a logit that is no number");
      *largest = std::max(*largest, std::fabs(logit));
    }
    out.steps.push_back(MostLikely(logits));
    if (out.steps.size() == steps) return out;
    MOEPACK_RETURN_IF_ERROR(NextStep(engine, out.steps.back().tokens[0]));
  }
}

// Empty when the step agrees, otherwise what differs.
std::string DifferenceOf(std::span<const float> logits, const GoldenStep& step, float tolerance, float* largest) {
  for (size_t i = 0; i < step.tokens.size(); ++i) {
    const float got = logits[step.tokens[i]];
    const double difference = std::fabs(double{got} - double{step.logits[i]});
    if (!(difference <= double{tolerance})) {
      return StrFormat("logit of token %u is %g, expected %g within %g", step.tokens[i], double{got}, double{step.logits[i]},
                       double{tolerance});
    }
    *largest = std::max(*largest, static_cast<float>(difference));
  }
  const double most = double{step.logits.back()} + double{tolerance};
  for (size_t token = 0; token < logits.size(); ++token) {
    if (double{logits[token]} <= most || std::ranges::find(step.tokens, token) != step.tokens.end()) continue;
    return StrFormat("token %zu has logit %g, expected at most %g; the most likely is token %u", token,
                     double{logits[token]}, most, step.tokens[0]);
  }
  return {};
}

}  // namespace

Result<GoldenPrompts> RecordGolden(Engine& engine, const std::vector<std::vector<uint32_t>>& prompts, uint32_t steps,
                                   float tolerance) {
  if (prompts.empty() || prompts.size() > kMaxGoldenPrompts) {
    return Status(ErrorCode::kUsage, StrFormat("%zu golden prompts, expected 1 to %llu", prompts.size(),
                                               static_cast<unsigned long long>(kMaxGoldenPrompts)));
  }
  if (steps < 1 || steps > kMaxGoldenSteps) {
    return Status(ErrorCode::kUsage, StrFormat("%u steps of a golden prompt, expected 1 to %llu", steps,
                                               static_cast<unsigned long long>(kMaxGoldenSteps)));
  }
  GoldenPrompts golden;
  float largest = 0;
  for (size_t p = 0; p < prompts.size(); ++p) {
    if (prompts[p].empty() || prompts[p].size() > kMaxGoldenTokens) {
      return Status(ErrorCode::kUsage, StrFormat("golden prompt %zu: %zu tokens, expected 1 to %llu", p, prompts[p].size(),
                                                 static_cast<unsigned long long>(kMaxGoldenTokens)));
    }
    Result<GoldenPrompt> recorded = RecordPrompt(engine, prompts[p], steps, &largest);
    if (!recorded.ok()) return recorded.status().With(StrFormat("golden prompt %zu", p));
    golden.prompts.push_back(std::move(*recorded));
  }
  golden.tolerance = tolerance * largest;
  golden.allowed = static_cast<uint32_t>(golden.steps() / kGoldenStepsForOneAllowed);
  if (!(golden.tolerance > 0)) return Status(ErrorCode::kBadInput, "the model answers golden prompts with zeros only");
  return golden;
}

Status CheckGolden(Engine& engine, const GoldenPrompts& golden, GoldenReport* report) {
  std::string first;
  for (size_t p = 0; p < golden.prompts.size(); ++p) {
    const GoldenPrompt& prompt = golden.prompts[p];
    engine.Reset();
    MOEPACK_RETURN_IF_ERROR(engine.Prefill(Signed(prompt.tokens)));
    for (size_t s = 0; s < prompt.steps.size(); ++s) {
      if (s > 0) MOEPACK_RETURN_IF_ERROR(NextStep(engine, prompt.steps[s - 1].tokens[0]));
      const std::string difference =
          DifferenceOf(engine.logits(), prompt.steps[s], golden.tolerance, &report->largest_difference);
      ++(difference.empty() ? report->agreed : report->differed);
      if (first.empty() && !difference.empty()) first = StrFormat("prompt %zu, step %zu: %s", p, s, difference.c_str());
    }
  }
  if (report->differed <= golden.allowed) return Status::Ok();
  return Status(ErrorCode::kGate, StrFormat("golden prompts: %llu of %llu steps differ, at most %u may; %s",
                                            static_cast<unsigned long long>(report->differed),
                                            static_cast<unsigned long long>(golden.steps()), golden.allowed, first.c_str()));
}

}  // namespace moepack::runtime
