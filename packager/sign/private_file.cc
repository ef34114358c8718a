#include "packager/sign/private_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "base/env.h"
#include "base/outputs.h"

namespace moepack {
namespace {

Status WriteAndSync(int fd, const std::string& path, ByteSpan data) {
  while (!data.empty()) {
    const ssize_t n = ::write(fd, data.data(), data.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(path, "write");
    data = data.subspan(static_cast<size_t>(n));
  }
  return ::fsync(fd) == 0 ? Status::Ok() : ErrnoStatus(path, "sync");
}

}  // namespace

Result<std::unique_ptr<PrivateFile>> PrivateFile::Create(const std::string& path, ByteSpan data) {
  MOEPACK_ASSIGN_OR_RETURN(std::string temporary, TemporaryPath(path));
  MOEPACK_ASSIGN_OR_RETURN(std::string previous, TemporaryPath(path));
  const int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) return ErrnoStatus(path, "create");
  std::unique_ptr<PrivateFile> file(new PrivateFile(path, std::move(temporary), std::move(previous)));
  const Status status = WriteAndSync(fd, path, data);
  ::close(fd);
  if (!status.ok()) return status;
  return file;
}

PrivateFile::~PrivateFile() {
  ::unlink(temporary_.c_str());  // not there any more after a Commit that renamed it
  if (has_previous_) ::unlink(previous_.c_str());
}

// So that Undo can bring it back, whatever happens in between.
Status PrivateFile::KeepPrevious() {
  struct stat info;
  if (::lstat(path_.c_str(), &info) == 0 && S_ISDIR(info.st_mode)) {
    return Status(ErrorCode::kAccess, path_ + ": cannot be replaced: it is a folder");
  }
  has_previous_ = ::link(path_.c_str(), previous_.c_str()) == 0;
  return has_previous_ || errno == ENOENT ? Status::Ok() : ErrnoStatus(path_, "keep what is there");
}

Status PrivateFile::Commit(bool replace) {
  if (replace) {
    MOEPACK_RETURN_IF_ERROR(KeepPrevious());
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) return ErrnoStatus(path_, "replace");
  } else if (::link(temporary_.c_str(), path_.c_str()) != 0) {
    if (errno == EEXIST)
      return Status(ErrorCode::kUsage, path_ + ": exists already; remove it, or use --force to replace it");
    return ErrnoStatus(path_, "create");
  }
  return PosixEnv().SyncDirectory(DirectoryOf(path_));
}

Status PrivateFile::Undo() {
  if (!has_previous_) return ::unlink(path_.c_str()) == 0 ? Status::Ok() : ErrnoStatus(path_, "remove");
  if (::rename(previous_.c_str(), path_.c_str()) != 0) return ErrnoStatus(path_, "bring back from " + previous_);
  has_previous_ = false;
  return Status::Ok();
}

}  // namespace moepack
