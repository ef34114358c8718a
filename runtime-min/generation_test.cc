#include "runtime-min/generation.h"

#include <gtest/gtest.h>

#include "runtime-min/testing/toy_engine.h"

namespace moepack::runtime {
namespace {

using testing::ToyUnits;

TEST(WholeCharacters, HoldsBackWhatIsNotWhole) {
  WholeCharacters characters;
  EXPECT_EQ(characters.Push("a\xc3"), "a");
  EXPECT_EQ(characters.Push("\xa4"
                            "b\xe2\x82"),
            "\xc3\xa4"
            "b");
  EXPECT_EQ(characters.Push("\xac\xf0"), "\xe2\x82\xac");
  EXPECT_EQ(characters.Push("\x9f"), "");
  EXPECT_EQ(characters.Push("\x98"), "");
  EXPECT_EQ(characters.Push("\x80"), "\xf0\x9f\x98\x80");
  EXPECT_EQ(characters.Rest(), "");
}

TEST(WholeCharacters, BytesThatAreNoCharacterGoThrough) {
  WholeCharacters characters;
  for (const char* bytes : {"\x80\x80\x80\x80", "\xff", "\xc0", "\xf5", "\xc3(", "\xf0\x9f\x98z"}) {
    EXPECT_EQ(characters.Push(bytes), bytes);
  }
  EXPECT_EQ(characters.Push("x\xf0\x9f"), "x");
  EXPECT_EQ(characters.Rest(), "\xf0\x9f");
  EXPECT_EQ(characters.Rest(), "");
}

TEST(WholeCharacters, AnyCutGivesTheSameBytes) {
  const std::string text =
      "Stra\xc3\x9f"
      "e \xe2\x82\xac\xf0\x9f\x98\x80\xc3\xe2\x82 end\xf0\x9f";
  for (size_t step = 1; step <= text.size(); ++step) {
    WholeCharacters characters;
    std::string out;
    for (size_t at = 0; at < text.size(); at += step) out += characters.Push(std::string_view(text).substr(at, step));
    EXPECT_EQ(out + characters.Rest(), text) << step;
  }
}

class Generation : public ::testing::Test {
 protected:
  // A token for each byte.
  static std::unique_ptr<Tokenizer> ByteTokenizer(std::vector<uint32_t> end_of_text) {
    TokenizerData data;
    for (int byte = 0; byte < 256; ++byte) data.tokens.push_back(std::string(1, static_cast<char>(byte)));
    data.end_of_text = std::move(end_of_text);
    auto tokenizer = Tokenizer::Parse(SerializeTokenizer(data));
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().message();
    return std::move(*tokenizer);
  }
  void MakeEngine(uint32_t context = 64) {
    EngineOptions options;
    options.context = context;
    engine_ = std::move(*Engine::Create(ToyUnits(program_, "f32"), pool_, options));
  }
  // Tokens that were given out.
  std::vector<int32_t> Run(const Tokenizer* tokenizer, uint64_t most, size_t stop_after = SIZE_MAX) {
    std::vector<int32_t> tokens;
    text_.clear();
    Sampler sampler({});
    const auto sink = [&](int32_t token, std::string_view text) {
      text_ += text;
      if (token != kRestOfText) tokens.push_back(token);
      return tokens.size() < stop_after;
    };
    const auto stopped = Generate(*engine_, tokenizer, sampler, {kPrompt, most}, sink, recorder_);
    EXPECT_TRUE(stopped.ok()) << stopped.status().message();
    stopped_ = *stopped;
    return tokens;
  }

  inline static const std::vector<int32_t> kPrompt = {1, 2, 3, 4};
  const Program program_ = testing::ToyLanguageModel();
  ThreadPool pool_{2};
  std::unique_ptr<Engine> engine_;
  Recorder recorder_{"no sysfs"};
  std::string text_;
  StopReason stopped_ = StopReason::kCaller;
};

TEST_F(Generation, GivesTheMostLikelyTokensUntilALimit) {
  MakeEngine();
  const std::vector<int32_t> tokens = Run(nullptr, 8);
  EXPECT_EQ(stopped_, StopReason::kLength);
  ASSERT_EQ(tokens.size(), 8u);
  EXPECT_EQ(text_, "");
  EXPECT_EQ(engine_->position(), kPrompt.size() + 7);
  std::vector<int32_t> sequence = kPrompt;
  for (const int32_t token : tokens) {
    engine_->Reset();
    ASSERT_TRUE(engine_->Prefill(sequence).ok());
    EXPECT_EQ(Argmax(engine_->logits()), token);
    sequence.push_back(token);
  }
}

TEST_F(Generation, StopsForEachReason) {
  MakeEngine();
  const std::vector<int32_t> tokens = Run(nullptr, 8);
  engine_->Reset();
  EXPECT_EQ(Run(nullptr, 8, 3), std::vector<int32_t>(tokens.begin(), tokens.begin() + 3));
  EXPECT_EQ(stopped_, StopReason::kCaller);
  const auto first = std::ranges::find(tokens, tokens[4]);
  const auto tokenizer = ByteTokenizer({static_cast<uint32_t>(tokens[4])});
  engine_->Reset();
  EXPECT_EQ(Run(tokenizer.get(), 8), std::vector<int32_t>(tokens.begin(), first));
  EXPECT_EQ(stopped_, StopReason::kEndOfText);
  MakeEngine(8);
  EXPECT_EQ(Run(nullptr, 100).size(), 5u);  // the last one has no room to be run
  EXPECT_EQ(stopped_, StopReason::kContext);
}

TEST_F(Generation, ASinkThatHadEnoughIsNotCalledAgain) {
  MakeEngine();
  const int32_t first = Run(nullptr, 1)[0];
  TokenizerData data;
  for (int byte = 0; byte < 256; ++byte) data.tokens.push_back(std::string(1, static_cast<char>(byte)));
  std::swap(data.tokens[static_cast<size_t>(first)], data.tokens[0xc3]);  // the token begins a character
  const auto tokenizer = std::move(*Tokenizer::Parse(SerializeTokenizer(data)));
  for (const bool goes_on : {true, false}) {
    engine_->Reset();
    std::vector<int32_t> calls;
    const auto sink = [&](int32_t token, std::string_view) {
      calls.push_back(token);
      return goes_on;
    };
    Sampler sampler({});
    ASSERT_TRUE(Generate(*engine_, tokenizer.get(), sampler, {kPrompt, 1}, sink, recorder_).ok());
    EXPECT_EQ(calls, goes_on ? std::vector<int32_t>({first, kRestOfText}) : std::vector<int32_t>{first});
  }
}

TEST_F(Generation, RecordsWhatItDid) {
  MakeEngine();
  (void)Run(nullptr, 8);
  engine_->Reset();
  (void)Run(nullptr, 3);
  RunMetrics metrics;
  recorder_.Fill(*engine_, &metrics);
  EXPECT_EQ(metrics.prefilled_tokens, 8u);
  EXPECT_EQ(metrics.decoded_tokens, 7u + 2u);
  EXPECT_GT(*metrics.decode_ms, 0);
  EXPECT_GE(*metrics.decode_ms, *metrics.p99_ms);
  EXPECT_TRUE(metrics.ttft_ms.has_value() && metrics.decode_tokens_per_s.has_value() && metrics.hit_rate.has_value());
  EXPECT_FALSE(metrics.energy_joules.has_value());
  EXPECT_TRUE(metrics.verified);
}

TEST_F(Generation, RecordsTheLastStepsInConstantMemory) {
  MakeEngine();
  for (size_t i = 0; i < Recorder::kSteps; ++i) recorder_.AddStep(1000);
  for (size_t i = 0; i < Recorder::kSteps; ++i) recorder_.AddStep(4, 2);
  RunMetrics metrics;
  recorder_.Fill(*engine_, &metrics);
  EXPECT_EQ(metrics.p50_ms, 4);
  EXPECT_EQ(metrics.p99_ms, 4);
  EXPECT_EQ(metrics.decoded_tokens, 3 * Recorder::kSteps);
  EXPECT_DOUBLE_EQ(*metrics.decode_ms, 1004.0 * Recorder::kSteps);
}

TEST_F(Generation, RefusesWhatCannotBe) {
  MakeEngine();
  Sampler sampler({});
  const auto sink = [](int32_t, std::string_view) { return true; };
  const std::vector<int32_t> none, unknown = {-1}, prompt = {1};
  EXPECT_EQ(Generate(*engine_, nullptr, sampler, {none, 1}, sink, recorder_).status().code(), ErrorCode::kUsage);
  EXPECT_EQ(Generate(*engine_, nullptr, sampler, {prompt, 0}, sink, recorder_).status().code(), ErrorCode::kUsage);
  EXPECT_EQ(Generate(*engine_, nullptr, sampler, {unknown, 1}, sink, recorder_).status().code(), ErrorCode::kBadInput);
}

}  // namespace
}  // namespace moepack::runtime
