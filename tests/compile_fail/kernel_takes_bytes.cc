// Kernels take resident tensors, not bytes.
#include "runtime-min/kernels/kernels.h"

void Use(const moepack::ResidentTensor& w, const moepack::kernels::Activations& x, float* y) {
  moepack::kernels::MatMul(moepack::kernels::Isa::kScalar, w, x, y, 1, 0, 1);
}
#ifdef MOEPACK_MISUSE
void Forge(const moepack::Bytes& w, const moepack::kernels::Activations& x, float* y) {
  moepack::kernels::MatMul(moepack::kernels::Isa::kScalar, w, x, y, 1, 0, 1);
}
#endif
