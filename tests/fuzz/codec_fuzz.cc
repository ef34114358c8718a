// Plain bytes of any codec and shape: a codec name up to a newline, then rows and cols (u8 each), then the plain bytes.
#include <cstring>

#include "format/codec/codec.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const void* newline = size == 0 ? nullptr : std::memchr(data, '\n', size);
  if (newline == nullptr) return 0;
  const size_t name_bytes = static_cast<size_t>(static_cast<const uint8_t*>(newline) - data);
  if (size - name_bytes < 3) return 0;
  const auto codec = moepack::ParseCodec(std::string_view(reinterpret_cast<const char*>(data), name_bytes));
  if (!codec.ok()) return 0;
  const moepack::MatrixShape shape{data[name_bytes + 1], data[name_bytes + 2]};
  const moepack::ByteSpan plain(data + name_bytes + 3, size - name_bytes - 3);
  const auto matrix = moepack::FromPlain(*codec, shape, plain);
  if (!matrix.ok()) return 0;
  const auto back = moepack::ToPlain(*matrix);
  if (!back.ok() || *back != moepack::Bytes(plain.begin(), plain.end())) __builtin_trap();
  return 0;
}
