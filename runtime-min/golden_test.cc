#include "runtime-min/golden.h"

#include <gtest/gtest.h>

#include "runtime-min/testing/toy_engine.h"

namespace moepack::runtime {
namespace {

using testing::ToyUnits;

const std::vector<std::vector<uint32_t>> kPrompts = {{1, 2, 3, 4, 5, 6, 7}, {90}, {12, 55, 31}};
constexpr uint32_t kSteps = 12;

class Golden : public ::testing::Test {
 protected:
  std::unique_ptr<Engine> MakeEngine(const std::string& codec, const EngineOptions& options = {}) {
    auto engine = Engine::Create(ToyUnits(program_, codec), pool_, options);
    EXPECT_TRUE(engine.ok()) << engine.status().message();
    return std::move(*engine);
  }
  GoldenPrompts Record(const std::string& codec) {
    return RecordGolden(*MakeEngine(codec, {.isa = kernels::Isa::kScalar}), kPrompts, kSteps).value();
  }

  const Program program_ = testing::ToyLanguageModel();
  ThreadPool pool_{2};
  GoldenReport report_;
};

TEST_F(Golden, EveryInstructionSetAgrees) {
  for (const char* codec : {"f32", "i8g64", "i4g32"}) {
    const GoldenPrompts golden = Record(codec);
    EXPECT_TRUE(ParseGoldenPrompts(SerializeGoldenPrompts(golden)).ok());
    EXPECT_TRUE(ValidateGoldenPrompts(golden, program_).ok());
    for (const kernels::Isa isa : kernels::SupportedIsas()) {
      GoldenReport report;
      const Status status = CheckGolden(*MakeEngine(codec, {.isa = isa}), golden, &report);
      EXPECT_TRUE(status.ok()) << codec << ' ' << kernels::IsaName(isa) << ": " << status.message();
      EXPECT_EQ(report.agreed + report.differed, kPrompts.size() * kSteps);
    }
  }
}

TEST_F(Golden, RecordsTheMostLikelyTokensAndGoesOnWithThem) {
  const GoldenPrompts golden = Record("f32");
  const auto engine = MakeEngine("f32");
  std::vector<int32_t> sequence(kPrompts[2].begin(), kPrompts[2].end());
  for (const GoldenStep& step : golden.prompts[2].steps) {
    engine->Reset();
    ASSERT_TRUE(engine->Prefill(sequence).ok());
    const std::span<const float> logits = engine->logits();
    const auto best = std::ranges::max_element(logits) - logits.begin();
    EXPECT_EQ(step.tokens[0], static_cast<uint32_t>(best));
    EXPECT_NEAR(step.logits[0], logits[static_cast<size_t>(best)], golden.tolerance);
    sequence.push_back(static_cast<int32_t>(step.tokens[0]));
  }
}

TEST_F(Golden, OtherWeightsDiffer) {
  const Status status = CheckGolden(*MakeEngine("i3mg16"), Record("f32"), &report_);
  EXPECT_EQ(status.code(), ErrorCode::kGate);
  EXPECT_NE(status.message().find("golden prompts: "), std::string::npos) << status.message();
}

// `wrong` steps with another token in the first place.
GoldenPrompts WithWrongTokens(GoldenPrompts golden, size_t wrong) {
  for (size_t i = 0; i < wrong; ++i) {
    GoldenStep& step = golden.prompts[0].steps[golden.prompts[0].steps.size() - 1 - i];
    uint32_t other = 0;
    while (std::ranges::find(step.tokens, other) != step.tokens.end()) ++other;
    step.tokens[0] = other;
  }
  return golden;
}

TEST_F(Golden, AsManyStepsMayDifferAsTheBundleAllows) {
  const GoldenPrompts golden = Record("f32");
  ASSERT_EQ(golden.allowed, 2u);  // of 36
  // The last one of a sequence spoils no other; the one before it is read by the last, which may differ too.
  EXPECT_TRUE(CheckGolden(*MakeEngine("f32"), WithWrongTokens(golden, 1), &report_).ok());
  EXPECT_EQ(report_.differed, 1u);
  report_ = {};
  const Status status = CheckGolden(*MakeEngine("f32"), WithWrongTokens(golden, 3), &report_);
  EXPECT_EQ(status.code(), ErrorCode::kGate);
  EXPECT_NE(status.message().find("prompt 0, step 9"), std::string::npos) << status.message();
}

TEST_F(Golden, ATokenThatIsNotListedMayNotBeMoreLikely) {
  GoldenPrompts golden = Record("f32");
  golden.allowed = 0;
  for (GoldenPrompt& prompt : golden.prompts) {
    for (GoldenStep& step : prompt.steps) {
      step.tokens.resize(1);
      step.logits.resize(1);
    }
  }
  EXPECT_TRUE(CheckGolden(*MakeEngine("f32"), golden, &report_).ok());
  // The right logit, of the second token: the first one is above it.
  const GoldenStep full = Record("f32").prompts[1].steps.back();
  ASSERT_GT(full.logits[0] - full.logits[1], golden.tolerance);
  golden.prompts[1].steps.back() = {{full.tokens[1]}, {full.logits[1]}};
  EXPECT_EQ(CheckGolden(*MakeEngine("f32"), golden, &report_).code(), ErrorCode::kGate);
}

TEST_F(Golden, RefusesWhatCannotBeRecorded) {
  const auto engine = MakeEngine("f32");
  EXPECT_EQ(RecordGolden(*engine, {}, 1).status().code(), ErrorCode::kUsage);
  EXPECT_EQ(RecordGolden(*engine, {{}}, 1).status().code(), ErrorCode::kUsage);
  EXPECT_EQ(RecordGolden(*engine, kPrompts, 0).status().code(), ErrorCode::kUsage);
  EXPECT_EQ(RecordGolden(*engine, kPrompts, kMaxGoldenSteps + 1).status().code(), ErrorCode::kUsage);
  EXPECT_EQ(RecordGolden(*engine, {{testing::kToyVocabulary}}, 1).status().code(), ErrorCode::kBadInput);
}

TEST_F(Golden, ADamagedExpertIsAnError) {
  auto source = ToyUnits(program_, "i8g64");
  for (uint32_t e = 0; e < 7; ++e) source->broken.insert({1, e});
  const auto engine = Engine::Create(std::move(source), pool_, {});
  ASSERT_TRUE(engine.ok());
  EXPECT_EQ(CheckGolden(**engine, Record("i8g64"), &report_).code(), ErrorCode::kDigest);
}

}  // namespace
}  // namespace moepack::runtime
