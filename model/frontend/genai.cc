#include "model/frontend/genai.h"

#include "model/frontend/json_text.h"
#include "model/frontend/onnx_file.h"

namespace moepack {
namespace {

constexpr uint64_t kMaxConfigBytes = 1 << 20;

}  // namespace

Result<std::optional<GenaiConfig>> ReadGenaiConfig(Env& env, const std::string& directory) {
  const std::string path = JoinPath(directory, kGenaiConfig);
  MOEPACK_ASSIGN_OR_RETURN(const bool exists, env.Exists(path));
  if (!exists) return std::optional<GenaiConfig>();
  MOEPACK_ASSIGN_OR_RETURN(const nlohmann::json json, ReadJsonFile(env, path, kMaxConfigBytes));
  const auto bad = [&](const std::string& what) { return Status(ErrorCode::kBadInput, path + ": " + what); };
  const auto member = [](const nlohmann::json& object, const char* key) {
    return object.is_object() && object.contains(key) ? object.at(key) : nlohmann::json();
  };
  const nlohmann::json model = member(json, "model"), filename = member(member(model, "decoder"), "filename");
  if (!filename.is_string()) return bad("model.decoder.filename must name one graph; models in several files are not read");
  GenaiConfig config;
  config.filename = filename.get<std::string>();
  MOEPACK_RETURN_IF_ERROR(CheckExternalLocation(config.filename).With(path));
  const nlohmann::json context = member(model, "context_length");
  if (!context.is_null()) {
    if (!context.is_number_unsigned() || context.get<uint64_t>() == 0) return bad("model.context_length must be positive");
    config.context_length = context.get<uint64_t>();
  }
  return std::optional<GenaiConfig>(std::move(config));
}

}  // namespace moepack
