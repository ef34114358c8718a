#include "device/installed_file.h"

#include <algorithm>

#include "base/checked.h"

namespace moepack::device {
namespace {

constexpr std::array<uint8_t, 8> kRecordMagic = {'M', 'O', 'E', 'I', 'N', 'S', 'T', '\n'};
constexpr uint32_t kRecordVersion = 1;
constexpr uint64_t kPreludeBytes = 32, kEntryBytes = 80;
constexpr uint64_t kMaxChunks = 1 << 24;

// Head from the record, chunks from their files, zeros between them.
class InstalledFile final : public RandomAccessFile {
 public:
  InstalledFile(Env& env, std::unique_ptr<RandomAccessFile> record, std::string chunk_directory)
      : env_(env), record_(std::move(record)), chunk_directory_(std::move(chunk_directory)) {}

  Status ReadIndex();
  const std::vector<InstalledChunk>& chunks() const { return chunks_; }
  Result<uint64_t> Size() const override { return file_bytes_; }
  const std::string& path() const override { return record_->path(); }

  Status Read(uint64_t offset, std::span<uint8_t> out) const override {
    if (offset > file_bytes_ || out.size() > file_bytes_ - offset) {
      return Status(ErrorCode::kTruncated, path() + ": read past the end of the bundle");
    }
    while (!out.empty()) {
      MOEPACK_ASSIGN_OR_RETURN(const size_t done, ReadSome(offset, out));
      offset += done;
      out = out.subspan(done);
    }
    return Status::Ok();
  }

 private:
  // The bytes up to the next border between head, chunks and padding; returns how many.
  Result<size_t> ReadSome(uint64_t offset, std::span<uint8_t> out) const {
    if (offset < head_bytes_) {
      out = out.first(std::min<uint64_t>(out.size(), head_bytes_ - offset));
      MOEPACK_RETURN_IF_ERROR(record_->Read(head_offset_ + offset, out));
      return out.size();
    }
    const auto next = std::upper_bound(chunks_.begin(), chunks_.end(), offset,
                                       [](uint64_t at, const InstalledChunk& chunk) { return at < chunk.offset; });
    if (next != chunks_.begin()) {
      const InstalledChunk& chunk = *std::prev(next);
      if (offset - chunk.offset < chunk.stored_bytes) {
        out = out.first(std::min<uint64_t>(out.size(), chunk.offset + chunk.stored_bytes - offset));
        MOEPACK_ASSIGN_OR_RETURN(const auto file, env_.OpenRead(JoinPath(chunk_directory_, ChunkName(chunk))));
        MOEPACK_RETURN_IF_ERROR(file->Read(offset - chunk.offset, out));
        return out.size();
      }
    }
    const uint64_t end = next == chunks_.end() ? file_bytes_ : next->offset;
    out = out.first(std::min<uint64_t>(out.size(), end - offset));
    std::fill(out.begin(), out.end(), uint8_t{0});
    return out.size();
  }

  Status Bad(const char* what) const {
    return Status(ErrorCode::kMalformed, path() + ": " + what + "; install the bundle again");
  }

  Env& env_;
  std::unique_ptr<RandomAccessFile> record_;
  const std::string chunk_directory_;
  std::vector<InstalledChunk> chunks_;
  uint64_t head_offset_ = 0, head_bytes_ = 0, file_bytes_ = 0;
};

Status InstalledFile::ReadIndex() {
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t size, record_->Size());
  if (size < kPreludeBytes) return Bad("shorter than its head");
  Bytes prelude(kPreludeBytes);
  MOEPACK_RETURN_IF_ERROR(record_->Read(0, prelude));
  ByteReader reader(prelude);
  const ByteSpan magic = reader.Take(kRecordMagic.size());
  const bool known = std::equal(magic.begin(), magic.end(), kRecordMagic.begin()) && reader.U32() == kRecordVersion;
  const uint32_t count = reader.U32();
  head_bytes_ = reader.U64();
  file_bytes_ = reader.U64();
  head_offset_ = kPreludeBytes + uint64_t{count} * kEntryBytes;
  if (!known || count > kMaxChunks || head_offset_ > size || head_bytes_ != size - head_offset_)
    return Bad("damaged record");
  Bytes entries(head_offset_ - kPreludeBytes);
  MOEPACK_RETURN_IF_ERROR(record_->Read(kPreludeBytes, entries));
  ByteReader entry(entries);
  uint64_t end = head_bytes_;
  for (uint32_t i = 0; i < count; ++i) {
    InstalledChunk& chunk = chunks_.emplace_back();
    chunk.offset = entry.U64();
    chunk.stored_bytes = entry.U64();
    std::ranges::copy(entry.Take(chunk.plain_digest.size()), chunk.plain_digest.begin());
    std::ranges::copy(entry.Take(chunk.stored_digest.size()), chunk.stored_digest.begin());
    if (chunk.offset < end || !CheckedAdd(chunk.offset, chunk.stored_bytes, &end)) return Bad("damaged list of chunks");
  }
  return end <= file_bytes_ ? Status::Ok() : Bad("damaged list of chunks");
}

}  // namespace

std::string ChunkName(const InstalledChunk& chunk) {
  return ToHex(ByteSpan(chunk.plain_digest)) + "-" + ToHex(ByteSpan(chunk.stored_digest));
}

Bytes SerializeRecord(const std::vector<InstalledChunk>& chunks, uint64_t file_bytes, ByteSpan head) {
  ByteWriter writer;
  writer.Append(kRecordMagic);
  writer.U32(kRecordVersion);
  writer.U32(static_cast<uint32_t>(chunks.size()));
  writer.U64(head.size());
  writer.U64(file_bytes);
  for (const InstalledChunk& chunk : chunks) {
    writer.U64(chunk.offset);
    writer.U64(chunk.stored_bytes);
    writer.Append(chunk.plain_digest);
    writer.Append(chunk.stored_digest);
  }
  writer.Append(head);
  return writer.Release();
}

Result<std::unique_ptr<RandomAccessFile>> OpenInstalledFile(Env& env, const std::string& record_path,
                                                            const std::string& chunk_directory,
                                                            std::vector<InstalledChunk>* chunks) {
  MOEPACK_ASSIGN_OR_RETURN(auto record, env.OpenRead(record_path));
  auto file = std::make_unique<InstalledFile>(env, std::move(record), chunk_directory);
  MOEPACK_RETURN_IF_ERROR(file->ReadIndex());
  if (chunks != nullptr) *chunks = file->chunks();
  return std::unique_ptr<RandomAccessFile>(std::move(file));
}

}  // namespace moepack::device
