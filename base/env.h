// Files behind an interface, so that tests can make any operation fail (base/testing/fault_env.h).
//
// Every path is used as given. Errors name the path and say what failed; ENOENT -> kNotFound, ENOSPC/EDQUOT -> kNoSpace,
// everything else -> kAccess. Env objects are thread-safe; files are as each class says.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"

namespace moepack {

// A file opened for reading. Read may be called from several threads at once.
class RandomAccessFile {
 public:
  virtual ~RandomAccessFile() = default;
  virtual Result<uint64_t> Size() const = 0;
  // Fills `out` from `offset`. A short file is an error (kTruncated).
  virtual Status Read(uint64_t offset, std::span<uint8_t> out) const = 0;
  virtual const std::string& path() const = 0;
};

// A file being written. One thread at a time. Destroying it closes without Sync.
class WritableFile {
 public:
  virtual ~WritableFile() = default;
  virtual Status Append(ByteSpan data) = 0;
  virtual Status Sync() = 0;   // data and size reach the disk
  virtual Status Close() = 0;  // at most once; reports delayed write errors
};

// Read-only pages of a file. Only for inputs that are not security relevant (checkpoints on the build machine): the
// file may change under the mapping. Bundles are read with RandomAccessFile.
class MappedFile {
 public:
  virtual ~MappedFile() = default;
  virtual ByteSpan bytes() const = 0;
  // Hint that [offset, offset + size) will not be needed soon, so its pages need not count as ours.
  virtual void Release(uint64_t offset, uint64_t size) const = 0;
};

class Env {
 public:
  virtual ~Env() = default;
  virtual Result<std::unique_ptr<RandomAccessFile>> OpenRead(const std::string& path) = 0;
  // A file that was not there before (a link is refused, not followed). Its errors name `shown`.
  virtual Result<std::unique_ptr<WritableFile>> CreateNew(const std::string& path, const std::string& shown) = 0;
  virtual Result<std::unique_ptr<MappedFile>> Map(const std::string& path) = 0;
  virtual Result<bool> Exists(const std::string& path) = 0;
  virtual Result<bool> IsDirectory(const std::string& path) = 0;                    // false when nothing is there
  virtual Result<std::vector<std::string>> List(const std::string& directory) = 0;  // names, sorted, without . and ..
  virtual Status MakeDirectory(const std::string& path) = 0;                        // with parents; fine when it exists
  virtual Status Rename(const std::string& from, const std::string& to) = 0;        // errors name `to`
  virtual Status Remove(const std::string& path) = 0;                               // one file or empty directory
  virtual Status RemoveTree(const std::string& path) = 0;                           // fine when it does not exist
  virtual Status SyncDirectory(const std::string& path) = 0;
};

// The operating system's files. Lives as long as the process.
Env& PosixEnv();

// Whole file in memory, refused with kLimit above max_bytes.
Result<Bytes> ReadFile(Env& env, const std::string& path, uint64_t max_bytes);

// Folder part of a path ("." when it has none), what stands after the last slash, and joining of two parts.
std::string DirectoryOf(const std::string& path);
std::string BaseName(const std::string& path);
std::string JoinPath(const std::string& directory, const std::string& name);

// A name beside `path` that nobody can foresee (64 random bits), so that nobody can wait there with a link, and that a file
// left behind by a killed process does not block.
Result<std::string> TemporaryPath(const std::string& path);

// A file that appears under its name complete or not at all: written beside it under a TemporaryPath, synced, renamed on
// Commit, and removed by the destructor when Commit was not reached. Errors name `path`.
class AtomicFile {
 public:
  static Result<std::unique_ptr<AtomicFile>> Create(Env& env, const std::string& path);
  ~AtomicFile();
  Status Append(ByteSpan data);
  // Brings what was appended to the disk: what is left for Commit is the name. No Append after it. May be left out.
  Status Finish();
  Status Commit();
  // What was appended, to check it before it gets its name.
  Result<std::unique_ptr<RandomAccessFile>> OpenWritten() const;

 private:
  AtomicFile(Env& env, std::string path, std::string temporary, std::unique_ptr<WritableFile> file)
      : env_(env), path_(std::move(path)), temporary_(std::move(temporary)), file_(std::move(file)) {}
  Env& env_;
  std::string path_, temporary_;
  std::unique_ptr<WritableFile> file_;
  bool finished_ = false, committed_ = false;
};

// AtomicFile in one call.
Status WriteFileAtomically(Env& env, const std::string& path, ByteSpan data);

}  // namespace moepack
