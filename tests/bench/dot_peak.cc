#include "tests/bench/dot_peak.h"

// GCC 12 warns of the undefined operands that its own AVX headers pass on purpose (PR 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace moepack::bench {
namespace {

constexpr int kRounds = 20000;
constexpr int kChains = 12;  // enough to hide the latency of a dot, few enough for every register file

#if defined(__x86_64__)

__attribute__((target("avx2"))) double RunAvx2(int64_t* sink) {
  __m256i sums[kChains] = {};
  __m256i a = _mm256_set1_epi16(3), b = _mm256_set1_epi16(5);
  for (int i = 0; i < kRounds; ++i) {
    for (__m256i& sum : sums) {
      asm volatile("" : "+x"(a), "+x"(b));  // or equal products would be computed once
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
    }
  }
  for (const __m256i& sum : sums) *sink += _mm256_extract_epi32(sum, 0);
  return 2.0 * 16 * kChains * kRounds;
}

__attribute__((target("avx512f,avx512vnni"))) double RunAvx512(int64_t* sink) {
  __m512i sums[kChains] = {};
  __m512i a = _mm512_set1_epi16(3), b = _mm512_set1_epi16(5);
  for (int i = 0; i < kRounds; ++i) {
    for (__m512i& sum : sums) {
      asm volatile("" : "+v"(a), "+v"(b));  // or equal products would be computed once
      sum = _mm512_dpwssd_epi32(sum, a, b);
    }
  }
  for (const __m512i& sum : sums) *sink += _mm512_reduce_add_epi32(sum);
  return 2.0 * 32 * kChains * kRounds;
}

#elif defined(__aarch64__)

__attribute__((target("arch=armv8.2-a+dotprod"))) double RunNeon(int64_t* sink) {
  int32x4_t sums[kChains] = {};
  int8x16_t a = vdupq_n_s8(3), b = vdupq_n_s8(5);
  for (int i = 0; i < kRounds; ++i) {
    for (int32x4_t& sum : sums) {
      asm volatile("" : "+w"(a), "+w"(b));  // or equal products would be computed once
      sum = vdotq_s32(sum, a, b);
    }
  }
  for (const int32x4_t& sum : sums) *sink += vaddvq_s32(sum);
  return 2.0 * 16 / 2 * kChains * kRounds;
}

#endif

}  // namespace

double RunDots(kernels::Isa isa, int64_t* sink) {
  switch (isa) {
#if defined(__x86_64__)
    case kernels::Isa::kAvx2:
      return RunAvx2(sink);
    case kernels::Isa::kAvx512Vnni:
      return RunAvx512(sink);
#elif defined(__aarch64__)
    case kernels::Isa::kNeonDot:
      return RunNeon(sink);
#endif
    default:
      *sink = 0;
      return 0;
  }
}

}  // namespace moepack::bench
