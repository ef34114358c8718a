// The tables that generate_unicode.py writes into the build folder. Every array is sorted by its first field (the
// compositions by their first two), so that unicode.cc can search it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tokenizer/unicode.h"

namespace moepack {

struct CategoryRange {
  char32_t first, last;
  Category value;
};
struct CombiningRange {
  char32_t first, last;
  uint8_t value;  // canonical combining class, never 0
};
struct Decomposition {
  char32_t code;
  uint16_t begin, count;  // full canonical decomposition in kDecompositionPool
};
struct Composition {
  char32_t first, second, composite;
};

extern const CategoryRange kCategoryRanges[];
extern const size_t kCategoryRangesCount;
extern const CombiningRange kCombiningRanges[];
extern const size_t kCombiningRangesCount;
extern const Decomposition kDecompositions[];
extern const size_t kDecompositionsCount;
extern const char32_t kDecompositionPool[];
extern const Composition kCompositions[];
extern const size_t kCompositionsCount;

}  // namespace moepack
