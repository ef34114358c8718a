#include "model/export/onnx.h"

#include <onnx/onnx_pb.h>

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

Status WriteFiles(Env& env, const Model& model, const OnnxGraphWriter& writer, const std::vector<OnnxExtent>& extents,
                  const std::string& graph_bytes, const std::string& out_path) {
  const std::string data_path = out_path + ".data";
  MOEPACK_ASSIGN_OR_RETURN(const auto data, AtomicFile::Create(env, data_path));
  MOEPACK_RETURN_IF_ERROR(WriteOnnxBlobs(model, writer.blobs(), extents, data.get()));
  MOEPACK_RETURN_IF_ERROR(data->Commit());
  const Status written = WriteFileAtomically(env, out_path, AsBytes(graph_bytes));
  // A data file without its graph is of no use; the first error is the one to report.
  if (!written.ok()) (void)env.Remove(data_path);
  return written;
}

}  // namespace

Status ExportOnnx(Env& env, const Model& model, const std::string& out_path) {
  if (model.tensors == nullptr)
    return Status(ErrorCode::kBadInput, "the model has a configuration only, no weights to export");
  onnx::ModelProto proto;
  proto.set_ir_version(8);
  proto.set_producer_name("moepack");
  AddOpset(&proto, "", 17);
  AddOpset(&proto, "com.microsoft", 1);
  OnnxGraphWriter writer(model.program, proto.mutable_graph());
  MOEPACK_RETURN_IF_ERROR(writer.Run());
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<OnnxExtent> extents, PlaceOnnxBlobs(writer.blobs()));
  const std::string location = out_path.substr(out_path.find_last_of('/') + 1) + ".data";
  for (size_t i = 0; i < writer.blobs().size(); ++i)
    AddExternal(writer.blobs()[i], extents[i], location, proto.mutable_graph());
  std::string bytes;
  if (!proto.SerializeToString(&bytes)) return Status(ErrorCode::kInternal, "the graph does not serialize");
  return WriteFiles(env, model, writer, extents, bytes, out_path);
}

}  // namespace moepack
