#include "model/frontend/onnx.h"

#include "base/digest/sha256.h"
#include "format/program_input.h"
#include "model/frontend/genai.h"
#include "model/frontend/onnx_file.h"
#include "model/frontend/onnx_import.h"
#include "model/frontend/onnx_weights.h"
#include "model/frontend/tokenizer_files.h"

namespace moepack {
namespace {

uint64_t VocabularySize(const Program& program) {
  for (const Node& node : program.nodes) {
    if (node.kind == NodeKind::kEmbedding) return program.tensors[node.embedding.table].rows;
  }
  return 0;
}

}  // namespace

Result<Model> OpenOnnx(Env& env, const std::string& path, const OpenOptions& options) {
  auto opened = OnnxFile::Open(env, path);
  if (!opened.ok()) return opened.status().With(path);
  const std::shared_ptr<const OnnxFile> file = std::move(opened).value();
  const std::string directory = DirectoryOf(path);
  MOEPACK_ASSIGN_OR_RETURN(const std::optional<GenaiConfig> genai, ReadGenaiConfig(env, directory));
  const bool ours = genai.has_value() && genai->filename == BaseName(path);
  OnnxImporter importer(*file, ours ? genai->context_length : 0);
  MOEPACK_RETURN_IF_ERROR(importer.Run().With(path));
  Model model;
  model.source = ModelSource::kOnnx;
  model.family = "onnx";
  model.program = std::move(importer.program);
  model.tensors = std::make_shared<OnnxTensorSource>(file, std::move(importer.tensors), std::move(importer.experts));
  std::vector<std::string> files = {BaseName(path)};
  if (ours) files.push_back(kGenaiConfig);
  for (const std::string& name : file->external_files()) files.push_back(name);
  if (InputWidth(model.program) == 0) {  // a tokenizer beside a classifier of tables is not its own
    MOEPACK_ASSIGN_OR_RETURN(model.tokenizer, CompileTokenizerOf(env, directory, VocabularySize(model.program), &files));
  }
  if (!options.digests) return model;
  for (const std::string& name : files) {
    MOEPACK_ASSIGN_OR_RETURN(const Digest digest, Sha256File(env, JoinPath(directory, name)));
    model.input_digests.emplace_back(BaseName(name), ToHex(digest));
  }
  return model;
}

Result<std::string> OnnxPath(Env& env, const std::string& path) {
  MOEPACK_ASSIGN_OR_RETURN(const bool folder, env.IsDirectory(path));
  if (!folder) return path;
  MOEPACK_ASSIGN_OR_RETURN(const std::optional<GenaiConfig> genai, ReadGenaiConfig(env, path));
  if (!genai.has_value()) return Status(ErrorCode::kNotFound, path + ": no " + kGenaiConfig);
  return JoinPath(path, genai->filename);
}

Result<std::vector<std::string>> OnnxWeightFiles(Env& env, const std::string& path) {
  const auto file = OnnxFile::Open(env, path);
  if (!file.ok()) return file.status().With(path);
  std::vector<std::string> names = {BaseName(path)};
  for (const std::string& name : (*file)->external_files()) names.push_back(name);
  return names;
}

}  // namespace moepack
