#include "runtime-min/tensor_packer.h"

#include <cstdlib>

#include "base/checked.h"
#include "runtime-min/kernels/kernels.h"

namespace moepack::runtime {
namespace {
constexpr uint64_t kAlignment = 64;
}

Result<ResidentTensor> TensorPacker::Pack(const UnitTensor& tensor, const PlainUnit& unit, uint64_t* offset) {
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t plain_bytes, PlainBytes(tensor.codec, tensor.shape));
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t resident_bytes, ResidentBytes(tensor.codec, tensor.shape));
  const uint64_t available = unit.bytes().size();
  if (*offset > available || plain_bytes > available - *offset) {
    return Status(ErrorCode::kMalformed, "the unit holds fewer plain bytes than its tensors need");
  }
  uint64_t allocated = 0;
  if (!CheckedAlign(resident_bytes, kAlignment, &allocated)) return Status(ErrorCode::kLimit, "tensor size overflows");
  ResidentTensor resident;
  resident.data_.reset(static_cast<uint8_t*>(std::aligned_alloc(kAlignment, allocated)));
  if (resident.data_ == nullptr) {
    return Status(ErrorCode::kNoMemory,
                  StrFormat("cannot allocate %llu bytes for weights", static_cast<unsigned long long>(allocated)));
  }
  resident.codec_ = tensor.codec;
  resident.shape_ = tensor.shape;
  resident.size_bytes_ = resident_bytes;
  MOEPACK_RETURN_IF_ERROR(kernels::PackResident(tensor.codec, tensor.shape, unit.bytes().subspan(*offset, plain_bytes),
                                                {resident.data_.get(), resident_bytes}));
  *offset += plain_bytes;
  return resident;
}

}  // namespace moepack::runtime
