// A .npy file: what is accepted is as long as its shape says, and every row reads or is refused.
#include "base/npy.h"
#include "tests/fuzz/memory_env.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  moepack::fuzz::MemoryEnv env;
  env.files["m/rows.npy"] = moepack::Bytes(data, data + size);
  const auto file = moepack::NpyFile::Open(env, "m/rows.npy");
  if (!file.ok()) return 0;
  if ((*file)->rows() > size || (*file)->columns() > size) __builtin_trap();
  std::vector<float> row((*file)->columns());
  for (uint64_t r = 0; r < (*file)->rows(); ++r) (void)(*file)->Read(r, 1, row);
  return 0;
}
