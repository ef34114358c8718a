#include "runtime-min/tensor_packer.h"

#include "runtime-min/kernels/kernels.h"

namespace moepack::runtime {
namespace {

// Before memory is taken: a unit that is too short asks for none.
Result<ByteSpan> PlainPart(const UnitTensor& tensor, const PlainUnit& unit, uint64_t offset) {
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t plain_bytes, PlainBytes(tensor.codec, tensor.shape));
  const uint64_t available = unit.bytes().size();
  if (offset > available || plain_bytes > available - offset) {
    return Status(ErrorCode::kMalformed, "the unit holds fewer plain bytes than its tensors need");
  }
  return unit.bytes().subspan(offset, plain_bytes);
}

void KeepMemory(void*, uint8_t*) {}

}  // namespace

Result<ResidentTensor> TensorPacker::Pack(const UnitTensor& tensor, const PlainUnit& unit, uint64_t* offset,
                                          WeightMemory* memory) {
  MOEPACK_ASSIGN_OR_RETURN(const ByteSpan plain, PlainPart(tensor, unit, *offset));
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t resident_bytes, ResidentBytes(tensor.codec, tensor.shape));
  MOEPACK_ASSIGN_OR_RETURN(uint8_t* const data, memory->Allocate(resident_bytes));
  ResidentTensor resident;
  const auto release = [](void* owner, uint8_t* p) { static_cast<WeightMemory*>(owner)->Release(p); };
  resident.data_ = decltype(resident.data_)(data, ReleaseWeights{release, memory});
  MOEPACK_RETURN_IF_ERROR(Fill(tensor, plain, &resident));
  *offset += plain.size();
  return resident;
}

Result<ResidentTensor> TensorPacker::PackAt(const UnitTensor& tensor, const PlainUnit& unit, uint64_t* offset,
                                            uint8_t* place) {
  MOEPACK_ASSIGN_OR_RETURN(const ByteSpan plain, PlainPart(tensor, unit, *offset));
  ResidentTensor resident;
  MovedTo(place, &resident);
  MOEPACK_RETURN_IF_ERROR(Fill(tensor, plain, &resident));
  *offset += plain.size();
  return resident;
}

void TensorPacker::MovedTo(uint8_t* place, ResidentTensor* tensor) {
  tensor->data_ = decltype(tensor->data_)(place, ReleaseWeights{&KeepMemory, nullptr});
}

Status TensorPacker::Fill(const UnitTensor& tensor, ByteSpan plain, ResidentTensor* resident) {
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t resident_bytes, ResidentBytes(tensor.codec, tensor.shape));
  resident->codec_ = tensor.codec;
  resident->shape_ = tensor.shape;
  resident->size_bytes_ = resident_bytes;
  return kernels::PackResident(tensor.codec, tensor.shape, plain, {resident->data_.get(), resident_bytes});
}

}  // namespace moepack::runtime
