// An Env whose n-th operation fails: how tests see a full disk, a lost permission or a kill at any moment.
#pragma once

#include <stdlib.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "base/env.h"

namespace moepack::testing {

// Forwards to another Env and counts what is asked of it. Syncs are counted but not done: they are slow, and no test turns
// the power off. Thread-safe.
class FaultEnv final : public Env {
 public:
  enum class Count { kEverything, kWrites };  // kWrites: what needs space; reading and removing are not counted
  enum class Duration { kOnce, kFromThenOn };

  explicit FaultEnv(Env& base, Count count = Count::kEverything) : base_(base), count_(count) {}

  // The n-th counted operation after this call (1 = the next) fails with `code`. 0: nothing fails. Not while another
  // thread is using this Env.
  void FailAt(uint64_t n, ErrorCode code, Duration duration = Duration::kOnce) {
    done_ = 0;
    fail_at_ = n;
    code_ = code;
    duration_ = duration;
  }
  // Counted operations since the last FailAt, the failed ones included.
  uint64_t operations() const { return done_; }

  Result<std::unique_ptr<RandomAccessFile>> OpenRead(const std::string& path) override {
    MOEPACK_RETURN_IF_ERROR(Step(false, path));
    MOEPACK_ASSIGN_OR_RETURN(auto file, base_.OpenRead(path));
    return std::unique_ptr<RandomAccessFile>(std::make_unique<ReadFile>(*this, std::move(file)));
  }
  Result<std::unique_ptr<WritableFile>> CreateNew(const std::string& path, const std::string& shown) override {
    MOEPACK_RETURN_IF_ERROR(Step(true, shown));
    MOEPACK_ASSIGN_OR_RETURN(auto file, base_.CreateNew(path, shown));
    return std::unique_ptr<WritableFile>(std::make_unique<WriteFile>(*this, shown, std::move(file)));
  }
  Result<std::unique_ptr<MappedFile>> Map(const std::string& path) override {
    MOEPACK_RETURN_IF_ERROR(Step(false, path));
    return base_.Map(path);
  }
  Result<bool> Exists(const std::string& path) override {
    MOEPACK_RETURN_IF_ERROR(Step(false, path));
    return base_.Exists(path);
  }
  Result<bool> IsDirectory(const std::string& path) override {
    MOEPACK_RETURN_IF_ERROR(Step(false, path));
    return base_.IsDirectory(path);
  }
  Result<std::vector<std::string>> List(const std::string& directory) override {
    MOEPACK_RETURN_IF_ERROR(Step(false, directory));
    return base_.List(directory);
  }
  Status MakeDirectory(const std::string& path) override {
    MOEPACK_RETURN_IF_ERROR(Step(true, path));
    return base_.MakeDirectory(path);
  }
  Status Rename(const std::string& from, const std::string& to) override {
    MOEPACK_RETURN_IF_ERROR(Step(true, to));
    return base_.Rename(from, to);
  }
  Status Remove(const std::string& path) override {
    MOEPACK_RETURN_IF_ERROR(Step(false, path));
    return base_.Remove(path);
  }
  Status RemoveTree(const std::string& path) override {
    MOEPACK_RETURN_IF_ERROR(Step(false, path));
    return base_.RemoveTree(path);
  }
  Status SyncDirectory(const std::string& path) override { return Step(true, path); }

 private:
  class ReadFile final : public RandomAccessFile {
   public:
    ReadFile(FaultEnv& env, std::unique_ptr<RandomAccessFile> file) : env_(env), file_(std::move(file)) {}
    Result<uint64_t> Size() const override {
      MOEPACK_RETURN_IF_ERROR(env_.Step(false, path()));
      return file_->Size();
    }
    Status Read(uint64_t offset, std::span<uint8_t> out) const override {
      MOEPACK_RETURN_IF_ERROR(env_.Step(false, path()));
      return file_->Read(offset, out);
    }
    const std::string& path() const override { return file_->path(); }

   private:
    FaultEnv& env_;
    std::unique_ptr<RandomAccessFile> file_;
  };

  class WriteFile final : public WritableFile {
   public:
    WriteFile(FaultEnv& env, std::string path, std::unique_ptr<WritableFile> file)
        : env_(env), path_(std::move(path)), file_(std::move(file)) {}
    Status Append(ByteSpan data) override {
      const Status status = env_.Step(true, path_);
      if (status.ok()) return file_->Append(data);
      (void)file_->Append(data.first(data.size() / 2));  // a full disk takes the first part
      return status;
    }
    Status Sync() override { return env_.Step(true, path_); }
    Status Close() override {
      MOEPACK_RETURN_IF_ERROR(env_.Step(true, path_));
      return file_->Close();
    }

   private:
    FaultEnv& env_;
    const std::string path_;
    std::unique_ptr<WritableFile> file_;
  };

  Status Step(bool write, const std::string& path) {
    if (count_ == Count::kWrites && !write) return Status::Ok();
    const uint64_t now = ++done_;
    const bool fails = fail_at_ != 0 && (now == fail_at_ || (duration_ == Duration::kFromThenOn && now > fail_at_));
    return fails ? Status(code_, path + ": injected fault") : Status::Ok();
  }

  Env& base_;
  const Count count_;
  std::atomic<uint64_t> done_{0};
  uint64_t fail_at_ = 0;
  ErrorCode code_ = ErrorCode::kAccess;
  Duration duration_ = Duration::kOnce;
};

// A folder of its own under the test's temporary folder, removed at the end.
class TempDirectory {
 public:
  explicit TempDirectory(const std::string& parent) {
    std::string pattern = JoinPath(parent, "moepack-test-XXXXXX");
    path_ = ::mkdtemp(pattern.data()) == nullptr ? "" : pattern;
  }
  ~TempDirectory() { (void)PosixEnv().RemoveTree(path_); }
  TempDirectory(const TempDirectory&) = delete;
  TempDirectory& operator=(const TempDirectory&) = delete;
  const std::string& path() const { return path_; }
  std::string Path(const std::string& name) const { return JoinPath(path_, name); }

 private:
  std::string path_;
};

}  // namespace moepack::testing
