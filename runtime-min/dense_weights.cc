#include "runtime-min/dense_weights.h"

#include "runtime-min/kernels/kernels.h"
#include "runtime-min/tensor_packer.h"

namespace moepack::runtime {
namespace {

// Tensors that some node reads as a vector.
std::vector<TensorId> VectorTensors(const Program& program) {
  std::vector<TensorId> ids;
  for (const Node& node : program.nodes) {
    if (node.kind == NodeKind::kLinear) ids.push_back(node.linear.bias);
    if (node.kind == NodeKind::kNorm) ids.insert(ids.end(), {node.norm.weight, node.norm.bias});
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
  for (TensorId id : VectorTensors(program)) {
    const ResidentTensor& tensor = weights.matrices_[id];
    weights.vectors_[id].resize(tensor.shape().cols);
    kernels::DecodeRow(tensor, 0, weights.vectors_[id].data());
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
