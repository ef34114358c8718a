// Hugging Face checkpoint folder (config.json, safetensors, tokenizer.json) -> Model.
#pragma once

#include <string>

#include "base/env.h"
#include "base/status.h"
#include "model/model.h"

namespace moepack {

// `directory` holds config.json. Every tensor the configuration implies must be there with its shape, and no other.
Result<Model> OpenHuggingFace(Env& env, const std::string& directory, const OpenOptions& options);

// A config.json alone: the program, no tensors (ModelSource::kConfigOnly).
Result<Model> OpenConfigOnly(Env& env, const std::string& path, const OpenOptions& options);

}  // namespace moepack
