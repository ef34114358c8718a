// Checked view of one ONNX node: typed attributes, every one of which must be known. Internal to the ONNX front-end.
#pragma once

#include <onnx/onnx_pb.h>

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/status.h"

namespace moepack {

class OnnxNode {
 public:
  OnnxNode(const onnx::NodeProto& proto, int index) : proto_(proto), index_(index) {}

  // "com.microsoft.MoE", "MatMul": the default domain is left out.
  std::string op() const;
  const onnx::NodeProto& proto() const { return proto_; }
  int inputs() const { return proto_.input_size(); }
  int outputs() const { return proto_.output_size(); }
  // Empty when absent.
  const std::string& input(int i) const;
  const std::string& output(int i) const;

  // The attribute, or `fallback` when absent. A wrong type or a number that is not finite shows in Finish.
  int64_t Int(const char* name, int64_t fallback);
  float Float(const char* name, float fallback);
  std::string Text(const char* name, const std::string& fallback);
  std::vector<int64_t> Ints(const char* name, const std::vector<int64_t>& fallback);
  // A tensor of one float32 or int64; 0 when absent, nothing for another tensor.
  std::optional<float> Number(const char* name);

  // To be called when all attributes were read: kUnsupported for one that was not asked for, kBadInput for a wrong type or
  // one that stands twice.
  Status Finish() const;
  // The error with the node's number, name and operator before it.
  Status Error(ErrorCode code, const std::string& what) const;
  Status Unsupported(const std::string& what) const { return Error(ErrorCode::kUnsupported, what); }
  Status Bad(const std::string& what) const { return Error(ErrorCode::kBadInput, what); }

 private:
  const onnx::AttributeProto* Attribute(const char* name, onnx::AttributeProto::AttributeType type);
  const onnx::NodeProto& proto_;
  int index_;
  std::set<std::string> known_;
  std::string wrong_;  // first attribute of a wrong type
};

}  // namespace moepack
