// The registry of checkpoint families. A family is one function: configuration -> program and tensor names.
#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "base/status.h"
#include "model/family/config_reader.h"
#include "model/family/program_builder.h"

namespace moepack {

struct Family {
  const char* model_type;
  // Reads its keys; errors stay in the reader.
  CheckpointLayout (*build)(ConfigReader& config);
  // Keys of this family that do not change what the model computes, beside the common ones.
  std::span<const char* const> inert;
};

const Family& DeepseekV2Family();
const Family& DeepseekV3Family();
const Family& Ernie45MoeFamily();
const Family& Glm4MoeFamily();
const Family& GptOssFamily();
const Family& GraniteMoeFamily();
const Family& Lfm2MoeFamily();
const Family& Llama4Family();
const Family& Llama4TextFamily();
const Family& MixtralFamily();
const Family& OlmoeFamily();
const Family& PhiMoeFamily();
const Family& Qwen2MoeFamily();
const Family& Qwen3MoeFamily();

// True for keys of a family that are known not to change what the model computes.
bool IsInertKey(const std::string& model_type, const std::string& key);

// Finish() of a configuration inside another one: its keys may also be those that are inert in any family.
Status FinishInner(ConfigReader& config, std::span<const char* const> inert);

// The layout that a config.json describes, its program validated; `label` begins every message. kUnknownFamily lists the
// supported ones, kUnknownKey names the key, unless it is accepted; kUsage an accepted key that would not be refused.
Result<CheckpointLayout> BuildFromConfig(const nlohmann::json& config, const std::string& label,
                                         const std::vector<std::string>& accept, std::string* model_type);

}  // namespace moepack
