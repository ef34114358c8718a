// The hot path allocates nothing once it is warm. Replaces operator new for the whole test program.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "runtime-min/testing/toy_engine.h"

namespace {
std::atomic<size_t> allocations{0};
}  // namespace

// Not inlined: the compiler would see malloc meet operator delete and warn.
[[gnu::noinline]] void* operator new(size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  void* p = std::malloc(size);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
[[gnu::noinline]] void* operator new(size_t size, const std::nothrow_t&) noexcept {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return std::malloc(size);
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, size_t) noexcept { std::free(p); }

namespace moepack::runtime {
namespace {

TEST(Allocation, DecodingWithResidentExpertsAllocatesNothing) {
  const Program program = testing::ToyLanguageModel();
  ThreadPool pool(2);
  const auto engine = Engine::Create(testing::ToyUnits(program, "i4g16"), pool, {.tile_tokens = 16});
  ASSERT_TRUE(engine.ok());
  const std::vector<int32_t> tokens = testing::ToyTokens(64);
  ASSERT_TRUE((*engine)->Prefill(tokens).ok());
  for (size_t i = 0; i < tokens.size(); ++i) ASSERT_TRUE((*engine)->Run({&tokens[i], 1}).ok());
  (*engine)->Reset();
  const size_t before = allocations.load();
  ASSERT_TRUE((*engine)->Prefill(tokens).ok());
  for (size_t i = 0; i < tokens.size(); ++i) ASSERT_TRUE((*engine)->Run({&tokens[i], 1}).ok());
  EXPECT_EQ(allocations.load() - before, 0u);
}

}  // namespace
}  // namespace moepack::runtime
