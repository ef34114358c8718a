// Only runtime::TensorPacker fills a ResidentTensor.
#include "format/verified.h"

uint64_t Use(const moepack::ResidentTensor& tensor) { return tensor.size_bytes(); }
#ifdef MOEPACK_MISUSE
void Forge(moepack::ResidentTensor* tensor) { tensor->size_bytes_ = 1; }
#endif
