// Which llama.cpp architecture computes a program. Not for use outside of model/export/gguf*.cc.
#pragma once

#include <string>

#include "base/status.h"
#include "model/family/decoder.h"

namespace moepack {

struct GgufArchitecture {
  std::string name;                 // general.architecture and prefix of its keys
  bool interleaved_rotary = false;  // rotates neighbouring columns, so that rows of q and k have to be reordered
  DecoderSpec decoder;              // what the program is
  double rope_base = 0, rope_factor = 1;
};

// kUnsupported with the difference when there is none.
Result<GgufArchitecture> FindGgufArchitecture(const Program& program);

}  // namespace moepack
