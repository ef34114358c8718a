// An ONNX file with its weights: parsed, every initializer checked, external data mapped. Internal to the ONNX front-end.
#pragma once

#include <google/protobuf/arena.h>
#include <onnx/onnx_pb.h>

#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/bytes.h"
#include "base/env.h"
#include "base/status.h"
#include "model/frontend/safetensors.h"

namespace moepack {

// Protobuf cannot hold more.
inline constexpr uint64_t kMaxOnnxFile = (1ull << 31) - 1;
inline constexpr int kMaxOnnxInitializers = 1 << 20;
inline constexpr int kMaxOnnxRank = 8;

// A constant of the graph: an initializer, the value of a Constant node, or sizes computed of such.
struct OnnxTensor {
  std::string name;
  Dtype dtype = Dtype::kF32;  // kF32, kF16, kBf16, kI64, kI32, kU8, kI8 or kBool
  bool nibbles = false;       // 4-bit integers, two a byte (kU8, or kI8 when signed), the first in the low bits
  std::vector<uint64_t> shape;
  ByteSpan data;                        // exactly the bytes of type and shape, little endian
  const MappedFile* mapping = nullptr;  // null for data inside the .onnx file
  uint64_t elements = 0;                // product of the shape
};

class OnnxFile {
 public:
  // kBadInput (malformed), kUnsupported (functions, sparse or quantized initializers, element types), kLimit, kUnsafePath
  // (external data outside the folder), kNotFound (external data missing).
  static Result<std::shared_ptr<const OnnxFile>> Open(Env& env, const std::string& path);

  const onnx::ModelProto& model() const { return *model_; }
  // Null when `name` is not a constant. Pointers live as long as this object.
  const OnnxTensor* Find(const std::string& name) const;
  // Whether a node's output was computed here, from constants alone.
  bool IsFolded(const std::string& name) const { return folded_.contains(name); }
  // Names of the external data files, relative to the folder, sorted.
  std::vector<std::string> external_files() const;

  // `count` values of a float tensor from element `first`, widened to float32 and finite (kNotFinite).
  Result<std::vector<float>> ReadFloats(const OnnxTensor& tensor, uint64_t first, uint64_t count) const;
  // All values of a small integer or truth tensor. kUnsupported for another type, kLimit above 4096 values.
  Result<std::vector<int64_t>> ReadInts(const OnnxTensor& tensor) const;

 private:
  OnnxFile(Env& env, std::string path) : env_(env), path_(std::move(path)) {}
  Status Parse();
  Status CheckModel() const;
  Status AddConstant(const onnx::TensorProto& proto, const std::string& name);
  Status AddConstantNode(const onnx::NodeProto& node);
  // onnx_fold.cc: what the node gives as a constant, when it computes sizes of constants. Leaves other nodes alone.
  Status Fold(const onnx::NodeProto& node);
  Status Locate(const onnx::TensorProto& proto, uint64_t size, OnnxTensor* tensor);
  Status LocateInline(const onnx::TensorProto& proto, uint64_t size, OnnxTensor* tensor);
  Status LocateExternal(const onnx::TensorProto& proto, uint64_t size, OnnxTensor* tensor);
  Result<const MappedFile*> MapExternal(const std::string& location);

  Env& env_;
  std::string path_;
  google::protobuf::Arena arena_;
  onnx::ModelProto* model_ = nullptr;  // on the arena
  std::map<std::string, std::unique_ptr<MappedFile>> external_;
  std::vector<std::unique_ptr<Bytes>> converted_;  // data that the file holds as typed fields
  std::unordered_map<std::string, OnnxTensor> constants_;
  std::set<std::string> folded_;
};

// Refuses what could leave the folder: empty, absolute, with a "..", "." or empty part, a backslash or a NUL. kUnsafePath.
Status CheckExternalLocation(const std::string& location);

}  // namespace moepack
