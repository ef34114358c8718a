// The whole-bundle check and the check of one expert. Both hash what is on the file now; neither decompresses anything.
#include <algorithm>
#include <atomic>
#include <mutex>
#include <tuple>

#include "base/digest/sha256.h"
#include "format/envelope.h"
#include "verify/verify.h"

namespace moepack::verify {
namespace {

unsigned long long Ull(uint64_t v) { return v; }

// Bytes with a signed digest, then zeros up to the next piece or the end of the file.
struct Piece {
  uint64_t offset = 0, bytes = 0, end = 0;
  const DigestBytes* digest = nullptr;
};

void AddChunks(const std::vector<Unit>& units, std::vector<Piece>* out) {
  for (const Unit& unit : units) {
    for (const ChunkRef& chunk : unit.chunks) out->push_back({chunk.offset, chunk.stored_bytes, 0, &chunk.stored_digest});
  }
}

bool AllZero(ByteSpan bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](uint8_t b) { return b == 0; });
}

Status BadPadding(const RandomAccessFile& file, uint64_t offset) {
  return Status(ErrorCode::kDigest, StrFormat("%s: padding after offset %llu is not zero; fetch the bundle again",
                                              file.path().c_str(), Ull(offset)));
}

// Reads [from, to) in steps of the buffer's size.
Status CheckZeros(const RandomAccessFile& file, uint64_t from, uint64_t to, std::span<uint8_t> buffer) {
  for (uint64_t at = from; at < to;) {
    const std::span<uint8_t> part = buffer.first(std::min<uint64_t>(buffer.size(), to - at));
    MOEPACK_RETURN_IF_ERROR(file.Read(at, part));
    if (!AllZero(part)) return BadPadding(file, from);
    at += part.size();
  }
  return Status::Ok();
}

Status CheckPiece(const RandomAccessFile& file, const Piece& piece, std::span<uint8_t> buffer) {
  Sha256Stream digest;
  for (uint64_t done = 0; done < piece.bytes;) {
    const std::span<uint8_t> part = buffer.first(std::min<uint64_t>(buffer.size(), piece.bytes - done));
    MOEPACK_RETURN_IF_ERROR(file.Read(piece.offset + done, part));
    digest.Update(part);
    done += part.size();
  }
  if (digest.Finish() != *piece.digest) {
    return Status(ErrorCode::kDigest,
                  StrFormat("%s: the %llu bytes at offset %llu do not match their signed digest; fetch the bundle "
                            "again",
                            file.path().c_str(), Ull(piece.bytes), Ull(piece.offset)));
  }
  return CheckZeros(file, piece.offset + piece.bytes, piece.end, buffer);
}

// Workers take pieces in order. Every piece before a failed one has been taken and is finished before the loop ends, so the
// error with the lowest piece is the same for any number of threads.
class PieceQueue {
 public:
  PieceQueue(const RandomAccessFile& file, const std::vector<Piece>& pieces, Progress& progress)
      : file_(file), pieces_(pieces), progress_(progress), first_failed_(pieces.size()) {}

  void Work() {
    static constexpr size_t kBufferBytes = 256 * 1024;  // stays in the second-level cache between read and hash
    Bytes buffer(kBufferBytes);
    for (size_t i = next_++; i < pieces_.size() && !failed_; i = next_++) {
      const Status status = CheckPiece(file_, pieces_[i], buffer);
      std::lock_guard lock(mutex_);
      progress_.Advance(pieces_[i].end - pieces_[i].offset);
      if (status.ok() || i > first_failed_) continue;
      failed_ = true;
      first_failed_ = i;
      status_ = status;
    }
  }
  const Status& status() const { return status_; }

 private:
  const RandomAccessFile& file_;
  const std::vector<Piece>& pieces_;
  Progress& progress_;
  std::atomic<size_t> next_{0};
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  size_t first_failed_;
  Status status_;
};

}  // namespace

Status VerifiedBundle::VerifyAll(ThreadPool& pool, Progress& progress) const {
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t size, file_->Size());
  if (size != manifest_.file_bytes) {
    return Status(ErrorCode::kTruncated, StrFormat("%s: %llu bytes, the signed length is %llu", file_->path().c_str(),
                                                   Ull(size), Ull(manifest_.file_bytes)));
  }
  std::vector<Piece> pieces;
  for (const BlobRef& blob : manifest_.blobs) pieces.push_back({blob.offset, blob.bytes, 0, &blob.digest});
  AddChunks(dense_.units, &pieces);
  for (const ExpertTable& table : experts_) AddChunks(table.units, &pieces);
  std::sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.offset < b.offset; });
  for (size_t i = 0; i < pieces.size(); ++i)
    pieces[i].end = i + 1 < pieces.size() ? pieces[i + 1].offset : manifest_.file_bytes;

  Bytes head(kBundleAlignment);
  progress.Begin("verify", size, "bytes");
  PieceQueue queue(*file_, pieces, progress);
  pool.ParallelFor(static_cast<size_t>(pool.threads()), 1, [&](size_t, size_t) { queue.Work(); });
  const uint64_t first = pieces.empty() ? manifest_.file_bytes : pieces[0].offset;
  const Status padding = CheckZeros(*file_, signed_end_, first, head);
  progress.Advance(first);
  progress.End();
  MOEPACK_RETURN_IF_ERROR(queue.status());
  return padding;
}

Status VerifiedBundle::VerifyExpert(uint32_t table, uint32_t expert) const {
  if (table >= experts_.size() || expert >= experts_[table].experts.size()) {
    return Status(ErrorCode::kUsage,
                  StrFormat("%s: no expert %u:%u; the bundle has %zu expert tables%s", file_->path().c_str(), table, expert,
                            experts_.size(),
                            table < experts_.size()
                                ? StrFormat(", table %u has %zu experts", table, experts_[table].experts.size()).c_str()
                                : ""));
  }
  for (const ExpertEntry::Variant& variant : experts_[table].experts[expert].variants) {
    for (const ChunkRef& chunk : experts_[table].units[variant.physical].chunks) {
      MOEPACK_RETURN_IF_ERROR(ReadChunk(chunk).status());
    }
  }
  return Status::Ok();
}

}  // namespace moepack::verify
