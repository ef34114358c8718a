// Lowers the nodes of an ONNX graph to a Program. Internal to the ONNX front-end.
//
// Supported: Gather (embedding), MatMul, Gemm, Add, Mul, Sigmoid, Relu, Clip, Cast and Identity (no operation), Reshape (of
// heads and of leading dimensions), Slice, Concat, Transpose (of a constant), LayerNormalization, RMSNormalization,
// SimplifiedLayerNormalization, RotaryEmbedding, Constant; com.microsoft: Gelu, FastGelu, SkipLayerNormalization,
// SkipSimplifiedLayerNormalization, RotaryEmbedding, GroupQueryAttention, MoE, QMoE, MatMulNBits, GatherBlockQuantized;
// routers and experts in plain operators (onnx_mixture.h). The graph reads tokens, or else rows of floats [rows, width].
// What computes sequence lengths and positions from the attention mask is left out, and nothing else may read it: sequences
// are unpadded and positions count from 0.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/status.h"
#include "format/program.h"
#include "model/frontend/onnx_file.h"
#include "model/frontend/onnx_node.h"
#include "model/frontend/onnx_rotary.h"
#include "model/frontend/onnx_weights.h"

namespace moepack {

class OnnxMixtures;

class OnnxImporter {
 public:
  // `context` caps the positions of the program, and is needed where no caches of rotations do; 0: not known.
  OnnxImporter(const OnnxFile& file, uint64_t context);
  ~OnnxImporter();

  // Fills the results below. kUnsupported names the operator and node; kShape, kBadInput, kLimit.
  Status Run();

  Program program;                   // validated
  std::vector<OnnxWeight> tensors;   // by TensorId
  std::vector<OnnxExperts> experts;  // by expert table

  // A float value of the graph. Its bytes are those of a program value [tokens, width], seen as [..., columns].
  struct Value {
    ValueId id = kNone;
    uint64_t columns = 0;  // last dimension; divides the width
    size_t rank = 0;
    bool batch_first = false;  // the first dimension is the batch
    bool by_sequence = false;  // the first two dimensions are batch and sequence
  };

 private:
  friend class OnnxMixtures;  // onnx_mixture.h: experts spelled out in plain operators

  // A value `id` of the same shape as `shape`; with other columns in the second form.
  static Value Like(const Value& shape, ValueId id) {
    return {id, shape.columns, shape.rank, shape.batch_first, shape.by_sequence};
  }
  static Value Like(const Value& shape, ValueId id, uint64_t columns) {
    return {id, columns, shape.rank, shape.batch_first, shape.by_sequence};
  }
  using Handler = Status (OnnxImporter::*)(OnnxNode&);

  // onnx_import.cc
  Status CheckGraph();
  Status DeclareInput();
  Status DeclareRows(const onnx::ValueInfoProto& input);
  Status CheckLength() const;
  Status FindBookkeeping();
  Status ImportNode(int index);
  Status SetOutput();
  Status CheckOutputs(const OnnxNode& node, int allowed) const;
  const Value* FindValue(const std::string& name) const;
  Result<Value> Input(const OnnxNode& node, int i) const;
  // An input whose columns are the program's, not a view by heads.
  Result<Value> PlainInput(const OnnxNode& node, int i) const;
  Result<const OnnxTensor*> ConstantInput(const OnnxNode& node, int i) const;
  Result<std::vector<int64_t>> IntsInput(const OnnxNode& node, int i) const;
  Result<float> ScalarInput(const OnnxNode& node, int i) const;
  // A 1-dimensional float constant, leading dimensions of 1 allowed.
  Result<const OnnxTensor*> VectorInput(const OnnxNode& node, int i) const;
  // The node that made a value; null for the program's input.
  const Node* ProducerOf(ValueId id) const;
  bool IsGraphOutput(const std::string& name) const;
  uint64_t Width(const Value& value) const { return program.values[value.id].width; }
  bool UsedOnce(const std::string& name) const;
  // Whether one node alone reads a value, under whichever name: then the node that made it may change.
  bool ReadOnce(ValueId id) const { return read_twice_.count(id) == 0; }
  // Notes that a value has this name too.
  void AddName(const std::string& name, ValueId id);
  Status Define(const OnnxNode& node, int output, const Value& value);
  ValueId Emit(Node node, uint64_t width);
  // A tensor of the program, named after a constant, made of `parts`.
  TensorId AddTensor(const std::string& constant, uint64_t rows, uint64_t cols, std::vector<OnnxMatrix> parts);
  // All elements of a constant as one row.
  TensorId AddVector(const OnnxTensor& tensor);

  // onnx_import_basic.cc
  Status ImportGather(OnnxNode& node);
  Status ImportMatMul(OnnxNode& node);
  Status ImportGemm(OnnxNode& node);
  Status ImportTranspose(OnnxNode& node);
  Status ImportAdd(OnnxNode& node);
  Status ImportMul(OnnxNode& node);
  Status ImportUnary(OnnxNode& node);
  Status ImportGelu(OnnxNode& node);
  Status ImportClip(OnnxNode& node);
  Status ImportCast(OnnxNode& node);
  Status ImportReshape(OnnxNode& node);
  Status ImportSlice(OnnxNode& node);
  Status ImportConcat(OnnxNode& node);
  Status ImportConstant(OnnxNode& node);
  Status AddBias(OnnxNode& node, int value_input, int bias_input);
  bool AttachBias(const Value& value, const OnnxTensor& bias);
  Status AddElementwise(OnnxNode& node, ElementOp op, const Value& a, const Value& b);
  Status EmitUnary(OnnxNode& node, ElementOp op, float alpha, const Value& in);
  Status EmitEmbedding(OnnxNode& node, const OnnxMatrix& table);
  Status EmitLinear(OnnxNode& node, const Value& in, const OnnxMatrix& weight, TensorId bias);

  // onnx_import_norm.cc
  Status ImportRmsNorm(OnnxNode& node);
  Status ImportLayerNorm(OnnxNode& node);
  Status ImportSkipRmsNorm(OnnxNode& node);
  Status ImportSkipLayerNorm(OnnxNode& node);
  Result<Value> SkipSum(OnnxNode& node, int bias);
  Status EmitNorm(OnnxNode& node, NormKind kind, const Value& in, int scale, int bias, float eps);

  // onnx_import_quantized.cc
  Status ImportGatherBlocks(OnnxNode& node);
  Status ImportMatMulNBits(OnnxNode& node);

  // onnx_import_moe.cc
  struct Moe;
  struct ExpertStack;
  Status ImportMoe(OnnxNode& node);
  Status ReadMoeAttributes(OnnxNode& node, Moe* moe) const;
  Status ReadExperts(const OnnxNode& node, Moe* moe) const;
  Result<ExpertStack> ReadStack(const OnnxNode& node, const Moe& moe, int fc) const;
  Status ReadExpertBiases(const OnnxNode& node, Moe* moe);
  Result<const OnnxTensor*> ExpertBias(const OnnxNode& node, int input, uint64_t experts, uint64_t width) const;
  // A table of experts for `node`, whose inputs are the hidden state and the router's logits.
  Status EmitMoe(const OnnxNode& node, Node moe, const Value& in, const Value& logits, OnnxExperts weights);

  // onnx_import_rotary.cc
  Status ImportRotary(OnnxNode& node);
  Result<const RotaryCache*> ReadCaches(const OnnxNode& node, int cos_input, int sin_input, uint64_t most_columns);
  ValueId Rotate(const RotaryCache& cache, uint32_t heads, uint32_t head_dim, bool interleaved, ValueId in);
  bool IsPosition(const std::string& name) const;

  // onnx_import_attention.cc
  struct Attention;
  Status ImportAttention(OnnxNode& node);
  Status ReadAttentionAttributes(OnnxNode& node, Attention* attention) const;
  Status CheckAttentionInputs(const OnnxNode& node) const;
  Status ReadHeads(const OnnxNode& node, Attention* attention);

  static const std::map<std::string, Handler>& Handlers();

  // onnx_unread.cc
  void RemoveUnread();

  const OnnxFile& file_;
  const onnx::GraphProto& graph_;
  const uint64_t context_;
  std::unordered_map<std::string, Value> values_;
  std::unordered_map<std::string, const OnnxTensor*> transposed_;  // results of Transpose
  std::unordered_map<std::string, const OnnxTensor*> reshaped_;    // constants of codes seen in another shape
  std::unordered_map<std::string, uint32_t> uses_;                 // by nodes and graph outputs
  std::set<ValueId> read_twice_;                                   // values with a name that is used more than once
  std::set<std::string> defined_;                                  // every name that has been produced
  std::set<std::string> integers_;                                 // integer graph inputs and their casts
  std::set<std::string> kv_outputs_;                               // present_key, present_value
  std::set<int> bookkeeping_;                                      // nodes that only compute sequence lengths
  std::set<std::string> lengths_;                                  // what those give
  std::string tokens_;                                             // graph input of the embedding
  std::unique_ptr<OnnxMixtures> mixtures_;                         // experts in plain operators
  std::vector<uint32_t> producer_;                                 // program node by value
  std::map<std::string, int> copies_;                              // times a tensor name was given out
  std::map<const OnnxTensor*, TensorId> embeddings_;
  std::map<std::pair<std::string, std::string>, RotaryCache> rotary_;  // by cache names
};

}  // namespace moepack
