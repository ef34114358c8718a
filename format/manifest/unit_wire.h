// Unit tensors and expert entries to and from their messages. Internal to format/manifest.
#pragma once

#include <google/protobuf/repeated_ptr_field.h>

#include <vector>

#include "format/manifest/manifest.h"
#include "format/proto/tables.pb.h"

namespace moepack {

void WriteUnitTensors(const std::vector<UnitTensor>& in, google::protobuf::RepeatedPtrField<wire::UnitTensor>* out);
// Numbers were bounded by wire_check; every codec is validated here. Errors name the tensor's index.
Result<std::vector<UnitTensor>> ReadUnitTensors(const google::protobuf::RepeatedPtrField<wire::UnitTensor>& in);

void WriteExpertEntries(const std::vector<ExpertEntry>& in, google::protobuf::RepeatedPtrField<wire::ExpertEntry>* out);
std::vector<ExpertEntry> ReadExpertEntries(const google::protobuf::RepeatedPtrField<wire::ExpertEntry>& in);

// `in` must be 32 bytes (wire_check).
DigestBytes ReadDigest(const std::string& in);
inline std::string WriteDigest(const DigestBytes& digest) {
  return std::string(reinterpret_cast<const char*>(digest.data()), digest.size());
}

}  // namespace moepack
