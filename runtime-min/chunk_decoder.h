// From signed chunks to the plain bytes of a unit. The only place that mints PlainUnit.
#pragma once

#include <memory>
#include <vector>

#include "base/status.h"
#include "format/manifest/manifest.h"
#include "format/verified.h"
#include "verify/verify.h"

struct ZSTD_DCtx_s;

namespace moepack::runtime {

// The plain bytes of a unit on their way: its chunks are decoded in any order, by several threads at once.
class UnitParts {
 public:
  // `unit` must outlive it. kLimit as Decode.
  Status Begin(const Unit& unit);

 private:
  friend class ChunkDecoder;
  const Unit* unit_ = nullptr;
  // By chunk, empty until it is decoded: memory of its own, so that no thread writes to what another has in its cache.
  std::vector<Bytes> pieces_;
};

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

  // The same for one chunk of the unit that `parts` began. Each chunk by one thread.
  Status DecodePart(const verify::VerifiedBundle& bundle, size_t chunk, UnitParts* parts);
  // What all chunks gave, and leaves `parts` empty. kInternal unless each was decoded.
  static Result<PlainUnit> Join(UnitParts* parts);

 private:
  Status DecodeChunk(const verify::VerifiedBundle& bundle, const ChunkRef& chunk, std::span<uint8_t> out);
  Status Decompress(const ChunkRef& chunk, ByteSpan stored, std::span<uint8_t> out);

  struct FreeContext {
    void operator()(ZSTD_DCtx_s* context) const;
  };
  std::unique_ptr<ZSTD_DCtx_s, FreeContext> context_;
};

}  // namespace moepack::runtime
