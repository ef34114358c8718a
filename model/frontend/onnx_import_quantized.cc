// com.microsoft.MatMulNBits and GatherBlockQuantized: matrices of codes, dequantized when they are loaded.
#include "model/frontend/onnx_import.h"

namespace moepack {
namespace {

// A weight [rows, cols] held as codes.
OnnxMatrix CodeMatrix(const OnnxTensor& codes, std::shared_ptr<const OnnxBlocks> blocks) {
  OnnxMatrix matrix = DenseMatrix(codes, blocks->rows, blocks->cols);
  matrix.blocks = std::move(blocks);
  return matrix;
}

}  // namespace

// Inputs: A, codes [N, blocks, bytes], scales, zero points, group index, bias.
Status OnnxImporter::ImportMatMulNBits(OnnxNode& node) {
  const int64_t k = node.Int("K", 0), n = node.Int("N", 0), bits = node.Int("bits", 4), block = node.Int("block_size", 0);
  node.Int("accuracy_level", 0);  // how the product may be computed, not what it is
  const int64_t prepacked = node.Int("weight_prepacked", 0);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  if (prepacked != 0) return node.Unsupported("weight_prepacked");
  if (k < 1 || n < 1 || block < 1) return node.Bad("K, N and block_size must be positive");
  if (!node.input(4).empty()) return node.Unsupported("a group index (input 4)");
  MOEPACK_ASSIGN_OR_RETURN(const Value in, PlainInput(node, 0));
  MOEPACK_ASSIGN_OR_RETURN(const OnnxTensor* codes, ConstantInput(node, 1));
  MOEPACK_ASSIGN_OR_RETURN(const OnnxTensor* scales, ConstantInput(node, 2));
  const OnnxTensor *zeros = nullptr, *bias = nullptr;
  if (!node.input(3).empty()) {
    MOEPACK_ASSIGN_OR_RETURN(zeros, ConstantInput(node, 3));
  }
  if (!node.input(5).empty()) {
    MOEPACK_ASSIGN_OR_RETURN(bias, VectorInput(node, 5));
    if (bias->elements != static_cast<uint64_t>(n)) return node.Error(ErrorCode::kShape, "the bias must have N values");
  }
  OnnxBlockShape shape;
  shape.rows = static_cast<uint64_t>(n);
  shape.cols = static_cast<uint64_t>(k);
  shape.bits = bits;
  shape.block = block;
  shape.padded_rows = true;
  auto blocks = BindBlocks(*codes, *scales, zeros, shape);
  if (!blocks.ok()) return node.Error(blocks.status().code(), blocks.status().message());
  const TensorId bias_id = bias == nullptr ? kNone : AddVector(*bias);
  return EmitLinear(node, in, CodeMatrix(*codes, std::move(blocks).value()), bias_id);
}

// Inputs: codes [rows, packed columns], tokens, scales, zero points.
Status OnnxImporter::ImportGatherBlocks(OnnxNode& node) {
  const int64_t gather_axis = node.Int("gather_axis", 0), quantize_axis = node.Int("quantize_axis", 1);
  const int64_t block = node.Int("block_size", 128), bits = node.Int("bits", 4);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  if (gather_axis != 0 || (quantize_axis != 1 && quantize_axis != -1)) {
    return node.Unsupported("only rows of a matrix quantized along its columns may be gathered");
  }
  const auto seen = reshaped_.find(node.input(0));
  const OnnxTensor* codes = seen == reshaped_.end() ? nullptr : seen->second;
  if (codes == nullptr) {
    MOEPACK_ASSIGN_OR_RETURN(codes, ConstantInput(node, 0));
  }
  MOEPACK_ASSIGN_OR_RETURN(const OnnxTensor* scales, ConstantInput(node, 2));
  const OnnxTensor* zeros = nullptr;
  if (!node.input(3).empty()) {
    MOEPACK_ASSIGN_OR_RETURN(zeros, ConstantInput(node, 3));
  }
  if (codes->shape.size() < 2 || codes->shape[0] == 0 || block < 1) {
    return node.Error(ErrorCode::kShape, "codes must be a matrix, block_size positive");
  }
  const uint64_t packed = codes->elements / codes->shape[0];
  if (bits != 2 && bits != 4 && bits != 8) return node.Unsupported("bits must be 2, 4 or 8");
  OnnxBlockShape shape;
  shape.rows = codes->shape[0];
  shape.cols = codes->nibbles ? packed : packed * (8 / static_cast<uint64_t>(bits));
  shape.bits = bits;
  shape.block = block;
  auto blocks = BindBlocks(*codes, *scales, zeros, shape);
  if (!blocks.ok()) return node.Error(blocks.status().code(), blocks.status().message());
  return EmitEmbedding(node, CodeMatrix(*codes, std::move(blocks).value()));
}

}  // namespace moepack
