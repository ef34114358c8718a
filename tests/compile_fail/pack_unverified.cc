// The runtime packs tensors from units that were verified, not from bytes of a file.
#include "runtime-min/tensor_packer.h"

#ifdef MOEPACK_MISUSE
using Source = moepack::Bytes;
#else
using Source = moepack::PlainUnit;
#endif

auto Use(const Source& source, moepack::runtime::WeightMemory* memory) {
  moepack::UnitTensor tensor;
  uint64_t offset = 0;
  return moepack::runtime::TensorPacker::Pack(tensor, source, &offset, memory);
}
