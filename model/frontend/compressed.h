// A compressed model folder (format/manifest/model_folder.h) -> Model, weights dequantized by the codecs' oracles.
#pragma once

#include <string>

#include "base/env.h"
#include "base/status.h"
#include "model/model.h"

namespace moepack {

// kBadInput when the folder was not finished, kDigest when a file was changed.
Result<Model> OpenCompressed(Env& env, const std::string& directory, const OpenOptions& options);

// The family of the checkpoint that a folder or a bundle was made from, for people; "compressed" when the text of its
// provenance does not say.
std::string FamilyOfProvenance(ByteSpan text);

}  // namespace moepack
