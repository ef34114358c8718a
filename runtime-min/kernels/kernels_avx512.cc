// AVX-512 VNNI kernels: codes widened to 16 bits times 16-bit activations (vpdpwssd).
#if defined(__x86_64__)

// GCC 12 warns of the undefined operands that its own AVX-512 header passes on purpose (PR 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include "runtime-min/kernels/tile.h"

namespace moepack::kernels {
namespace {

struct Avx512 {
  static constexpr size_t kLanes = 16, kTileTokens = 4;
  static constexpr bool kCentresSums = true;
  using Code = int16_t;
  // Even and odd columns of a block.
  struct Codes {
    __m512i even, odd;
  };

  // A block of a plane as bytes in column order, each code shifted left by kShift; bits around it are undefined.
  template <int kPlaneBits, int kShift>
  static __m512i SpreadPlane(const uint8_t* p) {
    // Eight codes in a 64-bit lane each; byte j of a lane takes the 8 bits that begin kShift below code j.
    __m512i v;
    if constexpr (kPlaneBits == 4) v = _mm512_cvtepu32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    if constexpr (kPlaneBits == 2) v = _mm512_cvtepu16_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    uint64_t control = 0;
    for (int j = 0; j < 8; ++j) control |= static_cast<uint64_t>((kPlaneBits * j - kShift) & 63) << (8 * j);
    return _mm512_multishift_epi64_epi8(_mm512_set1_epi64(static_cast<int64_t>(control)), v);
  }

  // A block of codes, not centred, as bytes in column order.
  template <int kBits>
  static __m512i LoadUnsigned(const uint8_t* p0, const uint8_t* p1) {
    if constexpr (kBits == 8) {
      return _mm512_loadu_si512(p0);
    } else if constexpr (LowBits(kBits) == 0) {
      return _mm512_and_si512(SpreadPlane<kBits, 0>(p0), _mm512_set1_epi8((1 << kBits) - 1));
    } else if constexpr (LowBits(kBits) == 1) {
      uint64_t low;
      __builtin_memcpy(&low, p1, sizeof(low));
      const __m512i high = _mm512_and_si512(SpreadPlane<HighBits(kBits), 1>(p0), _mm512_set1_epi8((1 << kBits) - 2));
      return _mm512_mask_sub_epi8(high, _cvtu64_mask64(low), high, _mm512_set1_epi8(-1));
    } else {
      const __m512i high = SpreadPlane<HighBits(kBits), 2>(p0), low = SpreadPlane<2, 0>(p1);
      constexpr int kSelect = 0xca;  // bits of the second operand where the first has ones, of the third elsewhere
      const __m512i codes = _mm512_ternarylogic_epi64(_mm512_set1_epi8((1 << kBits) - 4), high, low, kSelect);
      return _mm512_and_si512(codes, _mm512_set1_epi8((1 << kBits) - 1));
    }
  }

  template <int kBits>
  static __m512i LoadBytes(const uint8_t* p0, const uint8_t* p1) {
    return _mm512_sub_epi8(LoadUnsigned<kBits>(p0, p1), _mm512_set1_epi8(static_cast<char>(1 << (kBits - 1))));
  }

  static Codes Widen(__m512i bytes) {
    return {_mm512_srai_epi16(_mm512_slli_epi16(bytes, 8), 8), _mm512_srai_epi16(bytes, 8)};
  }

  template <int kBits>
  static Codes LoadPlanes(const uint8_t* p0, const uint8_t* p1) {
    // Nibbles fall apart into even and odd columns without a detour through bytes.
    if constexpr (kBits == 4) {
      const __m512i v = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p0)));
      const __m512i offset = _mm512_set1_epi16(8);
      return {_mm512_sub_epi16(_mm512_and_si512(v, _mm512_set1_epi16(15)), offset),
              _mm512_sub_epi16(_mm512_srli_epi16(v, 4), offset)};
    } else {
      return Widen(LoadBytes<kBits>(p0, p1));
    }
  }

  template <int kBits>
  static Codes LoadRaw(const uint8_t* p0, const uint8_t* p1) {
    if constexpr (kBits == 4) {
      const __m512i v = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p0)));
      return {_mm512_and_si512(v, _mm512_set1_epi16(15)), _mm512_srli_epi16(v, 4)};
    } else {
      const __m512i bytes = LoadUnsigned<kBits>(p0, p1);
      return {_mm512_and_si512(bytes, _mm512_set1_epi16(255)), _mm512_srli_epi16(bytes, 8)};
    }
  }

  // Values, kTrellisCentre too large, of windows in 16-bit lanes.
  template <int kBits>
  static __m512i TrellisValues(__m512i windows) {
    constexpr auto kFactor = static_cast<int16_t>(TrellisFactor(kBits));
    const __m512i products = _mm512_mullo_epi16(windows, _mm512_set1_epi16(kFactor));
    return _mm512_avg_epu16(_mm512_maddubs_epi16(products, _mm512_set1_epi8(1)), _mm512_setzero_si512());
  }
  template <int kBits>
  static Codes LoadTrellis(const uint8_t* p0, const uint8_t* p1, bool first) {
    const Codes raw = LoadRawTrellis<kBits>(p0, p1, first);
    const __m512i centre = _mm512_set1_epi16(kTrellisCentre);
    return {_mm512_sub_epi16(raw.even, centre), _mm512_sub_epi16(raw.odd, centre)};
  }
  // Bytes of the registers that hold the first and (from 64 on) the second plane, from the byte before a block on.
  struct TrellisOrder {
    alignas(64) uint8_t bytes[64];
  };
  // A 16-bit lane for each byte of two columns: the byte before it and itself.
  static constexpr TrellisOrder PairsInOrder() {
    TrellisOrder order = {};
    for (int i = 0; i < 64; ++i) order.bytes[i] = static_cast<uint8_t>((i + 1) / 2);
    return order;
  }
  // A 64-bit lane for eight columns: what their windows are in, of the first plane and the byte before them in bytes 0 to 4,
  // of the second plane in bytes 5 and 6.
  template <int kBits>
  static constexpr TrellisOrder LanesInOrder() {
    TrellisOrder order = {};
    for (int lane = 0; lane < 8; ++lane) {
      uint8_t* out = order.bytes + 8 * lane;
      for (int i = 0; i <= HighBits(kBits); ++i) out[i] = static_cast<uint8_t>(HighBits(kBits) * lane + i);
      if (LowBits(kBits) == 0) continue;
      // Windows hold a bit of the column before them, or none.
      const int first = LowBits(kBits) == 1 ? lane : 2 * lane + 1;
      out[5] = static_cast<uint8_t>(64 + first);
      out[6] = static_cast<uint8_t>(64 + first + 1);
    }
    return order;
  }
  // For the bytes of the four windows of a lane, of its even or odd columns: the bit of the lane that each begins with.
  template <int kBits>
  static constexpr uint64_t WindowStarts(int odd) {
    uint64_t starts = 0;
    for (int window = 0; window < 4; ++window) {
      const int column = 2 * window + odd, low = 8 + HighBits(kBits) * (column + 1) - WindowBits(kBits);
      const int high = LowBits(kBits) == 0 ? low + 8 : LowBits(kBits) == 1 ? 47 + column : 40 + 2 * column;
      starts |= static_cast<uint64_t>(high << 8 | low) << (16 * window);
    }
    return starts;
  }
  // The byte before a block of a plane (0 before the first column of a row), then the block.
  template <int kPlaneBits>
  static __m512i PlaneFromBefore(const uint8_t* p, bool first) {
    constexpr uint64_t kNothingBefore = ~uint64_t{1};
    if constexpr (kPlaneBits == 4) {
      return first ? _mm512_maskz_loadu_epi8(_cvtu64_mask64(kNothingBefore), p - 1) : _mm512_loadu_si512(p - 1);
    } else if constexpr (kPlaneBits == 2) {
      return _mm512_castsi256_si512(first ? _mm256_maskz_loadu_epi8(static_cast<__mmask32>(kNothingBefore), p - 1)
                                          : _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p - 1)));
    } else {
      return _mm512_castsi128_si512(first ? _mm_maskz_loadu_epi8(static_cast<__mmask16>(kNothingBefore), p - 1)
                                          : _mm_loadu_si128(reinterpret_cast<const __m128i*>(p - 1)));
    }
  }
  template <int kBits>
  static Codes LoadRawTrellis(const uint8_t* p0, const uint8_t* p1, bool first) {
    const __m512i in_window = _mm512_set1_epi16(static_cast<int16_t>(kTrellisWindows - 1));
    static constexpr TrellisOrder kOrder = kBits == 4 ? PairsInOrder() : LanesInOrder<kBits>();
    const __m512i order = _mm512_load_si512(kOrder.bytes);
    __m512i bytes = PlaneFromBefore<HighBits(kBits)>(p0, first);
    if constexpr (LowBits(kBits) == 0) {
      bytes = _mm512_permutexvar_epi8(order, bytes);
    } else {
      bytes = _mm512_permutex2var_epi8(bytes, order, PlaneFromBefore<LowBits(kBits)>(p1, first));
    }
    Codes windows;
    if constexpr (kBits == 4) {
      windows = {_mm512_and_si512(_mm512_srli_epi16(bytes, 2), in_window), _mm512_srli_epi16(bytes, 6)};
    } else {
      const auto at = [bytes, in_window](uint64_t starts) {
        const __m512i control = _mm512_set1_epi64(static_cast<int64_t>(starts));
        return _mm512_and_si512(_mm512_multishift_epi64_epi8(control, bytes), in_window);
      };
      windows = {at(WindowStarts<kBits>(0)), at(WindowStarts<kBits>(1))};
    }
    return {TrellisValues<kBits>(windows.even), TrellisValues<kBits>(windows.odd)};
  }

  static Codes LoadCodes(const Code* p) { return {_mm512_load_si512(p), _mm512_load_si512(p + 32)}; }
  static void StoreCodes(Code* p, const Codes& codes) {
    _mm512_store_si512(p, codes.even);
    _mm512_store_si512(p + 32, codes.odd);
  }
  template <int kBits>
  static void StoreNatural(const uint8_t* p0, const uint8_t* p1, int8_t* out) {
    _mm512_storeu_si512(out, LoadBytes<kBits>(p0, p1));
  }
  // Expansion straight from memory is many times slower on Zen than from a register: keeps compilers from fusing the two.
  template <class Vector>
  static Vector InRegister(Vector v) {
    asm("" : "+v"(v));
    return v;
  }
  static Codes Expand(const int8_t* kept, uint64_t mask) {
    return Widen(_mm512_maskz_expand_epi8(_cvtu64_mask64(mask), InRegister(_mm512_loadu_si512(kept))));
  }
  static Codes ExpandOnes(uint64_t mask) { return Widen(_mm512_maskz_set1_epi8(_cvtu64_mask64(mask), 1)); }

  static void ConvertF16(const uint8_t* in, size_t count, float* out) {
    for (size_t i = 0; i < count; i += 16) {
      const __mmask16 left = count - i >= 16 ? __mmask16{0xffff} : static_cast<__mmask16>((1u << (count - i)) - 1);
      _mm512_storeu_ps(out + i,
                       _mm512_maskz_cvtph_ps(left, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + 2 * i))));
    }
  }

  // Group of lane j (columns 4j .. 4j+3) counted from the first group of its block.
  static __m512i LaneGroups(const GroupIndex& group) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_srl_epi32(lane, _mm_cvtsi32_si128(group.up == 0 ? 31 : 4 - static_cast<int>(group.up)));
  }

  // What the dots of a block begin with, so that codes above their centre by kCentre need not be centred.
  template <int kCentre>
  static __m512i Centre(const ActivationView& x, const Span& span, size_t t, size_t block) {
    if constexpr (kCentre == 0) return _mm512_setzero_si512();
    const int32_t* sums = x.centres + RowOf(x, span.token + t) * (x.padded_cols / 4) + (span.col + block * kBlock) / 4;
    return _mm512_slli_epi32(_mm512_loadu_si512(sums), __builtin_ctz(kCentre == 0 ? 1 : kCentre));
  }

  // Sums of R rows and T tokens so far.
  template <int R, int T>
  static void LoadSums(const float* acc, bool first, __m512 (&sum)[R][T]) {
    for (int r = 0; r < R; ++r) {
      for (int t = 0; t < T; ++t) {
        sum[r][t] = first ? _mm512_setzero_ps() : _mm512_load_ps(acc + (r * kTokenBatch + t) * kLanes);
      }
    }
  }
  template <int R, int T>
  static void StoreSums(const __m512 (&sum)[R][T], float* acc) {
    for (int r = 0; r < R; ++r) {
      for (int t = 0; t < T; ++t) _mm512_store_ps(acc + (r * kTokenBatch + t) * kLanes, sum[r][t]);
    }
  }

  template <int R, int T, class Source>
  static void DotCodes(const Source& source, GroupIndex group, const float (*scales)[kPanelScales], const ActivationView& x,
                       const Span& span, float* acc) {
    if (group.up == 0) {
      DotBlocks<R, T, true>(source, group, scales, x, span, acc);
    } else {
      DotBlocks<R, T, false>(source, group, scales, x, span, acc);
    }
  }

  // kWhole: a block lies in one group.
  template <int R, int T, bool kWhole, class Source>
  static void DotBlocks(const Source& source, GroupIndex group, const float (*scales)[kPanelScales], const ActivationView& x,
                        const Span& span, float* acc) {
    const __m512i lane_groups = LaneGroups(group);
    const int16_t* in[T];
    for (int t = 0; t < T; ++t) in[t] = x.wide + RowOf(x, span.token + static_cast<size_t>(t)) * x.padded_cols + span.col;
    __m512 sum[R][T];
    LoadSums<R, T>(acc, span.first, sum);
    for (size_t b = 0; b < span.count; ++b) {
      source.Prefetch(b);
      __m512i begin[T], even[T], odd[T];
      for (int t = 0; t < T; ++t) {
        begin[t] = Centre<Source::kCentre>(x, span, static_cast<size_t>(t), b);
        even[t] = _mm512_loadu_si512(in[t] + b * kBlock);
        odd[t] = _mm512_loadu_si512(in[t] + b * kBlock + 32);
      }
      for (int r = 0; r < R; ++r) {
        const Codes codes = source.Load(r, b);
        __m512 scale;
        if constexpr (kWhole) {
          scale = _mm512_set1_ps(scales[r][group(b)]);
        } else {
          scale = _mm512_permutexvar_ps(lane_groups, _mm512_castps128_ps512(_mm_loadu_ps(scales[r] + group(b))));
        }
        for (int t = 0; t < T; ++t) {
          __m512i dot = _mm512_dpwssd_epi32(begin[t], codes.even, even[t]);
          dot = _mm512_dpwssd_epi32(dot, codes.odd, odd[t]);
          sum[r][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, sum[r][t]);
        }
      }
    }
    StoreSums<R, T>(sum, acc);
  }

  static void RaiseMins(float offset, const float* scales, size_t count, float* mins) {
    for (size_t g = 0; g < count; g += kLanes) {
      _mm512_storeu_ps(mins + g,
                       _mm512_fmadd_ps(_mm512_set1_ps(offset), _mm512_loadu_ps(scales + g), _mm512_loadu_ps(mins + g)));
    }
  }

  static void AddMins(const float* mins, const float* sums, size_t count, float* acc) {
    __m512 sum = _mm512_load_ps(acc);
    for (size_t g = 0; g < count; g += kLanes)
      sum = _mm512_fmadd_ps(_mm512_loadu_ps(mins + g), _mm512_loadu_ps(sums + g), sum);
    _mm512_store_ps(acc, sum);
  }

  template <Element kElement>
  static __m512 LoadFloats(const uint8_t* p, size_t i) {
    if constexpr (kElement == Element::kF32) return _mm512_loadu_ps(reinterpret_cast<const float*>(p) + i * kLanes);
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p) + i);
    if constexpr (kElement == Element::kF16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static void StoreFloats(float* p, size_t i, __m512 v) { _mm512_store_ps(p + i * kLanes, v); }
  template <Element kElement>
  static __m512 ExpandFloats(const uint8_t* kept, uint32_t mask) {
    return _mm512_maskz_expand_ps(static_cast<__mmask16>(mask), InRegister(LoadFloats<kElement>(kept, 0)));
  }

  template <int R, int T, class Source>
  static void DotFloats(const Source& source, const ActivationView& x, const Span& span, float* acc) {
    const float* in[T];
    for (int t = 0; t < T; ++t) in[t] = x.values + RowOf(x, span.token + static_cast<size_t>(t)) * x.padded_cols + span.col;
    __m512 sum[R][T];
    LoadSums<R, T>(acc, span.first, sum);
    for (size_t i = 0; i < span.count; ++i) {
      __m512 xs[T];
      for (int t = 0; t < T; ++t) xs[t] = _mm512_loadu_ps(in[t] + i * kLanes);
      for (int r = 0; r < R; ++r) {
        const __m512 weights = source.Load(r, i);
        for (int t = 0; t < T; ++t) sum[r][t] = _mm512_fmadd_ps(weights, xs[t], sum[r][t]);
      }
    }
    StoreSums<R, T>(sum, acc);
  }

  static float Reduce(const float* acc) { return _mm512_reduce_add_ps(_mm512_load_ps(acc)); }
};

bool Supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") &&
         __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx2") &&
         __builtin_cpu_supports("fma");
}

}  // namespace

const KernelSet kAvx512Kernels = {
    .isa = Isa::kAvx512Vnni, .supported = Supported, .order = Order::kEvenOdd, .matmul = AllKinds<Avx512>()};

}  // namespace moepack::kernels

#endif  // defined(__x86_64__)
