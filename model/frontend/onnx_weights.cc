#include "model/frontend/onnx_weights.h"

#include <algorithm>

namespace moepack {
namespace {

Codec CodecOf(const OnnxMatrix& matrix) {
  Codec codec;
  DtypeCodec(Dtype::kF32, &codec);
  if (matrix.tensor != nullptr && matrix.blocks == nullptr) DtypeCodec(matrix.tensor->dtype, &codec);
  return codec;
}

std::vector<float> WithZeros(const OnnxMatrix& m, const std::vector<float>& values) {
  const uint64_t width = m.cols + m.zero_cols;
  std::vector<float> out((m.rows + m.zero_rows) * width, 0.0f);
  for (uint64_t r = 0; r < m.rows; ++r) std::copy_n(values.data() + r * m.cols, m.cols, out.data() + r * width);
  return out;
}

}  // namespace

OnnxMatrix DenseMatrix(const OnnxTensor& tensor, uint64_t rows, uint64_t cols, bool transposed, uint64_t base) {
  return {&tensor, nullptr, rows, cols, base, transposed ? 1 : cols, transposed ? rows : 1, 0, 0};
}

bool SameMatrix(const OnnxMatrix& a, const OnnxMatrix& b) {
  const bool both = a.blocks != nullptr && b.blocks != nullptr;
  const bool same_blocks = both ? *a.blocks == *b.blocks : a.blocks == b.blocks;
  return same_blocks && a.tensor == b.tensor && a.rows == b.rows && a.cols == b.cols && a.base == b.base &&
         a.row_stride == b.row_stride && a.col_stride == b.col_stride && a.zero_rows == b.zero_rows &&
         a.zero_cols == b.zero_cols;
}

Result<std::vector<float>> OnnxTensorSource::Load(TensorId tensor) const {
  if (tensor >= tensors_.size()) return Status(ErrorCode::kInternal, "tensor id out of range");
  uint64_t elements = 0;
  for (const OnnxMatrix& part : tensors_[tensor].parts) elements += part.rows * part.cols;
  std::vector<float> out(elements, 0.0f);
  float* next = out.data();
  for (const OnnxMatrix& part : tensors_[tensor].parts) {
    MOEPACK_RETURN_IF_ERROR(Read(part, next));
    next += part.rows * part.cols;
  }
  return out;
}

Result<std::vector<float>> OnnxTensorSource::LoadExpert(uint32_t table, uint32_t expert, ExpertMatrix matrix) const {
  if (table >= experts_.size() || expert >= experts_[table].size()) {
    return Status(ErrorCode::kInternal, "expert out of range");
  }
  const OnnxMatrix& m = experts_[table][expert][static_cast<size_t>(matrix)];
  if (m.rows == 0) return Status(ErrorCode::kInternal, "these experts have no gate");
  std::vector<float> out(m.rows * m.cols);
  MOEPACK_RETURN_IF_ERROR(Read(m, out.data()));
  return m.zero_rows == 0 && m.zero_cols == 0 ? std::move(out) : WithZeros(m, out);
}

Codec OnnxTensorSource::StoredCodec(TensorId tensor) const { return CodecOf(tensors_[tensor].parts.front()); }

Codec OnnxTensorSource::StoredExpertCodec(uint32_t table, uint32_t expert, ExpertMatrix matrix) const {
  return CodecOf(experts_[table][expert][static_cast<size_t>(matrix)]);
}

Result<std::vector<float>> OnnxTensorSource::ReadRun(const OnnxMatrix& matrix, uint64_t first, uint64_t count) const {
  if (matrix.blocks != nullptr) return ReadBlocks(*file_, *matrix.tensor, *matrix.blocks, first, count);
  return file_->ReadFloats(*matrix.tensor, first, count);
}

// Runs along the direction in which neighbours are nearer, then from there to rows.
Status OnnxTensorSource::Read(const OnnxMatrix& m, float* out) const {
  if (m.tensor == nullptr) return Status::Ok();
  const bool by_row = m.col_stride <= m.row_stride;
  if (by_row && m.col_stride == 1 && m.row_stride == m.cols) {
    MOEPACK_ASSIGN_OR_RETURN(const std::vector<float> all, ReadRun(m, m.base, m.rows * m.cols));
    std::copy(all.begin(), all.end(), out);
    return Status::Ok();
  }
  const uint64_t runs = by_row ? m.rows : m.cols, length = by_row ? m.cols : m.rows;
  const uint64_t run_stride = by_row ? m.row_stride : m.col_stride, step = by_row ? m.col_stride : m.row_stride;
  constexpr uint64_t kTile = 64;  // runs at a time: what is written of each row then fills whole cache lines
  for (uint64_t begin = 0; begin < runs; begin += kTile) {
    const uint64_t end = std::min(begin + kTile, runs);
    std::vector<std::vector<float>> tile;
    for (uint64_t i = begin; i < end; ++i) {
      MOEPACK_ASSIGN_OR_RETURN(std::vector<float> run, ReadRun(m, m.base + i * run_stride, (length - 1) * step + 1));
      tile.push_back(std::move(run));
    }
    for (uint64_t j = 0; j < length; ++j) {
      for (uint64_t i = begin; i < end; ++i) out[by_row ? i * m.cols + j : j * m.cols + i] = tile[i - begin][j * step];
    }
  }
  return Status::Ok();
}

}  // namespace moepack
