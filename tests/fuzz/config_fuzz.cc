// config.json of a Hugging Face folder: what is accepted gives a valid Program.
#include "model/model.h"
#include "tests/fuzz/memory_env.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  moepack::fuzz::MemoryEnv env;
  env.files["m/config.json"] = moepack::Bytes(data, data + size);
  const auto model = moepack::OpenModel(env, "m/config.json");
  if (model.ok() && !moepack::ValidateProgram(model->program).ok()) __builtin_trap();
  return 0;
}
