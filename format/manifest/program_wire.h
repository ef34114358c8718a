// Bytes <-> Program (format/proto/program.proto, protobuf-lite).
#pragma once

#include "base/bytes.h"
#include "format/program.h"

namespace moepack {

// Deterministic: the same program gives the same bytes.
Bytes SerializeProgram(const Program& program);
// Refuses unknown or duplicate fields and overlong varints before parsing, validates with ValidateProgram after. kMalformed.
Result<Program> ParseProgram(ByteSpan bytes);

}  // namespace moepack
