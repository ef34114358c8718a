// Activations::Prepare: activations as the kernels read them.
//
// A token's row x is quantized as a whole to 16-bit integers v = round(x / s), s = max|x| / kActivationMax. The error of an
// element is at most s / 2, so that of a product is, for errors that do not conspire, about |W_r| * s / sqrt(12), below
// 9e-6 * |W_r| * |x|.
#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "runtime-min/kernels/kernels_internal.h"

namespace moepack::kernels {
namespace {

// Below this the reciprocal of the step would overflow; such a row counts as zero.
constexpr float kTiny = 0x1p-100f;

// Largest magnitude, as a bit pattern: above infinity's when there is a NaN. An integer maximum has no rounding order.
uint32_t LargestBits(const float* x, size_t cols) {
  uint32_t largest = 0;
  for (size_t c = 0; c < cols; ++c) {
    uint32_t bits;
    std::memcpy(&bits, x + c, sizeof(bits));
    largest = std::max(largest, bits & 0x7fffffff);
  }
  return largest;
}

// Adding 1.5 * 2^23 rounds to the nearest integer, ties to even, and leaves it in the low bits.
void Quantize(const float* x, size_t cols, float inverse, int16_t* out) {
  constexpr float kRound = 0x1.8p23f;
  for (size_t c = 0; c < cols; ++c) {
    const float shifted = x[c] * inverse + kRound;
    uint32_t bits;
    std::memcpy(&bits, &shifted, sizeof(bits));
    out[c] = static_cast<int16_t>(bits - std::bit_cast<uint32_t>(kRound));
  }
}

// Sums of every level, each from the level below: integers, hence exact until they become floats.
void SumGroups(const int16_t* v, size_t padded_cols, const SumLayout& layout, float* sums) {
  std::fill(sums, sums + layout.stride, 0.0f);
  int64_t row = 0;
  for (size_t g = 0; g < padded_cols / 16; ++g) {
    int32_t sum = 0;
    for (size_t c = 0; c < 16; ++c) sum += v[16 * g + c];
    sums[layout.offset[0] + g] = static_cast<float>(sum);
    row += sum;
  }
  size_t groups = padded_cols / 16;
  for (size_t level = 1; level + 1 < kSumLevels; ++level) {
    const float* below = sums + layout.offset[level - 1];
    groups = (groups + 1) / 2;
    // Entries past the last group of the level below are zero. At most 256 * kActivationMax < 2^24: still exact.
    for (size_t g = 0; g < groups; ++g) sums[layout.offset[level] + g] = below[2 * g] + below[2 * g + 1];
  }
  sums[layout.offset[kSumLevels - 1]] = static_cast<float>(row);
}

void SumQuads(const int16_t* v, size_t padded_cols, int32_t* minus_sums) {
  for (size_t c = 0; c < padded_cols; c += 4) minus_sums[c / 4] = -(v[c] + v[c + 1] + v[c + 2] + v[c + 3]);
}

void SplitEvenOdd(int16_t* v, size_t padded_cols) {
  for (size_t b = 0; b < padded_cols; b += kBlock) {
    int16_t odd[kBlock / 2];
    for (size_t i = 0; i < kBlock / 2; ++i) odd[i] = v[b + 2 * i + 1];
    for (size_t i = 0; i < kBlock / 2; ++i) v[b + i] = v[b + 2 * i];
    std::memcpy(v + b + kBlock / 2, odd, sizeof(odd));
  }
}

void SplitPlanes(const int16_t* v, size_t padded_cols, int8_t* high, int8_t* low) {
  for (size_t c = 0; c < padded_cols; ++c) {
    low[c] = static_cast<int8_t>(v[c] & 0xff);
    high[c] = static_cast<int8_t>((v[c] - low[c]) >> 8);
  }
}

// Quantizes one row; returns its step.
float QuantizeRow(const float* x, size_t padded_cols, int16_t* out) {
  const uint32_t largest_bits = LargestBits(x, padded_cols);
  const float largest = std::bit_cast<float>(largest_bits);
  // What is not finite must show in the product.
  if (largest_bits >= 0x7f800000) {
    std::fill(out, out + padded_cols, int16_t{0});
    return std::numeric_limits<float>::quiet_NaN();
  }
  if (largest < kTiny) {
    std::fill(out, out + padded_cols, int16_t{0});
    return 0.0f;
  }
  Quantize(x, padded_cols, static_cast<float>(kActivationMax) / largest, out);
  return largest / static_cast<float>(kActivationMax);
}

Order OrderOf(Isa isa) {
  for (const KernelSet* set : KernelSets()) {
    if (set->isa == isa) return set->order;
  }
  return Order::kColumns;
}

template <typename T>
void Grow(LineVector<T>* v, size_t size) {
  if (v->size() < size) v->resize(size);
}

}  // namespace

void Activations::Prepare(Isa isa, const float* x, size_t tokens, size_t cols, size_t stride) {
  Reshape(isa, tokens, cols);
  Fill(x, stride, 0, tokens);
}

void Activations::Reshape(Isa isa, size_t tokens, size_t cols) {
  const Order order = OrderOf(isa);
  order_ = static_cast<uint8_t>(order);
  tokens_ = tokens;
  cols_ = cols;
  padded_cols = (cols + kBlock - 1) / kBlock * kBlock;
  const SumLayout sum_layout = SumLayoutOf(padded_cols);
  Grow(&values, tokens * padded_cols);
  Grow(&wide, tokens * padded_cols);
  Grow(&scales, tokens);
  Grow(&sums, tokens * sum_layout.stride);
  if (order == Order::kEvenOdd) Grow(&centres, tokens * (padded_cols / 4));
  if (order == Order::kPlanes) {
    Grow(&high, tokens * padded_cols);
    Grow(&low, tokens * padded_cols);
  }
}

void Activations::Fill(const float* x, size_t stride, size_t token_begin, size_t token_end) {
  const Order order = static_cast<Order>(order_);
  const SumLayout sum_layout = SumLayoutOf(padded_cols);
  for (size_t t = token_begin; t < token_end; ++t) {
    float* row = values.data() + t * padded_cols;
    int16_t* v = wide.data() + t * padded_cols;
    std::memcpy(row, x + t * stride, cols_ * sizeof(float));
    std::fill(row + cols_, row + padded_cols, 0.0f);
    scales[t] = QuantizeRow(row, padded_cols, v);
    SumGroups(v, padded_cols, sum_layout, sums.data() + t * sum_layout.stride);
    if (order == Order::kEvenOdd) {
      SumQuads(v, padded_cols, centres.data() + t * (padded_cols / 4));
      SplitEvenOdd(v, padded_cols);
    }
    if (order == Order::kPlanes) {
      SplitPlanes(v, padded_cols, high.data() + t * padded_cols, low.data() + t * padded_cols);
    }
  }
}

}  // namespace moepack::kernels
