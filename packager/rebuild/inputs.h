// The inputs of a rebuild, held against what the bundle's provenance says before hours are spent on the wrong ones.
#pragma once

#include <string>

#include "base/env.h"
#include "base/status.h"
#include "format/provenance/provenance.h"

namespace moepack {

struct RebuildInputs {
  std::string model, profile, like;  // paths; profile and like empty when not given
};

// kUsage when an input is missing or none of the recorded ones; kDigest when one is not the recorded one: each named, with
// the digest that was recorded. Errors of OpenModel. Reads all files.
Status CheckInputs(Env& env, const BuildRecord& record, const RebuildInputs& inputs);

}  // namespace moepack
