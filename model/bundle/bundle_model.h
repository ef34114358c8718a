// A signed bundle -> Model, for moepack-export only: the model library knows neither signatures nor a decompressor.
#pragma once

#include <string>

#include "base/env.h"
#include "base/progress.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "model/model.h"

namespace moepack {

// Verifies the whole file at `path` against the trust file before anything of it is parsed or decompressed; every chunk is
// checked again when its tensors are loaded. Errors: those of VerifiedBundle::Open, VerifyAll and ReadTrust.
Result<Model> OpenBundle(Env& env, const std::string& path, const std::string& trust_path, ThreadPool& pool,
                         Progress& progress);

}  // namespace moepack
