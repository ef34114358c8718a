// Program -> ONNX graph. Internal to the exporter.
#pragma once

#include <onnx/onnx_pb.h>

#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/status.h"
#include "format/program.h"
#include "model/export/onnx_data.h"

namespace moepack {

class OnnxGraphWriter {
 public:
  // Keeps pointers to both.
  OnnxGraphWriter(const Program& program, onnx::GraphProto* graph) : program_(program), graph_(*graph) {}

  // Writes nodes, inputs, outputs and small constants. kUnsupported names what ONNX Runtime's operators cannot express.
  Status Run();
  // Weights the graph refers to, in the order of their use; their initializers are for the caller to add.
  const std::vector<OnnxBlob>& blobs() const { return blobs_; }

 private:
  static constexpr const char* kStandard = "";
  static constexpr const char* kContrib = "com.microsoft";
  static void SetInt(onnx::NodeProto* node, const char* name, int64_t value);
  static void SetFloat(onnx::NodeProto* node, const char* name, float value);
  static void SetText(onnx::NodeProto* node, const char* name, const std::string& value);

  void WriteInterface();
  void WriteLengths();
  Status FindRotaries();
  Status WriteNode(size_t index);
  Status WriteLinear(const Node& node);
  Status WriteNorm(const Node& node);
  Status WriteAttention(const Node& node);
  Status WriteElementwise(const Node& node);
  void WriteSlice(const Node& node);
  void WriteConcat(const Node& node);

  onnx::NodeProto* Add(const char* domain, const char* op, const std::vector<std::string>& inputs,
                       const std::string& output);
  // Names of constants, made on first use.
  std::string Ints(const std::vector<int64_t>& values, bool scalar = false);
  std::string Scalar(float value);
  std::string Tensor(TensorId id, OnnxBlobKind kind);
  std::string Blob(OnnxBlob blob);
  std::string Ones(uint64_t count);
  std::string ValueName(ValueId id) const;
  // onnx_graph_moe.cc
  Status WriteMoe(const Node& node);
  static void WriteSwiglu(const ActivationRecord& activation, onnx::NodeProto* proto);
  void AddExpertBiases(const Node& node, bool swiglu, uint64_t width, std::vector<std::string>* inputs);
  std::string UnsharedInput(ValueId id);

  // A name for something between two nodes of the program.
  std::string Temporary(const char* what);
  Status Unsupported(const std::string& what) const;

  const Program& program_;
  onnx::GraphProto& graph_;
  std::vector<OnnxBlob> blobs_;
  std::set<std::string> names_;             // of blobs and constants
  std::vector<const RotaryNode*> rotated_;  // by value: the rotation that an attention node will do itself
  std::vector<ValueId> before_rotation_;    // by value
  std::vector<const RotaryNode*> caches_;   // rotations whose caches exist, one a distinct cache
  size_t index_ = 0;                        // node being written
  int temporaries_ = 0;
};

}  // namespace moepack
