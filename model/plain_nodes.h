// Nodes that have no more than plain decoders do: what exporters and distillation are written for.
#pragma once

#include "format/program.h"

namespace moepack {

// The part of the node that goes beyond a plain decoder, in words for a message; null when there is none. Shapes and
// operators are checked where they are used.
const char* BeyondPlain(const Node& node);

}  // namespace moepack
