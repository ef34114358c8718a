// Protobuf messages to bytes and back in the one canonical form. Internal to format/manifest.
#pragma once

#include <google/protobuf/message_lite.h>

#include "base/bytes.h"
#include "base/status.h"
#include "format/manifest/wire_check.h"

namespace moepack {

Bytes SerializeMessage(const google::protobuf::MessageLite& message);
// A message whose field 1 is its version. kVersion when that is not `version`; otherwise a strict scan by `rules`, then
// protobuf, then the proof that the message serializes to the same bytes again.
Status ParseMessage(const wire_check::Message& rules, uint32_t version, ByteSpan bytes,
                    google::protobuf::MessageLite* message);

}  // namespace moepack
