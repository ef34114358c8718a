#include "format/manifest/wire_io.h"

#include <algorithm>

namespace moepack {

Bytes SerializeMessage(const google::protobuf::MessageLite& message) {
  Bytes out(message.ByteSizeLong());
  message.SerializeWithCachedSizesToArray(out.data());
  return out;
}

Status ParseMessage(const wire_check::Message& rules, uint32_t version, ByteSpan bytes,
                    google::protobuf::MessageLite* message) {
  // The version comes first on the wire, so that a later one is named as such and not as an unknown field.
  const uint64_t found = wire_check::LeadingNumber(bytes);
  if (found != version) {
    return Status(ErrorCode::kVersion, StrFormat("%s: version %llu, this build knows %u", rules.name,
                                                 static_cast<unsigned long long>(found), version));
  }
  MOEPACK_RETURN_IF_ERROR(wire_check::Check(rules, bytes));
  if (bytes.size() > INT32_MAX || !message->ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return Status(ErrorCode::kMalformed, StrFormat("%s: not a message of this format", rules.name));
  }
  const Bytes canonical = SerializeMessage(*message);
  if (!std::equal(canonical.begin(), canonical.end(), bytes.begin(), bytes.end())) {
    return Status(ErrorCode::kMalformed, StrFormat("%s: not in canonical form", rules.name));
  }
  return Status::Ok();
}

}  // namespace moepack
