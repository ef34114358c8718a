// Checked unsigned 64-bit arithmetic for every size, offset and count that comes from outside.
// Each function returns false on overflow and leaves *out unspecified; none has side effects.
#pragma once

#include <cstdint>

namespace moepack {

[[nodiscard]] inline bool CheckedAdd(uint64_t a, uint64_t b, uint64_t* out) { return !__builtin_add_overflow(a, b, out); }
[[nodiscard]] inline bool CheckedMul(uint64_t a, uint64_t b, uint64_t* out) { return !__builtin_mul_overflow(a, b, out); }
[[nodiscard]] inline bool CheckedSub(uint64_t a, uint64_t b, uint64_t* out) { return !__builtin_sub_overflow(a, b, out); }

// ceil(a / b), b > 0. Cannot overflow.
inline uint64_t CeilDiv(uint64_t a, uint64_t b) { return a / b + (a % b != 0); }

// Smallest multiple of `alignment` (a power of two) that is >= a.
[[nodiscard]] inline bool CheckedAlign(uint64_t a, uint64_t alignment, uint64_t* out) {
  if (!CheckedAdd(a, alignment - 1, out)) return false;
  *out &= ~(alignment - 1);
  return true;
}

// Value type for chains of checked steps: once a step overflows, valid() stays false.
class CheckedU64 {
 public:
  CheckedU64(uint64_t value) : value_(value) {}  // NOLINT: implicit on purpose
  CheckedU64 operator+(CheckedU64 o) const { return Step(o, &CheckedAdd); }
  CheckedU64 operator*(CheckedU64 o) const { return Step(o, &CheckedMul); }
  CheckedU64 operator-(CheckedU64 o) const { return Step(o, &CheckedSub); }
  bool valid() const { return valid_; }
  uint64_t value() const { return value_; }  // only when valid()

 private:
  CheckedU64 Step(CheckedU64 o, bool (*op)(uint64_t, uint64_t, uint64_t*)) const {
    CheckedU64 r(0);
    r.valid_ = valid_ && o.valid_ && op(value_, o.value_, &r.value_);
    return r;
  }
  uint64_t value_;
  bool valid_ = true;
};

}  // namespace moepack
