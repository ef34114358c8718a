// Weights of an imported ONNX graph: which constants each tensor and each expert of the program is made of, and how it lies
// there. Internal to the ONNX front-end.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "model/frontend/onnx_blocks.h"
#include "model/frontend/onnx_file.h"
#include "model/model.h"

namespace moepack {

// Where a matrix of the program lies in a constant: element (r, c) is element base + r * row_stride + c * col_stride of it.
struct OnnxMatrix {
  const OnnxTensor* tensor = nullptr;        // null: zeros
  std::shared_ptr<const OnnxBlocks> blocks;  // when `tensor` holds codes; elements are then those of the codes' matrix
  uint64_t rows = 0, cols = 0;
  uint64_t base = 0, row_stride = 0, col_stride = 1;
  uint64_t zero_rows = 0, zero_cols = 0;  // of an expert: behind those above, and not of the constant
};
// The same elements of the same constant.
bool SameMatrix(const OnnxMatrix& a, const OnnxMatrix& b);

// [rows, cols] from element `base` on, row by row, or stored transposed: [cols, rows].
OnnxMatrix DenseMatrix(const OnnxTensor& tensor, uint64_t rows, uint64_t cols, bool transposed = false, uint64_t base = 0);

// A tensor of the program: its parts one below the other.
struct OnnxWeight {
  std::vector<OnnxMatrix> parts;
};

// One expert: gate (without rows when there is none), up, down.
using OnnxExpert = std::array<OnnxMatrix, kExpertMatrices>;
using OnnxExperts = std::vector<OnnxExpert>;

class OnnxTensorSource final : public TensorSource {
 public:
  // `tensors` by TensorId, `experts` by expert table; shapes were checked against the constants.
  OnnxTensorSource(std::shared_ptr<const OnnxFile> file, std::vector<OnnxWeight> tensors, std::vector<OnnxExperts> experts)
      : file_(std::move(file)), tensors_(std::move(tensors)), experts_(std::move(experts)) {}

  Result<std::vector<float>> Load(TensorId tensor) const override;
  Result<std::vector<float>> LoadExpert(uint32_t table, uint32_t expert, ExpertMatrix matrix) const override;
  // The element type of plain constants, float32 for what codes stand for.
  Codec StoredCodec(TensorId tensor) const override;
  Codec StoredExpertCodec(uint32_t table, uint32_t expert, ExpertMatrix matrix) const override;

 private:
  Result<std::vector<float>> ReadRun(const OnnxMatrix& matrix, uint64_t first, uint64_t count) const;
  Status Read(const OnnxMatrix& matrix, float* out) const;

  std::shared_ptr<const OnnxFile> file_;
  std::vector<OnnxWeight> tensors_;
  std::vector<OnnxExperts> experts_;
};

}  // namespace moepack
