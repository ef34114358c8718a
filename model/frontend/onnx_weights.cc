#include "model/frontend/onnx_weights.h"

#include <algorithm>

namespace moepack {

Result<std::vector<float>> OnnxTensorSource::Load(TensorId tensor) const {
  if (tensor >= tensors_.size()) return Status(ErrorCode::kInternal, "tensor id out of range");
  const OnnxWeight& weight = tensors_[tensor];
  MOEPACK_ASSIGN_OR_RETURN(std::vector<float> stored, file_->ReadFloats(*weight.tensor, 0, weight.rows * weight.cols));
  if (!weight.transposed) return stored;
  std::vector<float> out(stored.size());
  constexpr uint64_t kTile = 64;  // both sides of a tile stay in the first-level cache
  for (uint64_t r0 = 0; r0 < weight.rows; r0 += kTile) {
    for (uint64_t c0 = 0; c0 < weight.cols; c0 += kTile) {
      const uint64_t r1 = std::min(r0 + kTile, weight.rows), c1 = std::min(c0 + kTile, weight.cols);
      for (uint64_t r = r0; r < r1; ++r) {
        for (uint64_t c = c0; c < c1; ++c) out[r * weight.cols + c] = stored[c * weight.rows + r];
      }
    }
  }
  return out;
}

Result<std::vector<float>> OnnxTensorSource::LoadExpert(uint32_t table, uint32_t expert, ExpertMatrix matrix) const {
  if (table >= experts_.size() || expert >= experts_[table].experts) {
    return Status(ErrorCode::kInternal, "expert out of range");
  }
  const OnnxExperts& e = experts_[table];
  if (matrix == ExpertMatrix::kDown) return ReadRows(*e.fc2, expert * e.hidden, 1, e.hidden, e.intermediate);
  const bool up = matrix == ExpertMatrix::kUp;
  const uint64_t first = expert * e.intermediate;  // of a matrix with `intermediate` rows an expert
  switch (e.layout) {
    case Fc1Layout::kUpOnly:
      if (!up) return Status(ErrorCode::kInternal, "these experts have no gate");
      return ReadRows(*e.fc1, first, 1, e.intermediate, e.hidden);
    case Fc1Layout::kSeparate:
      return ReadRows(up ? *e.fc3 : *e.fc1, first, 1, e.intermediate, e.hidden);
    case Fc1Layout::kInterleaved:
      return ReadRows(*e.fc1, 2 * first + (up ? 1 : 0), 2, e.intermediate, e.hidden);
    case Fc1Layout::kConcatenated:
      return ReadRows(*e.fc1, 2 * first + (up ? e.intermediate : 0), 1, e.intermediate, e.hidden);
  }
  return Status(ErrorCode::kInternal, "unknown layout");
}

Codec OnnxTensorSource::StoredCodec(TensorId tensor) const {
  Codec codec;
  DtypeCodec(tensors_[tensor].tensor->dtype, &codec);
  return codec;
}

Codec OnnxTensorSource::StoredExpertCodec(uint32_t table, uint32_t, ExpertMatrix matrix) const {
  const OnnxExperts& e = experts_[table];
  const bool in_fc3 = matrix == ExpertMatrix::kUp && e.layout == Fc1Layout::kSeparate;
  Codec codec;
  DtypeCodec((matrix == ExpertMatrix::kDown ? e.fc2 : in_fc3 ? e.fc3 : e.fc1)->dtype, &codec);
  return codec;
}

Result<std::vector<float>> OnnxTensorSource::ReadRows(const OnnxTensor& tensor, uint64_t first, uint64_t step, uint64_t rows,
                                                      uint64_t cols) const {
  if (step == 1) return file_->ReadFloats(tensor, first * cols, rows * cols);
  std::vector<float> out;
  out.reserve(rows * cols);
  for (uint64_t r = 0; r < rows; ++r) {
    MOEPACK_ASSIGN_OR_RETURN(const std::vector<float> row, file_->ReadFloats(tensor, (first + r * step) * cols, cols));
    out.insert(out.end(), row.begin(), row.end());
  }
  return out;
}

}  // namespace moepack
