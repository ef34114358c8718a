#include "packager/chunk_spool.h"

#include <algorithm>

#include "base/checked.h"

namespace moepack {

Result<std::unique_ptr<ChunkSpool>> ChunkSpool::Create(Env& env, const std::string& output) {
  MOEPACK_ASSIGN_OR_RETURN(std::string path, TemporaryPath(output + ".chunks"));
  MOEPACK_ASSIGN_OR_RETURN(auto file, env.CreateNew(path, output));
  return std::unique_ptr<ChunkSpool>(new ChunkSpool(env, std::move(path), std::move(file)));
}

ChunkSpool::~ChunkSpool() {
  file_.reset();
  (void)env_.Remove(path_);  // a leftover here would be reported by nobody better
}

Result<uint64_t> ChunkSpool::Append(ByteSpan stored) {
  static constexpr uint8_t kZeros[kBundleAlignment] = {};
  uint64_t offset = 0;
  if (!CheckedAlign(size_bytes_, kBundleAlignment, &offset)) return Status(ErrorCode::kLimit, path_ + ": bundle too large");
  MOEPACK_RETURN_IF_ERROR(file_->Append(ByteSpan(kZeros).first(offset - size_bytes_)));
  MOEPACK_RETURN_IF_ERROR(file_->Append(stored));
  size_bytes_ = offset + stored.size();
  return offset;
}

Status ChunkSpool::CopyTo(AtomicFile& out) const {
  MOEPACK_ASSIGN_OR_RETURN(const auto in, Open());
  return CopyRange(*in, 0, size_bytes_, out);
}

Status CopyRange(const RandomAccessFile& in, uint64_t from, uint64_t to, AtomicFile& out) {
  static constexpr uint64_t kStep = 1 << 20;
  Bytes buffer(std::min(kStep, to - from));
  for (uint64_t at = from; at < to;) {
    const std::span<uint8_t> part = std::span(buffer).first(std::min(kStep, to - at));
    MOEPACK_RETURN_IF_ERROR(in.Read(at, part));
    MOEPACK_RETURN_IF_ERROR(out.Append(part));
    at += part.size();
  }
  return Status::Ok();
}

}  // namespace moepack
