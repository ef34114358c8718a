// The chunk area of a bundle while it is being made. Chunks come last in the file but their sizes and digests are in the
// tables before them, so encoded chunks wait in a file beside the output.
#pragma once

#include <memory>
#include <string>

#include "base/env.h"
#include "format/manifest/manifest.h"

namespace moepack {

class ChunkSpool {
 public:
  // The file is named after `output` and removed by the destructor.
  static Result<std::unique_ptr<ChunkSpool>> Create(Env& env, const std::string& output);
  ~ChunkSpool();
  ChunkSpool(const ChunkSpool&) = delete;
  ChunkSpool& operator=(const ChunkSpool&) = delete;

  // Appends at the next aligned offset; returns that offset, counted from the start of the area.
  Result<uint64_t> Append(ByteSpan stored);
  uint64_t size_bytes() const { return size_bytes_; }
  // Ends the area: no Append after it, and once.
  Status Finish() { return file_->Close(); }
  // The finished area; the spool must outlive what is read from it.
  Result<std::unique_ptr<RandomAccessFile>> Open() const { return env_.OpenRead(path_); }
  // Appends the whole finished area to `out`.
  Status CopyTo(AtomicFile& out) const;

 private:
  ChunkSpool(Env& env, std::string path, std::unique_ptr<WritableFile> file)
      : env_(env), path_(std::move(path)), file_(std::move(file)) {}
  Env& env_;
  std::string path_;
  std::unique_ptr<WritableFile> file_;
  uint64_t size_bytes_ = 0;
};

// Appends [from, to) of `in` to `out` in steps of 1 MiB.
Status CopyRange(const RandomAccessFile& in, uint64_t from, uint64_t to, AtomicFile& out);

}  // namespace moepack
