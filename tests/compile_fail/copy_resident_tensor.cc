// Resident tensors are counted against the expert budget, so they move and never copy.
#include "format/verified.h"

moepack::ResidentTensor Use(moepack::ResidentTensor&& tensor) { return std::move(tensor); }
#ifdef MOEPACK_MISUSE
moepack::ResidentTensor Copy(const moepack::ResidentTensor& tensor) { return tensor; }
#endif
