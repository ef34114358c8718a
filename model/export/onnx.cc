#include "model/export/onnx.h"

#include <onnx/onnx_pb.h>

#include "base/outputs.h"
#include "format/program_input.h"
#include "model/export/onnx_data.h"
#include "model/export/onnx_graph.h"

namespace moepack {
namespace {

void AddOpset(onnx::ModelProto* model, const char* domain, int64_t version) {
  auto* opset = model->add_opset_import();
  opset->set_domain(domain);
  opset->set_version(version);
}

void AddField(onnx::TensorProto* tensor, const char* key, const std::string& value) {
  auto* field = tensor->add_external_data();
  field->set_key(key);
  field->set_value(value);
}

void AddExternal(const OnnxBlob& blob, const OnnxExtent& extent, const std::string& location, onnx::GraphProto* graph) {
  onnx::TensorProto* tensor = graph->add_initializer();
  tensor->set_name(blob.name);
  tensor->set_data_type(onnx::TensorProto::FLOAT);
  for (const uint64_t dim : blob.shape) tensor->add_dims(static_cast<int64_t>(dim));
  tensor->set_data_location(onnx::TensorProto::EXTERNAL);
  AddField(tensor, "location", location);
  AddField(tensor, "offset", std::to_string(extent.offset));
  AddField(tensor, "length", std::to_string(extent.length));
}

// The files of `beside` that the folder does not hold yet. A tokenizer of another model there is not ours to replace.
Result<std::vector<TokenizerFile>> MissingFiles(Env& env, const std::string& directory, std::vector<TokenizerFile> beside) {
  std::vector<TokenizerFile> missing;
  for (TokenizerFile& file : beside) {
    const std::string path = JoinPath(directory, file.name);
    MOEPACK_ASSIGN_OR_RETURN(const bool exists, env.Exists(path));
    if (!exists) {
      missing.push_back(std::move(file));
      continue;
    }
    const Result<Bytes> there = ReadFile(env, path, file.bytes.size());
    if (there.ok() && *there == file.bytes) continue;
    return Status(ErrorCode::kUsage,
                  path + ": is there and differs from the model's " + file.name + "; export into a folder of its own");
  }
  return missing;
}

Status WriteFiles(Env& env, const Model& model, const OnnxGraphWriter& writer, const std::vector<OnnxExtent>& extents,
                  const std::string& graph_bytes, const std::string& out_path, const std::vector<TokenizerFile>& beside) {
  const std::string data_path = out_path + ".data";
  MOEPACK_ASSIGN_OR_RETURN(const auto graph, AtomicFile::Create(env, out_path));
  MOEPACK_ASSIGN_OR_RETURN(const auto data, AtomicFile::Create(env, data_path));
  std::vector<std::unique_ptr<AtomicFile>> others;
  std::vector<PendingFile> all = {{data_path, data.get()}};
  for (const TokenizerFile& file : beside) {
    const std::string path = JoinPath(DirectoryOf(out_path), file.name);
    MOEPACK_ASSIGN_OR_RETURN(auto other, AtomicFile::Create(env, path));
    MOEPACK_RETURN_IF_ERROR(other->Append(file.bytes));
    all.push_back({path, other.get()});
    others.push_back(std::move(other));
  }
  MOEPACK_RETURN_IF_ERROR(WriteOnnxBlobs(model, writer.blobs(), extents, data.get()));
  MOEPACK_RETURN_IF_ERROR(graph->Append(AsBytes(graph_bytes)));
  all.push_back({out_path, graph.get()});
  return CommitTogether(env, all);
}

}  // namespace

Status ExportOnnx(Env& env, const Model& model, const std::string& out_path, const std::vector<TokenizerFile>& beside) {
  if (model.tensors == nullptr)
    return Status(ErrorCode::kBadInput, "the model has a configuration only, no weights to export");
  if (InputWidth(model.program) > 0)
    return Status(ErrorCode::kUnsupported, "ONNX export writes models that take tokens; this one takes rows of numbers");
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<TokenizerFile> missing, MissingFiles(env, DirectoryOf(out_path), beside));
  onnx::ModelProto proto;
  proto.set_ir_version(8);
  proto.set_producer_name("moepack");
  AddOpset(&proto, "", 17);
  AddOpset(&proto, "com.microsoft", 1);
  OnnxGraphWriter writer(model.program, proto.mutable_graph());
  MOEPACK_RETURN_IF_ERROR(writer.Run());
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<OnnxExtent> extents, PlaceOnnxBlobs(writer.blobs()));
  const std::string location = BaseName(out_path) + ".data";
  for (size_t i = 0; i < writer.blobs().size(); ++i)
    AddExternal(writer.blobs()[i], extents[i], location, proto.mutable_graph());
  std::string bytes;
  if (!proto.SerializeToString(&bytes)) return Status(ErrorCode::kInternal, "the graph does not serialize");
  return WriteFiles(env, model, writer, extents, bytes, out_path, missing);
}

}  // namespace moepack
