// From plain bytes of a unit to tensors that kernels take. The only place that mints ResidentTensor.
#pragma once

#include "base/status.h"
#include "format/manifest/manifest.h"
#include "format/verified.h"
#include "runtime-min/weight_memory.h"

namespace moepack::runtime {

class TensorPacker {
 public:
  // Packs the tensor at bytes [offset, offset + PlainBytes(tensor)) of `unit`; *offset moves past it. kMalformed when the
  // unit is too short or the plain bytes break a rule of the codec, kNoMemory. `memory` must outlive the tensor.
  static Result<ResidentTensor> Pack(const UnitTensor& tensor, const PlainUnit& unit, uint64_t* offset,
                                     WeightMemory* memory);
  // The same into `place`: ResidentBytes(tensor) bytes at a multiple of 64 that stay the caller's and outlive the tensor.
  static Result<ResidentTensor> PackAt(const UnitTensor& tensor, const PlainUnit& unit, uint64_t* offset, uint8_t* place);
  // The bytes of a tensor that PackAt made are at `place` now. Nothing may read it meanwhile.
  static void MovedTo(uint8_t* place, ResidentTensor* tensor);

 private:
  static Status Fill(const UnitTensor& tensor, ByteSpan plain, ResidentTensor* resident);
};

}  // namespace moepack::runtime
