// A small ONNX decoder that tests change before it is written. Vocabulary 12, hidden 16, two query heads and one key head of
// 8, two layers of three experts of 4 behind a router, tied head.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <onnx/onnx_pb.h>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "base/env.h"
#include "model/model.h"
#include "model/model_testing.h"

namespace moepack {

class TinyOnnx {
 public:
  struct Options {
    bool packed_attention = false;  // query, key and value in one input
    bool skip_norm = false;         // residual sums inside the norms
    bool bookkeeping = true;        // sequence lengths computed from the mask
    // Rotations in nodes of their own, of com.microsoft or of ai.onnx.
    enum class Rotary : uint8_t { kInAttention, kContrib, kStandard } rotary = Rotary::kInAttention;
  };

  TinyOnnx() : TinyOnnx(Options()) {}
  explicit TinyOnnx(const Options& options) : options_(options) {
    model.set_ir_version(8);
    auto* opset = model.add_opset_import();
    opset->set_version(17);
    Input("input_ids", onnx::TensorProto::INT64);
    Input("attention_mask", onnx::TensorProto::INT64);
    Input("position_ids", onnx::TensorProto::INT64);
    if (options.bookkeeping) Lengths();
    Floats("embed", {12, 16});
    Caches();
    SetInt(Node("", "Gather", {"embed", "input_ids"}, {"x0"}), "axis", 0);
    std::string x = "x0", pending;
    for (int layer = 0; layer < 2; ++layer) Layer(layer, &x, &pending);
    Norm("final", &x, &pending, "normed");
    Node("", "Transpose", {"embed"}, {"embed_t"});
    Node("", "MatMul", {"normed", "embed_t"}, {"logits"});
    graph().add_output()->set_name("logits");
  }

  onnx::GraphProto& graph() { return *model.mutable_graph(); }

  onnx::NodeProto* Node(const std::string& domain, const std::string& op, const std::vector<std::string>& inputs,
                        const std::vector<std::string>& outputs) {
    onnx::NodeProto* node = graph().add_node();
    node->set_name(op + std::to_string(graph().node_size()));
    node->set_domain(domain);
    node->set_op_type(op);
    for (const std::string& name : inputs) node->add_input(name);
    for (const std::string& name : outputs) node->add_output(name);
    return node;
  }

  // Deterministic values that differ.
  onnx::TensorProto* Floats(const std::string& name, const std::vector<int64_t>& shape) {
    onnx::TensorProto* tensor = graph().add_initializer();
    tensor->set_name(name);
    tensor->set_data_type(onnx::TensorProto::FLOAT);
    int64_t count = 1;
    for (const int64_t dim : shape) {
      tensor->add_dims(dim);
      count *= dim;
    }
    for (int64_t i = 0; i < count; ++i)
      tensor->add_float_data(std::sin(static_cast<float>(i + 7 * graph().initializer_size())));
    return tensor;
  }

  // Bytes of an element type that the headers may not name; they differ too.
  onnx::TensorProto* Codes(const std::string& name, const std::vector<int64_t>& shape, size_t bytes,
                           int32_t type = onnx::TensorProto::UINT8) {
    onnx::TensorProto* tensor = graph().add_initializer();
    tensor->set_name(name);
    tensor->set_data_type(type);
    for (const int64_t dim : shape) tensor->add_dims(dim);
    std::string data;
    for (size_t i = 0; i < bytes; ++i) data.push_back(static_cast<char>((i * 37 + data.size() * i + 11) % 251));
    tensor->set_raw_data(data);
    return tensor;
  }

  void Ints(const std::string& name, const std::vector<int64_t>& values) {
    onnx::TensorProto* tensor = graph().add_initializer();
    tensor->set_name(name);
    tensor->set_data_type(onnx::TensorProto::INT64);
    tensor->add_dims(static_cast<int64_t>(values.size()));
    for (const int64_t value : values) tensor->add_int64_data(value);
  }

  void Int(const std::string& name, int64_t value) {
    Ints(name, {value});
    Constant(name).clear_dims();
  }

  // The first node of an operator, the one that gives `output`, the constant of a name; they exist.
  onnx::NodeProto& First(const std::string& op) {
    for (onnx::NodeProto& node : *graph().mutable_node()) {
      if (node.op_type() == op) return node;
    }
    return *graph().mutable_node(0);
  }
  onnx::NodeProto& Giving(const std::string& output) {
    for (onnx::NodeProto& node : *graph().mutable_node()) {
      if (node.output(0) == output) return node;
    }
    return *graph().mutable_node(0);
  }
  onnx::TensorProto& Constant(const std::string& name) {
    for (onnx::TensorProto& tensor : *graph().mutable_initializer()) {
      if (tensor.name() == name) return tensor;
    }
    return *graph().mutable_initializer(0);
  }
  static void SetInt(onnx::NodeProto* node, const std::string& name, int64_t value) {
    onnx::AttributeProto* attribute = Attribute(node, name, onnx::AttributeProto::INT);
    attribute->set_i(value);
  }
  static void SetInts(onnx::NodeProto* node, const std::string& name, const std::vector<int64_t>& values) {
    for (const int64_t value : values) Attribute(node, name, onnx::AttributeProto::INTS)->add_ints(value);
  }
  static void SetFloat(onnx::NodeProto* node, const std::string& name, float value) {
    Attribute(node, name, onnx::AttributeProto::FLOAT)->set_f(value);
  }
  static void SetText(onnx::NodeProto* node, const std::string& name, const std::string& value) {
    Attribute(node, name, onnx::AttributeProto::STRING)->set_s(value);
  }
  static onnx::TensorProto* SetTensor(onnx::NodeProto* node, const std::string& name) {
    return Attribute(node, name, onnx::AttributeProto::TENSOR)->mutable_t();
  }

  Bytes Serialize() const {
    const std::string text = model.SerializeAsString();
    return Bytes(text.begin(), text.end());
  }

  onnx::ModelProto model;

 private:
  static onnx::AttributeProto* Attribute(onnx::NodeProto* node, const std::string& name,
                                         onnx::AttributeProto::AttributeType type) {
    for (onnx::AttributeProto& attribute : *node->mutable_attribute()) {
      if (attribute.name() == name) return &attribute;
    }
    onnx::AttributeProto* attribute = node->add_attribute();
    attribute->set_name(name);
    attribute->set_type(type);
    return attribute;
  }

  void Input(const std::string& name, int32_t type) {
    auto* input = graph().add_input();
    input->set_name(name);
    input->mutable_type()->mutable_tensor_type()->set_elem_type(type);
  }

  void Lengths() {
    Ints("one", {1});
    Node("", "ReduceSum", {"attention_mask", "one"}, {"sum"});
    Node("", "Sub", {"sum", "one"}, {"less"});
    SetInt(Node("", "Cast", {"less"}, {"seqlens"}), "to", onnx::TensorProto::INT32);
    Node("", "Shape", {"attention_mask"}, {"mask_shape"});
    Node("", "Gather", {"mask_shape", "one"}, {"total64"});
    SetInt(Node("", "Cast", {"total64"}, {"total"}), "to", onnx::TensorProto::INT32);
  }

  void Caches() {
    for (const bool cos : {true, false}) {
      onnx::TensorProto* cache = Floats(cos ? "cos" : "sin", {32, 4});
      for (int p = 0; p < 32; ++p) {
        for (int i = 0; i < 4; ++i) {
          const double angle = p * std::pow(100.0, -i / 4.0);
          cache->set_float_data(p * 4 + i, static_cast<float>(cos ? std::cos(angle) : std::sin(angle)));
        }
      }
    }
  }

  // out = norm(*x + *pending); *x becomes the sum.
  void Norm(const std::string& name, std::string* x, std::string* pending, const std::string& out) {
    Floats(name + ".weight", {16});
    onnx::NodeProto* node = nullptr;
    if (pending->empty()) {
      node = Node("", "SimplifiedLayerNormalization", {*x, name + ".weight"}, {out});
    } else if (options_.skip_norm) {
      node = Node("com.microsoft", "SkipSimplifiedLayerNormalization", {*x, *pending, name + ".weight"},
                  {out, "", "", name + ".sum"});
      *x = name + ".sum";
    } else {
      Node("", "Add", {*x, *pending}, {name + ".sum"});
      *x = name + ".sum";
      node = Node("", "SimplifiedLayerNormalization", {*x, name + ".weight"}, {out});
    }
    SetFloat(node, "epsilon", 1e-6f);
    pending->clear();
  }

  void MatMul(const std::string& in, const std::string& name, int64_t rows, int64_t cols) {
    Floats(name + ".weight", {cols, rows});
    Node("", "MatMul", {in, name + ".weight"}, {name});
  }

  void Layer(int layer, std::string* x, std::string* pending) {
    const std::string p = "l" + std::to_string(layer) + ".";
    Norm(p + "in", x, pending, p + "a");
    std::vector<std::string> heads = {p + "q", p + "k", p + "v"};
    if (options_.packed_attention) {
      MatMul(p + "a", p + "qkv", 32, 16);
      heads = {p + "qkv", "", ""};
    } else {
      MatMul(p + "a", p + "q", 16, 16);
      MatMul(p + "a", p + "k", 8, 16);
      MatMul(p + "a", p + "v", 8, 16);
    }
    const bool inside = options_.rotary == Options::Rotary::kInAttention;
    for (size_t i = 0; !inside && i < 2; ++i) {
      const bool contrib = options_.rotary == Options::Rotary::kContrib;
      const std::vector<std::string> inputs = contrib ? std::vector<std::string>{heads[i], "position_ids", "cos", "sin"}
                                                      : std::vector<std::string>{heads[i], "cos", "sin", "position_ids"};
      heads[i] += ".turned";
      SetInt(Node(contrib ? "com.microsoft" : "", "RotaryEmbedding", inputs, {heads[i]}), "num_heads", i == 0 ? 2 : 1);
    }
    const std::string seqlens = options_.bookkeeping ? "seqlens" : "", total = options_.bookkeeping ? "total" : "";
    auto* attention = Node("com.microsoft", "GroupQueryAttention",
                           {heads[0], heads[1], heads[2], "", "", seqlens, total, inside ? "cos" : "", inside ? "sin" : ""},
                           {p + "mixed"});
    SetInt(attention, "num_heads", 2);
    SetInt(attention, "kv_num_heads", 1);
    SetInt(attention, "do_rotary", inside ? 1 : 0);
    MatMul(p + "mixed", p + "o", 16, 16);
    *pending = p + "o";
    Norm(p + "post", x, pending, p + "f");
    MatMul(p + "f", p + "router", 3, 16);
    Ints(p + "flat", {-1, 3});
    Node("", "Reshape", {p + "router", p + "flat"}, {p + "logits"});
    Floats(p + "fc1", {3, 8, 16});
    Floats(p + "fc2", {3, 16, 4});
    auto* moe = Node("com.microsoft", "MoE", {p + "f", p + "logits", p + "fc1", "", p + "fc2"}, {p + "moe"});
    SetInt(moe, "k", 2);
    SetText(moe, "activation_type", "swiglu");
    SetInt(moe, "swiglu_fusion", 1);
    *pending = p + "moe";
  }

  Options options_;
};

// Opens graphs that a test changed. `names`: what every refusal must name besides its reason.
class OnnxFixture : public ::testing::Test {
 protected:
  explicit OnnxFixture(std::string names) : names_(std::move(names)) {}
  virtual Result<Model> Open(const TinyOnnx& tiny) = 0;
  Model MustOpen(const TinyOnnx& tiny) {
    auto model = Open(tiny);
    EXPECT_TRUE(model.ok()) << model.status().message();
    return model.ok() ? std::move(model).value() : Model();
  }
  void ExpectRefused(const TinyOnnx& tiny, ErrorCode code, const std::string& part) {
    const auto model = Open(tiny);
    ASSERT_FALSE(model.ok()) << "expected: " << part;
    EXPECT_EQ(model.status().code(), code) << model.status().message();
    EXPECT_THAT(model.status().message(), ::testing::HasSubstr(part));
    EXPECT_THAT(model.status().message(), ::testing::HasSubstr(names_));
  }
  TempFolder folder_;

 private:
  const std::string names_;
};

}  // namespace moepack
