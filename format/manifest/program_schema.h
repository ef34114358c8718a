// What program.proto's messages may hold, for wire_check. Internal to format/manifest.
#pragma once

#include "format/manifest/wire_check.h"

namespace moepack::wire_check {

extern const Message kProgram;

}  // namespace moepack::wire_check
