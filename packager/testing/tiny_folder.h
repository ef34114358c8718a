// A compressed model folder that packs in milliseconds.
#pragma once

#include <string>

#include "base/env.h"
#include "base/status.h"
#include "format/program.h"
#include "format/provenance/provenance.h"

namespace moepack::testing {

// TinyProgram with a vocabulary large enough that the units of embedding and head take two chunks each.
Program TinyFolderProgram();

// Its provenance.json.
BuildRecord TinyBuildRecord();

// Experts 0 and 1 are one unit (merged), 2 and 3 their own. Dense units compress, experts do not. With tokenizer,
// hot list and, unless told otherwise, provenance.
Status WriteTinyFolder(Env& env, const std::string& directory, bool provenance = true);

}  // namespace moepack::testing
