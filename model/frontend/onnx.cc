#include "model/frontend/onnx.h"

#include "base/digest/sha256.h"
#include "model/frontend/onnx_file.h"
#include "model/frontend/onnx_import.h"
#include "model/frontend/onnx_weights.h"
#include "model/frontend/tokenizer_json.h"

namespace moepack {
namespace {

constexpr uint64_t kMaxTokenizerFile = 256ull << 20;

// The file's bytes, empty when it does not exist.
Result<Bytes> ReadOptional(Env& env, const std::string& path) {
  MOEPACK_ASSIGN_OR_RETURN(const bool exists, env.Exists(path));
  if (!exists) return Bytes();
  return ReadFile(env, path, kMaxTokenizerFile);
}

uint64_t VocabularySize(const Program& program) {
  for (const Node& node : program.nodes) {
    if (node.kind == NodeKind::kEmbedding) return program.tensors[node.embedding.table].rows;
  }
  return 0;
}

// Compiles the tokenizer.json beside the model, if there is one, and names the files it read.
Status ReadTokenizer(Env& env, const std::string& directory, Model* model, std::vector<std::string>* files) {
  Bytes parts[3];
  const char* const names[3] = {"tokenizer.json", "tokenizer_config.json", "generation_config.json"};
  for (int i = 0; i < 3; ++i) {
    MOEPACK_ASSIGN_OR_RETURN(parts[i], ReadOptional(env, JoinPath(directory, names[i])));
    if (parts[0].empty()) return Status::Ok();
    if (!parts[i].empty()) files->push_back(names[i]);
  }
  MOEPACK_ASSIGN_OR_RETURN(model->tokenizer,
                           CompileTokenizerJson(parts[0], parts[1], parts[2], VocabularySize(model->program)));
  return Status::Ok();
}

std::string BaseName(const std::string& path) { return path.substr(path.find_last_of('/') + 1); }

}  // namespace

Result<Model> OpenOnnx(Env& env, const std::string& path, const OpenOptions& options) {
  auto opened = OnnxFile::Open(env, path);
  if (!opened.ok()) return opened.status().With(path);
  const std::shared_ptr<const OnnxFile> file = std::move(opened).value();
  OnnxImporter importer(*file);
  MOEPACK_RETURN_IF_ERROR(importer.Run().With(path));
  Model model;
  model.source = ModelSource::kOnnx;
  model.family = "onnx";
  model.program = std::move(importer.program);
  model.tensors = std::make_shared<OnnxTensorSource>(file, std::move(importer.tensors), std::move(importer.experts));
  const std::string directory = DirectoryOf(path);
  std::vector<std::string> files = {BaseName(path)};
  for (const std::string& name : file->external_files()) files.push_back(name);
  MOEPACK_RETURN_IF_ERROR(ReadTokenizer(env, directory, &model, &files));
  if (!options.digests) return model;
  for (const std::string& name : files) {
    MOEPACK_ASSIGN_OR_RETURN(const Digest digest, Sha256File(env, JoinPath(directory, name)));
    model.input_digests.emplace_back(BaseName(name), ToHex(digest));
  }
  return model;
}

}  // namespace moepack
