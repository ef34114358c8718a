// Plain bytes of a chunk without the checks of verify: what a benchmark times apart from them.
#pragma once

#include <zstd.h>

#include <cstring>
#include <span>

#include "format/codec/rans.h"
#include "format/manifest/manifest.h"

namespace moepack::bench {

inline Status Decompress(const ChunkRef& chunk, ByteSpan stored, std::span<uint8_t> out) {
  if (chunk.encoding == Encoding::kRans) return DecodeRans(stored, out);
  if (chunk.encoding == Encoding::kRaw) {
    std::memcpy(out.data(), stored.data(), out.size());
    return Status::Ok();
  }
  const size_t written = ZSTD_decompress(out.data(), out.size(), stored.data(), stored.size());
  return written == out.size() ? Status::Ok() : Status(ErrorCode::kMalformed, "a zstd chunk does not decompress");
}

}  // namespace moepack::bench
