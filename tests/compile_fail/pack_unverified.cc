// The runtime packs tensors from units that were verified, not from bytes of a file.
#include "runtime-min/tensor_packer.h"

#ifdef MOEPACK_MISUSE
auto Forge(const moepack::Bytes& bytes) {
  moepack::UnitTensor tensor;
  return moepack::runtime::TensorPacker::Pack(bytes, tensor, 0);
}
#endif
