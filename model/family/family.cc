#include "model/family/family.h"

#include <algorithm>
#include <array>

namespace moepack {
namespace {

// Keys of any family that describe training, generation or bookkeeping.
constexpr const char* kInert[] = {
    "architectures",
    "model_type",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "_name_or_path",
    "use_cache",
    "initializer_range",
    "attention_dropout",
    "hidden_dropout",
    "dropout",
    "router_aux_loss_coef",
    "output_router_logits",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "pretraining_tp",
    "auto_map",
    "gradient_checkpointing",
    "_attn_implementation",
    "attn_implementation",
    "_attn_implementation_autoset",
    "cache_implementation",
};

std::array<const Family*, 14> Families() {
  return {&DeepseekV2Family(), &DeepseekV3Family(), &Ernie45MoeFamily(), &Glm4MoeFamily(),    &GptOssFamily(),
          &GraniteMoeFamily(), &Lfm2MoeFamily(),    &Llama4Family(),     &Llama4TextFamily(), &MixtralFamily(),
          &OlmoeFamily(),      &PhiMoeFamily(),     &Qwen2MoeFamily(),   &Qwen3MoeFamily()};
}

}  // namespace

bool IsInertKey(const std::string& model_type, const std::string& key) {
  const auto holds = [&key](std::span<const char* const> keys) {
    return std::find(keys.begin(), keys.end(), key) != keys.end();
  };
  for (const Family* family : Families()) {
    if (model_type == family->model_type && holds(family->inert)) return true;
  }
  return holds(kInert);
}

Status FinishInner(ConfigReader& config, std::span<const char* const> inert) { return config.Finish(kInert, inert); }

Result<CheckpointLayout> BuildFromConfig(const nlohmann::json& config, const std::string& label,
                                         const std::vector<std::string>& accept, std::string* model_type) {
  const auto accepted = std::make_shared<AcceptedKeys>();
  accepted->wanted.insert(accept.begin(), accept.end());
  ConfigReader reader(config, label, accepted);
  *model_type = reader.Text("model_type");
  MOEPACK_RETURN_IF_ERROR(reader.status());
  std::string supported;
  for (const Family* family : Families()) {
    supported += (supported.empty() ? "" : ", ") + std::string(family->model_type);
    if (*model_type != family->model_type) continue;
    CheckpointLayout layout = family->build(reader);
    MOEPACK_RETURN_IF_ERROR(reader.Finish(kInert, family->inert));
    for (const std::string& key : accepted->wanted) {
      if (accepted->used.count(key) != 0) continue;
      return Status(ErrorCode::kUsage, "--accept-key " + key + ": " + label + " has no such key that would be refused");
    }
    if (Status status = ValidateProgram(layout.program); !status.ok()) {
      return Status(ErrorCode::kBadInput, label + ": describes a model that cannot be: " + status.message());
    }
    return layout;
  }
  return Status(ErrorCode::kUnknownFamily,
                label + ": model_type '" + *model_type + "' is not supported (supported: " + supported + ")");
}

}  // namespace moepack
