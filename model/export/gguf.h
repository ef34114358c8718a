// Model -> GGUF version 3, as llama.cpp reads it.
//
// A GGUF file names an architecture, and llama.cpp computes what that architecture does, whatever else the file says. So a
// model is exported only when its program is exactly what one of the architectures computes; anything else is refused with
// what differs.
#pragma once

#include <string>

#include "base/env.h"
#include "base/progress.h"
#include "base/status.h"
#include "model/model.h"

namespace moepack {

// Type of matrices; norms, biases and routers are always f32. kStored: as they are stored, a compressed model's codes in the
// element that stands for them exactly (Q4_0, Q4_1, Q5_0, Q5_1 or Q8_0; experts of a layer share one), f16 where none does.
enum class GgufType : uint8_t { kF32 = 0, kF16 = 1, kStored = 2 };

// Writes `model` (which needs tensors) to `path`, one matrix in memory at a time. Atomic; the same model gives the same
// bytes. kUnsupported when no architecture computes this program, or a weight does not fit into f16.
Status ExportGguf(Env& env, const Model& model, const std::string& path, GgufType type, Progress& progress);

}  // namespace moepack
