#include "model/frontend/onnx_rotary.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace moepack {
namespace {

// One column of the caches.
class Column {
 public:
  Column(std::span<const float> cos, std::span<const float> sin, size_t columns, size_t index)
      : cos_(cos), sin_(sin), columns_(columns), index_(index) {}
  double cos(size_t row) const { return cos_[row * columns_ + index_]; }
  double sin(size_t row) const { return sin_[row * columns_ + index_]; }

  // The angle of position 1, refined at positions 2, 4, 8 ...: each halves what the phase leaves open, and none can be
  // wrong by a turn because the error before it is far below half a turn.
  double Frequency(size_t rows) const {
    double frequency = std::atan2(sin(1), cos(1));
    for (size_t p = 2; p < rows; p *= 2) Refine(p, &frequency);
    if (rows > 2) Refine(rows - 1, &frequency);
    return frequency;
  }

 private:
  void Refine(size_t position, double* frequency) const {
    const double at = static_cast<double>(position);
    const double phase = std::atan2(sin(position), cos(position));
    *frequency += std::remainder(phase - at * *frequency, 2 * std::numbers::pi) / at;
  }

  std::span<const float> cos_, sin_;
  size_t columns_, index_;
};

}  // namespace

Result<RotaryCache> DeriveRotary(std::span<const float> cos, std::span<const float> sin, size_t columns, double tolerance) {
  const auto refuse = [](const std::string& what) {
    return Status(ErrorCode::kUnsupported, "cos and sin caches are not a rotary embedding: " + what);
  };
  if (columns == 0 || cos.size() != sin.size() || cos.size() % columns != 0) return refuse("shapes differ");
  const size_t rows = cos.size() / columns;
  if (rows < 2) return refuse("they have fewer than two positions");
  RotaryCache cache;
  cache.magnitude = cos[0];
  const double magnitude = cos[0];
  if (!(magnitude > 0)) return refuse("position 0 is rotated");
  const size_t step = std::max<size_t>(1, rows / 4096);
  for (size_t i = 0; i < columns; ++i) {
    const Column column(cos, sin, columns, i);
    const double frequency = column.Frequency(rows);
    for (size_t row = 0; row < rows; row += step) {
      const double angle = static_cast<double>(row) * frequency;
      const double limit = magnitude * (tolerance + std::abs(angle) * 5e-7);
      if (!(std::abs(column.cos(row) - magnitude * std::cos(angle)) <= limit) ||
          !(std::abs(column.sin(row) - magnitude * std::sin(angle)) <= limit)) {
        return refuse(StrFormat("column %zu does not turn evenly at position %zu", i, row));
      }
    }
    cache.inv_freq.push_back(static_cast<float>(frequency));
  }
  return cache;
}

}  // namespace moepack
