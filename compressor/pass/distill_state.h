// A training's state on disk, so that an interrupted one goes on where it was.
#pragma once

#include <map>
#include <string>

#include "base/env.h"
#include "compressor/pass/distill_learner.h"

namespace moepack {

// Appears complete or not at all. `steps`: those done.
Status WriteTraining(Env& env, const std::string& path, uint64_t steps, std::map<std::string, Learner>* learners);
// Steps done, 0 when no file is there. Learners are of the same tensors and encoded forms as those that were written.
// kMalformed or kDigest, with what to do, for any other file; learners may have changed then.
Result<uint64_t> ReadTraining(Env& env, const std::string& path, std::map<std::string, Learner>* learners);

}  // namespace moepack
