// One chunk: plain bytes to stored bytes with both digests.
#pragma once

#include "base/bytes.h"
#include "base/status.h"
#include "format/manifest/manifest.h"

namespace moepack {

struct EncodedChunk {
  ChunkRef ref;  // offset is left 0
  Bytes stored;  // empty when ref.encoding is kRaw: the stored bytes are the plain ones
};

// zstd at `level` when it saves at least 1% of the chunk, else raw: a raw chunk is cheaper to load. One frame with its
// content size, no checksum (the digest is one), a window of at most kMaxChunkPlainBytes. `plain` has 1..kMaxChunkPlainBytes
// bytes. Thread-safe. kNoMemory.
Result<EncodedChunk> EncodeChunk(ByteSpan plain, int level);

}  // namespace moepack
