// A safetensors file as the profile reader sees it: header, offsets, metadata. Also reached by every checkpoint.
#include "model/profile.h"
#include "tests/fuzz/memory_env.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  moepack::fuzz::MemoryEnv env;
  env.files["m/p.mprof"] = moepack::Bytes(data, data + size);
  (void)moepack::ReadProfile(env, "m/p.mprof");
  return 0;
}
