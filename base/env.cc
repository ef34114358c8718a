#include "base/env.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/outputs.h"

namespace moepack {
namespace {

class PosixReadFile final : public RandomAccessFile {
 public:
  PosixReadFile(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  ~PosixReadFile() override { ::close(fd_); }
  PosixReadFile(const PosixReadFile&) = delete;
  PosixReadFile& operator=(const PosixReadFile&) = delete;

  Result<uint64_t> Size() const override {
    struct stat info;
    if (::fstat(fd_, &info) != 0) return ErrnoStatus(path_, "read its size");
    if (!S_ISREG(info.st_mode)) return Status(ErrorCode::kBadInput, path_ + ": not a regular file");
    return static_cast<uint64_t>(info.st_size);
  }

  Status Read(uint64_t offset, std::span<uint8_t> out) const override {
    size_t done = 0;
    while (done < out.size()) {
      const ssize_t n = ::pread(fd_, out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return ErrnoStatus(path_, "read");
      if (n == 0) {
        return Status(ErrorCode::kTruncated, StrFormat("%s: ends at byte %llu, expected %zu bytes from %llu", path_.c_str(),
                                                       static_cast<unsigned long long>(offset + done), out.size(),
                                                       static_cast<unsigned long long>(offset)));
      }
      done += static_cast<size_t>(n);
    }
    return Status::Ok();
  }

  const std::string& path() const override { return path_; }

 private:
  int fd_;
  std::string path_;
};

// Another file's bytes under the name that people know.
class RenamedFile final : public RandomAccessFile {
 public:
  RenamedFile(std::unique_ptr<RandomAccessFile> file, std::string path) : file_(std::move(file)), path_(std::move(path)) {}
  Result<uint64_t> Size() const override { return file_->Size(); }
  Status Read(uint64_t offset, std::span<uint8_t> out) const override { return file_->Read(offset, out); }
  const std::string& path() const override { return path_; }

 private:
  std::unique_ptr<RandomAccessFile> file_;
  std::string path_;
};

class PosixWriteFile final : public WritableFile {
 public:
  PosixWriteFile(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  ~PosixWriteFile() override {
    if (fd_ >= 0) ::close(fd_);
  }
  PosixWriteFile(const PosixWriteFile&) = delete;
  PosixWriteFile& operator=(const PosixWriteFile&) = delete;

  Status Append(ByteSpan data) override {
    while (!data.empty()) {
      const ssize_t n = ::write(fd_, data.data(), data.size());
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return ErrnoStatus(path_, "write");
      data = data.subspan(static_cast<size_t>(n));
    }
    return Status::Ok();
  }

  Status Sync() override { return ::fsync(fd_) == 0 ? Status::Ok() : ErrnoStatus(path_, "sync"); }

  Status Close() override {
    const int fd = std::exchange(fd_, -1);
    return ::close(fd) == 0 ? Status::Ok() : ErrnoStatus(path_, "close");
  }

 private:
  int fd_;
  std::string path_;
};

class PosixMappedFile final : public MappedFile {
 public:
  PosixMappedFile(void* base, size_t size) : base_(base), size_(size) {}
  ~PosixMappedFile() override {
    if (size_ != 0) ::munmap(base_, size_);
  }
  PosixMappedFile(const PosixMappedFile&) = delete;
  PosixMappedFile& operator=(const PosixMappedFile&) = delete;

  ByteSpan bytes() const override { return {static_cast<const uint8_t*>(base_), size_}; }

  void Release(uint64_t offset, uint64_t size) const override {
    // Outwards to the 64 KiB that the kernel maps around a fault: pages of a neighbour that is still wanted are mapped
    // again from the page cache, while rounding inwards would leave a rest of every tensor behind.
    constexpr uint64_t kFaultAround = uint64_t{64} << 10;
    const uint64_t begin = offset / kFaultAround * kFaultAround;
    const uint64_t end = std::min<uint64_t>((offset + size + kFaultAround - 1) / kFaultAround * kFaultAround, size_);
    if (begin < end) ::madvise(static_cast<uint8_t*>(base_) + begin, end - begin, MADV_DONTNEED);
  }

 private:
  void* base_;
  size_t size_;
};

// Without waiting for a writer should the path be a pipe: Size refuses everything but regular files.
int OpenForReading(const std::string& path) { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY); }

class PosixEnvironment final : public Env {
 public:
  Result<std::unique_ptr<RandomAccessFile>> OpenRead(const std::string& path) override {
    const int fd = OpenForReading(path);
    if (fd < 0) return ErrnoStatus(path, "open");
    auto file = std::make_unique<PosixReadFile>(fd, path);
    MOEPACK_RETURN_IF_ERROR(file->Size().status());
    return std::unique_ptr<RandomAccessFile>(std::move(file));
  }

  Result<std::unique_ptr<WritableFile>> CreateNew(const std::string& path, const std::string& shown) override {
    const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (fd < 0) return ErrnoStatus(shown, "create");
    return std::unique_ptr<WritableFile>(std::make_unique<PosixWriteFile>(fd, shown));
  }

  Result<std::unique_ptr<MappedFile>> Map(const std::string& path) override {
    const int fd = OpenForReading(path);
    if (fd < 0) return ErrnoStatus(path, "open");
    PosixReadFile file(fd, path);
    MOEPACK_ASSIGN_OR_RETURN(const uint64_t size, file.Size());
    if (size == 0) return std::unique_ptr<MappedFile>(std::make_unique<PosixMappedFile>(nullptr, 0));
    void* base = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (base == MAP_FAILED) return ErrnoStatus(path, "map");
    return std::unique_ptr<MappedFile>(std::make_unique<PosixMappedFile>(base, size));
  }

  Result<bool> Exists(const std::string& path) override {
    struct stat info;
    if (::stat(path.c_str(), &info) == 0) return true;
    if (errno == ENOENT || errno == ENOTDIR) return false;
    return ErrnoStatus(path, "look up");
  }

  Result<bool> IsDirectory(const std::string& path) override {
    struct stat info;
    if (::stat(path.c_str(), &info) == 0) return S_ISDIR(info.st_mode);
    if (errno == ENOENT || errno == ENOTDIR) return false;
    return ErrnoStatus(path, "look up");
  }

  Result<std::vector<std::string>> List(const std::string& directory) override {
    DIR* dir = ::opendir(directory.c_str());
    if (dir == nullptr) return ErrnoStatus(directory, "list");
    std::vector<std::string> names;
    while (const dirent* entry = ::readdir(dir)) {
      const std::string name = entry->d_name;
      if (name != "." && name != "..") names.push_back(name);
    }
    ::closedir(dir);
    std::sort(names.begin(), names.end());
    return names;
  }

  Status MakeDirectory(const std::string& path) override {
    if (::mkdir(path.c_str(), 0777) == 0) return Status::Ok();
    if (errno == EEXIST) {
      MOEPACK_ASSIGN_OR_RETURN(const bool directory, IsDirectory(path));
      if (directory) return Status::Ok();
      errno = EEXIST;
    }
    if (errno == ENOENT && DirectoryOf(path) != path) {
      MOEPACK_RETURN_IF_ERROR(MakeDirectory(DirectoryOf(path)));
      if (::mkdir(path.c_str(), 0777) == 0) return Status::Ok();
    }
    return ErrnoStatus(path, "create folder");
  }

  Status Rename(const std::string& from, const std::string& to) override {
    return ::rename(from.c_str(), to.c_str()) == 0 ? Status::Ok() : ErrnoStatus(to, "put it in its place");
  }

  Status Remove(const std::string& path) override {
    return ::remove(path.c_str()) == 0 ? Status::Ok() : ErrnoStatus(path, "remove");
  }

  Status RemoveTree(const std::string& path) override {
    struct stat info;
    if (::lstat(path.c_str(), &info) != 0) return errno == ENOENT ? Status::Ok() : ErrnoStatus(path, "look up");
    if (S_ISDIR(info.st_mode)) {
      MOEPACK_ASSIGN_OR_RETURN(const std::vector<std::string> names, List(path));
      for (const std::string& name : names) MOEPACK_RETURN_IF_ERROR(RemoveTree(JoinPath(path, name)));
    }
    return Remove(path);
  }

  Status SyncDirectory(const std::string& path) override {
    const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return ErrnoStatus(path, "open");
    const int result = ::fsync(fd);
    const int error = errno;
    ::close(fd);
    errno = error;
    return result == 0 ? Status::Ok() : ErrnoStatus(path, "sync");
  }
};

}  // namespace

Env& PosixEnv() {
  static PosixEnvironment env;
  return env;
}

Result<Bytes> ReadFile(Env& env, const std::string& path, uint64_t max_bytes) {
  MOEPACK_ASSIGN_OR_RETURN(auto file, env.OpenRead(path));
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t size, file->Size());
  if (size > max_bytes) {
    return Status(ErrorCode::kLimit,
                  StrFormat("%s: %llu bytes, at most %llu are accepted", path.c_str(), static_cast<unsigned long long>(size),
                            static_cast<unsigned long long>(max_bytes)));
  }
  Bytes out(size);
  MOEPACK_RETURN_IF_ERROR(file->Read(0, out));
  return out;
}

std::string DirectoryOf(const std::string& path) {
  size_t end = path.find_last_not_of('/');
  if (end == std::string::npos) return path.empty() ? "." : "/";
  const size_t slash = path.find_last_of('/', end);
  if (slash == std::string::npos) return ".";
  const size_t last = path.find_last_not_of('/', slash);
  return last == std::string::npos ? "/" : path.substr(0, last + 1);
}

std::string BaseName(const std::string& path) { return path.substr(path.find_last_of('/') + 1); }

std::string JoinPath(const std::string& directory, const std::string& name) {
  if (directory.empty() || directory.back() == '/') return directory + name;
  return directory + "/" + name;
}

Result<std::string> TemporaryPath(const std::string& path) {
  uint8_t random[8];
  if (::getrandom(random, sizeof(random), 0) != sizeof(random)) return ErrnoStatus(path, "draw random numbers for");
  return path + ".tmp-" + ToHex(ByteSpan(random));
}

Result<std::unique_ptr<AtomicFile>> AtomicFile::Create(Env& env, const std::string& path) {
  MOEPACK_ASSIGN_OR_RETURN(std::string temporary, TemporaryPath(path));
  MOEPACK_RETURN_IF_ERROR(CheckFileOutput(env, path));
  MOEPACK_ASSIGN_OR_RETURN(auto file, env.CreateNew(temporary, path));
  return std::unique_ptr<AtomicFile>(new AtomicFile(env, path, std::move(temporary), std::move(file)));
}

AtomicFile::~AtomicFile() {
  if (committed_) return;
  file_.reset();
  (void)env_.Remove(temporary_);  // the error that kept Commit from running is the one to report
}

Status AtomicFile::Append(ByteSpan data) { return file_->Append(data); }

Status AtomicFile::Finish() {
  MOEPACK_RETURN_IF_ERROR(file_->Sync());
  MOEPACK_RETURN_IF_ERROR(file_->Close());
  finished_ = true;
  return Status::Ok();
}

Result<std::unique_ptr<RandomAccessFile>> AtomicFile::OpenWritten() const {
  MOEPACK_ASSIGN_OR_RETURN(auto file, env_.OpenRead(temporary_));
  return std::unique_ptr<RandomAccessFile>(std::make_unique<RenamedFile>(std::move(file), path_));
}

Status AtomicFile::Commit() {
  if (!finished_) MOEPACK_RETURN_IF_ERROR(Finish());
  MOEPACK_RETURN_IF_ERROR(env_.Rename(temporary_, path_));
  committed_ = true;
  return env_.SyncDirectory(DirectoryOf(path_));
}

Status WriteFileAtomically(Env& env, const std::string& path, ByteSpan data) {
  MOEPACK_ASSIGN_OR_RETURN(auto file, AtomicFile::Create(env, path));
  MOEPACK_RETURN_IF_ERROR(file->Append(data));
  return file->Commit();
}

}  // namespace moepack
