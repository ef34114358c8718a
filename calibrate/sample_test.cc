#include "calibrate/sample.h"

#include <gtest/gtest.h>

#include "calibrate/testing/tiny_model.h"

namespace moepack {
namespace {

using testing::NotingProgress;
using ::testing::Test;
using testing::ToyText;

TEST(ShareEvenlyTest, PoorDomainsGiveWhatTheyHave) {
  using V = std::vector<uint64_t>;
  EXPECT_EQ(ShareEvenly(9, V{10, 10, 10}), (V{3, 3, 3}));
  EXPECT_EQ(ShareEvenly(10, V{10, 10, 10}), (V{4, 3, 3}));
  EXPECT_EQ(ShareEvenly(9, V{10, 1, 10}), (V{4, 1, 4}));
  EXPECT_EQ(ShareEvenly(100, V{10, 1, 10}), (V{10, 1, 10}));
  EXPECT_EQ(ShareEvenly(2, V{10, 10, 10}), (V{1, 1, 0}));
}

class SampleTest : public Test {
 protected:
  Result<CalibrationSample> Sample(uint64_t tokens, uint64_t ctx, const std::vector<CalibrationText>& texts) {
    return SampleTexts(model_, texts, {.tokens = tokens, .ctx = ctx}, progress_);
  }
  Model model_ = testing::GoldenModel("olmoe");
  NotingProgress progress_;
};

TEST_F(SampleTest, SequencesComeFromAllOverEachText) {
  const std::string a = ToyText(1000, 1), b = ToyText(350, 2);
  const auto sample = Sample(640, 64, {{"a", a}, {"b", b}});
  ASSERT_TRUE(sample.ok()) << sample.status().message();
  EXPECT_EQ(sample->batch.size(), 640u);
  EXPECT_EQ(sample->sequence_domain, (std::vector<uint32_t>{0, 0, 0, 0, 0, 1, 1, 1, 1, 1}));
  EXPECT_EQ(sample->token_domain.size(), 640u);
  // a has 15 sequences, every third is taken: the fourth taken starts at 9 * 64.
  EXPECT_EQ(sample->batch.begin(3), 192u);
  for (size_t i = 0; i < 64; ++i) EXPECT_EQ(sample->batch.tokens[192 + i], a[9 * 64 + i]);
  EXPECT_TRUE(progress_.notes.empty());
}

TEST_F(SampleTest, TellsOfDomainsNotReachedAndOfShortTexts) {
  ASSERT_TRUE(Sample(64, 64, {{"a", ToyText(200, 1)}, {"b", ToyText(200, 2)}}).ok());
  ASSERT_EQ(progress_.notes.size(), 1u);
  EXPECT_NE(progress_.notes[0].find("'b' is not reached"), std::string::npos);
  progress_.notes.clear();
  const auto sample = Sample(6400, 64, {{"a", ToyText(200, 1)}});
  ASSERT_TRUE(sample.ok());
  EXPECT_EQ(sample->batch.size(), 192u);
  ASSERT_EQ(progress_.notes.size(), 1u);
  EXPECT_NE(progress_.notes[0].find("only 192 of the 6400"), std::string::npos);
}

TEST_F(SampleTest, RefusesWhatCannotBeSampled) {
  const CalibrationText good{"a", ToyText(500, 1)};
  const auto code = [&](uint64_t tokens, uint64_t ctx, std::vector<CalibrationText> texts) {
    return Sample(tokens, ctx, texts).status().code();
  };
  EXPECT_EQ(code(128, 64, {}), ErrorCode::kUsage);
  EXPECT_EQ(code(63, 64, {good}), ErrorCode::kUsage);
  EXPECT_EQ(code(128, 1, {good}), ErrorCode::kUsage);
  EXPECT_EQ(code(1 << 20, model_.program.max_positions + 1, {good}), ErrorCode::kUsage);
  EXPECT_EQ(code(128, 64, {good, good}), ErrorCode::kUsage);
  EXPECT_EQ(code(128, 64, {good, {"", "text"}}), ErrorCode::kUsage);
  EXPECT_EQ(code(128, 64, {good, {"b", ""}}), ErrorCode::kBadInput);
  EXPECT_EQ(code(128, 64, {good, {"b", "short"}}), ErrorCode::kBadInput);
  model_.tokenizer.clear();
  EXPECT_EQ(code(128, 64, {good}), ErrorCode::kTokenizer);
}

}  // namespace
}  // namespace moepack
