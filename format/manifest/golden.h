// Golden prompts of a bundle: what its bytes answer, signed with them, so that a device can see for itself that a new bundle
// works before it gives the old one up. format/SPEC.md, section 14; format/proto/golden.proto is the wire form.
#pragma once

#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"
#include "format/program.h"

namespace moepack {

inline constexpr uint64_t kMaxGoldenPrompts = 64;
inline constexpr uint64_t kMaxGoldenTokens = 4096;  // of one prompt
inline constexpr uint64_t kMaxGoldenSteps = 256;    // of one prompt
inline constexpr uint64_t kMaxGoldenLogits = 16;    // of one step

// The most likely tokens after what came before, most likely first, with their logits. The first is the expected one.
struct GoldenStep {
  std::vector<uint32_t> tokens;  // 1..kMaxGoldenLogits, distinct
  std::vector<float> logits;     // one a token, never rising
  bool operator==(const GoldenStep&) const = default;
};

struct GoldenPrompt {
  std::vector<uint32_t> tokens;
  std::vector<GoldenStep> steps;  // step i follows the prompt and the expected tokens of the steps before it
  // Positions that the last step needs: the last expected token is never read.
  uint64_t positions() const { return tokens.size() + steps.size() - 1; }
  bool operator==(const GoldenPrompt&) const = default;
};

struct GoldenPrompts {
  float tolerance = 0;  // largest difference of a logit from the one listed, finite and above 0
  // Steps that may differ, fewer than there are: where two experts are as good as equal, kernels of two instruction sets may
  // choose differently, and logits then differ by more than rounding.
  uint32_t allowed = 0;
  std::vector<GoldenPrompt> prompts;  // empty: the bundle has none
  uint64_t steps() const;             // of all prompts
  // Of the longest sequence: a runtime is set up for this many positions.
  uint64_t context() const;
  bool operator==(const GoldenPrompts&) const = default;
};

// As the functions of manifest.h; R-2xx, R-421 to R-423.
Bytes SerializeGoldenPrompts(const GoldenPrompts& golden);
Result<GoldenPrompts> ParseGoldenPrompts(ByteSpan bytes);

// tokens that the program does not have, sequences that it cannot hold. kMalformed. Nothing to check without prompts.
Status ValidateGoldenPrompts(const GoldenPrompts& golden, const Program& program);

}  // namespace moepack
