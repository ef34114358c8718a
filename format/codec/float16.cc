#include <cstdint>
#include <cstring>

#include "format/codec/codec.h"

namespace moepack {
namespace {

uint32_t BitsOf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

float FloatOf(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// value / 2^shift, rounded to nearest, ties to even.
uint32_t ShiftRoundEven(uint32_t value, int shift) {
  const uint32_t half = 1u << (shift - 1);
  const uint32_t odd = (value >> shift) & 1;
  return (value + (half - 1) + odd) >> shift;
}

constexpr uint32_t kF32Infinity = 0x7f800000;

}  // namespace

uint16_t F32ToF16(float value) {
  const uint32_t bits = BitsOf(value);
  const uint32_t sign = (bits >> 16) & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > kF32Infinity) return static_cast<uint16_t>(sign | 0x7e00);
  const int exponent = static_cast<int>(magnitude >> 23) - 127;
  if (exponent > 15) return static_cast<uint16_t>(sign | 0x7c00);
  if (exponent >= -14) {
    // Rebias 127 -> 15. A carry out of the mantissa moves to the next exponent, up to infinity, as it should.
    return static_cast<uint16_t>(sign | ShiftRoundEven(magnitude - (112u << 23), 13));
  }
  if (exponent < -25) return static_cast<uint16_t>(sign);
  const uint32_t mantissa = (magnitude & 0x7fffff) | 0x800000;
  return static_cast<uint16_t>(sign | ShiftRoundEven(mantissa, -exponent - 1));
}

float F16ToF32(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t exponent = (bits >> 10) & 31;
  const uint32_t mantissa = bits & 0x3ff;
  if (exponent == 31) return FloatOf(sign | kF32Infinity | (mantissa << 13));
  if (exponent != 0) return FloatOf(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return FloatOf(sign | BitsOf(magnitude));
}

uint16_t F32ToBf16(float value) {
  const uint32_t bits = BitsOf(value);
  if ((bits & 0x7fffffff) > kF32Infinity) return static_cast<uint16_t>((bits >> 16) | 0x40);
  const uint32_t odd = (bits >> 16) & 1;
  return static_cast<uint16_t>((bits + 0x7fff + odd) >> 16);
}

}  // namespace moepack
