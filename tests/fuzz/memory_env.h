// Files in memory for fuzz targets: folder "m" with the files given; nothing can be written.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/env.h"

namespace moepack::fuzz {

class MemoryFile final : public RandomAccessFile, public MappedFile {
 public:
  MemoryFile(std::string path, ByteSpan bytes) : path_(std::move(path)), bytes_(bytes) {}
  Result<uint64_t> Size() const override { return static_cast<uint64_t>(bytes_.size()); }
  Status Read(uint64_t offset, std::span<uint8_t> out) const override {
    if (offset > bytes_.size() || out.size() > bytes_.size() - offset)
      return Status(ErrorCode::kTruncated, path_ + ": ends early");
    std::copy_n(bytes_.begin() + static_cast<ptrdiff_t>(offset), out.size(), out.begin());
    return Status::Ok();
  }
  const std::string& path() const override { return path_; }
  ByteSpan bytes() const override { return bytes_; }
  void Release(uint64_t, uint64_t) const override {}

 private:
  std::string path_;
  ByteSpan bytes_;
};

class MemoryEnv final : public Env {
 public:
  std::map<std::string, Bytes> files;  // "m/config.json" -> bytes

  Result<std::unique_ptr<RandomAccessFile>> OpenRead(const std::string& path) override {
    return Find<RandomAccessFile>(path);
  }
  Result<std::unique_ptr<MappedFile>> Map(const std::string& path) override { return Find<MappedFile>(path); }
  Result<bool> Exists(const std::string& path) override { return files.count(path) != 0 || path == "m"; }
  Result<bool> IsDirectory(const std::string& path) override { return path == "m"; }
  Result<std::vector<std::string>> List(const std::string&) override {
    std::vector<std::string> names;
    for (const auto& [path, bytes] : files) names.push_back(path.substr(2));
    return names;
  }
  Result<std::unique_ptr<WritableFile>> CreateNew(const std::string&, const std::string&) override { return ReadOnly(); }
  Status MakeDirectory(const std::string&) override { return ReadOnly(); }
  Status Rename(const std::string&, const std::string&) override { return ReadOnly(); }
  Status Remove(const std::string&) override { return ReadOnly(); }
  Status RemoveTree(const std::string&) override { return ReadOnly(); }
  Status SyncDirectory(const std::string&) override { return ReadOnly(); }

 private:
  static Status ReadOnly() { return Status(ErrorCode::kAccess, "read-only"); }
  template <typename File>
  Result<std::unique_ptr<File>> Find(const std::string& path) {
    const auto it = files.find(path);
    if (it == files.end()) return Status(ErrorCode::kNotFound, path + ": not there");
    return std::unique_ptr<File>(std::make_unique<MemoryFile>(path, it->second));
  }
};

}  // namespace moepack::fuzz
