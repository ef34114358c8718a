// What the ONNX exporter has no operators for.
#pragma once

#include "format/program.h"

namespace moepack {

// The part of the node that the exported graph cannot express, null when there is none. Shapes and operators are checked
// where they are written.
const char* OnnxCannotExpress(const Node& node);

}  // namespace moepack
