// What a bundle says about memory that does not hold all experts: which to load first, and which to keep.
#pragma once

#include "base/thread_pool.h"
#include "compressor/structure.h"
#include "format/manifest/manifest.h"
#include "model/profile.h"

namespace moepack {

// Experts of `program` (what is left of the profile's by `structure`) by tokens seen, and the cache policy that the
// profile's routing traces like best (compressor/cache_simulation.h), an expert counting as its parameters: which codecs it
// will get is not known yet. Without traces the least recently used leaves first. Does not depend on the number of threads.
HotList MakeHotList(const Profile& profile, const Program& program, const Structure& structure, ThreadPool& pool);

}  // namespace moepack
