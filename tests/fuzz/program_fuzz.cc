// Program: what is accepted was validated and has exactly one wire form.
#include "format/manifest/program_wire.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto program = moepack::ParseProgram(moepack::ByteSpan(data, size));
  if (!program.ok()) return 0;
  if (!moepack::ValidateProgram(*program).ok()) __builtin_trap();
  if (moepack::SerializeProgram(*program) != moepack::Bytes(data, data + size)) __builtin_trap();
  return 0;
}
