#include "format/manifest/golden.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "format/testing/tiny_program.h"

namespace moepack {
namespace {

GoldenPrompts Golden() {
  GoldenPrompts golden;
  golden.tolerance = 0.25f;
  golden.allowed = 1;
  golden.prompts = {{{3, 1, 2}, {{{7, 4}, {2.5f, 0.0f}}, {{1, 0}, {1.5f, 1.5f}}}}, {{5}, {{{6}, {-3.0f}}}}};
  return golden;
}

using Edit = std::function<void(GoldenPrompts&)>;

TEST(Golden, ComesBackAsItWas) {
  const Result<GoldenPrompts> parsed = ParseGoldenPrompts(SerializeGoldenPrompts(Golden()));
  ASSERT_TRUE(parsed.ok()) << parsed.status().message();
  EXPECT_EQ(*parsed, Golden());
  EXPECT_EQ(parsed->steps(), 3u);
  EXPECT_EQ(parsed->context(), 4u);  // the last expected token is not read
}

TEST(Golden, HasTheBytesOfTheSpecification) {
  Bytes bytes(23);
  ASSERT_TRUE(
      FromHex("0801150000803e220e0a01051209"  // SPEC.md, section 14
              "0a01061204000040c0",
              bytes));
  GoldenPrompts golden;
  golden.tolerance = 0.25f;
  golden.prompts = {{{5}, {{{6}, {-3.0f}}}}};
  EXPECT_EQ(SerializeGoldenPrompts(golden), bytes);
}

TEST(Golden, RefusesWhatIsNoExpectation) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  const Edit edits[] = {[](GoldenPrompts& g) { g.prompts.clear(); },
                        [](GoldenPrompts& g) { g.prompts[0].tokens.clear(); },
                        [](GoldenPrompts& g) { g.prompts[1].steps.clear(); },
                        [](GoldenPrompts& g) { g.prompts[0].steps[1] = {}; },
                        [](GoldenPrompts& g) { g.prompts[0].steps[1].logits.pop_back(); },
                        [](GoldenPrompts& g) { g.allowed = 3; },
                        [](GoldenPrompts& g) { g.tolerance = 0; },
                        [](GoldenPrompts& g) { g.tolerance = -1; },
                        [&](GoldenPrompts& g) { g.tolerance = infinity; },
                        [&](GoldenPrompts& g) { g.prompts[0].steps[0].logits[1] = nan; },
                        [&](GoldenPrompts& g) { g.prompts[0].steps[0].logits[0] = infinity; },
                        [](GoldenPrompts& g) {
                          g.prompts[0].steps[1].logits = {1.0f, 1.5f};
                        },
                        [](GoldenPrompts& g) {
                          g.prompts[0].steps[0].tokens = {7, 7};
                        }};
  for (size_t i = 0; i < std::size(edits); ++i) {
    GoldenPrompts golden = Golden();
    edits[i](golden);
    EXPECT_EQ(ParseGoldenPrompts(SerializeGoldenPrompts(golden)).status().code(), ErrorCode::kMalformed) << i;
  }
}

TEST(Golden, RefusesMoreThanTheFormatHolds) {
  const Edit edits[] = {[](GoldenPrompts& g) { g.prompts.resize(kMaxGoldenPrompts + 1, g.prompts[0]); },
                        [](GoldenPrompts& g) { g.prompts[0].tokens.resize(kMaxGoldenTokens + 1); },
                        [](GoldenPrompts& g) { g.prompts[0].steps.resize(kMaxGoldenSteps + 1, g.prompts[0].steps[0]); },
                        [](GoldenPrompts& g) { g.prompts[0].steps[0].tokens.resize(kMaxGoldenLogits + 1); }};
  for (size_t i = 0; i < std::size(edits); ++i) {
    GoldenPrompts golden = Golden();
    edits[i](golden);
    EXPECT_EQ(ParseGoldenPrompts(SerializeGoldenPrompts(golden)).status().code(), ErrorCode::kLimit) << i;
  }
}

TEST(Golden, FitsItsProgram) {
  const Program program = testing::TinyProgram();
  const uint32_t readable = static_cast<uint32_t>(program.tensors[0].rows), most = program.max_positions;
  EXPECT_TRUE(ValidateGoldenPrompts(Golden(), program).ok());
  EXPECT_TRUE(ValidateGoldenPrompts({}, program).ok());
  const Edit edits[] = {[&](GoldenPrompts& g) { g.prompts[0].tokens[2] = readable; },
                        [&](GoldenPrompts& g) { g.prompts[0].steps[0].tokens[0] = readable; },
                        [&](GoldenPrompts& g) {
                          g.prompts[1].steps[0].tokens[0] = static_cast<uint32_t>(program.values[program.output].width);
                        },
                        [&](GoldenPrompts& g) { g.prompts[0].tokens.resize(most); }};
  for (size_t i = 0; i < std::size(edits); ++i) {
    GoldenPrompts golden = Golden();
    edits[i](golden);
    EXPECT_EQ(ValidateGoldenPrompts(golden, program).code(), ErrorCode::kMalformed) << i;
  }
}

}  // namespace
}  // namespace moepack
