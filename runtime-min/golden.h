// Golden prompts (format/manifest/golden.h): records what an engine answers, and checks that an engine answers as recorded.
// Both run each prompt as a sequence of its own and always go on with the recorded token, so that one difference is not
// followed by others that mean nothing. The engine's context is GoldenPrompts::context() for both (LongRoPE looks at it).
#pragma once

#include <vector>

#include "format/manifest/golden.h"
#include "runtime-min/engine.h"

namespace moepack::runtime {

// Kernels of two instruction sets differ by up to 4e-5 of the largest logit as long as they choose the same experts
// (docs/results/trust.md), wrong weights by shares of it: ample room on both sides.
inline constexpr float kGoldenTolerance = 0.01f;
inline constexpr uint32_t kGoldenLogitsRecorded = 4;  // of a step
// Of so many steps one may differ.
inline constexpr uint32_t kGoldenStepsForOneAllowed = 16;

// Answers of `engine` to each prompt: `steps` tokens, for each the most likely ones with their logits. `tolerance` is a
// share of the largest logit of these steps. kUsage for no prompts or steps or more than the format holds; kNotFinite;
// errors of Engine::Run.
Result<GoldenPrompts> RecordGolden(Engine& engine, const std::vector<std::vector<uint32_t>>& prompts, uint32_t steps,
                                   float tolerance = kGoldenTolerance);

struct GoldenReport {
  uint64_t agreed = 0, differed = 0;  // steps
  float largest_difference = 0;       // of a logit from the recorded one, where it is within the tolerance
};

// SPEC.md, section 14: kGate when more steps differ than may, with the first of them; errors of Engine::Run. `report` counts
// up to there.
Status CheckGolden(Engine& engine, const GoldenPrompts& golden, GoldenReport* report);

}  // namespace moepack::runtime
