#include <algorithm>
#include <map>
#include <optional>

#include "base/digest/sha256.h"
#include "base/outputs.h"
#include "format/manifest/folder_files.h"
#include "format/manifest/model_folder.h"
#include "format/manifest/program_wire.h"
#include "format/manifest/unit_check.h"

namespace moepack {
namespace {

constexpr char kPartialSuffix[] = ".partial";
constexpr char kUnfinishedText[] =
    "An unfinished output of moepack compress: --resume continues it, another run replaces it.\n";

std::string WithoutTrailingSlash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

bool IsFolderFile(const std::string& name) {
  return IsCallerFile(name) || name == kProgramFile || name == kExpertsFile || name == kCompleteFile ||
         ParseBlockFileName(name).has_value();
}

// What AtomicFile leaves when it is killed.
bool IsFolderTemporary(const std::string& name) {
  const size_t suffix = name.rfind(".tmp-");
  if (suffix == std::string::npos) return false;
  const std::string file = name.substr(0, suffix);
  return IsFolderFile(file) || file == kUnfinishedFile || file == kStateFile;
}

// What stands under a name that we want for a folder of ours.
enum class Occupant : uint8_t { kNothing, kEmpty, kModelFolder, kUnfinished };

// kUsage for anything but the four: it is somebody's work, and the message names what of it is not ours.
Result<Occupant> OccupantOf(Env& env, const std::string& directory) {
  const auto refused = [&](const std::string& why) {
    return Status(ErrorCode::kUsage, directory + ": " + why + "; move it away or choose another name");
  };
  MOEPACK_ASSIGN_OR_RETURN(const bool exists, env.Exists(directory));
  if (!exists) return Occupant::kNothing;
  MOEPACK_ASSIGN_OR_RETURN(const bool is_directory, env.IsDirectory(directory));
  if (!is_directory) return refused("exists and is not a folder");
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<std::string> names, env.List(directory));
  if (names.empty()) return Occupant::kEmpty;
  const auto has = [&](const char* name) { return std::find(names.begin(), names.end(), name) != names.end(); };
  const bool unfinished = has(kUnfinishedFile);
  const auto temporaries = static_cast<size_t>(std::count_if(names.begin(), names.end(), IsFolderTemporary));
  if (!unfinished && !has(kCompleteFile)) {
    if (temporaries == names.size()) return Occupant::kUnfinished;  // killed while it was being marked
    return refused("exists and is not a compressed model folder (it holds " + names[0] + ")");
  }
  for (const std::string& name : names) {
    if (IsFolderFile(name)) continue;
    if (unfinished && (name == kUnfinishedFile || name == kStateFile || IsFolderTemporary(name))) continue;
    return refused("holds " + name + ", which moepack did not write");
  }
  return unfinished ? Occupant::kUnfinished : Occupant::kModelFolder;
}

struct Occupants {
  Occupant output = Occupant::kNothing, partial = Occupant::kNothing;
};

// An unfinished folder is ours to continue or remove, but only under the name that we give it.
Result<Occupants> CheckNames(Env& env, const std::string& directory) {
  Occupants found;
  MOEPACK_ASSIGN_OR_RETURN(found.output, OccupantOf(env, directory));
  if (found.output == Occupant::kUnfinished) {
    return Status(ErrorCode::kUsage, directory + ": is an unfinished compressed model; choose the name without .partial");
  }
  MOEPACK_ASSIGN_OR_RETURN(found.partial, OccupantOf(env, directory + kPartialSuffix));
  return found;
}

// Removes a folder of ours, what tells that it is ours last: a kill on the way leaves something that is known again.
Status RemoveOurs(Env& env, const std::string& directory) {
  MOEPACK_ASSIGN_OR_RETURN(const bool exists, env.Exists(directory));
  if (!exists) return Status::Ok();
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<std::string> names, env.List(directory));
  for (const std::string& name : names) {
    if (name == kCompleteFile || name == kUnfinishedFile) continue;
    MOEPACK_RETURN_IF_ERROR(env.Remove(JoinPath(directory, name)));
  }
  return env.RemoveTree(directory);
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
  State(Env& e, std::string d) : env(e), directory(std::move(d)), partial(directory + kPartialSuffix) {}

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
    } else if (IsCallerFile(name) || name == kUnfinishedFile || name == kStateFile) {
      continue;
    }
    MOEPACK_RETURN_IF_ERROR(env.Remove(PathOf(name)));
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
    } else if (name != kCompleteFile && name != kUnfinishedFile) {
      return Status(ErrorCode::kBadInput, PathOf(name) + ": does not belong into a model folder; remove it");
    }
  }
  return records;
}

// The mark goes before the name: under its final name a folder holds nothing but the model.
Status ModelFolderWriter::State::Install() {
  MOEPACK_ASSIGN_OR_RETURN(const Occupants found, CheckNames(env, directory));
  MOEPACK_RETURN_IF_ERROR(env.Remove(PathOf(kUnfinishedFile)));
  MOEPACK_RETURN_IF_ERROR(env.SyncDirectory(partial));
  const bool replaces = found.output != Occupant::kNothing;
  // The earlier folder keeps a name until the new one has its own.
  MOEPACK_RETURN_IF_ERROR(replaces ? ExchangeNames(env, partial, directory) : env.Rename(partial, directory));
  MOEPACK_RETURN_IF_ERROR(env.SyncDirectory(DirectoryOf(directory)));
  return replaces ? RemoveOurs(env, partial) : Status::Ok();
}

ModelFolderWriter::ModelFolderWriter(std::unique_ptr<State> state) : state_(std::move(state)) {}
ModelFolderWriter::~ModelFolderWriter() = default;

Result<bool> ModelFolderWriter::CheckOutput(Env& env, const std::string& directory) {
  MOEPACK_ASSIGN_OR_RETURN(const Occupants found, CheckNames(env, WithoutTrailingSlash(directory)));
  return found.output == Occupant::kModelFolder;
}

Result<std::unique_ptr<ModelFolderWriter>> ModelFolderWriter::Create(Env& env, const std::string& directory, bool resume) {
  auto state = std::make_unique<State>(env, WithoutTrailingSlash(directory));
  MOEPACK_ASSIGN_OR_RETURN(const Occupants found, CheckNames(env, state->directory));
  // A whole model folder under this name is an earlier one, exchanged for its successor and not removed any more.
  if (!resume || found.partial == Occupant::kModelFolder) MOEPACK_RETURN_IF_ERROR(RemoveOurs(env, state->partial));
  MOEPACK_RETURN_IF_ERROR(env.MakeDirectory(state->partial));
  MOEPACK_RETURN_IF_ERROR(WriteFileAtomically(env, state->PathOf(kUnfinishedFile), AsBytes(kUnfinishedText)));
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

std::string ModelFolderWriter::StatePath() const { return state_->PathOf(kStateFile); }

void ModelFolderWriter::SetExperts(const std::vector<std::vector<ExpertEntry>>& experts) { state_->experts = experts; }

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
