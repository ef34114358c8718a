#include "model/frontend/onnx_node.h"

#include <cmath>
#include <cstring>

namespace moepack {
namespace {

const std::string kAbsent;

}  // namespace

std::string OnnxNode::op() const {
  const bool standard = proto_.domain().empty() || proto_.domain() == "ai.onnx";
  return standard ? proto_.op_type() : proto_.domain() + "." + proto_.op_type();
}

const std::string& OnnxNode::input(int i) const { return i < proto_.input_size() ? proto_.input(i) : kAbsent; }
const std::string& OnnxNode::output(int i) const { return i < proto_.output_size() ? proto_.output(i) : kAbsent; }

const onnx::AttributeProto* OnnxNode::Attribute(const char* name, onnx::AttributeProto::AttributeType type) {
  known_.insert(name);
  for (const onnx::AttributeProto& attribute : proto_.attribute()) {
    if (attribute.name() != name) continue;
    if (attribute.type() == type && attribute.ref_attr_name().empty()) return &attribute;
    if (wrong_.empty()) wrong_ = name;
  }
  return nullptr;
}

int64_t OnnxNode::Int(const char* name, int64_t fallback) {
  const auto* attribute = Attribute(name, onnx::AttributeProto::INT);
  return attribute == nullptr ? fallback : attribute->i();
}

float OnnxNode::Float(const char* name, float fallback) {
  const auto* attribute = Attribute(name, onnx::AttributeProto::FLOAT);
  if (attribute == nullptr) return fallback;
  if (std::isnan(attribute->f()) && wrong_.empty()) wrong_ = name;
  return attribute->f();
}

std::string OnnxNode::Text(const char* name, const std::string& fallback) {
  const auto* attribute = Attribute(name, onnx::AttributeProto::STRING);
  return attribute == nullptr ? fallback : attribute->s();
}

std::vector<int64_t> OnnxNode::Ints(const char* name, const std::vector<int64_t>& fallback) {
  const auto* attribute = Attribute(name, onnx::AttributeProto::INTS);
  if (attribute == nullptr) return fallback;
  return {attribute->ints().begin(), attribute->ints().end()};
}

std::optional<float> OnnxNode::Number(const char* name) {
  const auto* attribute = Attribute(name, onnx::AttributeProto::TENSOR);
  if (attribute == nullptr) return 0.0f;
  const onnx::TensorProto& tensor = attribute->t();
  if (tensor.external_data_size() > 0) return std::nullopt;
  if (tensor.data_type() == onnx::TensorProto::INT64) {
    int64_t integer = 0;
    const bool raw = tensor.int64_data_size() == 0 && tensor.raw_data().size() == sizeof(integer);
    if (!raw && (tensor.int64_data_size() != 1 || !tensor.raw_data().empty())) return std::nullopt;
    if (raw) std::memcpy(&integer, tensor.raw_data().data(), sizeof(integer));
    return static_cast<float>(raw ? integer : tensor.int64_data(0));
  }
  if (tensor.data_type() != onnx::TensorProto::FLOAT) return std::nullopt;
  float number = 0;
  if (tensor.float_data_size() == 1 && tensor.raw_data().empty()) {
    number = tensor.float_data(0);
  } else if (tensor.float_data_size() == 0 && tensor.raw_data().size() == sizeof(number)) {
    std::memcpy(&number, tensor.raw_data().data(), sizeof(number));
  } else {
    return std::nullopt;
  }
  return std::isnan(number) ? std::nullopt : std::optional<float>(number);
}

Status OnnxNode::Finish() const {
  if (!wrong_.empty()) return Bad("attribute '" + wrong_ + "' has the wrong type");
  std::set<std::string> seen;
  for (const onnx::AttributeProto& attribute : proto_.attribute()) {
    if (!known_.contains(attribute.name())) return Unsupported("attribute '" + attribute.name() + "' is not supported");
    if (!seen.insert(attribute.name()).second) return Bad("attribute '" + attribute.name() + "' stands twice");
  }
  return Status::Ok();
}

Status OnnxNode::Error(ErrorCode code, const std::string& what) const {
  return Status(code, StrFormat("node %d '%s' (%s): %s", index_, proto_.name().c_str(), op().c_str(), what.c_str()));
}

}  // namespace moepack
