// Outputs of more than one file, private files, and folders: what AtomicFile does for one file. Errors as Env's.
#pragma once

#include <string>
#include <vector>

#include "base/env.h"
#include "base/status.h"

namespace moepack {

// What errno says, by Env's rule: "PATH: cannot ACTION: reason".
Status ErrnoStatus(const std::string& path, const std::string& action);

// Whether a file can be written at `path`: what a long job asks before it starts. kAccess when something else than a file
// stands there or its folder does not exist.
Status CheckFileOutput(Env& env, const std::string& path);

// A file of CommitTogether, with the path that it was created for.
struct PendingFile {
  std::string path;
  AtomicFile* file = nullptr;  // not owned
};

// All files get their names, in order, or none does: after an error what stood under the names before stands there again.
Status CommitTogether(Env& env, const std::vector<PendingFile>& files);

// WriteFileAtomically for a file that only its owner may read: mode 0600 from its first moment. Narrows the umask of the
// process while the file is created, so no other thread may do the same then; what others create gets no wider mode.
Status WritePrivateFile(Env& env, const std::string& path, ByteSpan data);

// Swaps what two names in one file system stand for: in one step where the file system can (renameat2), else by
// ExchangeByRenames. Goes past `env` for the first: an Env has no such operation, and every one that can write is a
// view of the operating system's files.
Status ExchangeNames(Env& env, const std::string& a, const std::string& b);
// The same by three renames. In between the old content of `b` has a TemporaryPath, so a kill loses no content.
Status ExchangeByRenames(Env& env, const std::string& a, const std::string& b);

}  // namespace moepack
