#include "packager/chunk_encoder.h"

#include <zstd.h>

#include <bit>
#include <memory>

#include "base/digest/sha256.h"

namespace moepack {
namespace {

bool WorthIt(uint64_t plain_bytes, uint64_t stored_bytes) { return stored_bytes * 100 <= plain_bytes * 99; }

Result<Bytes> Compress(ByteSpan plain, int level) {
  static constexpr int kWindowLog = std::bit_width(kMaxChunkPlainBytes) - 1;
  const std::unique_ptr<ZSTD_CCtx, decltype(&ZSTD_freeCCtx)> context(ZSTD_createCCtx(), &ZSTD_freeCCtx);
  if (!context) return Status(ErrorCode::kNoMemory, "zstd: no memory for a compressor");
  const std::pair<ZSTD_cParameter, int> parameters[] = {{ZSTD_c_compressionLevel, level}, {ZSTD_c_windowLog, kWindowLog},
                                                        {ZSTD_c_contentSizeFlag, 1},      {ZSTD_c_checksumFlag, 0},
                                                        {ZSTD_c_dictIDFlag, 0},           {ZSTD_c_nbWorkers, 0}};
  for (const auto& [parameter, value] : parameters) {
    const size_t result = ZSTD_CCtx_setParameter(context.get(), parameter, value);
    if (ZSTD_isError(result))
      return Status(ErrorCode::kInternal, StrFormat("zstd: parameter: %s", ZSTD_getErrorName(result)));
  }
  Bytes out(ZSTD_compressBound(plain.size()));
  const size_t size = ZSTD_compress2(context.get(), out.data(), out.size(), plain.data(), plain.size());
  if (ZSTD_isError(size)) return Status(ErrorCode::kNoMemory, StrFormat("zstd: compress: %s", ZSTD_getErrorName(size)));
  out.resize(size);
  return out;
}

// What a device will get. It does not compare identities when it loads (SPEC.md, section 5), so they are made sure of here.
Status CheckGivesBack(ByteSpan stored, const ChunkRef& ref) {
  Bytes plain(ref.plain_bytes);
  const bool whole = ref.encoding == Encoding::kRans
                         ? DecodeRans(stored, plain).ok()
                         : ZSTD_decompress(plain.data(), plain.size(), stored.data(), stored.size()) == plain.size();
  if (whole && Sha256(plain) == ref.plain_digest) return Status::Ok();
  return Status(ErrorCode::kInternal, "a chunk does not decompress to what was compressed");
}

}  // namespace

Result<EncodedChunk> EncodeChunk(ByteSpan plain, std::span<const RansRun> runs, int level) {
  EncodedChunk out;
  out.ref.plain_bytes = plain.size();
  out.ref.stored_bytes = plain.size();
  out.ref.plain_digest = Sha256(plain);
  out.ref.stored_digest = out.ref.plain_digest;
  if (level == 0) return out;
  MOEPACK_ASSIGN_OR_RETURN(Bytes compressed, Compress(plain, level));
  Bytes rans = EncodeRans(plain, runs);
  const bool smaller = rans.size() < compressed.size();
  if (smaller) compressed = std::move(rans);
  if (!WorthIt(plain.size(), compressed.size())) return out;
  out.ref.encoding = smaller ? Encoding::kRans : Encoding::kZstd;
  out.ref.stored_bytes = compressed.size();
  out.ref.stored_digest = Sha256(compressed);
  MOEPACK_RETURN_IF_ERROR(CheckGivesBack(compressed, out.ref));
  out.stored = std::move(compressed);
  return out;
}

}  // namespace moepack
