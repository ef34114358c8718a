// A compressed model folder (format/manifest/model_folder.h) -> Model, weights dequantized by the codecs' oracles.
#pragma once

#include <string>

#include "base/env.h"
#include "base/status.h"
#include "model/model.h"

namespace moepack {

// kBadInput when the folder was not finished, kDigest when a file was changed.
Result<Model> OpenCompressed(Env& env, const std::string& directory, const OpenOptions& options);

}  // namespace moepack
