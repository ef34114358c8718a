#include <algorithm>
#include <map>
#include <optional>

#include "base/digest/sha256.h"
#include "format/manifest/folder_files.h"
#include "format/manifest/model_folder.h"
#include "format/manifest/program_wire.h"
#include "format/manifest/unit_check.h"

namespace moepack {
namespace {

std::string WithoutTrailingSlash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

// Only a complete model folder, or an empty folder, may be replaced: anything else is somebody's work.
Status CheckReplaceable(Env& env, const std::string& directory) {
  const Status refused(ErrorCode::kUsage,
                       directory + ": exists and is not a compressed model folder; remove it or choose another name");
  MOEPACK_ASSIGN_OR_RETURN(const bool exists, env.Exists(directory));
  if (!exists) return Status::Ok();
  MOEPACK_ASSIGN_OR_RETURN(const bool is_directory, env.IsDirectory(directory));
  if (!is_directory) return refused;
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<std::string> names, env.List(directory));
  const auto known = [](const std::string& name) {
    return IsCallerFile(name) || name == kProgramFile || name == kExpertsFile || name == kCompleteFile ||
           ParseBlockFileName(name).has_value();
  };
  const bool complete = std::find(names.begin(), names.end(), kCompleteFile) != names.end();
  if (names.empty() || (complete && std::all_of(names.begin(), names.end(), known))) return Status::Ok();
  return refused;
}

// Whether a block file left by an earlier run is whole. An error only when the disk fails.
Result<std::optional<BlockHead>> ReadIntactBlock(Env& env, const std::string& path, int32_t block) {
  const auto damage = [](const Status& status) { return status.exit_status() != 7 && status.exit_status() != 1; };
  Result<BlockHead> head = ReadBlockHead(env, path, block, nullptr);
  if (!head.ok()) return damage(head.status()) ? Result<std::optional<BlockHead>>(std::nullopt) : head.status();
  for (const StoredUnit& unit : head->units) {
    const Result<Bytes> plain = ReadStoredUnit(env, path, unit);
    if (!plain.ok()) return damage(plain.status()) ? Result<std::optional<BlockHead>>(std::nullopt) : plain.status();
  }
  return std::optional<BlockHead>(std::move(*head));
}

Result<FileRecord> RecordOfFile(Env& env, const std::string& path, const std::string& name) {
  MOEPACK_ASSIGN_OR_RETURN(const auto file, env.OpenRead(path));
  FileRecord record;
  record.name = name;
  MOEPACK_ASSIGN_OR_RETURN(record.bytes, file->Size());
  MOEPACK_ASSIGN_OR_RETURN(record.digest, Sha256File(env, path));
  return record;
}

}  // namespace

struct ModelFolderWriter::State {
  State(Env& e, std::string d) : env(e), directory(std::move(d)), partial(directory + ".partial") {}

  std::string PathOf(const std::string& name) const { return JoinPath(partial, name); }
  Status KeepIntactBlocks();
  Result<std::vector<FileRecord>> RecordFiles() const;
  Status Install();

  Env& env;
  const std::string directory, partial;
  std::map<int32_t, BlockHead> blocks;
  std::vector<std::vector<ExpertEntry>> experts;
};

// Takes over what an earlier run left, and removes what it did not finish.
Status ModelFolderWriter::State::KeepIntactBlocks() {
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<std::string> names, env.List(partial));
  for (const std::string& name : names) {
    const std::optional<int32_t> block = ParseBlockFileName(name);
    if (block.has_value()) {
      MOEPACK_ASSIGN_OR_RETURN(std::optional<BlockHead> head, ReadIntactBlock(env, PathOf(name), *block));
      if (head.has_value()) {
        blocks.emplace(*block, std::move(*head));
        continue;
      }
    } else if (IsCallerFile(name)) {
      continue;
    }
    MOEPACK_RETURN_IF_ERROR(env.RemoveTree(PathOf(name)));
  }
  return Status::Ok();
}

Result<std::vector<FileRecord>> ModelFolderWriter::State::RecordFiles() const {
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<std::string> names, env.List(partial));
  std::vector<FileRecord> records;
  for (const std::string& name : names) {
    const std::optional<int32_t> block = ParseBlockFileName(name);
    if (block.has_value() && blocks.contains(*block)) {
      const BlockHead& head = blocks.at(*block);
      records.push_back({name, head.file_bytes, head.digest});
    } else if (IsCallerFile(name) || name == kProgramFile || name == kExpertsFile) {
      MOEPACK_ASSIGN_OR_RETURN(FileRecord record, RecordOfFile(env, PathOf(name), name));
      records.push_back(std::move(record));
    } else if (name != kCompleteFile) {
      return Status(ErrorCode::kBadInput, PathOf(name) + ": does not belong into a model folder; remove it");
    }
  }
  return records;
}

Status ModelFolderWriter::State::Install() {
  MOEPACK_RETURN_IF_ERROR(CheckReplaceable(env, directory));
  const std::string old = partial + "-old";
  MOEPACK_RETURN_IF_ERROR(env.RemoveTree(old));
  MOEPACK_ASSIGN_OR_RETURN(const bool replace, env.Exists(directory));
  if (replace) MOEPACK_RETURN_IF_ERROR(env.Rename(directory, old));
  if (Status status = env.Rename(partial, directory); !status.ok()) {
    if (replace) (void)env.Rename(old, directory);  // the first error is the one to report
    return status;
  }
  MOEPACK_RETURN_IF_ERROR(env.SyncDirectory(DirectoryOf(directory)));
  return env.RemoveTree(old);
}

ModelFolderWriter::ModelFolderWriter(std::unique_ptr<State> state) : state_(std::move(state)) {}
ModelFolderWriter::~ModelFolderWriter() = default;

Result<std::unique_ptr<ModelFolderWriter>> ModelFolderWriter::Create(Env& env, const std::string& directory, bool resume) {
  auto state = std::make_unique<State>(env, WithoutTrailingSlash(directory));
  MOEPACK_RETURN_IF_ERROR(CheckReplaceable(env, state->directory));
  if (!resume) MOEPACK_RETURN_IF_ERROR(env.RemoveTree(state->partial));
  MOEPACK_RETURN_IF_ERROR(env.MakeDirectory(state->partial));
  MOEPACK_RETURN_IF_ERROR(state->KeepIntactBlocks());
  return std::unique_ptr<ModelFolderWriter>(new ModelFolderWriter(std::move(state)));
}

bool ModelFolderWriter::HasBlock(int32_t block) const { return state_->blocks.contains(block); }

Status ModelFolderWriter::WriteBlock(int32_t block, const std::vector<FolderUnit>& units) {
  if (block < 0) return Status(ErrorCode::kInternal, StrFormat("block %d", block));
  BlockHead head;
  head.block = block;
  for (size_t i = 0; i < units.size(); ++i) {
    const FolderUnit& unit = units[i];
    MOEPACK_ASSIGN_OR_RETURN(const uint64_t plain_bytes, UnitPlainBytes(unit.tensors));
    if (plain_bytes != unit.plain.size() || (i > 0 && !(units[i - 1].key < unit.key))) {
      return Status(ErrorCode::kInternal, StrFormat("block %d, unit %zu: wrong size or out of order", block, i));
    }
    head.units.push_back({unit.key, unit.tensors, 0, plain_bytes, Sha256(unit.plain)});
  }
  const Bytes head_bytes = SerializeBlockHead(&head);
  state_->blocks.erase(block);
  MOEPACK_ASSIGN_OR_RETURN(const auto file, AtomicFile::Create(state_->env, state_->PathOf(BlockFileName(block))));
  MOEPACK_RETURN_IF_ERROR(file->Append(head_bytes));
  for (const FolderUnit& unit : units) MOEPACK_RETURN_IF_ERROR(file->Append(unit.plain));
  MOEPACK_RETURN_IF_ERROR(file->Commit());
  state_->blocks.emplace(block, std::move(head));
  return Status::Ok();
}

Result<std::vector<FolderUnit>> ModelFolderWriter::ReadBlock(int32_t block) const {
  const auto found = state_->blocks.find(block);
  if (found == state_->blocks.end()) return Status(ErrorCode::kNotFound, StrFormat("block %d has not been written", block));
  std::vector<FolderUnit> units;
  for (const StoredUnit& stored : found->second.units) {
    MOEPACK_ASSIGN_OR_RETURN(Bytes plain, ReadStoredUnit(state_->env, state_->PathOf(BlockFileName(block)), stored));
    units.push_back({stored.key, stored.tensors, std::move(plain)});
  }
  return units;
}

Status ModelFolderWriter::WriteFile(const std::string& name, ByteSpan bytes) {
  if (!IsCallerFile(name)) return Status(ErrorCode::kInternal, "'" + name + "' is not a file of a model folder");
  return WriteFileAtomically(state_->env, state_->PathOf(name), bytes);
}

Result<Bytes> ModelFolderWriter::ReadFileIfPresent(const std::string& name) const {
  if (!IsCallerFile(name)) return Status(ErrorCode::kInternal, "'" + name + "' is not a file of a model folder");
  MOEPACK_ASSIGN_OR_RETURN(const bool exists, state_->env.Exists(state_->PathOf(name)));
  if (!exists) return Bytes();
  return ReadFile(state_->env, state_->PathOf(name), kMaxFolderFileBytes);
}

Status ModelFolderWriter::SetExperts(const std::vector<std::vector<ExpertEntry>>& experts) {
  state_->experts = experts;
  return Status::Ok();
}

Status ModelFolderWriter::Finish(const Program& program) {
  MOEPACK_RETURN_IF_ERROR(ValidateProgram(program));
  MOEPACK_RETURN_IF_ERROR(CheckFolderBlocks(program, state_->blocks, state_->experts));
  Env& env = state_->env;
  MOEPACK_RETURN_IF_ERROR(WriteFileAtomically(env, state_->PathOf(kProgramFile), SerializeProgram(program)));
  MOEPACK_RETURN_IF_ERROR(WriteFileAtomically(env, state_->PathOf(kExpertsFile), SerializeFolderExperts(state_->experts)));
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<FileRecord> records, state_->RecordFiles());
  MOEPACK_RETURN_IF_ERROR(WriteFileAtomically(env, state_->PathOf(kCompleteFile), SerializeComplete(records)));
  return state_->Install();
}

}  // namespace moepack
