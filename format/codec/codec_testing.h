// Random matrices in every codec, for tests of the codec and of the kernels.
#pragma once

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "format/codec/codec.h"

namespace moepack::testing {

// Every element type, bit width, group size and minimum, dense; and sparse wrappers that fit `cols`.
inline std::vector<Codec> AllCodecs(uint64_t cols) {
  std::vector<Codec> dense = {{.element = Element::kF32}, {.element = Element::kBf16}, {.element = Element::kF16}};
  for (uint8_t bits : {2, 3, 4, 5, 6, 8}) {
    for (uint16_t group : {16, 32, 64, 128, 256, 0}) {
      for (bool has_min : {false, true}) {
        dense.push_back({.element = Element::kGroupInt, .bits = bits, .has_min = has_min, .group_size = group});
      }
    }
  }
  std::vector<Codec> all = dense;
  for (size_t i = 0; i < dense.size(); ++i) {
    Codec keep = dense[i];
    keep.sparsity = Sparsity::kBitmask;
    // From one kept weight to all of them, spread over the codecs.
    keep.kept_per_row = static_cast<uint32_t>(1 + (cols - 1) * (i % 5) / 4);
    all.push_back(keep);
    constexpr uint8_t kM[] = {4, 8, 16};
    Codec nm = dense[i];
    nm.sparsity = Sparsity::kNM;
    nm.m = kM[i % 3];
    nm.n = static_cast<uint8_t>(1 + i % (nm.m - 1u));
    if (cols % nm.m == 0) all.push_back(nm);
  }
  for (uint8_t bits : {2, 3, 4, 5, 6}) {
    for (uint16_t group : {16, 32, 64, 128, 256, 0}) {
      all.push_back({.element = Element::kTrellis, .bits = bits, .group_size = group});
    }
  }
  return all;
}

inline std::vector<uint8_t> RandomMask(const Codec& codec, const MatrixShape& shape, std::mt19937* rng) {
  std::vector<uint8_t> mask(shape.rows * shape.cols, 0);
  const bool nm = codec.sparsity == Sparsity::kNM;
  const uint64_t run = nm ? codec.m : shape.cols, kept = nm ? codec.n : codec.kept_per_row;
  std::vector<uint64_t> order(run);
  for (uint64_t begin = 0; begin < mask.size(); begin += run) {
    std::iota(order.begin(), order.end(), begin);
    std::shuffle(order.begin(), order.end(), *rng);
    for (uint64_t k = 0; k < kept; ++k) mask[order[k]] = 1;
  }
  return mask;
}

// Codes over their whole range, scales and minima of the size a trained matrix has. Needs a codec that fits the shape.
inline QuantizedMatrix RandomMatrix(const Codec& codec, const MatrixShape& shape, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  QuantizedMatrix m{.codec = codec, .shape = shape};
  const uint64_t cells = shape.rows * shape.cols, groups = shape.rows * GroupsPerRow(codec, shape.cols);
  if (codec.sparsity != Sparsity::kNone) m.mask = RandomMask(codec, shape, &rng);
  const auto kept = [&m](uint64_t i) { return m.mask.empty() || m.mask[i] != 0; };
  if (!codec.coded()) {
    m.values.resize(cells);
    for (uint64_t i = 0; i < cells; ++i) m.values[i] = kept(i) ? normal(rng) : 0.0f;
    return m;
  }
  m.codes.resize(cells);
  for (uint64_t i = 0; i < cells; ++i) m.codes[i] = kept(i) ? static_cast<uint8_t>(rng() & ((1u << codec.bits) - 1)) : 0;
  const float step = 2.0f / static_cast<float>(1u << codec.bits);
  for (uint64_t g = 0; g < groups; ++g) m.scales.push_back(F32ToF16(step * (0.5f + std::abs(normal(rng)))));
  for (uint64_t g = 0; codec.has_min && g < groups; ++g) m.mins.push_back(F32ToF16(normal(rng) - 1.0f));
  return m;
}

}  // namespace moepack::testing
