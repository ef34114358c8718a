#include "runtime-min/engine.h"

#include <gtest/gtest.h>

#include "runtime-min/testing/toy_engine.h"

namespace moepack::runtime {
namespace {

using testing::AllLogits;
using testing::FakeSource;
using testing::kToyVocabulary;
using testing::ToyTokens;
using testing::ToyUnits;

constexpr size_t kTokens = 75;  // two blocks of keys and more than the window

std::unique_ptr<Engine> MakeEngine(std::unique_ptr<FakeSource> source, ThreadPool& pool, EngineOptions options) {
  options.logit_rows = options.tile_tokens;
  if (options.context == 0) options.context = 256;  // what a toy model takes at most, long sequences too
  auto engine = Engine::Create(std::move(source), pool, options);
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return engine.ok() ? std::move(*engine) : nullptr;
}

double LargestDifference(const std::vector<float>& a, const std::vector<double>& b) {
  EXPECT_EQ(a.size(), b.size());
  double difference = 0, largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference = std::max(difference, std::fabs(a[i] - b[i]));
    largest = std::max(largest, std::fabs(b[i]));
  }
  return difference / largest;
}

class EngineCodecs : public ::testing::TestWithParam<const char*> {};

void CheckAgainstNaive(const Program& program, const std::string& codec) {
  ASSERT_TRUE(ValidateProgram(program).ok()) << ValidateProgram(program).message();
  const testing::RoundedSource weights(program, ParseCodec(codec).value());
  const testing::NaiveRun naive = testing::NaiveForward(program, weights).Run(ToyTokens(kTokens));
  std::vector<double> expected;
  for (const auto& row : naive.values.at(program.output)) expected.insert(expected.end(), row.begin(), row.end());
  ThreadPool pool(2);
  for (kernels::Isa isa : kernels::SupportedIsas()) {
    const auto engine = MakeEngine(ToyUnits(program, codec), pool, {.isa = isa});
    const double bound = codec == "f32" ? 1e-5 : 1e-3;
    EXPECT_LT(LargestDifference(AllLogits(*engine, ToyTokens(kTokens), kTokens), expected), bound) << kernels::IsaName(isa);
  }
}

constexpr CachePolicy kPolicies[] = {{},
                                     {CachePolicyKind::kLfu, 0, 0, 0, 0, 20},
                                     {CachePolicyKind::kHobbit, 64, 10, 80, 10},
                                     {CachePolicyKind::kHobbit, 0, 40, 50, 10, 50}};

void CheckBits(const Program& program, const std::string& codec) {
  ThreadPool one(1), three(3);
  const auto reference = MakeEngine(ToyUnits(program, codec), one, {});
  const std::vector<float> expected = AllLogits(*reference, ToyTokens(kTokens), 1);
  const uint64_t all = reference->experts().all_bytes(), minimum = reference->experts().minimum_bytes();
  for (ThreadPool* pool : {&one, &three}) {
    for (const uint64_t ram : {kAllExperts, all / 2, minimum}) {
      for (const uint32_t tile : {1u, 16u, 128u}) {
        for (const CachePolicy& policy : kPolicies) {
          if (&policy != kPolicies && ram == kAllExperts) continue;  // nothing ever leaves
          const auto engine = MakeEngine(ToyUnits(program, codec), *pool,
                                         {.expert_ram_bytes = ram, .cache_policy = policy, .tile_tokens = tile});
          EXPECT_EQ(AllLogits(*engine, ToyTokens(kTokens), tile), expected)
              << pool->threads() << " threads, " << ram << " bytes of experts, tiles of " << tile << ", "
              << DescribeCachePolicy(policy);
          EXPECT_LE(engine->experts().used_bytes(), ram);
        }
      }
    }
  }
}

TEST_P(EngineCodecs, LogitsEqualAPlainEvaluationInDouble) { CheckAgainstNaive(testing::ToyLanguageModel(), GetParam()); }
TEST(Engine, EveryVariantEqualsAPlainEvaluationInDouble) { CheckAgainstNaive(testing::ToyVariants(kToyVocabulary), "f32"); }

TEST_P(EngineCodecs, LogitsAreTheSameBitsHoweverTheyAreComputed) {
  CheckBits(testing::ToyLanguageModel(), GetParam());
  CheckBits(testing::ToyVariants(kToyVocabulary), GetParam());
}

INSTANTIATE_TEST_SUITE_P(Codecs, EngineCodecs, ::testing::Values("f32", "i8g64", "i4g32", "i3mg16"),
                         [](const auto& test) { return std::string(test.param); });

TEST(Engine, LogitsOfTheLastTokenNeedNoOtherRows) {
  const Program program = testing::ToyLanguageModel();
  ThreadPool pool(2);
  const auto whole = MakeEngine(ToyUnits(program, "f32"), pool, {});
  const std::vector<float> all = AllLogits(*whole, ToyTokens(kTokens), kTokens);
  const std::vector<float> last(all.end() - kToyVocabulary, all.end());
  auto engine = Engine::Create(ToyUnits(program, "f32"), pool, {.tile_tokens = 16});
  ASSERT_TRUE(engine.ok());
  ASSERT_TRUE((*engine)->Prefill(ToyTokens(kTokens)).ok());
  EXPECT_EQ(std::vector<float>((*engine)->logits().begin(), (*engine)->logits().end()), last);
  EXPECT_EQ((*engine)->position(), kTokens);
}

TEST(Engine, ResetStartsANewSequence) {
  const Program program = testing::ToyLanguageModel();
  ThreadPool pool(2);
  const auto engine = MakeEngine(ToyUnits(program, "i8g64"), pool, {});
  const std::vector<float> first = AllLogits(*engine, ToyTokens(20), 20);
  ASSERT_FALSE(AllLogits(*engine, ToyTokens(60), 13).empty());
  EXPECT_EQ(AllLogits(*engine, ToyTokens(20), 20), first);
}

TEST(Engine, RefusesTooSmallAnExpertBudgetAndNamesTheMinimum) {
  const Program program = testing::ToyLanguageModel();
  ThreadPool pool(1);
  auto source = ToyUnits(program, "i8g64");
  const uint64_t minimum = source->ExpertBytes(0, 0) * 3;  // three of the widest, gated
  const auto refused = Engine::Create(std::move(source), pool, {.expert_ram_bytes = minimum - 1});
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), ErrorCode::kUsage);
  EXPECT_NE(refused.status().message().find(std::to_string(minimum)), std::string::npos) << refused.status().message();
  EXPECT_TRUE(Engine::Create(ToyUnits(program, "i8g64"), pool, {.expert_ram_bytes = minimum}).ok());
}

TEST(Engine, GrowsItsBudgetAndKeepsItsLogits) {
  const Program program = testing::ToyLanguageModel();
  ThreadPool pool(2);
  const auto reference = MakeEngine(ToyUnits(program, "i8g64"), pool, {});
  const std::vector<float> expected = AllLogits(*reference, ToyTokens(kTokens), 1);
  const auto engine =
      MakeEngine(ToyUnits(program, "i8g64"), pool, {.expert_ram_bytes = kAutoExperts, .expert_ram_start_bytes = 0});
  const uint64_t begin = engine->experts().budget_bytes();
  for (int i = 0; i < 8; ++i) EXPECT_EQ(AllLogits(*engine, ToyTokens(kTokens), 1), expected);
  EXPECT_GT(engine->experts().budget_bytes(), begin);
  EXPECT_LE(engine->experts().budget_bytes(), engine->experts().limit_bytes());
}

TEST(Engine, UsesThePolicyOfTheBundleUnlessTold) {
  const Program program = testing::ToyLanguageModel();
  ThreadPool pool(1);
  auto source = ToyUnits(program, "i8g64");
  source->hot.cache = kPolicies[2];
  EXPECT_EQ(MakeEngine(std::move(source), pool, {})->experts().policy(), kPolicies[2]);
  source = ToyUnits(program, "i8g64");
  source->hot.cache = kPolicies[2];
  EXPECT_EQ(MakeEngine(std::move(source), pool, {.cache_policy = kPolicies[1]})->experts().policy(), kPolicies[1]);
}

TEST(Engine, ADamagedExpertFailsTheRunByNameAndLeavesTheSequence) {
  const Program program = testing::ToyLanguageModel();
  ThreadPool pool(2);
  auto source = ToyUnits(program, "i8g64");
  FakeSource* units = source.get();
  const auto engine = MakeEngine(std::move(source), pool, {});
  for (uint32_t e = 0; e < 7; ++e) units->broken.insert({1, e});
  const Status status = engine->Run(ToyTokens(20));
  EXPECT_EQ(status.code(), ErrorCode::kDigest);
  EXPECT_NE(status.message().find("layer 1, expert "), std::string::npos) << status.message();
  EXPECT_NE(status.message().find("4096"), std::string::npos) << status.message();
  EXPECT_EQ(engine->position(), 0u);
  units->broken.clear();
  const auto intact = MakeEngine(ToyUnits(program, "i8g64"), pool, {});
  EXPECT_EQ(AllLogits(*engine, ToyTokens(20), 20), AllLogits(*intact, ToyTokens(20), 20));
}

TEST(Engine, AFailedRunLeavesNoLogits) {
  const Program program = testing::ToyLanguageModel();
  ThreadPool pool(1);
  auto source = ToyUnits(program, "i8g64");
  FakeSource* units = source.get();
  const auto engine = MakeEngine(std::move(source), pool, {.sequences = 2});
  ASSERT_TRUE(engine->Run(ToyTokens(1)).ok());
  EXPECT_EQ(engine->logits().size(), kToyVocabulary);
  EXPECT_EQ(engine->Run(std::vector<int32_t>{-1}).code(), ErrorCode::kBadInput);
  EXPECT_TRUE(engine->logits().empty()) << "before it began";
  ASSERT_TRUE(engine->Run(ToyTokens(1)).ok());
  EXPECT_EQ(engine->Prefill(std::vector<int32_t>{-1}).code(), ErrorCode::kBadInput);
  EXPECT_TRUE(engine->logits().empty());
  ASSERT_TRUE(engine->Run(ToyTokens(1)).ok());
  for (uint32_t e = 0; e < 7; ++e) units->broken.insert({1, e});
  EXPECT_EQ(engine->Run(ToyTokens(20)).code(), ErrorCode::kDigest);
  EXPECT_TRUE(engine->logits().empty()) << "midway";
}

TEST(Engine, APromptThatCannotBeIsRefusedBeforeItBegins) {
  const Program program = testing::ToyLanguageModel();
  ThreadPool pool(1);
  const auto engine = MakeEngine(ToyUnits(program, "f32"), pool, {.context = 10, .tile_tokens = 4});
  std::vector<int32_t> unknown = ToyTokens(10);
  unknown.back() = kToyVocabulary;
  EXPECT_EQ(engine->Prefill(ToyTokens(11)).code(), ErrorCode::kLimit);
  EXPECT_EQ(engine->Prefill(unknown).code(), ErrorCode::kBadInput);
  EXPECT_EQ(engine->Prefill({}).code(), ErrorCode::kUsage);
  EXPECT_EQ(engine->Prefill(ToyTokens(1), 3).code(), ErrorCode::kUsage);
  EXPECT_EQ(engine->position(), 0u);
  ASSERT_TRUE(engine->Prefill(ToyTokens(10)).ok());
  EXPECT_EQ(engine->Prefill(ToyTokens(1)).code(), ErrorCode::kLimit);
  EXPECT_EQ(engine->position(), 10u);
}

TEST(Engine, RefusesWhatTheModelDoesNotHave) {
  const Program program = testing::ToyLanguageModel();
  ThreadPool pool(1);
  const auto engine = MakeEngine(ToyUnits(program, "f32"), pool, {.context = 10, .tile_tokens = 8});
  EXPECT_EQ(engine->Run(std::vector<int32_t>{kToyVocabulary}).code(), ErrorCode::kBadInput);
  EXPECT_EQ(engine->Run(std::vector<int32_t>{-1}).code(), ErrorCode::kBadInput);
  EXPECT_EQ(engine->Run({}).code(), ErrorCode::kUsage);
  EXPECT_EQ(engine->Run(ToyTokens(9)).code(), ErrorCode::kUsage);
  EXPECT_TRUE(engine->Run(ToyTokens(8)).ok());
  EXPECT_EQ(engine->Run(ToyTokens(3)).code(), ErrorCode::kLimit);
  EXPECT_TRUE(engine->Run(ToyTokens(2)).ok());
  EXPECT_EQ(Engine::Create(ToyUnits(program, "f32"), pool, {.context = 257}).status().code(), ErrorCode::kUsage);
}

// The toy model with its routers marked as such.
Program WithRouters() {
  Program program = testing::ToyLanguageModel();
  for (const Node& node : program.nodes) {
    if (node.kind != NodeKind::kMoe) continue;
    for (const Node& maker : program.nodes) {
      if (maker.output == node.inputs[1]) program.tensors[maker.linear.weight].role = TensorRole::kRouter;
    }
  }
  return program;
}

TEST(RouterInputs, OfEightBitsChangeResultsAlikeHoweverTheyAreCut) {
  const Program program = WithRouters();
  ThreadPool one(1), three(3);
  const std::vector<float> fine = AllLogits(*MakeEngine(ToyUnits(program, "i8g64"), one, {}), ToyTokens(kTokens), kTokens);
  const auto coarse = [&](ThreadPool& pool, size_t piece, kernels::Isa isa) {
    const auto engine = MakeEngine(ToyUnits(program, "i8g64"), pool, {.isa = isa, .router_input_bits = 8});
    return AllLogits(*engine, ToyTokens(kTokens), piece);
  };
  const std::vector<float> expected = coarse(one, kTokens, kernels::BestIsa());
  ASSERT_FALSE(expected.empty());
  EXPECT_NE(expected, fine);
  EXPECT_EQ(coarse(three, 1, kernels::BestIsa()), expected);
  EXPECT_EQ(coarse(three, 13, kernels::BestIsa()), expected);
  const std::vector<double> best(expected.begin(), expected.end());
  for (const kernels::Isa isa : kernels::SupportedIsas()) EXPECT_LT(LargestDifference(coarse(three, 13, isa), best), 1e-4);
}

TEST(RouterInputs, NeedRoutersOfIntegersAndKnownBits) {
  ThreadPool pool(1);
  const Program program = WithRouters();
  EXPECT_EQ(Engine::Create(ToyUnits(program, "bf16"), pool, {.router_input_bits = 8}).status().code(), ErrorCode::kUsage);
  EXPECT_EQ(Engine::Create(ToyUnits(program, "i8g64"), pool, {.router_input_bits = 7}).status().code(), ErrorCode::kUsage);
  const Program unmarked = testing::ToyLanguageModel();
  EXPECT_EQ(Engine::Create(ToyUnits(unmarked, "i8g64"), pool, {.router_input_bits = 8}).status().code(), ErrorCode::kUsage);
}

}  // namespace
}  // namespace moepack::runtime
