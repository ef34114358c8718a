// The hot path allocates nothing once it is warm. Replaces operator new for the whole test program.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "runtime-min/testing/toy_engine.h"

namespace {
std::atomic<size_t> allocations{0};
}  // namespace

// Every form of new that a program may call; those of arrays call these. Not inlined: the compiler would see malloc meet
// operator delete and warn.
[[gnu::noinline]] void* operator new(size_t size, const std::nothrow_t&) noexcept {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return std::malloc(size);
}
[[gnu::noinline]] void* operator new(size_t size, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  allocations.fetch_add(1, std::memory_order_relaxed);
  const size_t multiple = static_cast<size_t>(alignment);
  return std::aligned_alloc(multiple, (size + multiple - 1) / multiple * multiple);
}
[[gnu::noinline]] void* operator new(size_t size) {
  void* p = ::operator new(size, std::nothrow);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
[[gnu::noinline]] void* operator new(size_t size, std::align_val_t alignment) {
  void* p = ::operator new(size, alignment, std::nothrow);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, size_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, size_t, std::align_val_t) noexcept { std::free(p); }

namespace moepack::runtime {
namespace {

TEST(Allocation, EveryFormOfNewIsCounted) {
  const size_t before = allocations.load();
  const kernels::LineVector<float> aligned(16);
  const std::vector<float> plain(16);
  EXPECT_EQ(allocations.load() - before, 2u);
}

// Everything a tile and a token need, twice: what the first round had to allocate is there for the second.
void ExpectNothingAllocated(const Program& program) {
  ThreadPool pool(2);
  const auto engine = Engine::Create(testing::ToyUnits(program, "i4g16"), pool, {.context = 256, .tile_tokens = 16});
  ASSERT_TRUE(engine.ok()) << engine.status().message();
  const std::vector<int32_t> tokens = testing::ToyTokens(64);
  size_t before = 0;
  for (int round = 0; round < 2; ++round) {
    before = allocations.load();
    (*engine)->Reset();
    ASSERT_TRUE((*engine)->Prefill(tokens).ok());
    for (size_t i = 0; i < tokens.size(); ++i) ASSERT_TRUE((*engine)->Run({&tokens[i], 1}).ok());
  }
  EXPECT_EQ(allocations.load() - before, 0u);
}

// Prompts in chunks beside a sequence that decodes, sequences that share a prefix, all decoding together, all emptied.
void RunBatches(Engine& engine, const std::vector<int32_t>& tokens) {
  const SequenceId second = engine.OpenSequence().value();
  for (size_t at = 0; at < tokens.size(); at += 8) {
    const SequenceTokens batch[] = {{kFirstSequence, {&tokens[at], 8}, 0}, {second, {&tokens[at], 1}}};
    ASSERT_TRUE(engine.RunBatch(batch).ok());
  }
  const SequenceId third = engine.ForkSequence(kFirstSequence, engine.position()).value();
  for (const int32_t& token : tokens) {
    const SequenceTokens batch[] = {{third, {&token, 1}}, {kFirstSequence, {&token, 1}}, {second, {&token, 1}}};
    ASSERT_TRUE(engine.RunBatch(batch).ok());
  }
  ASSERT_TRUE(engine.ReleaseSequence(second).ok());
  ASSERT_TRUE(engine.ReleaseSequence(third).ok());
  engine.Reset();
}

TEST(Allocation, SeveralSequencesAllocateNothing) {
  for (const Program& program : {testing::ToyLanguageModel(), testing::ToyVariants(testing::kToyVocabulary)}) {
    ThreadPool pool(2);
    for (const KvFormat kv : {KvFormat::kF32, KvFormat::kI8}) {
      const auto engine = Engine::Create(testing::ToyUnits(program, "i4g16"), pool,
                                         {.context = 256, .tile_tokens = 16, .sequences = 3, .kv = kv});
      ASSERT_TRUE(engine.ok()) << engine.status().message();
      const std::vector<int32_t> tokens = testing::ToyTokens(64);
      RunBatches(**engine, tokens);
      const size_t before = allocations.load();
      RunBatches(**engine, tokens);
      EXPECT_EQ(allocations.load() - before, 0u);
    }
  }
}

TEST(Allocation, DecodingWithResidentExpertsAllocatesNothing) {
  ExpectNothingAllocated(testing::ToyLanguageModel());
  ExpectNothingAllocated(testing::ToyVariants(testing::kToyVocabulary));
}

}  // namespace
}  // namespace moepack::runtime
