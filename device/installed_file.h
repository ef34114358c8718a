// A bundle in the content store as the file that was installed: its head in one record, its chunks in files of their own
// that bundles share. Nothing here is trusted: who reads it checks signatures and digests as of any bundle.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/env.h"
#include "format/manifest/manifest.h"

namespace moepack::device {

struct InstalledChunk {
  uint64_t offset = 0, stored_bytes = 0;  // in the bundle
  DigestBytes plain_digest{}, stored_digest{};
};

// Name of a chunk's file: identity, then what is stored of it, since two bundles may store one chunk in two encodings.
std::string ChunkName(const InstalledChunk& chunk);

// The record of one installed bundle:
//   u8[8] "MOEINST\n"   u32 version 1   u32 chunks   u64 head_bytes   u64 file_bytes
//   {u64 offset, u64 stored_bytes, u8[32] plain_digest, u8[32] stored_digest}[chunks], rising by offset
//   the first head_bytes bytes of the bundle: everything before its first chunk
Bytes SerializeRecord(const std::vector<InstalledChunk>& chunks, uint64_t file_bytes, ByteSpan head);

// Opens a record; chunk files are looked for in `chunk_directory` when they are read. `env` must outlive the file. The
// chunks go to `*chunks`, which may be null. kMalformed, kNotFound.
Result<std::unique_ptr<RandomAccessFile>> OpenInstalledFile(Env& env, const std::string& record_path,
                                                            const std::string& chunk_directory,
                                                            std::vector<InstalledChunk>* chunks);

}  // namespace moepack::device
