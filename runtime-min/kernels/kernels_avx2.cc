// AVX2 kernels: codes widened to 16 bits times 16-bit activations (vpmaddwd).
#if defined(__x86_64__)

#include <immintrin.h>

#include "runtime-min/kernels/expand_table.h"
#include "runtime-min/kernels/tile.h"

namespace moepack::kernels {
namespace {

struct Avx2 {
  static constexpr size_t kLanes = 8, kTileTokens = 2;
  static constexpr bool kCentresSums = true;
  using Code = int16_t;
  // Even and odd columns of the two halves of a block.
  struct Codes {
    __m256i even[2], odd[2];
  };

  // Half a block of a plane as bytes in column order.
  template <int kPlaneBits>
  static __m256i LoadPlane(const uint8_t* p) {
    if constexpr (kPlaneBits == 8) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    if constexpr (kPlaneBits == 4) {
      const __m256i v = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
      return _mm256_and_si256(_mm256_or_si256(v, _mm256_slli_epi16(v, 4)), _mm256_set1_epi8(0x0f));
    }
    if constexpr (kPlaneBits == 2) {
      const __m256i v = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
      const __m256i pairs = _mm256_or_si256(v, _mm256_slli_epi32(v, 12));
      return _mm256_and_si256(_mm256_or_si256(pairs, _mm256_slli_epi32(pairs, 6)), _mm256_set1_epi8(0x03));
    }
  }

  // Byte c is 0xff where bit c is set.
  static __m256i BitsToBytes(uint32_t bits) {
    const __m256i byte_of = _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0);
    const __m256i bit_of = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
    const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(bits)), byte_of);
    return _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit_of), bit_of);
  }

  // Half a block of codes, not centred, as bytes in column order.
  template <int kBits>
  static __m256i LoadUnsigned(const uint8_t* p0, const uint8_t* p1) {
    const __m256i high = LoadPlane<HighBits(kBits)>(p0);
    if constexpr (LowBits(kBits) == 0) {
      return high;
    } else if constexpr (LowBits(kBits) == 1) {
      uint32_t low;
      __builtin_memcpy(&low, p1, sizeof(low));
      return _mm256_sub_epi8(_mm256_slli_epi16(high, 1), BitsToBytes(low));  // 0xff is -1
    } else {
      return _mm256_or_si256(_mm256_slli_epi16(high, LowBits(kBits)), LoadPlane<LowBits(kBits)>(p1));
    }
  }
  template <int kBits>
  static __m256i LoadBytes(const uint8_t* p0, const uint8_t* p1) {
    return _mm256_sub_epi8(LoadUnsigned<kBits>(p0, p1), _mm256_set1_epi8(static_cast<char>(1 << (kBits - 1))));
  }

  // Half a block, not centred: nibbles and pairs of bits fall apart into even and odd columns without a detour through
  // bytes.
  template <int kBits>
  static void LoadRawHalf(const uint8_t* p0, const uint8_t* p1, __m256i* even, __m256i* odd) {
    if constexpr (kBits == 4) {
      const __m256i v = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p0)));
      *even = _mm256_and_si256(v, _mm256_set1_epi16(15));
      *odd = _mm256_srli_epi16(v, 4);
    } else if constexpr (kBits == 2) {
      const __m256i v = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p0)));
      const __m256i pairs = _mm256_or_si256(v, _mm256_slli_epi32(v, 12));
      *even = _mm256_and_si256(pairs, _mm256_set1_epi16(3));
      *odd = _mm256_and_si256(_mm256_srli_epi16(pairs, 2), _mm256_set1_epi16(3));
    } else {
      const __m256i bytes = LoadUnsigned<kBits>(p0, p1);
      *even = _mm256_and_si256(bytes, _mm256_set1_epi16(255));
      *odd = _mm256_srli_epi16(bytes, 8);
    }
  }
  template <int kBits>
  static Codes LoadRaw(const uint8_t* p0, const uint8_t* p1) {
    Codes codes;
    for (size_t half = 0; half < 2; ++half) {
      LoadRawHalf<kBits>(p0 + half * 4 * HighBits(kBits), p1 + half * 4 * LowBits(kBits), &codes.even[half],
                         &codes.odd[half]);
    }
    return codes;
  }

  static Codes Widen(__m256i first, __m256i second) {
    return {{_mm256_srai_epi16(_mm256_slli_epi16(first, 8), 8), _mm256_srai_epi16(_mm256_slli_epi16(second, 8), 8)},
            {_mm256_srai_epi16(first, 8), _mm256_srai_epi16(second, 8)}};
  }

  template <int kBits>
  static Codes LoadPlanes(const uint8_t* p0, const uint8_t* p1) {
    return Widen(LoadBytes<kBits>(p0, p1), LoadBytes<kBits>(p0 + 4 * HighBits(kBits), p1 + 4 * LowBits(kBits)));
  }

  // Values, not centred, of windows in 16-bit lanes.
  template <int kBits>
  static __m256i TrellisValues(__m256i windows) {
    constexpr auto kFactor = static_cast<int16_t>(TrellisFactor(kBits));
    const __m256i products = _mm256_mullo_epi16(windows, _mm256_set1_epi16(kFactor));
    return _mm256_avg_epu16(_mm256_maddubs_epi16(products, _mm256_set1_epi8(1)), _mm256_setzero_si256());
  }
  template <int kBits>
  static Codes LoadTrellis(const uint8_t* p0, const uint8_t* p1, bool first) {
    const __m256i centre = _mm256_set1_epi16(kTrellisCentre);
    Codes codes = LoadRawTrellis<kBits>(p0, p1, first);
    for (size_t half = 0; half < 2; ++half) {
      codes.even[half] = _mm256_sub_epi16(codes.even[half], centre);
      codes.odd[half] = _mm256_sub_epi16(codes.odd[half], centre);
    }
    return codes;
  }
  template <int kBits>
  static Codes LoadRawTrellis(const uint8_t* p0, const uint8_t* p1, bool first) {
    Codes values;
    for (int half = 0; half < 2; ++half) {
      const __m256i pairs = BytePairs<HighBits(kBits), true>(p0, half, first);
      __m256i even = Windows<HighBits(kBits), WindowBits(kBits)>(pairs, 0);
      __m256i odd = Windows<HighBits(kBits), WindowBits(kBits)>(pairs, 1);
      if constexpr (LowBits(kBits) != 0) {
        const __m256i second = BytePairs<LowBits(kBits), LowBits(kBits) == 1>(p1, half, first);
        even = _mm256_or_si256(even, SecondPlane<LowBits(kBits)>(second, 0));
        odd = _mm256_or_si256(odd, SecondPlane<LowBits(kBits)>(second, 1));
      }
      values.even[half] = TrellisValues<kBits>(even);
      values.odd[half] = TrellisValues<kBits>(odd);
    }
    return values;
  }
  // For each even column of half a block of a plane, and the odd one behind it, a 16-bit lane: its byte, after the one
  // before it (kBefore) or twice.
  template <int kPlaneBits, bool kBefore>
  static __m256i BytePairs(const uint8_t* p, int half, bool first) {
    const uint8_t* bytes = p + 4 * kPlaneBits * half - 1;
    // Nothing stands before the first column of a row.
    const __m128i begin = first && half == 0 ? _mm_slli_si128(Load16(bytes + 1), 1) : Load16(bytes);
    const __m256i both = kPlaneBits == 4 ? _mm256_inserti128_si256(_mm256_castsi128_si256(begin), Load16(bytes + 8), 1)
                                         : _mm256_broadcastsi128_si256(begin);
    static constexpr ByteOrder kOrder = PairOrder(kPlaneBits, kBefore);
    return _mm256_shuffle_epi8(both, _mm256_load_si256(reinterpret_cast<const __m256i*>(kOrder.bytes)));
  }
  static __m128i Load16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  struct ByteOrder {
    alignas(32) uint8_t bytes[32];
  };
  static constexpr ByteOrder PairOrder(int plane_bits, bool before) {
    ByteOrder order = {};
    for (int lane = 0; lane < 16; ++lane) {
      const int byte = 2 * (plane_bits == 4 ? lane % 8 : lane) * plane_bits / 8;
      order.bytes[2 * lane] = static_cast<uint8_t>(before ? byte : byte + 1);
      order.bytes[2 * lane + 1] = static_cast<uint8_t>(byte + 1);
    }
    return order;
  }
  // Powers of two that move the code of each lane's column to the top of its byte pair.
  template <int kPlaneBits>
  static __m256i ToTop(__m256i pairs, int odd) {
    if constexpr (kPlaneBits == 4) return odd != 0 ? pairs : _mm256_slli_epi16(pairs, 4);
    int64_t factors = 0;
    for (int lane = 0; lane < 4; ++lane) {
      const int end = kPlaneBits * (2 * lane + odd + 1) % 8;
      factors |= int64_t{1} << (16 * lane + (end == 0 ? 0 : 8 - end));
    }
    return _mm256_mullo_epi16(pairs, _mm256_set1_epi64x(factors));
  }
  // Windows of kWindow bits of a first plane.
  template <int kPlaneBits, int kWindow>
  static __m256i Windows(__m256i pairs, int odd) {
    return _mm256_srli_epi16(ToTop<kPlaneBits>(pairs, odd), 16 - kWindow);
  }
  // Bits 8 and 9 of windows: the last two of a second plane.
  template <int kPlaneBits>
  static __m256i SecondPlane(__m256i pairs, int odd) {
    return _mm256_and_si256(_mm256_srli_epi16(ToTop<kPlaneBits>(pairs, odd), 6), _mm256_set1_epi16(0x300));
  }

  static const __m256i* Vectors(const Code* p) { return reinterpret_cast<const __m256i*>(p); }
  static Codes LoadCodes(const Code* p) {
    return {{_mm256_load_si256(Vectors(p)), _mm256_load_si256(Vectors(p) + 1)},
            {_mm256_load_si256(Vectors(p) + 2), _mm256_load_si256(Vectors(p) + 3)}};
  }
  static void StoreCodes(Code* p, const Codes& codes) {
    __m256i* out = reinterpret_cast<__m256i*>(p);
    _mm256_store_si256(out, codes.even[0]);
    _mm256_store_si256(out + 1, codes.even[1]);
    _mm256_store_si256(out + 2, codes.odd[0]);
    _mm256_store_si256(out + 3, codes.odd[1]);
  }
  template <int kBits>
  static void StoreNatural(const uint8_t* p0, const uint8_t* p1, int8_t* out) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), LoadBytes<kBits>(p0, p1));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 32),
                        LoadBytes<kBits>(p0 + 4 * HighBits(kBits), p1 + 4 * LowBits(kBits)));
  }
  // Columns 8i .. 8i+7 of a block.
  static __m128i ExpandByte(const int8_t* kept, uint64_t mask, uint64_t before, size_t i) {
    const uint8_t* order = kExpandTable.order[mask >> (8 * i) & 0xff];
    const int8_t* next = kept + (before >> (8 * i) & 0xff);
    return _mm_shuffle_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(next)),
                            _mm_loadl_epi64(reinterpret_cast<const __m128i*>(order)));
  }
  static Codes Expand(const int8_t* kept, uint64_t mask) {
    const uint64_t before = EntriesBefore(mask);
    __m128i quarters[4];
    for (size_t q = 0; q < 4; ++q) {
      quarters[q] = _mm_unpacklo_epi64(ExpandByte(kept, mask, before, 2 * q), ExpandByte(kept, mask, before, 2 * q + 1));
    }
    return Widen(_mm256_set_m128i(quarters[1], quarters[0]), _mm256_set_m128i(quarters[3], quarters[2]));
  }
  static Codes ExpandOnes(uint64_t mask) {
    const __m256i one = _mm256_set1_epi8(1);
    return Widen(_mm256_and_si256(BitsToBytes(static_cast<uint32_t>(mask)), one),
                 _mm256_and_si256(BitsToBytes(static_cast<uint32_t>(mask >> 32)), one));
  }

  static void ConvertF16(const uint8_t* in, size_t count, float* out) {
    size_t i = 0;
    for (; i < count; i += 8) {
      _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + 2 * i))));
    }
    for (i = count; i % 16 != 0; ++i) out[i] = 0.0f;
  }

  // Scales of half a block: group(block), plus one or two groups of the half before it when groups are shorter than a block.
  static __m256 HalfScales(const float* scales, unsigned up, size_t half, __m256i lane_groups) {
    const float* first = scales + (up == 0 ? 0 : half * up);
    return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(first)), lane_groups);
  }

  // Sums of R rows and T tokens so far.
  template <int R, int T>
  static void LoadSums(const float* acc, bool first, __m256 (&sum)[R][T]) {
    for (int r = 0; r < R; ++r) {
      for (int t = 0; t < T; ++t) {
        sum[r][t] = first ? _mm256_setzero_ps() : _mm256_load_ps(acc + (r * kTokenBatch + t) * kLanes);
      }
    }
  }
  template <int R, int T>
  static void StoreSums(const __m256 (&sum)[R][T], float* acc) {
    for (int r = 0; r < R; ++r) {
      for (int t = 0; t < T; ++t) _mm256_store_ps(acc + (r * kTokenBatch + t) * kLanes, sum[r][t]);
    }
  }

  // Dots of half a block, from what makes up for codes above their centre by kCentre.
  template <int kCentre>
  static __m256i DotHalf(const Codes& codes, size_t half, const int16_t* in, const int32_t* centres) {
    const __m256i* xs = Vectors(in) + half;
    const __m256i even = _mm256_madd_epi16(codes.even[half], _mm256_loadu_si256(xs));
    const __m256i odd = _mm256_madd_epi16(codes.odd[half], _mm256_loadu_si256(xs + 2));
    if constexpr (kCentre == 0) return _mm256_add_epi32(even, odd);
    const __m256i sums = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(centres) + half);
    const __m256i begin = _mm256_slli_epi32(sums, __builtin_ctz(kCentre == 0 ? 1 : kCentre));
    return _mm256_add_epi32(_mm256_add_epi32(begin, even), odd);
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
    // Lane j of a half covers its columns 4j .. 4j+3: lanes 4 to 7 have a group of their own when groups have 16 columns.
    const __m256i lane_groups = group.up == 2 ? _mm256_set_epi32(1, 1, 1, 1, 0, 0, 0, 0) : _mm256_setzero_si256();
    __m256 sum[R][T];
    LoadSums<R, T>(acc, span.first, sum);
    const int16_t* in[T];
    const int32_t* centres[T];
    for (int t = 0; t < T; ++t) {
      const size_t row = RowOf(x, span.token + static_cast<size_t>(t));
      in[t] = x.wide + row * x.padded_cols + span.col;
      centres[t] = x.centres + (row * x.padded_cols + span.col) / 4;
    }
    for (size_t b = 0; b < span.count; ++b) {
      source.Prefetch(b);
      for (int r = 0; r < R; ++r) {
        const Codes codes = source.Load(r, b);
        const float* first = scales[r] + group(b);
        for (size_t half = 0; half < 2; ++half) {
          const __m256 scale = kWhole ? _mm256_set1_ps(*first) : HalfScales(first, group.up, half, lane_groups);
          for (int t = 0; t < T; ++t) {
            const __m256i dot = DotHalf<Source::kCentre>(codes, half, in[t] + b * kBlock, centres[t] + b * (kBlock / 4));
            sum[r][t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, sum[r][t]);
          }
        }
      }
    }
    StoreSums<R, T>(sum, acc);
  }

  static void RaiseMins(float offset, const float* scales, size_t count, float* mins) {
    for (size_t g = 0; g < count; g += kLanes) {
      _mm256_storeu_ps(mins + g,
                       _mm256_fmadd_ps(_mm256_set1_ps(offset), _mm256_loadu_ps(scales + g), _mm256_loadu_ps(mins + g)));
    }
  }

  static void AddMins(const float* mins, const float* sums, size_t count, float* acc) {
    __m256 sum = _mm256_load_ps(acc);
    for (size_t g = 0; g < count; g += kLanes)
      sum = _mm256_fmadd_ps(_mm256_loadu_ps(mins + g), _mm256_loadu_ps(sums + g), sum);
    _mm256_store_ps(acc, sum);
  }

  template <Element kElement>
  static __m256 LoadFloats(const uint8_t* p, size_t i) {
    if constexpr (kElement == Element::kF32) return _mm256_loadu_ps(reinterpret_cast<const float*>(p) + i * kLanes);
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + i);
    if constexpr (kElement == Element::kF16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static void StoreFloats(float* p, size_t i, __m256 v) { _mm256_store_ps(p + i * kLanes, v); }
  template <Element kElement>
  static __m256 ExpandFloats(const uint8_t* kept, uint32_t mask) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kExpandTable.order[mask]));
    const __m256i order = _mm256_cvtepi8_epi32(bytes);
    const __m256 placed = _mm256_permutevar8x32_ps(LoadFloats<kElement>(kept, 0), order);
    // Masked lanes have a negative order: their sign bit picks zero.
    return _mm256_blendv_ps(placed, _mm256_setzero_ps(), _mm256_castsi256_ps(order));
  }

  template <int R, int T, class Source>
  static void DotFloats(const Source& source, const ActivationView& x, const Span& span, float* acc) {
    const float* in[T];
    for (int t = 0; t < T; ++t) in[t] = x.values + RowOf(x, span.token + static_cast<size_t>(t)) * x.padded_cols + span.col;
    __m256 sum[R][T];
    LoadSums<R, T>(acc, span.first, sum);
    for (size_t i = 0; i < span.count; ++i) {
      __m256 xs[T];
      for (int t = 0; t < T; ++t) xs[t] = _mm256_loadu_ps(in[t] + i * kLanes);
      for (int r = 0; r < R; ++r) {
        const __m256 weights = source.Load(r, i);
        for (int t = 0; t < T; ++t) sum[r][t] = _mm256_fmadd_ps(weights, xs[t], sum[r][t]);
      }
    }
    StoreSums<R, T>(sum, acc);
  }

  static float Reduce(const float* acc) {
    __m128 sum = _mm_add_ps(_mm_load_ps(acc), _mm_load_ps(acc + 4));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
  }
};

bool Supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

}  // namespace

const KernelSet kAvx2Kernels = {
    .isa = Isa::kAvx2, .supported = Supported, .order = Order::kEvenOdd, .matmul = AllKinds<Avx2>()};

}  // namespace moepack::kernels

#endif  // defined(__x86_64__)
