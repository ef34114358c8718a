// What the messages of tables.proto, manifest.proto, golden.proto and folder.proto may hold, for wire_check. Internal to
// format/manifest.
#pragma once

#include "format/manifest/wire_check.h"

namespace moepack {

// Caps on tables from outside, beside those of format/program.h.
inline constexpr uint64_t kMaxUnits = 8192;  // of one table
inline constexpr uint64_t kMaxChunksPerUnit = 1 << 20;
inline constexpr uint64_t kMaxVariants = 16;  // of one expert
inline constexpr uint64_t kMaxHotExperts = 1 << 20;
inline constexpr uint64_t kMaxFeatures = 64;
inline constexpr uint64_t kMaxUnavailableSteps = 8;
inline constexpr uint64_t kMaxBlobs = 2048;

namespace wire_check {

extern const Message kExpertTable, kDenseTable, kHotList;
extern const Message kManifest;
extern const Message kGoldenPrompts;
extern const Message kBlockIndex, kFolderExperts, kFolderComplete;

}  // namespace wire_check
}  // namespace moepack
