// How fast a processor multiplies and adds integers when nothing has to be loaded: the limit of a prefill kernel.
#pragma once

#include <cstdint>

#include "runtime-min/kernels/kernels.h"

namespace moepack::bench {

// Runs some hundred thousand of the set's dot instructions on registers. Returns the operations of one run (a multiply and
// an add of 16-bit integers are two; for NEON, which multiplies activations in two int8 planes, half of what it executes).
double RunDots(kernels::Isa isa, int64_t* sink);

}  // namespace moepack::bench
