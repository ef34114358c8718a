#include "model/model.h"

#include "model/frontend/compressed.h"
#include "model/frontend/genai.h"
#include "model/frontend/huggingface.h"
#include "model/frontend/onnx.h"

namespace moepack {
namespace {

Result<Model> OpenDirectory(Env& env, const std::string& path, const OpenOptions& options) {
  const auto has = [&](const char* name) { return env.Exists(JoinPath(path, name)); };
  MOEPACK_ASSIGN_OR_RETURN(const bool complete, has("complete"));
  if (complete) return OpenCompressed(env, path, options);
  MOEPACK_ASSIGN_OR_RETURN(const bool config, has("config.json"));
  if (config) return OpenHuggingFace(env, path, options);
  MOEPACK_ASSIGN_OR_RETURN(const bool genai, has(kGenaiConfig));
  if (genai) {
    MOEPACK_ASSIGN_OR_RETURN(const std::string graph, OnnxPath(env, path));
    return OpenOnnx(env, graph, options);
  }
  MOEPACK_ASSIGN_OR_RETURN(const bool program, has("program.pb"));
  if (program || path.ends_with(".partial")) {
    return Status(ErrorCode::kBadInput,
                  path + ": an unfinished compressed model; run `moepack compress` again with --resume");
  }
  return Status(
      ErrorCode::kBadInput,
      path + ": neither a checkpoint (no config.json or genai_config.json) nor a compressed model (no `complete`)");
}

Result<Model> OpenAny(Env& env, const std::string& path, const OpenOptions& options) {
  MOEPACK_ASSIGN_OR_RETURN(const bool exists, env.Exists(path));
  if (!exists) return Status(ErrorCode::kNotFound, path + ": no such file or folder");
  MOEPACK_ASSIGN_OR_RETURN(const bool directory, env.IsDirectory(path));
  if (directory) return OpenDirectory(env, path, options);
  if (path.ends_with(".onnx")) return OpenOnnx(env, path, options);
  if (path.ends_with(".json")) return OpenConfigOnly(env, path, options);
  return Status(
      ErrorCode::kBadInput,
      path + ": not a model; expected a checkpoint folder, an .onnx file, a compressed model folder or a config.json");
}

}  // namespace

Result<Model> OpenModel(Env& env, const std::string& path, const OpenOptions& options) {
  MOEPACK_ASSIGN_OR_RETURN(Model model, OpenAny(env, path, options));
  const bool has_config = model.source == ModelSource::kHuggingFace || model.source == ModelSource::kConfigOnly;
  if (has_config || options.accept_keys.empty()) return model;
  return Status(ErrorCode::kUsage, "--accept-key is for keys of a config.json, and " + path + " has none");
}

}  // namespace moepack
