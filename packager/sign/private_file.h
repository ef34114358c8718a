// Files that only their owner may read.
#pragma once

#include <string>

#include "base/bytes.h"
#include "base/status.h"

namespace moepack {

// Writes `data` to `path` with mode 0600, whole or not at all: a file beside it, synced, then linked or renamed. Without
// `replace` an existing file is never touched, not even in a race: kUsage. kNoSpace, kAccess, kNotFound (folder).
Status WritePrivateFile(const std::string& path, ByteSpan data, bool replace);

}  // namespace moepack
