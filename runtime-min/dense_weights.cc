#include "runtime-min/dense_weights.h"

#include "base/checked.h"
#include "runtime-min/kernels/kernels.h"
#include "runtime-min/tensor_packer.h"

namespace moepack::runtime {
namespace {

Result<FloatBuffer> Floats(const MatrixShape& shape) {
  uint64_t count = 0;
  if (!CheckedMul(shape.rows, shape.cols, &count)) return Status(ErrorCode::kLimit, "tensor size overflows");
  return FloatBuffer::Create(count);
}

Result<FloatBuffer> RowMajor(const ResidentTensor& tensor) {
  const MatrixShape& shape = tensor.shape();
  MOEPACK_ASSIGN_OR_RETURN(FloatBuffer out, Floats(shape));
  for (uint64_t row = 0; row < shape.rows; ++row) kernels::DecodeRow(tensor, row, out.data() + row * shape.cols);
  return out;
}

Result<FloatBuffer> Transposed(const ResidentTensor& tensor) {
  const MatrixShape& shape = tensor.shape();
  MOEPACK_ASSIGN_OR_RETURN(FloatBuffer out, Floats(shape));
  MOEPACK_ASSIGN_OR_RETURN(FloatBuffer row, FloatBuffer::Create(shape.cols));
  for (uint64_t r = 0; r < shape.rows; ++r) {
    kernels::DecodeRow(tensor, r, row.data());
    for (uint64_t c = 0; c < shape.cols; ++c) out.data()[c * shape.rows + r] = row.data()[c];
  }
  return out;
}

}  // namespace

std::vector<DenseWeights::Uses> DenseWeights::UsesOf(const Program& program) {
  std::vector<Uses> uses(program.tensors.size());
  for (const Node& node : program.nodes) {
    for (const TensorId id : TensorsOfNode(node)) {
      if (id == kNone) continue;
      if ((node.kind == NodeKind::kLinear && id == node.linear.weight) || node.kind == NodeKind::kEmbedding) {
        uses[id].matrix = true;
      } else if (node.kind == NodeKind::kConvolution && id == node.convolution.weight) {
        uses[id].convolution = true;
      } else {
        uses[id].vector = true;
      }
    }
  }
  return uses;
}

Result<DenseWeights> DenseWeights::Load(UnitSource& source, ThreadPool& pool) {
  DenseWeights weights;
  const std::vector<Uses> uses = UsesOf(source.program());
  weights.matrices_.resize(uses.size());
  weights.vectors_.resize(uses.size());
  weights.convolutions_.resize(uses.size());
  std::vector<Status> status(source.dense().units.size());
  pool.ParallelFor(status.size(), 1, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) status[i] = weights.LoadUnit(source, uses, i);
  });
  for (const Status& s : status) MOEPACK_RETURN_IF_ERROR(s);
  for (const ResidentTensor& tensor : weights.matrices_) weights.resident_bytes_ += tensor.size_bytes();
  for (const std::vector<FloatBuffer>* floats : {&weights.vectors_, &weights.convolutions_}) {
    for (const FloatBuffer& buffer : *floats) weights.resident_bytes_ += buffer.size() * sizeof(float);
  }
  return weights;
}

Status DenseWeights::LoadUnit(UnitSource& source, const std::vector<Uses>& uses, size_t unit) {
  const std::vector<UnitTensor>& tensors = source.dense().units[unit].tensors;
  const std::string context = "dense unit with " + source.program().tensors[tensors[0].tensor].name;
  Result<PlainUnit> plain = source.ReadDense(unit);
  if (!plain.ok()) return plain.status().With(context);
  uint64_t offset = 0;
  for (const UnitTensor& tensor : tensors) {
    Result<ResidentTensor> resident = TensorPacker::Pack(tensor, *plain, &offset, memory_.get());
    if (!resident.ok()) return resident.status().With(context);
    const Status kept = Keep(std::move(*resident), uses[tensor.tensor], tensor.tensor);
    if (!kept.ok()) return kept.With(context);
  }
  return Status::Ok();
}

// In the forms that nodes read; the packed one goes when that is none of them.
Status DenseWeights::Keep(ResidentTensor tensor, Uses uses, TensorId id) {
  if (uses.vector) {
    MOEPACK_ASSIGN_OR_RETURN(vectors_[id], RowMajor(tensor));
  }
  if (uses.convolution) {
    MOEPACK_ASSIGN_OR_RETURN(convolutions_[id], Transposed(tensor));
  }
  if (uses.matrix) matrices_[id] = std::move(tensor);
  return Status::Ok();
}

}  // namespace moepack::runtime
