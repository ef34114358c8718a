// ONNX file -> Model. Written for attacker-made files: every message, shape and external-data reference is checked.
#pragma once

#include <string>

#include "base/env.h"
#include "base/status.h"
#include "model/model.h"

namespace moepack {

// Opens `path` (.onnx, with external data, tokenizer.json and genai_config.json beside it). kBadInput, kUnsupported (names
// the operator), kUnsafePath, kShape ...
Result<Model> OpenOnnx(Env& env, const std::string& path, const OpenOptions& options);

// `path` itself or, where that is a folder, the graph that its genai_config.json names.
Result<std::string> OnnxPath(Env& env, const std::string& path);

// The file of an OnnxPath and those of its external data, relative to its folder.
Result<std::vector<std::string>> OnnxWeightFiles(Env& env, const std::string& path);

}  // namespace moepack
