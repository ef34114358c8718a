// Files that only their owner may read.
#pragma once

#include <memory>
#include <string>

#include "base/bytes.h"
#include "base/status.h"

namespace moepack {

// A file of mode 0600 that appears under its name complete or not at all. Errors name `path`. One thread.
class PrivateFile {
 public:
  // `data` on the disk, beside `path` under a name that nobody can foresee. What is at `path` stays. kNoSpace, kAccess,
  // kNotFound (folder).
  static Result<std::unique_ptr<PrivateFile>> Create(const std::string& path, ByteSpan data);
  // Removes what was not committed.
  ~PrivateFile();
  PrivateFile(const PrivateFile&) = delete;
  PrivateFile& operator=(const PrivateFile&) = delete;

  // Gives the file its name. Without `replace` an existing file is never touched, not even in a race: kUsage.
  Status Commit(bool replace);
  // After Commit: what was at `path` before is there again, or nothing.
  Status Undo();

 private:
  PrivateFile(std::string path, std::string temporary, std::string previous)
      : path_(std::move(path)), temporary_(std::move(temporary)), previous_(std::move(previous)) {}
  Status KeepPrevious();
  std::string path_, temporary_;
  std::string previous_;  // a second name of what Commit replaced
  bool has_previous_ = false;
};

}  // namespace moepack
