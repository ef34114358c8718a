// A stored rANS chunk: plain size (u16), then the stored bytes.
#include "format/codec/rans.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  moepack::Bytes plain(static_cast<size_t>(data[0] | data[1] << 8));
  if (!moepack::DecodeRans({data + 2, size - 2}, plain).ok() || plain.empty()) return 0;
  // Whatever came out can be coded again and comes back.
  const moepack::RansRun run{plain.size(), 16, static_cast<uint32_t>(size % 16)};
  const moepack::Bytes stored = moepack::EncodeRans(plain, {&run, 1});
  moepack::Bytes back(plain.size());
  if (!moepack::DecodeRans(stored, back).ok() || back != plain) __builtin_trap();
  return 0;
}
