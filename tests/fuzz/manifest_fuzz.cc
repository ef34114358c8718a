// Manifest: what is accepted has exactly one wire form.
#include "format/manifest/manifest.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto manifest = moepack::ParseManifest(moepack::ByteSpan(data, size));
  if (manifest.ok() && moepack::SerializeManifest(*manifest) != moepack::Bytes(data, data + size)) __builtin_trap();
  return 0;
}
