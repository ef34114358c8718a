#include "runtime-min/expert_load.h"

#include "runtime-min/tensor_packer.h"

namespace moepack::runtime {

Status LoadExpert(UnitSource& source, uint32_t table, uint32_t physical, uint8_t* place, ExpertWeights* weights) {
  MOEPACK_ASSIGN_OR_RETURN(const PlainUnit plain, source.ReadExpert(table, physical));
  uint64_t offset = 0;
  for (const UnitTensor& tensor : source.experts()[table].units[physical].tensors) {
    ResidentTensor& resident = (*weights)[tensor.tensor];
    MOEPACK_ASSIGN_OR_RETURN(resident, TensorPacker::PackAt(tensor, plain, &offset, place));
    place += (resident.size_bytes() + kExpertAlignment - 1) / kExpertAlignment * kExpertAlignment;
  }
  return Status::Ok();
}

}  // namespace moepack::runtime
