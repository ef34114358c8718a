// Element types of GGUF tensors, and codes in them. Not for use outside of model/export/gguf*.cc.
#pragma once

#include <cstdint>

#include "base/bytes.h"
#include "base/status.h"
#include "format/codec/codec.h"

namespace moepack {

// Numbers of the format (ggml_type). Q types: blocks of 32 values of a row with an f16 scale, codes of 4, 5 or 8 bits, _1
// with an f16 minimum too. They stand for scale * (code - half) and scale * code + minimum, as our codecs do.
enum class GgufElement : uint32_t { kF32 = 0, kF16 = 1, kQ4_0 = 2, kQ4_1 = 3, kQ5_0 = 6, kQ5_1 = 7, kQ8_0 = 8, kBf16 = 30 };

// Values a block; 1 for floats.
inline constexpr uint64_t kGgufBlock = 32;
bool IsQuantized(GgufElement element);
// Of `values` values, whole blocks.
uint64_t GgufBytes(GgufElement element, uint64_t values);

// The smallest element that stands for every matrix given to Add exactly; f16 when there is none, as when a row is not cut
// into blocks or groups are smaller than a block.
class ElementChoice {
 public:
  void Add(const Codec& codec, uint64_t cols);
  GgufElement element() const;

 private:
  bool any_ = false, exact_ = true, integer_ = false, minimum_ = false;
  Element float_ = Element::kF32;
  int bits_ = 0;
};

// Rows in order, blocks of a row in order. `element` came from an ElementChoice that saw the matrix's codec. kUnsupported
// when a minimum does not fit into f16.
Result<Bytes> EncodeBlocks(const QuantizedMatrix& matrix, GgufElement element);

}  // namespace moepack
