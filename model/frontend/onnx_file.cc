#include "model/frontend/onnx_file.h"

#include <filesystem>
#include <set>

#include "base/checked.h"
#include "format/codec/codec.h"
#include "format/program.h"

namespace moepack {
namespace {

using Unsigned = unsigned long long;

// The first standard with 4-bit integers is newer than the headers that name element types here.
constexpr int32_t kOnnxUint4 = 21, kOnnxInt4 = 22;

// Element types that a graph of ours can need. False for every other.
bool DtypeOf(int32_t data_type, OnnxTensor* tensor) {
  static const std::map<int32_t, Dtype> kTypes = {{onnx::TensorProto::FLOAT, Dtype::kF32},
                                                  {onnx::TensorProto::FLOAT16, Dtype::kF16},
                                                  {onnx::TensorProto::BFLOAT16, Dtype::kBf16},
                                                  {onnx::TensorProto::INT64, Dtype::kI64},
                                                  {onnx::TensorProto::INT32, Dtype::kI32},
                                                  {onnx::TensorProto::UINT8, Dtype::kU8},
                                                  {onnx::TensorProto::INT8, Dtype::kI8},
                                                  {onnx::TensorProto::BOOL, Dtype::kBool},
                                                  {kOnnxUint4, Dtype::kU8},
                                                  {kOnnxInt4, Dtype::kI8}};
  const auto it = kTypes.find(data_type);
  if (it == kTypes.end()) return false;
  tensor->dtype = it->second;
  tensor->nibbles = data_type == kOnnxUint4 || data_type == kOnnxInt4;
  return true;
}

Status Bad(const std::string& tensor, const std::string& what, ErrorCode code = ErrorCode::kBadInput) {
  return Status(code, "tensor '" + tensor + "': " + what);
}

// Elements and bytes of a type and shape; false on overflow.
bool CheckedBytes(OnnxTensor* tensor, uint64_t* bytes) {
  tensor->elements = 1;
  for (const uint64_t dim : tensor->shape) {
    if (!CheckedMul(tensor->elements, dim, &tensor->elements)) return false;
  }
  *bytes = tensor->elements / 2 + tensor->elements % 2;
  return tensor->nibbles || CheckedMul(tensor->elements, DtypeBytes(tensor->dtype), bytes);
}

// A decimal number without a sign; false for everything else, overflow among it.
bool ParseDecimal(const std::string& text, uint64_t* value) {
  *value = 0;
  if (text.empty()) return false;
  for (const char c : text) {
    if (c < '0' || c > '9') return false;
    if (!CheckedMul(*value, 10, value) || !CheckedAdd(*value, static_cast<uint64_t>(c - '0'), value)) return false;
  }
  return true;
}

uint64_t ReadUnsigned(const uint8_t* p, size_t bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < bytes; ++i) value |= static_cast<uint64_t>(p[i]) << (8 * i);
  return value;
}

// Little-endian bytes of a repeated field.
template <typename Stored, typename Field>
Bytes Pack(const Field& field) {
  Bytes out;
  out.reserve(static_cast<size_t>(field.size()) * sizeof(Stored));
  for (const auto& value : field) {
    Stored stored = static_cast<Stored>(value);
    uint64_t bits = 0;
    std::memcpy(&bits, &stored, sizeof(stored));
    for (size_t i = 0; i < sizeof(Stored); ++i) out.push_back(static_cast<uint8_t>(bits >> (8 * i)));
  }
  return out;
}

Bytes PackTyped(const onnx::TensorProto& proto, Dtype dtype) {
  switch (dtype) {
    case Dtype::kF32:
      return Pack<float>(proto.float_data());
    case Dtype::kI64:
      return Pack<int64_t>(proto.int64_data());
    case Dtype::kI32:
      return Pack<int32_t>(proto.int32_data());
    case Dtype::kU8:
    case Dtype::kI8:
    case Dtype::kBool:
      return Pack<uint8_t>(proto.int32_data());
    default:
      return Pack<uint16_t>(proto.int32_data());
  }
}

}  // namespace

Status CheckExternalLocation(const std::string& location) {
  const auto unsafe = [&](const char* why) {
    return Status(ErrorCode::kUnsafePath, "external data '" + location.substr(0, 200) + "': " + why);
  };
  if (location.empty()) return unsafe("the name is empty");
  if (location[0] == '/') return unsafe("an absolute path could read any file; it must be relative to the .onnx file");
  if (location.find('\0') != std::string::npos || location.find('\\') != std::string::npos) {
    return unsafe("the name has a backslash or a NUL");
  }
  for (size_t begin = 0; begin <= location.size();) {
    const size_t end = std::min(location.find('/', begin), location.size());
    const std::string part = location.substr(begin, end - begin);
    if (part.empty() || part == "." || part == "..") return unsafe("parts of the path may not be empty, '.' or '..'");
    begin = end + 1;
  }
  return Status::Ok();
}

Result<std::shared_ptr<const OnnxFile>> OnnxFile::Open(Env& env, const std::string& path) {
  std::shared_ptr<OnnxFile> file(new OnnxFile(env, path));
  MOEPACK_RETURN_IF_ERROR(file->Parse());
  MOEPACK_RETURN_IF_ERROR(file->CheckModel());
  const onnx::GraphProto& graph = file->model_->graph();
  for (const onnx::TensorProto& proto : graph.initializer()) {
    MOEPACK_RETURN_IF_ERROR(file->AddConstant(proto, proto.name()));
  }
  for (const onnx::NodeProto& node : graph.node()) {
    if (!node.domain().empty() && node.domain() != "ai.onnx") continue;
    MOEPACK_RETURN_IF_ERROR(node.op_type() == "Constant" ? file->AddConstantNode(node) : file->Fold(node));
  }
  return std::shared_ptr<const OnnxFile>(std::move(file));
}

Status OnnxFile::Parse() {
  MOEPACK_ASSIGN_OR_RETURN(const auto map, env_.Map(path_));
  const ByteSpan bytes = map->bytes();
  if (bytes.size() > kMaxOnnxFile) return Status(ErrorCode::kLimit, "larger than 2 GiB: weights belong in external data");
  model_ = google::protobuf::Arena::CreateMessage<onnx::ModelProto>(&arena_);
  if (bytes.empty() || !model_->ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return Status(ErrorCode::kBadInput, "not an ONNX file (its protobuf does not parse)");
  }
  return Status::Ok();
}

Status OnnxFile::CheckModel() const {
  if (!model_->has_graph()) return Status(ErrorCode::kBadInput, "has no graph");
  const onnx::GraphProto& graph = model_->graph();
  if (model_->functions_size() != 0 || model_->training_info_size() != 0) {
    return Status(ErrorCode::kUnsupported, "model functions and training information are not supported");
  }
  if (graph.sparse_initializer_size() != 0 || graph.quantization_annotation_size() != 0) {
    return Status(ErrorCode::kUnsupported, "sparse initializers and quantization annotations are not supported");
  }
  if (graph.node_size() == 0 || static_cast<uint32_t>(graph.node_size()) > kMaxNodes) {
    return Status(ErrorCode::kLimit, StrFormat("%d nodes, must be 1 to %u", graph.node_size(), kMaxNodes));
  }
  if (graph.initializer_size() > kMaxOnnxInitializers) return Status(ErrorCode::kLimit, "more than 2^20 initializers");
  return Status::Ok();
}

// One attribute with a tensor, a number or a list of numbers.
Status OnnxFile::AddConstantNode(const onnx::NodeProto& node) {
  const bool shaped = node.attribute_size() == 1 && node.input_size() == 0 && node.output_size() == 1;
  const onnx::AttributeProto none, &value = shaped ? node.attribute(0) : none;
  if (value.name() == "value" && value.has_t()) return AddConstant(value.t(), node.output(0));
  onnx::TensorProto tensor;
  const bool real = value.name() == "value_float" || value.name() == "value_floats";
  tensor.set_data_type(real ? onnx::TensorProto::FLOAT : onnx::TensorProto::INT64);
  if (value.name() == "value_int") {
    tensor.add_int64_data(value.i());
  } else if (value.name() == "value_float") {
    tensor.add_float_data(value.f());
  } else if (value.name() == "value_ints") {
    *tensor.mutable_int64_data() = value.ints();
    tensor.add_dims(value.ints_size());
  } else if (value.name() == "value_floats") {
    *tensor.mutable_float_data() = value.floats();
    tensor.add_dims(value.floats_size());
  } else {
    return Status(ErrorCode::kUnsupported, "Constant node '" + node.name() + "' without a tensor or numbers");
  }
  return AddConstant(tensor, node.output(0));
}

Status OnnxFile::AddConstant(const onnx::TensorProto& proto, const std::string& name) {
  if (name.empty()) return Status(ErrorCode::kBadInput, "a constant without a name");
  OnnxTensor tensor;
  tensor.name = name;
  if (!DtypeOf(proto.data_type(), &tensor)) {
    return Bad(name,
               StrFormat("element type %d is not supported (float, float16, bfloat16, int32, int64, (u)int8, (u)int4 and "
                         "bool are)",
                         proto.data_type()),
               ErrorCode::kUnsupported);
  }
  if (proto.has_segment()) return Bad(name, "segmented tensors are not supported", ErrorCode::kUnsupported);
  if (proto.dims_size() > kMaxOnnxRank) return Bad(name, "more than 8 dimensions", ErrorCode::kLimit);
  for (const int64_t dim : proto.dims()) {
    if (dim < 0) return Bad(name, "negative dimension", ErrorCode::kShape);
    tensor.shape.push_back(static_cast<uint64_t>(dim));
  }
  uint64_t bytes = 0;
  if (!CheckedBytes(&tensor, &bytes)) return Bad(name, "shape overflows", ErrorCode::kShape);
  MOEPACK_RETURN_IF_ERROR(Locate(proto, bytes, &tensor));
  if (!constants_.emplace(name, std::move(tensor)).second) return Bad(name, "the name is used twice");
  return Status::Ok();
}

Status OnnxFile::Locate(const onnx::TensorProto& proto, uint64_t size, OnnxTensor* tensor) {
  switch (proto.data_location()) {
    case onnx::TensorProto::EXTERNAL:
      return LocateExternal(proto, size, tensor);
    case onnx::TensorProto::DEFAULT:
      return LocateInline(proto, size, tensor);
    default:
      return Bad(tensor->name, "unknown data location");
  }
}

Status OnnxFile::LocateInline(const onnx::TensorProto& proto, uint64_t size, OnnxTensor* tensor) {
  if (proto.external_data_size() != 0) return Bad(tensor->name, "has external data but is not marked external");
  if (proto.has_raw_data()) {
    tensor->data = AsBytes(proto.raw_data());
  } else {
    converted_.push_back(std::make_unique<Bytes>(PackTyped(proto, tensor->dtype)));
    tensor->data = *converted_.back();
  }
  if (tensor->data.size() == size) return Status::Ok();
  return Bad(tensor->name,
             StrFormat("holds %zu bytes, its shape needs %llu", tensor->data.size(), static_cast<Unsigned>(size)),
             ErrorCode::kShape);
}

Status OnnxFile::LocateExternal(const onnx::TensorProto& proto, uint64_t size, OnnxTensor* tensor) {
  if (proto.has_raw_data()) return Bad(tensor->name, "has data of its own and external data");
  std::map<std::string, std::string> fields;
  for (const auto& entry : proto.external_data()) {
    static const std::set<std::string> kKnown = {"location", "offset", "length", "checksum"};
    if (!kKnown.contains(entry.key())) return Bad(tensor->name, "unknown external data key '" + entry.key() + "'");
    if (!fields.emplace(entry.key(), entry.value()).second)
      return Bad(tensor->name, "external data key twice: " + entry.key());
  }
  uint64_t offset = 0, length = size, end = 0;
  if (fields.contains("offset") && !ParseDecimal(fields["offset"], &offset)) {
    return Bad(tensor->name, "external offset '" + fields["offset"] + "' is not a number of at least 0");
  }
  if (fields.contains("length") && !ParseDecimal(fields["length"], &length)) {
    return Bad(tensor->name, "external length '" + fields["length"] + "' is not a number of at least 0");
  }
  if (length != size) {
    return Bad(
        tensor->name,
        StrFormat("external length %llu, its shape needs %llu", static_cast<Unsigned>(length), static_cast<Unsigned>(size)),
        ErrorCode::kShape);
  }
  MOEPACK_RETURN_IF_ERROR(CheckExternalLocation(fields["location"]).With("tensor '" + tensor->name + "'"));
  MOEPACK_ASSIGN_OR_RETURN(const MappedFile* map, MapExternal(fields["location"]));
  if (!CheckedAdd(offset, length, &end) || end > map->bytes().size()) {
    return Bad(tensor->name,
               StrFormat("external data [%llu, +%llu) reaches past the %zu bytes of '%s'", static_cast<Unsigned>(offset),
                         static_cast<Unsigned>(length), map->bytes().size(), fields["location"].c_str()));
  }
  tensor->data = map->bytes().subspan(offset, length);
  tensor->mapping = map;
  return Status::Ok();
}

Result<const MappedFile*> OnnxFile::MapExternal(const std::string& location) {
  if (const auto it = external_.find(location); it != external_.end()) return it->second.get();
  const std::string directory = DirectoryOf(path_), path = JoinPath(directory, location);
  // Links are resolved on the real file system: a link inside the folder may point anywhere.
  std::error_code error;
  const std::filesystem::path folder = std::filesystem::canonical(directory, error);
  if (error) return Status(ErrorCode::kAccess, directory + ": " + error.message());
  const std::filesystem::path file = std::filesystem::canonical(path, error);
  if (error) return Status(ErrorCode::kNotFound, "external data '" + location + "': " + error.message());
  const std::filesystem::path relative = file.lexically_relative(folder);
  if (relative.empty() || *relative.begin() == "..") {
    return Status(ErrorCode::kUnsafePath,
                  "external data '" + location + "': a link leads out of the folder of the .onnx file");
  }
  MOEPACK_ASSIGN_OR_RETURN(auto map, env_.Map(path));
  return external_.emplace(location, std::move(map)).first->second.get();
}

const OnnxTensor* OnnxFile::Find(const std::string& name) const {
  const auto it = constants_.find(name);
  return it == constants_.end() ? nullptr : &it->second;
}

std::vector<std::string> OnnxFile::external_files() const {
  std::vector<std::string> names;
  for (const auto& [location, map] : external_) names.push_back(location);
  return names;
}

Result<std::vector<float>> OnnxFile::ReadFloats(const OnnxTensor& tensor, uint64_t first, uint64_t count) const {
  Codec codec;
  if (!DtypeCodec(tensor.dtype, &codec)) return Bad(tensor.name, "is not of floats", ErrorCode::kUnsupported);
  uint64_t end = 0;
  if (!CheckedAdd(first, count, &end) || end > tensor.elements) return Status(ErrorCode::kInternal, "read past a tensor");
  const uint64_t bytes = DtypeBytes(tensor.dtype);
  const ByteSpan data = tensor.data.subspan(first * bytes, count * bytes);
  std::vector<float> out(count);
  WidenElements(tensor.dtype, data.data(), count, out.data());
  if (const uint64_t bad = FirstNotFinite(out); bad < count) {
    return Bad(tensor.name, StrFormat("value %llu is not finite", static_cast<Unsigned>(first + bad)),
               ErrorCode::kNotFinite);
  }
  if (tensor.mapping != nullptr) {
    tensor.mapping->Release(static_cast<uint64_t>(data.data() - tensor.mapping->bytes().data()), data.size());
  }
  return out;
}

Result<std::vector<int64_t>> OnnxFile::ReadInts(const OnnxTensor& tensor) const {
  const bool wide = tensor.dtype == Dtype::kI64, truth = tensor.dtype == Dtype::kBool;
  if (!wide && !truth && tensor.dtype != Dtype::kI32) return Bad(tensor.name, "is not of integers", ErrorCode::kUnsupported);
  constexpr uint64_t kMost = 4096;  // experts that a graph names
  if (tensor.elements > kMost) return Bad(tensor.name, "has more than 4096 values", ErrorCode::kLimit);
  std::vector<int64_t> out;
  for (uint64_t i = 0; i < tensor.elements; ++i) {
    const uint64_t bits = ReadUnsigned(tensor.data.data() + i * DtypeBytes(tensor.dtype), DtypeBytes(tensor.dtype));
    out.push_back(wide ? static_cast<int64_t>(bits) : truth ? bits != 0 : static_cast<int32_t>(bits));
  }
  return out;
}

}  // namespace moepack
