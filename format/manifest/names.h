// Names that people give a bundle and that a trust policy compares: one rule for packager, manifest and policy.
#pragma once

#include <string_view>

namespace moepack {

// 1 to 64 of [a-z0-9._-].
bool IsProductName(std::string_view text);
// 1 to 64 of [A-Za-z0-9._+-].
bool IsVersionName(std::string_view text);

}  // namespace moepack
