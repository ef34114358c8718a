#include "format/manifest/golden.h"

#include <algorithm>
#include <cmath>

#include "format/manifest/tables_schema.h"
#include "format/manifest/wire_io.h"
#include "format/program_input.h"
#include "format/proto/golden.pb.h"

namespace moepack {
namespace {

constexpr uint32_t kGoldenVersion = 1;

Status Malformed(std::string message) { return Status(ErrorCode::kMalformed, std::move(message)); }

Status CheckStep(const GoldenStep& step) {
  if (step.tokens.empty() || step.logits.size() != step.tokens.size())
    return Malformed("expected tokens and a logit for each");
  for (const float logit : step.logits) {
    if (!std::isfinite(logit)) return Malformed("a logit that is no number");
  }
  for (size_t i = 1; i < step.logits.size(); ++i) {
    if (step.logits[i] > step.logits[i - 1]) return Malformed("logits must not rise");
  }
  std::vector<uint32_t> sorted = step.tokens;
  std::ranges::sort(sorted);
  if (std::ranges::adjacent_find(sorted) == sorted.end()) return Status::Ok();
  return Malformed("a token is listed twice");
}

Status CheckPrompt(const GoldenPrompt& prompt) {
  if (prompt.tokens.empty() || prompt.steps.empty()) return Malformed("has no tokens or no steps");
  for (size_t s = 0; s < prompt.steps.size(); ++s) {
    const Status status = CheckStep(prompt.steps[s]);
    if (!status.ok()) return status.With(StrFormat("step %zu", s));
  }
  return Status::Ok();
}

Status CheckGolden(const GoldenPrompts& golden) {
  if (!std::isfinite(golden.tolerance) || golden.tolerance <= 0)
    return Malformed("golden prompts: tolerance is not above 0");
  if (golden.prompts.empty()) return Malformed("golden prompts: there are none");
  for (size_t p = 0; p < golden.prompts.size(); ++p) {
    const Status status = CheckPrompt(golden.prompts[p]);
    if (!status.ok()) return status.With(StrFormat("golden prompt %zu", p));
  }
  if (golden.allowed < golden.steps()) return Status::Ok();
  return Malformed(
      StrFormat("golden prompts: all of the %llu steps may differ", static_cast<unsigned long long>(golden.steps())));
}

// Rows of the smallest embedding table: the token ids that can be read. None where the input is of floats.
uint64_t ReadableTokens(const Program& program) {
  if (InputWidth(program) > 0) return 0;
  uint64_t rows = UINT64_MAX;
  for (const Node& node : program.nodes) {
    if (node.kind == NodeKind::kEmbedding) rows = std::min(rows, program.tensors[node.embedding.table].rows);
  }
  return rows;
}

Status ValidatePrompt(const GoldenPrompt& prompt, uint64_t readable, uint64_t vocabulary, uint64_t positions) {
  if (prompt.positions() > positions) {
    return Malformed(StrFormat("takes %llu positions, the program has %llu",
                               static_cast<unsigned long long>(prompt.positions()),
                               static_cast<unsigned long long>(positions)));
  }
  for (const uint32_t token : prompt.tokens) {
    if (token >= readable) return Malformed(StrFormat("token %u, which the program cannot read", token));
  }
  for (size_t s = 0; s < prompt.steps.size(); ++s) {
    for (const uint32_t token : prompt.steps[s].tokens) {
      if (token >= vocabulary) return Malformed(StrFormat("token %u, which has no logit", token));
    }
    const uint32_t expected = prompt.steps[s].tokens[0];
    if (s + 1 < prompt.steps.size() && expected >= readable)
      return Malformed(StrFormat("expected token %u, which the program cannot read", expected));
  }
  return Status::Ok();
}

}  // namespace

uint64_t GoldenPrompts::context() const {
  uint64_t longest = 0;
  for (const GoldenPrompt& prompt : prompts) longest = std::max(longest, prompt.positions());
  return longest;
}

uint64_t GoldenPrompts::steps() const {
  uint64_t count = 0;
  for (const GoldenPrompt& prompt : prompts) count += prompt.steps.size();
  return count;
}

Bytes SerializeGoldenPrompts(const GoldenPrompts& golden) {
  wire::GoldenPrompts message;
  message.set_version(kGoldenVersion);
  message.set_tolerance(golden.tolerance);
  message.set_allowed(golden.allowed);
  for (const GoldenPrompt& prompt : golden.prompts) {
    wire::GoldenPrompt* out = message.add_prompts();
    out->mutable_tokens()->Add(prompt.tokens.begin(), prompt.tokens.end());
    for (const GoldenStep& step : prompt.steps) {
      wire::GoldenStep* out_step = out->add_steps();
      out_step->mutable_tokens()->Add(step.tokens.begin(), step.tokens.end());
      out_step->mutable_logits()->Add(step.logits.begin(), step.logits.end());
    }
  }
  return SerializeMessage(message);
}

Result<GoldenPrompts> ParseGoldenPrompts(ByteSpan bytes) {
  wire::GoldenPrompts message;
  MOEPACK_RETURN_IF_ERROR(ParseMessage(wire_check::kGoldenPrompts, kGoldenVersion, bytes, &message));
  GoldenPrompts out;
  out.tolerance = message.tolerance();
  out.allowed = message.allowed();
  for (const wire::GoldenPrompt& prompt : message.prompts()) {
    GoldenPrompt& next = out.prompts.emplace_back();
    next.tokens.assign(prompt.tokens().begin(), prompt.tokens().end());
    for (const wire::GoldenStep& step : prompt.steps()) {
      next.steps.push_back({{step.tokens().begin(), step.tokens().end()}, {step.logits().begin(), step.logits().end()}});
    }
  }
  MOEPACK_RETURN_IF_ERROR(CheckGolden(out));
  return out;
}

Status ValidateGoldenPrompts(const GoldenPrompts& golden, const Program& program) {
  const uint64_t readable = ReadableTokens(program), vocabulary = program.values[program.output].width;
  for (size_t p = 0; p < golden.prompts.size(); ++p) {
    const Status status = ValidatePrompt(golden.prompts[p], readable, vocabulary, program.max_positions);
    if (!status.ok()) return status.With(StrFormat("golden prompt %zu", p));
  }
  return Status::Ok();
}

}  // namespace moepack
