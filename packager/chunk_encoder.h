// One chunk: plain bytes to stored bytes with both digests.
#pragma once

#include <span>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"
#include "format/codec/rans.h"
#include "format/manifest/manifest.h"

namespace moepack {

struct EncodedChunk {
  ChunkRef ref;  // offset is left 0
  Bytes stored;  // empty when ref.encoding is kRaw: the stored bytes are the plain ones
};

// The smaller of rANS (format/codec/rans.h) over `runs`, which say how the bytes lie, and zstd at `level` when it saves at
// least 1% of the chunk, else raw: a raw chunk is cheaper to load. zstd: one frame with its content size, no checksum (the
// digest is one), a window of at most kMaxChunkPlainBytes. `plain` has 1..kMaxChunkPlainBytes bytes, `runs` as many.
// Thread-safe. kNoMemory.
Result<EncodedChunk> EncodeChunk(ByteSpan plain, std::span<const RansRun> runs, int level);

// `whole`, which EncodeChunk made of `plain`, as up to 2^halvings chunks of about one size in order, so that threads can
// share its load. They take as many pages of the bundle as `whole`: where no cut does, it stays whole, as it does when it is
// a zstd chunk. Thread-safe.
Result<std::vector<EncodedChunk>> CutChunk(EncodedChunk whole, ByteSpan plain, std::span<const RansRun> runs,
                                           uint32_t halvings);

}  // namespace moepack
