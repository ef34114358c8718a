#include "packager/chunk_encoder.h"

#include <zstd.h>

#include <bit>
#include <memory>

#include "base/checked.h"
#include "base/digest/sha256.h"
#include "format/manifest/expert_parts.h"

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

EncodedChunk Raw(ByteSpan plain) {
  EncodedChunk out;
  out.ref.plain_bytes = plain.size();
  out.ref.stored_bytes = plain.size();
  out.ref.plain_digest = Sha256(plain);
  out.ref.stored_digest = out.ref.plain_digest;
  return out;
}

Result<EncodedChunk> Compressed(EncodedChunk raw, Encoding encoding, Bytes stored) {
  raw.ref.encoding = encoding;
  raw.ref.stored_bytes = stored.size();
  raw.ref.stored_digest = Sha256(stored);
  MOEPACK_RETURN_IF_ERROR(CheckGivesBack(stored, raw.ref));
  raw.stored = std::move(stored);
  return raw;
}

// The longest part of a chunk, from its first byte on, that was found to take at most `most` stored bytes.
struct RansPrefix {
  uint64_t plain_bytes = 0;
  Bytes stored;
};

// By regula falsi: stored bytes grow almost evenly with plain ones.
RansPrefix PrefixOf(const EncodedChunk& whole, ByteSpan plain, std::span<const RansRun> runs, uint64_t most) {
  constexpr int kTries = 8;
  constexpr uint64_t kNearEnough = 24;
  RansPrefix best;
  uint64_t high = plain.size(), high_stored = whole.ref.stored_bytes;
  for (int i = 0; i < kTries && most - best.stored.size() > kNearEnough; ++i) {
    const uint64_t low = best.plain_bytes, low_stored = best.stored.size();
    const uint64_t at = low + (high - low) * (most - low_stored) / (high_stored - low_stored);
    if (at <= low || at >= high) break;
    Bytes stored = EncodeRans(plain.first(at), CutRansRuns(runs, 0, at));
    if (stored.size() <= most) {
      best = {at, std::move(stored)};
    } else {
      high = at;
      high_stored = stored.size();
    }
  }
  return best;
}

// The two halves of a rANS chunk; none when they would take a page more.
Result<std::vector<EncodedChunk>> HalveRans(const EncodedChunk& whole, ByteSpan plain, std::span<const RansRun> runs) {
  const uint64_t pages = CeilDiv(whole.ref.stored_bytes, kBundleAlignment), first_pages = pages / 2;
  std::vector<EncodedChunk> out;
  if (first_pages == 0) return out;
  RansPrefix first = PrefixOf(whole, plain, runs, first_pages * kBundleAlignment);
  const ByteSpan rest = plain.subspan(first.plain_bytes);
  Bytes second = EncodeRans(rest, CutRansRuns(runs, first.plain_bytes, plain.size()));
  const bool smaller = first.stored.size() < first.plain_bytes && second.size() < rest.size();
  if (!smaller || CeilDiv(second.size(), kBundleAlignment) > pages - first_pages) return out;
  for (auto& [part, stored] : {std::pair(plain.first(first.plain_bytes), &first.stored), std::pair(rest, &second)}) {
    MOEPACK_ASSIGN_OR_RETURN(EncodedChunk half, Compressed(Raw(part), Encoding::kRans, std::move(*stored)));
    out.push_back(std::move(half));
  }
  return out;
}

}  // namespace

Result<EncodedChunk> EncodeChunk(ByteSpan plain, std::span<const RansRun> runs, int level) {
  EncodedChunk out = Raw(plain);
  if (level == 0) return out;
  MOEPACK_ASSIGN_OR_RETURN(Bytes compressed, Compress(plain, level));
  Bytes rans = EncodeRans(plain, runs);
  const bool smaller = rans.size() < compressed.size();
  if (smaller) compressed = std::move(rans);
  if (!WorthIt(plain.size(), compressed.size())) return out;
  return Compressed(std::move(out), smaller ? Encoding::kRans : Encoding::kZstd, std::move(compressed));
}

Result<std::vector<EncodedChunk>> CutChunk(EncodedChunk whole, ByteSpan plain, std::span<const RansRun> runs,
                                           uint32_t halvings) {
  std::vector<EncodedChunk> out;
  if (whole.ref.encoding == Encoding::kRaw) {
    for (const uint64_t bytes : RawParts(plain.size(), halvings)) {
      out.push_back(Raw(plain.first(bytes)));
      plain = plain.subspan(bytes);
    }
    return out;
  }
  std::vector<EncodedChunk> halves;
  if (halvings > 0 && whole.ref.encoding == Encoding::kRans) {
    MOEPACK_ASSIGN_OR_RETURN(halves, HalveRans(whole, plain, runs));
  }
  if (halves.empty()) out.push_back(std::move(whole));
  uint64_t begin = 0;
  for (EncodedChunk& half : halves) {
    const uint64_t end = begin + half.ref.plain_bytes;
    MOEPACK_ASSIGN_OR_RETURN(std::vector<EncodedChunk> parts, CutChunk(std::move(half), plain.subspan(begin, end - begin),
                                                                       CutRansRuns(runs, begin, end), halvings - 1));
    std::move(parts.begin(), parts.end(), std::back_inserter(out));
    begin = end;
  }
  return out;
}

}  // namespace moepack
