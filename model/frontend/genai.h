// genai_config.json, which onnxruntime-genai's builder writes beside an ONNX graph. Only what says something about the model
// is read; how to search and on what device to run is not.
#pragma once

#include <optional>
#include <string>

#include "base/env.h"
#include "base/status.h"

namespace moepack {

inline constexpr const char* kGenaiConfig = "genai_config.json";

struct GenaiConfig {
  std::string filename;         // of the decoder's graph, in the same folder
  uint64_t context_length = 0;  // 0 when it is not given
};

// Nothing when the folder has no such file. kBadInput, kUnsafePath (a file name that leaves the folder).
Result<std::optional<GenaiConfig>> ReadGenaiConfig(Env& env, const std::string& directory);

}  // namespace moepack
