#include "runtime-min/chunk_decoder.h"

#include <zstd.h>

#include <cstring>
#include <utility>

#include "base/checked.h"
#include "format/codec/rans.h"
#include "runtime-min/stand_ins.h"

namespace moepack::runtime {
namespace {

// What the signed table asks to have in memory.
Result<uint64_t> PlainBytesOf(const Unit& unit) {
  CheckedU64 total(0);
  for (const ChunkRef& chunk : unit.chunks) {
    if (chunk.plain_bytes > kMaxChunkPlainBytes) {
      return Status(ErrorCode::kLimit, StrFormat("chunk at offset %llu: %llu plain bytes, at most %llu are accepted",
                                                 static_cast<unsigned long long>(chunk.offset),
                                                 static_cast<unsigned long long>(chunk.plain_bytes),
                                                 static_cast<unsigned long long>(kMaxChunkPlainBytes)));
    }
    total = total + chunk.plain_bytes;
  }
  if (total.valid() && total.value() <= kMaxUnitPlainBytes) return total.value();
  return Status(ErrorCode::kLimit, StrFormat("unit of more than %llu plain bytes, which is the most that is loaded together",
                                             static_cast<unsigned long long>(kMaxUnitPlainBytes)));
}

Status ChunkError(const ChunkRef& chunk, const char* what) {
  return Status(ErrorCode::kMalformed,
                StrFormat("chunk at offset %llu: %s although its digest is right; pack the model again",
                          static_cast<unsigned long long>(chunk.offset), what));
}

}  // namespace

ChunkDecoder::ChunkDecoder() : context_(ZSTD_createDCtx()) {}
ChunkDecoder::~ChunkDecoder() = default;
void ChunkDecoder::FreeContext::operator()(ZSTD_DCtx_s* context) const { ZSTD_freeDCtx(context); }

Result<PlainUnit> ChunkDecoder::Decode(const verify::VerifiedBundle& bundle, const Unit& unit) {
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t plain_bytes, PlainBytesOf(unit));
  Bytes plain;
  plain.reserve(plain_bytes);  // pages are touched only as chunks before them turn out not to be wrong
  Status failure;
  for (const ChunkRef& chunk : unit.chunks) {
    const size_t at = plain.size();
    plain.resize(at + chunk.plain_bytes);
    const Status status = DecodeChunk(bundle, chunk, std::span(plain).subspan(at));
    // Wrong bytes anywhere come before bytes that could not be read, as where threads share a unit's chunks.
    if (!status.ok() && !IsUnavailable(status)) return status;
    if (!status.ok() && failure.ok()) failure = status;
  }
  MOEPACK_RETURN_IF_ERROR(failure);
  return PlainUnit(std::move(plain));
}

Status UnitParts::Begin(const Unit& unit) {
  MOEPACK_RETURN_IF_ERROR(PlainBytesOf(unit).status());
  unit_ = &unit;
  pieces_.assign(unit.chunks.size(), {});
  return Status::Ok();
}

Status ChunkDecoder::DecodePart(const verify::VerifiedBundle& bundle, size_t chunk, UnitParts* parts) {
  const ChunkRef& ref = parts->unit_->chunks[chunk];
  Bytes piece(ref.plain_bytes);
  MOEPACK_RETURN_IF_ERROR(DecodeChunk(bundle, ref, piece));
  parts->pieces_[chunk] = std::move(piece);
  return Status::Ok();
}

Result<PlainUnit> ChunkDecoder::Join(UnitParts* parts) {
  std::vector<Bytes> pieces = std::exchange(parts->pieces_, {});
  uint64_t bytes = 0;
  for (const Bytes& piece : pieces) {
    if (piece.empty()) return Status(ErrorCode::kInternal, "a unit is joined before all its chunks were decoded");
    bytes += piece.size();
  }
  if (pieces.empty()) return Status(ErrorCode::kInternal, "a unit is joined that has no chunks");
  Bytes plain = std::move(pieces[0]);
  plain.reserve(bytes);
  for (size_t i = 1; i < pieces.size(); ++i) plain.insert(plain.end(), pieces[i].begin(), pieces[i].end());
  return PlainUnit(std::move(plain));
}

Status ChunkDecoder::DecodeChunk(const verify::VerifiedBundle& bundle, const ChunkRef& chunk, std::span<uint8_t> out) {
  MOEPACK_ASSIGN_OR_RETURN(const VerifiedBytes stored, bundle.ReadChunk(chunk));
  switch (chunk.encoding) {
    case Encoding::kRaw:
      if (stored.bytes().size() != out.size()) return ChunkError(chunk, "a raw chunk whose stored and plain sizes differ");
      std::memcpy(out.data(), stored.bytes().data(), out.size());
      return Status::Ok();
    case Encoding::kZstd:
      return Decompress(chunk, stored.bytes(), out);
    case Encoding::kRans:
      if (Status status = DecodeRans(stored.bytes(), out); !status.ok()) return ChunkError(chunk, status.message().c_str());
      return Status::Ok();
  }
  return Status(ErrorCode::kUnsupported,
                StrFormat("chunk at offset %llu: encoding %d is not known to this version",
                          static_cast<unsigned long long>(chunk.offset), static_cast<int>(chunk.encoding)));
}

// In one call into a buffer of the signed size: the decoder then needs no window of its own, so a frame cannot make it
// allocate, whatever window it declares. The plain bytes are not digested again: SPEC.md, section 5, says why.
Status ChunkDecoder::Decompress(const ChunkRef& chunk, ByteSpan stored, std::span<uint8_t> out) {
  if (context_ == nullptr) return Status(ErrorCode::kNoMemory, "cannot allocate a decompressor");
  if (ZSTD_getFrameContentSize(stored.data(), stored.size()) != out.size()) {
    return ChunkError(chunk, "its zstd frame does not declare the signed plain size");
  }
  if (ZSTD_findFrameCompressedSize(stored.data(), stored.size()) != stored.size()) {
    return ChunkError(chunk, "it is not exactly one zstd frame");
  }
  const size_t written = ZSTD_decompressDCtx(context_.get(), out.data(), out.size(), stored.data(), stored.size());
  if (ZSTD_isError(written) || written != out.size()) return ChunkError(chunk, "its zstd frame does not decompress");
  return Status::Ok();
}

}  // namespace moepack::runtime
