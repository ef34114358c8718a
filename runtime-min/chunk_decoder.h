// From signed chunks to the plain bytes of a unit. The only place that mints PlainUnit.
#pragma once

#include <memory>

#include "base/status.h"
#include "format/manifest/manifest.h"
#include "format/verified.h"
#include "verify/verify.h"

struct ZSTD_DCtx_s;

namespace moepack::runtime {

// Holds a decompressor that is reused from unit to unit. One thread at a time.
class ChunkDecoder {
 public:
  ChunkDecoder();
  ~ChunkDecoder();
  ChunkDecoder(const ChunkDecoder&) = delete;
  ChunkDecoder& operator=(const ChunkDecoder&) = delete;

  // Reads every chunk of `unit`, which belongs to a table of `bundle`, checks its digest before a decompressor sees it,
  // and joins the plain bytes. kDigest, kTruncated, kAccess from the bundle; kLimit for more than kMaxUnitPlainBytes;
  // kMalformed when verified bytes do not decompress to exactly the signed size; kNoMemory. Messages name
  // the chunk's offset in the file.
  Result<PlainUnit> Decode(const verify::VerifiedBundle& bundle, const Unit& unit);

 private:
  Status DecodeChunk(const verify::VerifiedBundle& bundle, const ChunkRef& chunk, std::span<uint8_t> out);
  Status Decompress(const ChunkRef& chunk, ByteSpan stored, std::span<uint8_t> out);

  struct FreeContext {
    void operator()(ZSTD_DCtx_s* context) const;
  };
  std::unique_ptr<ZSTD_DCtx_s, FreeContext> context_;
};

}  // namespace moepack::runtime
