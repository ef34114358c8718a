#include "runtime-min/stand_ins.h"

#include <gtest/gtest.h>

#include <climits>

#include "runtime-min/engine.h"
#include "runtime-min/testing/toy_engine.h"

namespace moepack::runtime {
namespace {

using testing::AllLogits;
using testing::FakeSource;
using testing::ToyTokens;
using testing::ToyUnits;

constexpr size_t kTokens = 40;
constexpr uint32_t kExperts = 7;
constexpr int kForever = INT_MAX;

TEST(MissPolicy, GoesByTheWeightBeforeAnExpert) {
  const MissPolicy load, lower{OnMiss::kLower}, skip{OnMiss::kSkip};
  for (const double s : {0.0, 0.6, 0.7, 0.9, 0.95}) EXPECT_EQ(ActionFor(load, s), OnMiss::kLoad);
  EXPECT_EQ(ActionFor(lower, 0.6), OnMiss::kLoad);
  EXPECT_EQ(ActionFor(lower, 0.61), OnMiss::kLower);
  EXPECT_EQ(ActionFor(lower, 0.95), OnMiss::kLower);
  EXPECT_EQ(ActionFor(skip, 0.6), OnMiss::kLoad);
  EXPECT_EQ(ActionFor(skip, 0.9), OnMiss::kLower);
  EXPECT_EQ(ActionFor(skip, 0.91), OnMiss::kSkip);
}

TEST(MissPolicy, SumsTheLargerWeights) {
  const float weights[] = {0.125f, 0.5f, 0.25f, 0.125f};
  float before[4];
  WeightsBefore(weights, before);
  EXPECT_EQ(std::vector<float>(before, before + 4), (std::vector<float>{0.75f, 0, 0.5f, 0.875f}));
  const float zeros[] = {0, 0};
  WeightsBefore(zeros, std::span(before).first(2));
  EXPECT_EQ(before[0], 0);
  EXPECT_EQ(before[1], 0);
}

TEST(MissPolicy, RefusesThresholdsThatFallOrAreNoNumbers) {
  EXPECT_TRUE(MissPolicy{}.Check().ok());
  const double nan = std::nan("");
  for (const auto& [first, second] : {std::pair(0.9, 0.6), {-0.1, 0.5}, {0.5, 1.1}, {nan, 0.9}, {0.6, nan}})
    EXPECT_EQ((MissPolicy{OnMiss::kSkip, first, second}.Check().code()), ErrorCode::kUsage);
}

TEST(Unavailable, IsNotWhatWrongBytesAre) {
  for (const ErrorCode code : {ErrorCode::kNotFound, ErrorCode::kTruncated, ErrorCode::kAccess})
    EXPECT_TRUE(IsUnavailable(Status(code, "")));
  for (const ErrorCode code : {ErrorCode::kOk, ErrorCode::kDigest, ErrorCode::kMalformed, ErrorCode::kNoMemory,
                               ErrorCode::kLimit, ErrorCode::kInternal})
    EXPECT_FALSE(IsUnavailable(Status(code, "")));
}

// A toy model whose experts can be missing.
class StandInsTest : public ::testing::Test {
 protected:
  StandInsTest() : program_(testing::ToyLanguageModel()), pool_(1) {}

  std::unique_ptr<FakeSource> Units(std::vector<Unavailable> policy = {}) const {
    auto source = ToyUnits(program_, "i8g64");
    source->policy = std::move(policy);
    return source;
  }
  // A second precision of every expert, as `codec`.
  void AddLower(FakeSource* source, const char* codec) const {
    const testing::ToySource toy(program_);
    const auto weights = [&toy](bool, uint32_t table, uint32_t expert, ExpertMatrix matrix) {
      return toy.LoadExpert(table, expert, matrix).value();
    };
    for (uint32_t t = 0; t < 2; ++t) {
      for (uint32_t e = 0; e < kExperts; ++e) source->AddVariant(t, e, ParseCodec(codec).value(), weights);
    }
  }
  // A dense stand-in for the experts of table 0 that are 40 wide.
  void AddDense(FakeSource* source, const char* codec = "i8g64") const {
    const testing::ToySource toy(program_);
    source->AddDense(0, {0, 3, 5}, ParseCodec(codec).value(), [&toy](bool, uint32_t table, uint32_t, ExpertMatrix matrix) {
      std::vector<float> weights = toy.LoadExpert(table, 5, matrix).value();
      for (float& w : weights) w *= 0.75f;
      return weights;
    });
  }
  std::unique_ptr<Engine> MakeEngine(std::unique_ptr<FakeSource> source, EngineOptions options = {}) {
    options.context = 256;
    options.logit_rows = options.tile_tokens;
    options.notice = [this](const std::string& message) { notices_.push_back(message); };
    auto engine = Engine::Create(std::move(source), pool_, options);
    EXPECT_TRUE(engine.ok()) << engine.status().message();
    return engine.ok() ? std::move(*engine) : nullptr;
  }
  std::vector<float> Logits(Engine& engine, size_t piece = kTokens) { return AllLogits(engine, ToyTokens(kTokens), piece); }
  std::vector<float> Intact() { return Logits(*MakeEngine(Units())); }

  Program program_;
  ThreadPool pool_;
  std::vector<std::string> notices_;
};

TEST_F(StandInsTest, WithoutAPolicyAMissingExpertFails) {
  auto source = Units();
  AddLower(source.get(), "i4g16");
  for (uint32_t e = 0; e < kExperts; ++e) source->missing[{1, e}] = kForever;
  const auto engine = MakeEngine(std::move(source));
  const Status status = engine->Run(ToyTokens(20));
  EXPECT_EQ(status.code(), ErrorCode::kAccess);
  EXPECT_NE(status.message().find("layer 1, expert "), std::string::npos) << status.message();
  EXPECT_EQ(engine->stand_ins().bridged(), 0u);
  EXPECT_TRUE(notices_.empty());
}

TEST_F(StandInsTest, AVariantThatNothingAsksForChangesNothing) {
  auto source = Units({Unavailable::kRetry, Unavailable::kLower, Unavailable::kTwin, Unavailable::kRenormalise});
  AddLower(source.get(), "i4g16");
  AddDense(source.get(), "f32");
  const auto engine = MakeEngine(std::move(source)), plain = MakeEngine(Units());
  // Room for the first variants is room for all that is needed.
  EXPECT_EQ(engine->experts().all_bytes(), plain->experts().all_bytes());
  EXPECT_EQ(engine->experts().minimum_bytes(), plain->experts().minimum_bytes());
  EXPECT_EQ(Logits(*engine), Intact());
  EXPECT_EQ(engine->stand_ins().bridged(), 0u);
}

TEST_F(StandInsTest, ReadsAgainWhatFailedForAMoment) {
  auto source = Units({Unavailable::kRetry});
  source->missing[{0, 2}] = 2;
  source->missing[{1, 4}] = 1;
  const auto engine = MakeEngine(std::move(source));
  EXPECT_EQ(Logits(*engine), Intact());
  EXPECT_EQ(engine->stand_ins().retried, 2u);
  ASSERT_EQ(notices_.size(), 2u);
  EXPECT_NE(notices_[0].find("layer 0, expert 2"), std::string::npos) << notices_[0];
  EXPECT_NE(notices_[0].find("read again"), std::string::npos) << notices_[0];
}

TEST_F(StandInsTest, GivesUpReadingAgain) {
  auto source = Units({Unavailable::kRetry});
  source->missing[{0, 2}] = 3;
  EXPECT_EQ(MakeEngine(std::move(source))->Run(ToyTokens(kTokens)).code(), ErrorCode::kAccess);
}

TEST_F(StandInsTest, ALowerPrecisionStandsIn) {
  auto source = Units({Unavailable::kRetry, Unavailable::kLower});
  AddLower(source.get(), "i4g16");
  auto lower = Units();
  AddLower(lower.get(), "i4g16");
  lower->DropFirstVariants();
  for (uint32_t t = 0; t < 2; ++t) {
    for (uint32_t e = 0; e < kExperts; ++e) source->missing[{t, e}] = kForever;
  }
  const auto engine = MakeEngine(std::move(source));
  const std::vector<float> logits = Logits(*engine);
  ASSERT_FALSE(logits.empty());
  EXPECT_NE(logits, Intact());
  EXPECT_GT(engine->stand_ins().bridged_lower, 0u);
  EXPECT_EQ(engine->stand_ins().bridged_lower, engine->stand_ins().bridged());
  EXPECT_EQ(Logits(*MakeEngine(std::move(lower))), logits);  // of a bundle that has nothing else
  EXPECT_EQ(Logits(*engine, 7), logits);
  EXPECT_EQ(notices_.size(), 2 * engine->experts().tables()[0].experts.size() * 2);  // once an expert and step
}

TEST_F(StandInsTest, ATwinStandsIn) {
  auto source = Units({Unavailable::kLower, Unavailable::kTwin});
  source->AddTwin(0, 0, 3);  // both 40 wide
  source->missing[{0, 0}] = kForever;
  const auto engine = MakeEngine(std::move(source));
  const std::vector<float> logits = Logits(*engine);
  ASSERT_FALSE(logits.empty());
  EXPECT_NE(logits, Intact());
  EXPECT_GT(engine->stand_ins().bridged_twin, 0u);
  EXPECT_EQ(engine->stand_ins().bridged_twin, engine->stand_ins().bridged());
  auto merged = Units();
  merged->Merge(0, 0, 3);
  EXPECT_EQ(Logits(*MakeEngine(std::move(merged))), logits) << "the twin's weights and no others";
}

TEST_F(StandInsTest, TheOthersTakeOverTheWeightOfAMissingExpert) {
  auto source = Units({Unavailable::kRenormalise});
  source->missing[{0, 5}] = kForever;
  const auto engine = MakeEngine(std::move(source));
  const std::vector<float> logits = Logits(*engine);
  ASSERT_FALSE(logits.empty());
  EXPECT_GT(engine->stand_ins().renormalised, 0u);
  EXPECT_EQ(engine->stand_ins().renormalised, engine->stand_ins().bridged());
  EXPECT_EQ(Logits(*engine, 1), logits);
  EXPECT_EQ(notices_.size(), 1u);
  const std::vector<float> intact = Intact();
  size_t same = 0;  // tokens before the first that needed it
  while (same < logits.size() && logits[same] == intact[same]) ++same;
  EXPECT_LT(same, logits.size());
}

// Where all experts are alike it does not matter which of them are there.
TEST_F(StandInsTest, TheSumOfTheWeightsStays) {
  testing::ToyProgram p;
  const ValueId h = p.Embedding(testing::kToyVocabulary, 48);
  ++p.block;
  const ValueId routed = p.Moe(h, {.k = 3, .scale = 1.7f}, {Activation::kSilu, true}, std::vector<uint64_t>(kExperts, 24));
  ++p.block;
  p.program.output = p.Linear(routed, testing::kToyVocabulary);
  p.program.max_positions = 256;
  program_ = std::move(p.program);
  const testing::ToySource toy(program_);
  const auto alike = [&toy](bool expert, uint32_t id, uint32_t, ExpertMatrix matrix) {
    return expert ? toy.LoadExpert(id, 0, matrix).value() : toy.Load(id).value();
  };
  const auto units = [&] { return std::make_unique<FakeSource>(program_, ParseCodec("f32").value(), alike); };
  const std::vector<float> intact = Logits(*MakeEngine(units()));
  auto source = units();
  source->policy = {Unavailable::kRenormalise};
  source->missing[{0, 2}] = source->missing[{0, 5}] = kForever;
  const auto engine = MakeEngine(std::move(source));
  const std::vector<float> logits = Logits(*engine);
  ASSERT_EQ(logits.size(), intact.size());
  EXPECT_GT(engine->stand_ins().renormalised, 0u);
  double largest = 0, difference = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    largest = std::max(largest, std::fabs(double{intact[i]}));
    difference = std::max(difference, std::fabs(double{logits[i]} - double{intact[i]}));
  }
  EXPECT_GT(largest, 0);
  EXPECT_LT(difference, 1e-5 * largest);
}

TEST_F(StandInsTest, ADenseStandInTakesThePlaceOfAny) {
  auto source = Units({Unavailable::kRetry, Unavailable::kLower, Unavailable::kTwin, Unavailable::kDense});
  AddDense(source.get());
  source->missing[{0, 0}] = source->missing[{0, 3}] = kForever;
  const auto engine = MakeEngine(std::move(source));
  const std::vector<float> logits = Logits(*engine);
  ASSERT_FALSE(logits.empty());
  EXPECT_GT(engine->stand_ins().bridged_dense, 0u);
  EXPECT_EQ(engine->stand_ins().bridged_dense, engine->stand_ins().bridged());
  EXPECT_NE(notices_.back().find("dense stand-in"), std::string::npos) << notices_.back();
  auto all = Units();
  AddDense(all.get());
  all->MakeFirst(0, 0, 1);
  all->MakeFirst(0, 3, 1);
  EXPECT_EQ(Logits(*MakeEngine(std::move(all))), logits) << "its weights and no others";
  EXPECT_EQ(Logits(*engine, 1), logits);
}

TEST_F(StandInsTest, ADenseStandInIsInMemoryFromTheStartWhereThePolicyNamesIt) {
  const auto engine = [&](std::vector<Unavailable> policy, uint64_t ram) {
    auto source = Units(std::move(policy));
    AddDense(source.get());
    return MakeEngine(std::move(source), {.expert_ram_bytes = ram});
  };
  const auto without = engine({Unavailable::kRetry}, kAllExperts), with = engine({Unavailable::kDense}, kAllExperts);
  const uint64_t bytes = with->experts().minimum_bytes() - without->experts().minimum_bytes();
  EXPECT_GT(bytes, 0u);
  EXPECT_EQ(with->experts().all_bytes(), without->experts().all_bytes() + bytes);
  EXPECT_EQ(with->experts().used_bytes(), bytes);
  EXPECT_EQ(without->experts().used_bytes(), 0u);
  const auto small = engine({Unavailable::kDense}, with->experts().minimum_bytes());
  EXPECT_EQ(Logits(*small), Intact());
  for (const uint32_t expert : {0, 3, 5}) EXPECT_TRUE(small->experts().IsResident(0, expert, 1));
  EXPECT_EQ(small->stand_ins().bridged(), 0u);
}

TEST_F(StandInsTest, WhereNothingElseIsLeftADenseStandInFollowsRenormalising) {
  auto source = Units({Unavailable::kRenormalise, Unavailable::kDense});
  AddDense(source.get());
  for (const uint32_t e : {0, 1, 2, 3, 5}) source->missing[{0, e}] = kForever;
  for (const uint32_t e : {1, 2, 4, 6}) source->missing[{1, e}] = kForever;  // has no stand-in, and tokens with none left
  const auto engine = MakeEngine(std::move(source));
  size_t served = 0;
  for (const int32_t token : ToyTokens(kTokens)) {
    engine->Reset();
    const Status status = engine->Run(std::vector<int32_t>{token});
    served += status.ok();
    if (!status.ok()) {
      EXPECT_NE(status.message().find("none can be read"), std::string::npos) << status.message();
      EXPECT_NE(status.message().find("layer 1, expert "), std::string::npos) << status.message();
    }
  }
  EXPECT_GT(served, 0u);
  EXPECT_GT(engine->stand_ins().renormalised, 0u);
  EXPECT_GT(engine->stand_ins().bridged_dense, 0u) << "of tokens with three that are missing";
}

TEST_F(StandInsTest, WhoIsLeftOutDoesNotDependOnTheTokensBeside) {
  auto source = Units({Unavailable::kRenormalise, Unavailable::kDense});
  AddDense(source.get());
  for (const uint32_t e : {0, 1, 3, 5}) source->missing[{0, e}] = kForever;
  const auto engine = MakeEngine(std::move(source));
  const std::vector<float> alone = Logits(*engine, 1);
  ASSERT_FALSE(alone.empty());
  EXPECT_GT(engine->stand_ins().renormalised, 0u);
  EXPECT_GT(engine->stand_ins().bridged_dense, 0u);
  EXPECT_EQ(Logits(*engine, kTokens), alone);
  EXPECT_EQ(Logits(*engine, 7), alone);
}

TEST_F(StandInsTest, ADenseStandInThatCannotBeReadHelpsNobodyAndWrongOnesAreRefused) {
  for (const bool wrong : {false, true}) {
    auto source = Units({Unavailable::kDense});
    AddDense(source.get());
    if (wrong) {
      source->broken.insert({0, kExperts});
    } else {
      source->missing[{0, kExperts}] = source->missing[{0, 0}] = source->missing[{0, 3}] = kForever;
    }
    notices_.clear();
    const auto engine =
        Engine::Create(std::move(source), pool_, {.notice = [this](const std::string& text) { notices_.push_back(text); }});
    EXPECT_EQ(engine.ok(), !wrong);
    if (wrong) {
      EXPECT_EQ(engine.status().code(), ErrorCode::kDigest);
      EXPECT_NE(engine.status().message().find("layer 0, dense stand-in"), std::string::npos) << engine.status().message();
    } else {
      ASSERT_EQ(notices_.size(), 1u);
      EXPECT_NE(notices_[0].find("layer 0, dense stand-in: chunk at offset 8192"), std::string::npos) << notices_[0];
      const Status status = (*engine)->Run(ToyTokens(kTokens));
      EXPECT_EQ(status.code(), ErrorCode::kAccess);
      EXPECT_NE(status.message().find(" cannot be read, nor what stands in for it: layer 0, dense stand-in"),
                std::string::npos)
          << status.message();
    }
  }
}

TEST_F(StandInsTest, WhatIsLostIsNotReadAgainForEveryToken) {
  for (const std::vector<Unavailable>& policy :
       {std::vector{Unavailable::kRetry, Unavailable::kDense}, {Unavailable::kRenormalise}}) {
    auto source = Units(policy);
    AddDense(source.get());
    constexpr int kTimes = 5;
    source->missing[{0, 5}] = kTimes;  // then it is back
    std::atomic<int> reads{0};
    source->before_read = [&reads](uint32_t table, uint32_t physical) { reads += table == 0 && physical == 5; };
    const auto engine = MakeEngine(std::move(source));
    const uint64_t bridged_at_once = (Logits(*engine, 1), engine->stand_ins().bridged());
    EXPECT_GT(bridged_at_once, 4u);
    EXPECT_LE(reads, 3) << "with two retries";
    for (int pass = 0; pass < 400 && reads <= kTimes; ++pass) Logits(*engine, 1);
    EXPECT_GT(reads, kTimes);
    EXPECT_EQ(Logits(*engine, 1), Intact()) << "a chunk that comes back is used";
  }
}

TEST_F(StandInsTest, ATokenWithoutAnyExpertFails) {
  auto source = Units({Unavailable::kRenormalise});
  for (uint32_t e = 0; e < kExperts; ++e) source->missing[{0, e}] = kForever;
  const auto engine = MakeEngine(std::move(source));
  const Status status = engine->Run(ToyTokens(kTokens));
  EXPECT_EQ(status.code(), ErrorCode::kAccess);
  EXPECT_NE(status.message().find("none can be read"), std::string::npos) << status.message();
  EXPECT_EQ(engine->position(), 0u);
}

TEST_F(StandInsTest, WrongBytesFailUnderEveryPolicy) {
  for (unsigned steps = 0; steps < 32; ++steps) {
    std::vector<Unavailable> policy;
    for (unsigned step = 0; step < 5; ++step) {
      if ((steps >> step & 1) != 0) policy.push_back(static_cast<Unavailable>(step + 1));
    }
    auto source = Units(policy);
    AddLower(source.get(), "i4g16");
    source->AddTwin(0, 0, 3);
    AddDense(source.get());
    for (uint32_t e = 0; e < kExperts; ++e) source->broken.insert({0, e});
    source->missing[{0, 6}] = kForever;  // beside one that is only missing
    const auto engine = MakeEngine(std::move(source));
    EXPECT_EQ(engine->Run(ToyTokens(kTokens)).code(), ErrorCode::kDigest) << steps;
  }
}

TEST_F(StandInsTest, WrongBytesOfAStandInFailToo) {
  auto source = Units({Unavailable::kLower, Unavailable::kRenormalise});
  AddLower(source.get(), "i4g16");
  for (uint32_t e = 0; e < kExperts; ++e) {
    source->missing[{0, e}] = kForever;
    source->broken.insert({0, kExperts + e});
  }
  EXPECT_EQ(MakeEngine(std::move(source))->Run(ToyTokens(kTokens)).code(), ErrorCode::kDigest);
}

TEST_F(StandInsTest, NothingIsBridgedWhereTheCallerWantsTheWholeBundle) {
  auto source = Units({Unavailable::kRetry, Unavailable::kRenormalise});
  source->missing[{0, 5}] = 1;
  EXPECT_EQ(MakeEngine(std::move(source), {.bridge_unavailable = false})->Run(ToyTokens(kTokens)).code(),
            ErrorCode::kAccess);
}

TEST_F(StandInsTest, WhatCannotBePreloadedWaitsUntilItIsNeeded) {
  for (const bool allowed : {false, true}) {
    auto source = allowed ? Units({Unavailable::kRetry}) : Units();
    source->hot.experts = {{0, 0}, {0, 1}};
    source->missing[{0, 0}] = 1;
    const auto engine = Engine::Create(std::move(source), pool_, {});
    EXPECT_EQ(engine.ok(), allowed);
    EXPECT_TRUE(!allowed || (*engine)->experts().IsResident(0, 1));
  }
}

// Decodes with room for few experts and reports what was lowered and skipped.
StandInStats Decode(Engine& engine) {
  for (int pass = 0; pass < 3; ++pass) EXPECT_FALSE(AllLogits(engine, ToyTokens(kTokens), 1).empty());
  return engine.stand_ins();
}

TEST_F(StandInsTest, MissesAreLoweredAndSkippedOnlyWhenAskedTo) {
  const auto small = [&](MissPolicy misses, uint64_t ram) {
    auto source = Units();
    AddLower(source.get(), "i4g16");
    return MakeEngine(std::move(source), {.expert_ram_bytes = ram, .misses = misses});
  };
  const uint64_t minimum = small({}, kAllExperts)->experts().minimum_bytes();
  const std::vector<float> intact = Intact();
  const StandInStats load = Decode(*small({}, minimum));
  EXPECT_EQ(load.lowered + load.skipped, 0u);
  EXPECT_EQ(Logits(*small({}, minimum)), intact);
  const StandInStats lower = Decode(*small({OnMiss::kLower, 0.3, 0.8}, minimum));
  EXPECT_GT(lower.lowered, 0u);
  EXPECT_EQ(lower.skipped, 0u);
  const StandInStats skip = Decode(*small({OnMiss::kSkip, 0.3, 0.6}, minimum));
  EXPECT_GT(skip.lowered, 0u);
  EXPECT_GT(skip.skipped, 0u);
  EXPECT_EQ(skip.bridged(), 0u);
  EXPECT_NE(Logits(*small({OnMiss::kSkip, 0.3, 0.6}, minimum), 1), intact);
  // No weight comes before s = 1: then nothing is lossy.
  EXPECT_EQ(Logits(*small({OnMiss::kSkip, 1, 1}, minimum), 1), intact);
}

TEST_F(StandInsTest, NothingIsLostWhereEverythingIsResident) {
  auto source = Units();
  AddLower(source.get(), "i4g16");
  for (uint32_t t = 0; t < 2; ++t) {
    for (uint32_t e = 0; e < kExperts; ++e) source->hot.experts.push_back({t, e});
  }
  const auto engine = MakeEngine(std::move(source), {.misses = {OnMiss::kSkip, 0, 0}});
  EXPECT_EQ(Logits(*engine, 1), Intact());
  EXPECT_EQ(engine->stand_ins().lowered + engine->stand_ins().skipped, 0u);
}

TEST_F(StandInsTest, LoweringNeedsALowerPrecision) {
  const auto refused = Engine::Create(Units(), pool_, {.misses = {OnMiss::kLower}});
  EXPECT_EQ(refused.status().code(), ErrorCode::kUsage);
  EXPECT_TRUE(Engine::Create(Units(), pool_, {.misses = {OnMiss::kSkip}}).ok());
}

// A lower precision that was chosen on a miss and cannot be read: the expert itself is still there.
TEST_F(StandInsTest, AMissThatCannotBeLoweredIsLoaded) {
  auto source = Units();
  AddLower(source.get(), "i4g16");
  for (uint32_t t = 0; t < 2; ++t) {
    for (uint32_t e = 0; e < kExperts; ++e) source->missing[{t, kExperts + e}] = kForever;
  }
  const auto engine = MakeEngine(std::move(source), {.misses = {OnMiss::kLower, 0.3, 0.8}});
  EXPECT_EQ(Logits(*engine, 1), Intact());
  EXPECT_EQ(engine->stand_ins().lowered + engine->stand_ins().bridged(), 0u);
}

}  // namespace
}  // namespace moepack::runtime
