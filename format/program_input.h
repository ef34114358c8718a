// What goes into a program: tokens, or rows of floats such as the features of a classifier.
#pragma once

#include "format/program.h"

namespace moepack {

// Columns of an input of floats; 0 where the input is of tokens. Each row of floats is a sequence of its own: max_positions
// is 1 and nothing has state. For programs whose input was validated.
inline uint64_t InputWidth(const Program& program) { return program.values[program.inputs[0]].width; }

}  // namespace moepack
