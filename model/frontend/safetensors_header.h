// Pieces that the reader and the writer of safetensors share. Not for use outside of model/frontend/safetensors*.cc.
#pragma once

#include <string>

#include "model/frontend/safetensors.h"

namespace moepack {

// False when `name` is not on the closed list.
bool ParseDtype(const std::string& name, Dtype* dtype);

}  // namespace moepack
