// Eight float32 lanes, the unit of all arithmetic outside of kernels. GCC's and Clang's vector extension: every instruction
// set of a build gives the same bits, and a loop does not depend on what the compiler can prove about overlap.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace moepack::runtime {

inline constexpr size_t kLanes = 8;
using Lanes = float __attribute__((vector_size(kLanes * sizeof(float))));
using IntLanes = int32_t __attribute__((vector_size(kLanes * sizeof(int32_t))));

// Eight floats in memory, at any address: LanesAt(p).lanes. By reference: vectors wider than a build's registers have no
// stable calling convention.
struct __attribute__((packed, may_alias)) LanesInMemory {
  Lanes lanes;
};
inline const LanesInMemory& LanesAt(const float* p) { return *reinterpret_cast<const LanesInMemory*>(p); }
inline void StoreLanes(float* p, const Lanes& v) { std::memcpy(p, &v, sizeof(v)); }

// Pairwise, in one fixed order.
inline float SumLanes(const Lanes& v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }

// *x -> e^x in every lane, with a relative error below 3e-7 for x in [-87, 88]; arguments outside are clamped to that range.
// Cody-Waite reduction and a polynomial.
inline void ExpLanes(Lanes* x) {
  constexpr float kLog2e = 1.44269504088896341f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low mantissa bits
  constexpr float kLeast = -87.0f, kMost = 88.0f;
  Lanes v = *x;
  v = v < kLeast ? kLeast - Lanes{} : v;
  v = v > kMost ? kMost - Lanes{} : v;
  const Lanes shifted = v * kLog2e + kRound;
  const Lanes n = shifted - kRound;
  Lanes r = v - n * kLn2High;
  r = r - n * kLn2Low;
  Lanes p = 1.9875691500e-4f * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  IntLanes exponent;
  std::memcpy(&exponent, &shifted, sizeof(exponent));
  exponent = (exponent - std::bit_cast<int32_t>(kRound) + 127) << 23;
  Lanes power;
  std::memcpy(&power, &exponent, sizeof(power));
  *x = p * power;
}

// f(&lanes) over x[0, n) into y[0, n), lane by lane; y may be x.
template <typename F>
inline void MapLanes(const float* x, size_t n, float* y, const F& f) {
  Lanes v = {};
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    v = LanesAt(x + i).lanes;
    f(&v);
    StoreLanes(y + i, v);
  }
  if (i == n) return;
  v = Lanes{};
  std::memcpy(&v, x + i, (n - i) * sizeof(float));
  f(&v);
  std::memcpy(y + i, &v, (n - i) * sizeof(float));
}

// f(&a_lanes, b_lanes) over a[0, n) and b[0, n) into y[0, n); y may be a or b.
template <typename F>
inline void MapLanes2(const float* a, const float* b, size_t n, float* y, const F& f) {
  Lanes v = {}, w = {};
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    v = LanesAt(a + i).lanes;
    w = LanesAt(b + i).lanes;
    f(&v, w);
    StoreLanes(y + i, v);
  }
  if (i == n) return;
  v = w = Lanes{};
  std::memcpy(&v, a + i, (n - i) * sizeof(float));
  std::memcpy(&w, b + i, (n - i) * sizeof(float));
  f(&v, w);
  std::memcpy(y + i, &v, (n - i) * sizeof(float));
}

}  // namespace moepack::runtime
