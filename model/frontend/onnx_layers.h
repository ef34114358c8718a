// Blocks and tensor roles of a program whose source names neither. Internal to the ONNX front-end.
#pragma once

#include "base/status.h"
#include "format/program.h"

namespace moepack {

// Sets Node::block: 0 for the first node where it is an embedding, one block for each attention node (each MoE node where
// there is no attention), one for the final norm and head (none where rows of floats go in and experts give the output).
// Borders are where a single value, beside an input of floats, carries everything that later nodes read.
// Then sets the layer of expert tables and the role and layer of tensors, by what their node feeds.
// kUnsupported when layers are interleaved so that no border exists.
Status AssignLayers(Program* program);

}  // namespace moepack
