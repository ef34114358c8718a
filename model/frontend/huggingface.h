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

// What the configuration at `path` says weights are stored as (torch_dtype or dtype); bf16 when it does not say.
Result<Element> ConfigElement(Env& env, const std::string& path);

// Names of the files that hold the weights, the index of a sharded checkpoint included.
Result<std::vector<std::string>> HuggingFaceWeightFiles(Env& env, const std::string& directory);

}  // namespace moepack
