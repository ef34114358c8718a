#include "runtime-min/tensor_packer.h"

#include "runtime-min/kernels/kernels.h"

namespace moepack::runtime {

Result<ResidentTensor> TensorPacker::Pack(const UnitTensor& tensor, const PlainUnit& unit, uint64_t* offset,
                                          WeightMemory* memory) {
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t plain_bytes, PlainBytes(tensor.codec, tensor.shape));
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t resident_bytes, ResidentBytes(tensor.codec, tensor.shape));
  const uint64_t available = unit.bytes().size();
  if (*offset > available || plain_bytes > available - *offset) {
    return Status(ErrorCode::kMalformed, "the unit holds fewer plain bytes than its tensors need");
  }
  MOEPACK_ASSIGN_OR_RETURN(uint8_t* const data, memory->Allocate(resident_bytes));
  ResidentTensor resident;
  const auto release = [](void* owner, uint8_t* p) { static_cast<WeightMemory*>(owner)->Release(p); };
  resident.data_ = decltype(resident.data_)(data, ReleaseWeights{release, memory});
  resident.codec_ = tensor.codec;
  resident.shape_ = tensor.shape;
  resident.size_bytes_ = resident_bytes;
  MOEPACK_RETURN_IF_ERROR(kernels::PackResident(tensor.codec, tensor.shape, unit.bytes().subspan(*offset, plain_bytes),
                                                {resident.data_.get(), resident_bytes}));
  *offset += plain_bytes;
  return resident;
}

}  // namespace moepack::runtime
