#include "runtime-min/dense_weights.h"

#include "runtime-min/kernels/kernels.h"
#include "runtime-min/tensor_packer.h"

namespace moepack::runtime {
namespace {

// Tensors that some node reads as floats: all but tables of embeddings and weights of linear nodes.
std::vector<TensorId> FloatTensors(const Program& program) {
  std::vector<TensorId> ids;
  for (const Node& node : program.nodes) {
    for (const TensorId id : TensorsOfNode(node)) {
      const bool matrix = (node.kind == NodeKind::kLinear && id == node.linear.weight) || node.kind == NodeKind::kEmbedding;
      if (!matrix) ids.push_back(id);
    }
  }
  std::erase(ids, kNone);
  return ids;
}

}  // namespace

Result<DenseWeights> DenseWeights::Load(UnitSource& source, ThreadPool& pool) {
  DenseWeights weights;
  const Program& program = source.program();
  weights.matrices_.resize(program.tensors.size());
  weights.vectors_.resize(program.tensors.size());
  std::vector<Status> status(source.dense().units.size());
  pool.ParallelFor(status.size(), 1, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) status[i] = weights.LoadUnit(source, i);
  });
  for (const Status& s : status) MOEPACK_RETURN_IF_ERROR(s);
  for (TensorId id : FloatTensors(program)) {
    const ResidentTensor& tensor = weights.matrices_[id];
    const uint64_t rows = tensor.shape().rows, cols = tensor.shape().cols;
    weights.vectors_[id].resize(rows * cols);
    for (uint64_t row = 0; row < rows; ++row) kernels::DecodeRow(tensor, row, weights.vectors_[id].data() + row * cols);
  }
  for (const ResidentTensor& tensor : weights.matrices_) weights.resident_bytes_ += tensor.size_bytes();
  return weights;
}

Status DenseWeights::LoadUnit(UnitSource& source, size_t unit) {
  const std::vector<UnitTensor>& tensors = source.dense().units[unit].tensors;
  const std::string context = "dense unit with " + source.program().tensors[tensors[0].tensor].name;
  Result<PlainUnit> plain = source.ReadDense(unit);
  if (!plain.ok()) return plain.status().With(context);
  uint64_t offset = 0;
  for (const UnitTensor& tensor : tensors) {
    Result<ResidentTensor> resident = TensorPacker::Pack(tensor, *plain, &offset, memory_.get());
    if (!resident.ok()) return resident.status().With(context);
    matrices_[tensor.tensor] = std::move(*resident);
  }
  return Status::Ok();
}

}  // namespace moepack::runtime
