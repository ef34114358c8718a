// NEON kernels: int8 codes times activations in two int8 planes (sdot).
#if defined(__aarch64__)

#include <arm_neon.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>

#include "runtime-min/kernels/expand_table.h"
#include "runtime-min/kernels/tile.h"

namespace moepack::kernels {
namespace {

constexpr size_t kQuarters = 4;  // vectors of 16 columns in a block

struct Neon {
  static constexpr size_t kLanes = 4, kTileTokens = 2;
  static constexpr bool kCentresSums = false;
  using Code = int8_t;
  struct Codes {
    int8x16_t v[kQuarters];
  };
  struct Bytes64 {
    uint8x16_t v[kQuarters];
  };

  // Lane c is 0xff where bit c is set.
  static uint8x16_t BitsToBytes(const uint8_t* p) {
    const uint8x8_t bit_of = vcreate_u8(0x8040201008040201);
    return vcombine_u8(vtst_u8(vdup_n_u8(p[0]), bit_of), vtst_u8(vdup_n_u8(p[1]), bit_of));
  }

  // Lane 0 of each, then lane 1 of each, and so on.
  static Bytes64 InTurns(uint8x16_t c0, uint8x16_t c1, uint8x16_t c2, uint8x16_t c3) {
    const uint16x8_t a0 = vreinterpretq_u16_u8(vzip1q_u8(c0, c1)), a1 = vreinterpretq_u16_u8(vzip2q_u8(c0, c1));
    const uint16x8_t b0 = vreinterpretq_u16_u8(vzip1q_u8(c2, c3)), b1 = vreinterpretq_u16_u8(vzip2q_u8(c2, c3));
    return {{vreinterpretq_u8_u16(vzip1q_u16(a0, b0)), vreinterpretq_u8_u16(vzip2q_u16(a0, b0)),
             vreinterpretq_u8_u16(vzip1q_u16(a1, b1)), vreinterpretq_u8_u16(vzip2q_u16(a1, b1))}};
  }

  // A block of a plane as bytes in column order.
  template <int kPlaneBits>
  static Bytes64 LoadPlane(const uint8_t* p) {
    Bytes64 out;
    if constexpr (kPlaneBits == 8) {
      for (size_t q = 0; q < kQuarters; ++q) out.v[q] = vld1q_u8(p + 16 * q);
    } else if constexpr (kPlaneBits == 4) {
      for (size_t half = 0; half < 2; ++half) {
        const uint8x16_t v = vld1q_u8(p + 16 * half);
        const uint8x16_t even = vandq_u8(v, vdupq_n_u8(15)), odd = vshrq_n_u8(v, 4);
        out.v[2 * half] = vzip1q_u8(even, odd);
        out.v[2 * half + 1] = vzip2q_u8(even, odd);
      }
    } else if constexpr (kPlaneBits == 2) {
      const uint8x16_t v = vld1q_u8(p), three = vdupq_n_u8(3);
      out = InTurns(vandq_u8(v, three), vandq_u8(vshrq_n_u8(v, 2), three), vandq_u8(vshrq_n_u8(v, 4), three),
                    vshrq_n_u8(v, 6));
    } else {
      for (size_t q = 0; q < kQuarters; ++q) out.v[q] = vandq_u8(BitsToBytes(p + 2 * q), vdupq_n_u8(1));
    }
    return out;
  }

  template <int kBits>
  static Codes LoadPlanes(const uint8_t* p0, const uint8_t* p1) {
    Bytes64 bytes = LoadPlane<HighBits(kBits)>(p0);
    if constexpr (LowBits(kBits) != 0) {
      const Bytes64 low = LoadPlane<LowBits(kBits)>(p1);
      for (size_t q = 0; q < kQuarters; ++q) bytes.v[q] = vorrq_u8(vshlq_n_u8(bytes.v[q], LowBits(kBits)), low.v[q]);
    }
    Codes codes;
    const uint8x16_t offset = vdupq_n_u8(1 << (kBits - 1));
    for (size_t q = 0; q < kQuarters; ++q) codes.v[q] = vreinterpretq_s8_u8(vsubq_u8(bytes.v[q], offset));
    return codes;
  }

  // Both bytes of the products of 16 windows.
  struct Products {
    uint8x16_t low, high;
    uint8x16_t Means() const { return vrhaddq_u8(low, high); }
  };
  // Of columns kColumn of each byte of the first plane, from pairs of bytes: each with the one before it.
  template <int kBits, int kColumn>
  static Products TrellisProducts(uint16x8_t first, uint16x8_t second) {
    constexpr int kShift = 8 + HighBits(kBits) * (kColumn + 1) - WindowBits(kBits);
    constexpr auto kFactor = static_cast<uint16_t>(TrellisFactor(kBits));
    if constexpr (kShift != 0) {
      first = vshrq_n_u16(first, kShift);
      second = vshrq_n_u16(second, kShift);
    }
    const uint16x8_t mask = vdupq_n_u16((1 << WindowBits(kBits)) - 1);
    first = vmulq_n_u16(vandq_u16(first, mask), kFactor);
    second = vmulq_n_u16(vandq_u16(second, mask), kFactor);
    return {vcombine_u8(vmovn_u16(first), vmovn_u16(second)), vcombine_u8(vshrn_n_u16(first, 8), vshrn_n_u16(second, 8))};
  }
  // Bits 8 and 9 of windows, which are those of the second plane, count in the higher bytes of the products alone.
  template <int kBits>
  static void AddSecondPlane(const uint8_t* p, bool first, Bytes64* high) {
    constexpr uint8_t kFactor = TrellisFactor(kBits) & 0xff, kTwice = TrellisFactor(kBits) << 1 & 0xff;
    if constexpr (LowBits(kBits) == 2) {
      const Bytes64 codes = LoadPlane<2>(p);
      for (size_t q = 0; q < kQuarters; ++q) high->v[q] = vmlaq_u8(high->v[q], codes.v[q], vdupq_n_u8(kFactor));
    } else {
      uint64_t own;
      __builtin_memcpy(&own, p, sizeof(own));
      const uint64_t before = own << 1 | (first ? 0 : p[-1] >> 7);
      uint8_t earlier[sizeof(before)];
      __builtin_memcpy(earlier, &before, sizeof(before));
      for (size_t q = 0; q < kQuarters; ++q) {
        const uint8x16_t of_own = vandq_u8(BitsToBytes(p + 2 * q), vdupq_n_u8(kTwice));
        high->v[q] = vaddq_u8(high->v[q], vaddq_u8(of_own, vandq_u8(BitsToBytes(earlier + 2 * q), vdupq_n_u8(kFactor))));
      }
    }
  }
  template <int kBits>
  static Codes LoadTrellis(const uint8_t* p0, const uint8_t* p1, bool first) {
    Bytes64 low, high, bytes;
    for (size_t half = 0; half < (HighBits(kBits) == 4 ? 2 : 1); ++half) {
      const uint8_t* p = p0 + 16 * half;
      const uint8x16_t now = vld1q_u8(p);
      const uint8x16_t last = first && half == 0 ? vextq_u8(vdupq_n_u8(0), now, 15) : vld1q_u8(p - 1);
      const uint16x8_t a = vreinterpretq_u16_u8(vzip1q_u8(last, now)), b = vreinterpretq_u16_u8(vzip2q_u8(last, now));
      if constexpr (HighBits(kBits) == 4) {
        const Products even = TrellisProducts<kBits, 0>(a, b), odd = TrellisProducts<kBits, 1>(a, b);
        low.v[2 * half] = vzip1q_u8(even.low, odd.low);
        low.v[2 * half + 1] = vzip2q_u8(even.low, odd.low);
        high.v[2 * half] = vzip1q_u8(even.high, odd.high);
        high.v[2 * half + 1] = vzip2q_u8(even.high, odd.high);
      } else {
        const Products c0 = TrellisProducts<kBits, 0>(a, b), c1 = TrellisProducts<kBits, 1>(a, b);
        const Products c2 = TrellisProducts<kBits, 2>(a, b), c3 = TrellisProducts<kBits, 3>(a, b);
        if constexpr (LowBits(kBits) == 0) {
          bytes = InTurns(c0.Means(), c1.Means(), c2.Means(), c3.Means());
        } else {
          low = InTurns(c0.low, c1.low, c2.low, c3.low);
          high = InTurns(c0.high, c1.high, c2.high, c3.high);
        }
      }
    }
    if constexpr (LowBits(kBits) != 0) AddSecondPlane<kBits>(p1, first, &high);
    if constexpr (kBits != 2) {
      for (size_t q = 0; q < kQuarters; ++q) bytes.v[q] = Products{low.v[q], high.v[q]}.Means();
    }
    Codes codes;
    for (size_t q = 0; q < kQuarters; ++q)
      codes.v[q] = vreinterpretq_s8_u8(veorq_u8(bytes.v[q], vdupq_n_u8(kTrellisCentre)));
    return codes;
  }

  static Codes LoadCodes(const Code* p) { return {{vld1q_s8(p), vld1q_s8(p + 16), vld1q_s8(p + 32), vld1q_s8(p + 48)}}; }
  static void StoreCodes(Code* p, const Codes& codes) {
    for (size_t q = 0; q < kQuarters; ++q) vst1q_s8(p + 16 * q, codes.v[q]);
  }
  template <int kBits>
  static void StoreNatural(const uint8_t* p0, const uint8_t* p1, int8_t* out) {
    StoreCodes(out, LoadPlanes<kBits>(p0, p1));
  }
  // Columns 8i .. 8i+7 of a block.
  static int8x8_t ExpandByte(const int8_t* kept, uint64_t mask, uint64_t before, size_t i) {
    const uint8_t* order = kExpandTable.order[mask >> (8 * i) & 0xff];
    return vtbl1_s8(vld1_s8(kept + (before >> (8 * i) & 0xff)), vreinterpret_s8_u8(vld1_u8(order)));
  }
  static Codes Expand(const int8_t* kept, uint64_t mask) {
    const uint64_t before = EntriesBefore(mask);
    Codes codes;
    for (size_t q = 0; q < kQuarters; ++q) {
      codes.v[q] = vcombine_s8(ExpandByte(kept, mask, before, 2 * q), ExpandByte(kept, mask, before, 2 * q + 1));
    }
    return codes;
  }
  static Codes ExpandOnes(uint64_t mask) {
    uint8_t bits[kBlock / 8];
    __builtin_memcpy(bits, &mask, sizeof(bits));
    const Bytes64 ones = LoadPlane<1>(bits);
    Codes codes;
    for (size_t q = 0; q < kQuarters; ++q) codes.v[q] = vreinterpretq_s8_u8(ones.v[q]);
    return codes;
  }

  static float32x4_t LoadF16(const uint8_t* p) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }
  static void ConvertF16(const uint8_t* in, size_t count, float* out) {
    for (size_t i = 0; i < count; i += kLanes) vst1q_f32(out + i, LoadF16(in + 2 * i));
    for (size_t i = count; i % kScaleSlack != 0; ++i) out[i] = 0.0f;
  }

  template <int R, int T, class Source>
  static void DotCodes(const Source& source, GroupIndex group, const float (*scales)[kPanelScales], const ActivationView& x,
                       const Span& span, float* acc) {
    switch (group.up) {
      case 0:
        return DotBlocks<R, T, 1>(source, group, scales, x, span, acc);
      case 1:
        return DotBlocks<R, T, 2>(source, group, scales, x, span, acc);
      default:
        return DotBlocks<R, T, 4>(source, group, scales, x, span, acc);
    }
  }

  // kGroups: groups in a block, 1 when a group has a block or more.
  template <int R, int T, size_t kGroups, class Source>
  static void DotBlocks(const Source& source, GroupIndex group, const float (*scales)[kPanelScales], const ActivationView& x,
                        const Span& span, float* acc) {
    float32x4_t sum[R][T];
    LoadSums<R, T>(acc, span.first, sum);
    size_t in[T];
    for (int t = 0; t < T; ++t) in[t] = RowOf(x, span.token + static_cast<size_t>(t)) * x.padded_cols + span.col;
    for (size_t b = 0; b < span.count; ++b) {
      source.Prefetch(b);
      for (int r = 0; r < R; ++r) {
        const Codes codes = source.Load(r, b);
        for (int t = 0; t < T; ++t) {
          const int8_t* high = x.high + in[t] + b * kBlock;
          const int8_t* low = x.low + in[t] + b * kBlock;
          for (size_t g = 0; g < kGroups; ++g) {
            const int32x4_t dot = DotQuarters<kQuarters / kGroups>(
                codes.v + g * (kQuarters / kGroups), high + g * (kBlock / kGroups), low + g * (kBlock / kGroups));
            sum[r][t] = vfmaq_n_f32(sum[r][t], vcvtq_f32_s32(dot), scales[r][group(b) + g]);
          }
        }
      }
    }
    StoreSums<R, T>(sum, acc);
  }

  template <size_t kCount>
  static int32x4_t DotQuarters(const int8x16_t* codes, const int8_t* high, const int8_t* low) {
    int32x4_t high_dot = vdupq_n_s32(0), low_dot = vdupq_n_s32(0);
    for (size_t q = 0; q < kCount; ++q) {
      high_dot = vdotq_s32(high_dot, codes[q], vld1q_s8(high + 16 * q));
      low_dot = vdotq_s32(low_dot, codes[q], vld1q_s8(low + 16 * q));
    }
    return vaddq_s32(vshlq_n_s32(high_dot, 8), low_dot);
  }

  // Sums of R rows and T tokens so far.
  template <int R, int T>
  static void LoadSums(const float* acc, bool first, float32x4_t (&sum)[R][T]) {
    for (int r = 0; r < R; ++r) {
      for (int t = 0; t < T; ++t) sum[r][t] = first ? vdupq_n_f32(0.0f) : vld1q_f32(acc + (r * kTokenBatch + t) * kLanes);
    }
  }
  template <int R, int T>
  static void StoreSums(const float32x4_t (&sum)[R][T], float* acc) {
    for (int r = 0; r < R; ++r) {
      for (int t = 0; t < T; ++t) vst1q_f32(acc + (r * kTokenBatch + t) * kLanes, sum[r][t]);
    }
  }

  static void RaiseMins(float offset, const float* scales, size_t count, float* mins) {
    for (size_t g = 0; g < count; g += kLanes)
      vst1q_f32(mins + g, vfmaq_n_f32(vld1q_f32(mins + g), vld1q_f32(scales + g), offset));
  }

  static void AddMins(const float* mins, const float* sums, size_t count, float* acc) {
    float32x4_t sum = vld1q_f32(acc);
    for (size_t g = 0; g < count; g += kLanes) sum = vfmaq_f32(sum, vld1q_f32(mins + g), vld1q_f32(sums + g));
    vst1q_f32(acc, sum);
  }

  template <Element kElement>
  static float32x4_t LoadFloats(const uint8_t* p, size_t i) {
    if constexpr (kElement == Element::kF32) return vreinterpretq_f32_u8(vld1q_u8(p + i * 4 * kLanes));
    if constexpr (kElement == Element::kF16) return LoadF16(p + i * 2 * kLanes);
    if constexpr (kElement == Element::kBf16) {
      return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p + i * 2 * kLanes)), 16));
    }
  }
  static void StoreFloats(float* p, size_t i, float32x4_t v) { vst1q_f32(p + i * kLanes, v); }
  template <Element kElement>
  static float32x4_t ExpandFloats(const uint8_t* kept, uint32_t mask) {
    float in[kLanes], out[kLanes];
    vst1q_f32(in, LoadFloats<kElement>(kept, 0));
    for (size_t c = 0, next = 0; c < kLanes; ++c) out[c] = (mask >> c & 1) != 0 ? in[next++] : 0.0f;
    return vld1q_f32(out);
  }

  template <int R, int T, class Source>
  static void DotFloats(const Source& source, const ActivationView& x, const Span& span, float* acc) {
    const float* in[T];
    for (int t = 0; t < T; ++t) in[t] = x.values + RowOf(x, span.token + static_cast<size_t>(t)) * x.padded_cols + span.col;
    float32x4_t sum[R][T];
    LoadSums<R, T>(acc, span.first, sum);
    for (size_t i = 0; i < span.count; ++i) {
      for (int r = 0; r < R; ++r) {
        const float32x4_t weights = source.Load(r, i);
        for (int t = 0; t < T; ++t) sum[r][t] = vfmaq_f32(sum[r][t], weights, vld1q_f32(in[t] + i * kLanes));
      }
    }
    StoreSums<R, T>(sum, acc);
  }

  static float Reduce(const float* acc) { return vaddvq_f32(vld1q_f32(acc)); }
};

bool Supported() {
  constexpr unsigned long kNeeded = HWCAP_ASIMDDP | HWCAP_ASIMDHP;
  return (getauxval(AT_HWCAP) & kNeeded) == kNeeded;
}

}  // namespace

const KernelSet kNeonKernels = {
    .isa = Isa::kNeonDot, .supported = Supported, .order = Order::kPlanes, .matmul = AllKinds<Neon>()};

}  // namespace moepack::kernels

#endif  // defined(__aarch64__)
