#include "base/outputs.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>

namespace moepack {
namespace {

// A pending file, and where what had its name before is kept until all are placed.
struct Placed {
  const PendingFile* pending = nullptr;
  std::string earlier;  // empty: there was nothing
};

// Errors are not reported, the one that led here is.
void TakeBack(Env& env, const std::vector<Placed>& placed) {
  for (auto it = placed.rbegin(); it != placed.rend(); ++it) {
    if (it->earlier.empty()) {
      (void)env.Remove(it->pending->path);
    } else {
      (void)env.Rename(it->earlier, it->pending->path);
    }
  }
}

Status Place(Env& env, const PendingFile& pending, std::vector<Placed>* placed) {
  Placed entry{&pending, ""};
  MOEPACK_ASSIGN_OR_RETURN(const bool exists, env.Exists(pending.path));
  if (exists) {
    MOEPACK_ASSIGN_OR_RETURN(const std::string earlier, TemporaryPath(pending.path));
    MOEPACK_RETURN_IF_ERROR(env.Rename(pending.path, earlier));
    entry.earlier = earlier;
  }
  Status committed = pending.file->Commit();
  // A Commit that failed may or may not have given the name.
  if (committed.ok() || exists) placed->push_back(std::move(entry));
  if (!committed.ok() && !exists && env.Exists(pending.path).ok() && *env.Exists(pending.path)) {
    (void)env.Remove(pending.path);
  }
  return committed;
}

}  // namespace

Status ErrnoStatus(const std::string& path, const std::string& action) {
  const int error = errno;
  ErrorCode code = ErrorCode::kAccess;
  if (error == ENOENT || error == ENOTDIR) code = ErrorCode::kNotFound;
  if (error == ENOSPC || error == EDQUOT || error == EFBIG) code = ErrorCode::kNoSpace;
  if (error == ENOMEM) code = ErrorCode::kNoMemory;
  return Status(code, path + ": cannot " + action + ": " + std::strerror(error));
}

Status CheckFileOutput(Env& env, const std::string& path) {
  // A rename would replace a device or a pipe by a file.
  MOEPACK_ASSIGN_OR_RETURN(const bool exists, env.Exists(path));
  if (exists && env.OpenRead(path).status().code() == ErrorCode::kBadInput) {
    return Status(ErrorCode::kAccess, path + ": cannot be written: not a regular file");
  }
  if (exists) return Status::Ok();
  MOEPACK_ASSIGN_OR_RETURN(const bool folder, env.IsDirectory(DirectoryOf(path)));
  if (folder) return Status::Ok();
  return Status(ErrorCode::kAccess, path + ": cannot be written: there is no folder " + DirectoryOf(path));
}

Status CommitTogether(Env& env, const std::vector<PendingFile>& files) {
  for (const PendingFile& pending : files) MOEPACK_RETURN_IF_ERROR(pending.file->Finish());
  std::vector<Placed> placed;
  for (const PendingFile& pending : files) {
    Status status = Place(env, pending, &placed);
    if (status.ok()) continue;
    TakeBack(env, placed);
    return status;
  }
  for (const Placed& entry : placed) {
    if (!entry.earlier.empty()) MOEPACK_RETURN_IF_ERROR(env.Remove(entry.earlier));
  }
  return Status::Ok();
}

Status WritePrivateFile(Env& env, const std::string& path, ByteSpan data) {
  const mode_t before = ::umask(S_IRWXG | S_IRWXO);
  auto created = AtomicFile::Create(env, path);
  ::umask(before);
  MOEPACK_ASSIGN_OR_RETURN(const auto file, std::move(created));
  MOEPACK_RETURN_IF_ERROR(file->Append(data));
  return file->Commit();
}

Status ExchangeNames(Env& env, const std::string& a, const std::string& b) {
  // What is to be seen under the new name must be on the disk first.
  MOEPACK_RETURN_IF_ERROR(env.SyncDirectory(a));
  if (::renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0) return Status::Ok();
  // File systems that cannot say EINVAL, old kernels and emulators ENOSYS.
  if (errno != EINVAL && errno != ENOSYS) return ErrnoStatus(b, "exchange with " + a);
  return ExchangeByRenames(env, a, b);
}

Status ExchangeByRenames(Env& env, const std::string& a, const std::string& b) {
  MOEPACK_ASSIGN_OR_RETURN(const std::string aside, TemporaryPath(b));
  MOEPACK_RETURN_IF_ERROR(env.Rename(b, aside));
  Status status = env.Rename(a, b);
  if (status.ok()) return env.Rename(aside, a);
  (void)env.Rename(aside, b);  // the first error is the one to report
  return status;
}

}  // namespace moepack
