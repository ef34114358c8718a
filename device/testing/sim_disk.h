// A disk in memory that forgets: what was not synced may be lost, torn or reordered when the power goes.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/env.h"

namespace moepack::testing {

// Operations change what programs see at once, and queue effects for the disk: bytes of a file until it is synced, names of
// a folder (files and folders) until the folder is synced. PowerCut(n) lets the first n operations through; all later ones
// fail and do nothing. PowerOn() instead goes on with what programs saw: the process was killed, the machine stayed on.
// AfterPowerCut then builds a disk on which each queued effect has happened, not happened, or for bytes half happened, in
// any combination: dropping earlier ones while keeping later ones is what reordering looks like. What is in a folder that
// was lost is lost too. One thread at a time.
class SimDisk final : public Env {
 public:
  enum class Fate { kLost, kTorn, kDone };

  void PowerCut(uint64_t operations) { left_ = operations, limited_ = true; }
  void PowerOn() { limited_ = false; }
  uint64_t operations() const { return operations_; }
  size_t pending() const { return pending_.size(); }
  bool IsData(size_t effect) const { return pending_[effect].data; }

  // The disk that is found when the power is back. One fate for each pending effect.
  std::unique_ptr<SimDisk> AfterPowerCut(const std::vector<Fate>& fates) const {
    auto disk = std::make_unique<SimDisk>();
    disk->durable_folders_ = durable_folders_;
    disk->next_inode_ = next_inode_;
    disk->durable_names_ = durable_names_;
    disk->durable_bytes_ = durable_bytes_;
    for (size_t i = 0; i < pending_.size(); ++i) {
      if (fates[i] != Fate::kLost) disk->Apply(pending_[i], fates[i]);
    }
    std::erase_if(disk->durable_folders_, [&](const std::string& folder) {
      for (std::string level = folder; level != "/"; level = DirectoryOf(level)) {
        if (disk->durable_folders_.count(level) == 0) return true;
      }
      return false;
    });
    std::erase_if(disk->durable_names_,
                  [&](const auto& name) { return disk->durable_folders_.count(DirectoryOf(name.first)) == 0; });
    disk->folders_ = disk->durable_folders_;
    disk->names_ = disk->durable_names_;
    disk->bytes_ = disk->durable_bytes_;
    return disk;
  }
  // The same disk in a machine that was never off.
  std::unique_ptr<SimDisk> Copy() const { return std::make_unique<SimDisk>(*this); }

  Result<std::unique_ptr<RandomAccessFile>> OpenRead(const std::string& path) override {
    const auto found = names_.find(path);
    if (found == names_.end()) return Status(ErrorCode::kNotFound, path + ": cannot open: no such file");
    return std::unique_ptr<RandomAccessFile>(std::make_unique<Reader>(path, bytes_[found->second]));
  }
  Result<std::unique_ptr<WritableFile>> CreateNew(const std::string& path, const std::string& shown) override {
    MOEPACK_RETURN_IF_ERROR(Step(shown));
    if (names_.count(path) != 0) return Status(ErrorCode::kAccess, shown + ": exists already");
    const uint64_t inode = next_inode_++;
    bytes_[inode] = {};
    Name(path, inode);
    return std::unique_ptr<WritableFile>(std::make_unique<Writer>(*this, shown, inode));
  }
  Result<std::unique_ptr<MappedFile>> Map(const std::string& path) override {
    return Status(ErrorCode::kUnsupported, path + ": a simulated disk maps nothing");
  }
  Result<bool> Exists(const std::string& path) override { return names_.count(path) != 0 || folders_.count(path) != 0; }
  Result<bool> IsDirectory(const std::string& path) override { return folders_.count(path) != 0; }
  Result<std::vector<std::string>> List(const std::string& directory) override {
    std::vector<std::string> out;
    for (const auto& [path, inode] : names_) {
      if (DirectoryOf(path) == directory) out.push_back(path.substr(directory.size() + 1));
    }
    return out;
  }
  Status MakeDirectory(const std::string& path) override {
    MOEPACK_RETURN_IF_ERROR(Step(path));
    for (std::string folder = path; folders_.insert(folder).second; folder = DirectoryOf(folder)) {
      pending_.push_back({false, 0, 0, {}, {}, folder});
    }
    return Status::Ok();
  }
  Status Rename(const std::string& from, const std::string& to) override {
    MOEPACK_RETURN_IF_ERROR(Step(to));
    const auto found = names_.find(from);
    if (found == names_.end()) return Status(ErrorCode::kNotFound, from + ": no such file");
    const uint64_t inode = found->second;
    // One effect: file systems rename atomically.
    names_.erase(from);
    names_[to] = inode;
    pending_.push_back({false, inode, 0, {}, {{from, 0}, {to, inode}}});
    return Status::Ok();
  }
  Status Remove(const std::string& path) override {
    MOEPACK_RETURN_IF_ERROR(Step(path));
    if (names_.erase(path) == 0) return Status(ErrorCode::kNotFound, path + ": no such file");
    pending_.push_back({false, 0, 0, {}, {{path, 0}}});
    return Status::Ok();
  }
  Status RemoveTree(const std::string& path) override { return Status(ErrorCode::kUnsupported, path); }
  Status SyncDirectory(const std::string& path) override {
    MOEPACK_RETURN_IF_ERROR(Step(path));
    Settle(
        [&](const Effect& e) { return !e.data && DirectoryOf(e.folder.empty() ? e.names.back().first : e.folder) == path; });
    return Status::Ok();
  }

 private:
  struct Effect {
    bool data = false;
    uint64_t inode = 0, offset = 0;
    Bytes bytes;
    std::vector<std::pair<std::string, uint64_t>> names;  // inode 0: the name goes
    std::string folder{};                                 // that was made
  };
  using Names = std::map<std::string, uint64_t>;
  using Contents = std::map<uint64_t, Bytes>;

  class Reader final : public RandomAccessFile {
   public:
    Reader(std::string path, Bytes bytes) : path_(std::move(path)), bytes_(std::move(bytes)) {}
    Result<uint64_t> Size() const override { return bytes_.size(); }
    Status Read(uint64_t offset, std::span<uint8_t> out) const override {
      if (offset > bytes_.size() || out.size() > bytes_.size() - offset) {
        return Status(ErrorCode::kTruncated, path_ + ": shorter than expected");
      }
      std::copy_n(bytes_.begin() + static_cast<ptrdiff_t>(offset), out.size(), out.begin());
      return Status::Ok();
    }
    const std::string& path() const override { return path_; }

   private:
    const std::string path_;
    const Bytes bytes_;
  };

  class Writer final : public WritableFile {
   public:
    Writer(SimDisk& disk, std::string path, uint64_t inode) : disk_(disk), path_(std::move(path)), inode_(inode) {}
    Status Append(ByteSpan data) override {
      MOEPACK_RETURN_IF_ERROR(disk_.Step(path_));
      Bytes& bytes = disk_.bytes_[inode_];
      disk_.pending_.push_back({true, inode_, bytes.size(), Bytes(data.begin(), data.end()), {}});
      bytes.insert(bytes.end(), data.begin(), data.end());
      return Status::Ok();
    }
    Status Sync() override {
      MOEPACK_RETURN_IF_ERROR(disk_.Step(path_));
      disk_.Settle([&](const Effect& e) { return e.data && e.inode == inode_; });
      return Status::Ok();
    }
    Status Close() override { return Status::Ok(); }

   private:
    SimDisk& disk_;
    const std::string path_;
    const uint64_t inode_;
  };

  Status Step(const std::string& path) {
    if (limited_ && left_ == 0) return Status(ErrorCode::kAccess, path + ": the power is off");
    if (limited_) --left_;
    ++operations_;
    return Status::Ok();
  }
  void Name(const std::string& path, uint64_t inode) {
    names_[path] = inode;
    pending_.push_back({false, inode, 0, {}, {{path, inode}}});
  }
  void Apply(const Effect& effect, Fate fate) {
    if (!effect.folder.empty()) durable_folders_.insert(effect.folder);
    for (const auto& [path, inode] : effect.names) {
      if (inode == 0) durable_names_.erase(path);
      if (inode != 0) durable_names_[path] = inode, durable_bytes_[inode];
    }
    if (!effect.data) return;
    const size_t size = fate == Fate::kTorn ? effect.bytes.size() / 2 : effect.bytes.size();
    Bytes& bytes = durable_bytes_[effect.inode];
    if (bytes.size() < effect.offset + size) bytes.resize(effect.offset + size, 0);
    std::copy_n(effect.bytes.begin(), size, bytes.begin() + static_cast<ptrdiff_t>(effect.offset));
  }
  // Effects that are on the disk for good, in their order.
  template <typename Predicate>
  void Settle(const Predicate& chosen) {
    std::vector<Effect> rest;
    for (Effect& effect : pending_) {
      if (chosen(effect)) {
        Apply(effect, Fate::kDone);
      } else {
        rest.push_back(std::move(effect));
      }
    }
    pending_ = std::move(rest);
  }

  Names names_, durable_names_;
  Contents bytes_, durable_bytes_;
  std::set<std::string> folders_{"/"}, durable_folders_{"/"};
  std::vector<Effect> pending_;
  uint64_t next_inode_ = 1, operations_ = 0, left_ = 0;
  bool limited_ = false;
};

}  // namespace moepack::testing
