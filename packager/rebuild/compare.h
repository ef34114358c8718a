// What tells a bundle from one that was made again, for `moepack rebuild`.
#pragma once

#include <string>
#include <vector>

#include "packager/packager.h"
#include "verify/verify.h"

namespace moepack {

// One entry a part that differs, in the order of the file: program, tokenizer, units in runs that differ alike (tensors,
// plain bytes, or only how they are stored), variants of experts, hot list, provenance, golden prompts, manifest. Empty when
// the manifests are the same, byte for byte: then the two files differ in signatures at most.
std::vector<std::string> Differences(const verify::VerifiedBundle& bundle, const UnsignedBundle& rebuilt);

}  // namespace moepack
