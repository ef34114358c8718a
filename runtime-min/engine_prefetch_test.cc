#include <gtest/gtest.h>

#include "runtime-min/engine.h"
#include "runtime-min/route_predictor.h"
#include "runtime-min/testing/toy_engine.h"

namespace moepack::runtime {
namespace {

using testing::AllLogits;
using testing::FakeSource;
using testing::ToyTokens;
using testing::ToyUnits;

constexpr size_t kTokens = 40;

std::unique_ptr<Engine> MakeEngine(std::unique_ptr<FakeSource> source, ThreadPool& pool, EngineOptions options) {
  options.logit_rows = options.tile_tokens;
  if (options.context == 0) options.context = 128;
  auto engine = Engine::Create(std::move(source), pool, options);
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return engine.ok() ? std::move(*engine) : nullptr;
}

// Experts 0, 3 and 5 of both tables have one width.
std::unique_ptr<FakeSource> Units(const Program& program, bool merged, size_t chunks = 1) {
  auto source = ToyUnits(program, "i4g32");
  source->CutExperts(chunks);
  for (uint32_t t = 0; merged && t < 2; ++t) source->Merge(t, 3, 0);
  return source;
}

TEST(EnginePrefetch, TokensAreTheSameForAnyPrefetchCacheAndThreads) {
  const Program program = testing::ToyLanguageModel();
  ThreadPool one(1), two(2);
  for (const bool merged : {false, true}) {
    const auto reference = MakeEngine(Units(program, merged), one, {.prefetch = 0});
    const std::vector<float> expected = AllLogits(*reference, ToyTokens(kTokens), 1);
    const uint64_t all = reference->experts().all_bytes(), minimum = reference->experts().minimum_bytes();
    uint64_t foreseen = 0, ahead = 0;
    for (ThreadPool* pool : {&one, &two}) {
      for (const uint64_t ram : {minimum, all / 2, all}) {
        for (const uint32_t prefetch : {0u, 1u, 2u}) {
          for (const auto& [tile, lanes] : {std::pair{1u, 0u}, {1u, 1u}, {3u, 0u}, {3u, 2u}, {64u, 1u}}) {
            if (prefetch == 0 && lanes > 0) continue;
            const auto engine =
                MakeEngine(Units(program, merged, 1 + lanes + (merged ? 1 : 0)), *pool,
                           {.expert_ram_bytes = ram, .prefetch = prefetch, .prefetch_lanes = lanes, .tile_tokens = tile});
            EXPECT_EQ(AllLogits(*engine, ToyTokens(kTokens), tile), expected)
                << pool->threads() << " threads, " << ram << " bytes of experts, prefetch " << prefetch << ", " << lanes
                << " lanes, tiles of " << tile;
            EXPECT_LE(engine->experts().used_bytes(), ram);
            EXPECT_TRUE(prefetch > 0 || engine->experts().stats().prefetch_loads == 0);
            foreseen += engine->experts().stats().foreseen;
            ahead += engine->experts().stats().prefetch_loads;
          }
        }
      }
    }
    EXPECT_GT(foreseen, 0u);
    // Whether a lane gets a processor while others compute for a moment is the system's choice: until one did.
    for (int run = 0; ahead == 0 && run < 2000; ++run) {
      const auto engine = MakeEngine(Units(program, merged, 2), one,
                                     {.expert_ram_bytes = all / 2, .prefetch = 2, .prefetch_lanes = 1, .tile_tokens = 1});
      EXPECT_EQ(AllLogits(*engine, ToyTokens(kTokens), 1), expected);
      ahead += engine->experts().stats().prefetch_loads;
    }
    EXPECT_GT(ahead, 0u);
  }
}

TEST(EnginePrefetch, VariantsOfNodesAreTheSameToo) {
  const Program program = testing::ToyVariants(testing::kToyVocabulary);
  ThreadPool pool(2);
  const auto reference = MakeEngine(ToyUnits(program, "i8g64"), pool, {});
  const std::vector<float> expected = AllLogits(*reference, ToyTokens(kTokens), 1);
  for (const uint32_t depth : {1u, kMaxPrefetchDepth}) {
    const auto engine = MakeEngine(ToyUnits(program, "i8g64"), pool,
                                   {.expert_ram_bytes = reference->experts().all_bytes() / 2, .prefetch = depth});
    EXPECT_EQ(AllLogits(*engine, ToyTokens(kTokens), 1), expected) << depth;
  }
}

// Layers that add nothing to the residual stream: what the next router will say can be known exactly.
Program FrozenModel(int layers) {
  testing::ToyProgram p;
  ValueId h = p.Embedding(testing::kToyVocabulary, 48);
  for (int layer = 0; layer < layers; ++layer) {
    ++p.block;
    const ValueId y = p.Rms(h);
    const RoutingRecord routing{.score = ScoreFunction::kSigmoid, .k = 3, .renormalise = true, .eps = 1e-20f};
    const ValueId routed = p.Moe(y, routing, {Activation::kSilu, true}, {32, 32, 32, 32, 32, 32, 32}, false, layer % 2 == 1);
    h = p.Element2(ElementOp::kAdd, h, p.Element(ElementOp::kScale, routed, 0.0f));
  }
  ++p.block;
  p.program.output = p.Linear(p.Rms(h), testing::kToyVocabulary);
  p.program.max_positions = 256;
  return std::move(p.program);
}

ExpertCacheStats StatsOf(const Program& program, uint32_t prefetch, size_t tile) {
  EXPECT_TRUE(ValidateProgram(program).ok()) << ValidateProgram(program).message();
  ThreadPool pool(2);
  const auto engine = MakeEngine(ToyUnits(program, "i8g64"), pool, {.prefetch = prefetch});
  EXPECT_FALSE(AllLogits(*engine, ToyTokens(kTokens), tile).empty());
  return engine->experts().stats();
}

uint64_t Lookups(const ExpertCacheStats& stats) { return stats.hits + stats.prefetched + stats.misses; }

TEST(EnginePrefetch, TheNextRoutersAreForetoldFromTheResidualStream) {
  for (const size_t tile : {size_t{1}, RoutePredictor::kMostRows}) {
    const uint64_t of_first_layer = Lookups(StatsOf(FrozenModel(1), 1, tile));
    for (const uint32_t depth : {1u, 3u}) {
      const ExpertCacheStats stats = StatsOf(FrozenModel(4), depth, tile);
      EXPECT_EQ(stats.foreseen, Lookups(stats) - of_first_layer) << "depth " << depth << ", tiles of " << tile;
    }
  }
  EXPECT_EQ(StatsOf(FrozenModel(4), 1, RoutePredictor::kMostRows + 1).foreseen, 0u) << "most experts are chosen anyway";
}

TEST(EnginePrefetch, IsOnByItselfWhereExpertsDoNotAllFit) {
  const Program program = testing::ToyLanguageModel();
  ThreadPool pool(1), two(2);
  const auto all = MakeEngine(ToyUnits(program, "i8g64"), two, {});
  EXPECT_EQ(all->prefetch(), 0u);
  const auto prefetch = [&](ThreadPool& threads, size_t chunks, uint32_t lanes) {
    auto source = ToyUnits(program, "i8g64");
    source->CutExperts(chunks);
    const uint64_t ram = all->experts().all_bytes() - 1;
    return MakeEngine(std::move(source), threads, {.expert_ram_bytes = ram, .prefetch_lanes = lanes})->prefetch();
  };
  EXPECT_EQ(prefetch(two, 1, 0), kDefaultPrefetch);
  EXPECT_EQ(prefetch(two, 3, 0), kDefaultPrefetch);
  EXPECT_EQ(prefetch(two, 4, 0), 0u) << "both threads always have a chunk to load";
  EXPECT_EQ(prefetch(pool, 3, 0), 0u) << "the one thread is never without work";
  EXPECT_EQ(prefetch(two, 4, 1), kDefaultPrefetch) << "a lane loads them";
  EXPECT_EQ(Engine::Create(ToyUnits(program, "i8g64"), pool, {.prefetch = kMaxPrefetchDepth + 1}).status().code(),
            ErrorCode::kUsage);
  EXPECT_EQ(Engine::Create(ToyUnits(program, "i8g64"), pool, {.prefetch_lanes = kMaxPrefetchLanes + 1}).status().code(),
            ErrorCode::kUsage);
  EXPECT_EQ(Engine::Create(ToyUnits(program, "i8g64"), pool, {.prefetch = 0, .prefetch_lanes = 1}).status().code(),
            ErrorCode::kUsage)
      << "they would have nothing to do";
  EXPECT_TRUE(Engine::Create(ToyUnits(program, "i8g64"), pool, {.prefetch_lanes = 1}).ok());
}

TEST(EnginePrefetch, ADamagedExpertFailsTheSameTokenAsWithoutPrefetch) {
  const Program program = testing::ToyLanguageModel();
  ThreadPool pool(2);
  const std::vector<int32_t> tokens = ToyTokens(kTokens);
  for (uint32_t expert = 0; expert < 7; ++expert) {
    std::vector<std::pair<size_t, std::string>> ends;
    for (const auto& [prefetch, lanes] : {std::pair{0u, 0u}, {1u, 0u}, {1u, 1u}}) {
      auto source = ToyUnits(program, "i8g64");
      source->broken.insert({1, expert});
      const auto engine = MakeEngine(std::move(source), pool, {.prefetch = prefetch, .prefetch_lanes = lanes});
      size_t at = 0;
      Status status;
      while (at < tokens.size() && (status = engine->Run({&tokens[at], 1})).ok()) ++at;
      ends.emplace_back(at, status.message());
    }
    EXPECT_EQ(ends[1], ends[0]) << expert;
    EXPECT_EQ(ends[2], ends[0]) << expert;
  }
}

}  // namespace
}  // namespace moepack::runtime
