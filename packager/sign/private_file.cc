#include "packager/sign/private_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/env.h"

namespace moepack {
namespace {

Status SystemError(const std::string& path, const char* action) {
  const int error = errno;
  ErrorCode code = ErrorCode::kAccess;
  if (error == ENOENT || error == ENOTDIR) code = ErrorCode::kNotFound;
  if (error == ENOSPC || error == EDQUOT) code = ErrorCode::kNoSpace;
  return Status(code, path + ": cannot " + action + ": " + std::strerror(error));
}

// A temporary file that is closed and unlinked when it goes away.
class PrivateTemporary {
 public:
  explicit PrivateTemporary(std::string path) : path_(std::move(path)) {
    fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
  }
  ~PrivateTemporary() {
    if (fd_ < 0) return;
    ::close(fd_);
    ::unlink(path_.c_str());
  }
  PrivateTemporary(const PrivateTemporary&) = delete;
  PrivateTemporary& operator=(const PrivateTemporary&) = delete;
  bool open() const { return fd_ >= 0; }
  const std::string& path() const { return path_; }

  Status WriteAndSync(ByteSpan data) {
    while (!data.empty()) {
      const ssize_t n = ::write(fd_, data.data(), data.size());
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return SystemError(path_, "write");
      data = data.subspan(static_cast<size_t>(n));
    }
    return ::fsync(fd_) == 0 ? Status::Ok() : SystemError(path_, "sync");
  }

 private:
  std::string path_;
  int fd_ = -1;
};

}  // namespace

Status WritePrivateFile(const std::string& path, ByteSpan data, bool replace) {
  PrivateTemporary file(StrFormat("%s.tmp-%d", path.c_str(), static_cast<int>(::getpid())));
  if (!file.open()) return SystemError(path, "create");
  MOEPACK_RETURN_IF_ERROR(file.WriteAndSync(data));
  if (replace) {
    if (::rename(file.path().c_str(), path.c_str()) != 0) return SystemError(path, "replace");
  } else if (::link(file.path().c_str(), path.c_str()) != 0) {
    if (errno == EEXIST)
      return Status(ErrorCode::kUsage, path + ": exists already; remove it, or use --force to replace it");
    return SystemError(path, "create");
  }
  return PosixEnv().SyncDirectory(DirectoryOf(path));
}

}  // namespace moepack
