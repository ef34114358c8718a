#include "format/manifest/model_folder.h"

#include <algorithm>
#include <map>

#include "base/checked.h"
#include "base/digest/sha256.h"
#include "format/manifest/folder_files.h"
#include "format/manifest/program_wire.h"

namespace moepack {

struct ModelFolder::State {
  State(Env& e, std::string d) : env(e), directory(std::move(d)) {}

  Status ReadComplete();
  const FileRecord* Find(const std::string& name) const;
  // Bytes of a file that `complete` lists, size and digest checked; empty when it is not listed.
  Result<Bytes> ReadListed(const std::string& name) const;
  Status ReadBlocks();
  void ListUnits();

  Env& env;
  const std::string directory;
  std::vector<FileRecord> files;
  Program program;
  Bytes tokenizer;
  HotList hot;
  std::vector<std::vector<ExpertEntry>> experts;
  std::map<int32_t, BlockHead> blocks;
  std::vector<UnitInfo> units;
  std::vector<const StoredUnit*> stored;  // of units[i]; points into blocks
};

Status ModelFolder::State::ReadComplete() {
  const std::string path = JoinPath(directory, kCompleteFile);
  MOEPACK_ASSIGN_OR_RETURN(const bool exists, env.Exists(path));
  if (!exists) {
    return Status(ErrorCode::kBadInput, directory + ": not a complete compressed model folder (it has no file `complete`)");
  }
  MOEPACK_ASSIGN_OR_RETURN(const Bytes bytes, ReadFile(env, path, kMaxFolderFileBytes));
  Result<std::vector<FileRecord>> records = ParseComplete(bytes);
  if (!records.ok()) return records.status().With(path);
  files = std::move(*records);
  return Status::Ok();
}

const FileRecord* ModelFolder::State::Find(const std::string& name) const {
  const auto found = std::find_if(files.begin(), files.end(), [&](const FileRecord& f) { return f.name == name; });
  return found == files.end() ? nullptr : &*found;
}

Result<Bytes> ModelFolder::State::ReadListed(const std::string& name) const {
  const FileRecord* record = Find(name);
  if (record == nullptr) return Bytes();
  const std::string path = JoinPath(directory, name);
  MOEPACK_ASSIGN_OR_RETURN(Bytes bytes, ReadFile(env, path, kMaxFolderFileBytes));
  if (bytes.size() == record->bytes && Sha256(bytes) == record->digest) return bytes;
  return Status(ErrorCode::kDigest, path + ": differs from what `complete` says; compress the model again");
}

Status ModelFolder::State::ReadBlocks() {
  for (const FileRecord& record : files) {
    const std::optional<int32_t> block = ParseBlockFileName(record.name);
    if (!block.has_value()) continue;
    MOEPACK_ASSIGN_OR_RETURN(BlockHead head, ReadBlockHead(env, JoinPath(directory, record.name), *block, &record));
    blocks.emplace(*block, std::move(head));
  }
  return Status::Ok();
}

void ModelFolder::State::ListUnits() {
  for (const bool expert : {false, true}) {
    for (const auto& [block, head] : blocks) {
      for (const StoredUnit& unit : head.units) {
        if (unit.key.expert != expert) continue;
        units.push_back({unit.key, block, unit.tensors, unit.plain_bytes, unit.plain_digest});
        stored.push_back(&unit);
      }
    }
  }
}

ModelFolder::ModelFolder(std::unique_ptr<State> state) : state_(std::move(state)) {}
ModelFolder::~ModelFolder() = default;

Result<std::unique_ptr<ModelFolder>> ModelFolder::Open(Env& env, const std::string& directory) {
  auto state = std::make_unique<State>(env, directory);
  MOEPACK_RETURN_IF_ERROR(state->ReadComplete());
  MOEPACK_ASSIGN_OR_RETURN(const Bytes program, state->ReadListed(kProgramFile));
  MOEPACK_ASSIGN_OR_RETURN(const Bytes experts, state->ReadListed(kExpertsFile));
  MOEPACK_ASSIGN_OR_RETURN(const Bytes hot, state->ReadListed(kHotFile));
  MOEPACK_ASSIGN_OR_RETURN(state->tokenizer, state->ReadListed(kTokenizerFile));
  Result<Program> parsed = ParseProgram(program);
  if (!parsed.ok()) return parsed.status().With(JoinPath(directory, kProgramFile));
  state->program = std::move(*parsed);
  Result<std::vector<std::vector<ExpertEntry>>> entries = ParseFolderExperts(experts);
  if (!entries.ok()) return entries.status().With(JoinPath(directory, kExpertsFile));
  state->experts = std::move(*entries);
  if (state->Find(kHotFile) != nullptr) {
    Result<HotList> list = ParseHotList(hot);
    if (!list.ok()) return list.status().With(JoinPath(directory, kHotFile));
    state->hot = std::move(*list);
  }
  MOEPACK_RETURN_IF_ERROR(state->ReadBlocks());
  if (Status status = CheckFolderBlocks(state->program, state->blocks, state->experts); !status.ok())
    return status.With(directory);
  state->ListUnits();
  return std::unique_ptr<ModelFolder>(new ModelFolder(std::move(state)));
}

const Program& ModelFolder::program() const { return state_->program; }
ByteSpan ModelFolder::tokenizer_blob() const { return state_->tokenizer; }
const HotList& ModelFolder::hot_list() const { return state_->hot; }
const std::vector<std::vector<ExpertEntry>>& ModelFolder::experts() const { return state_->experts; }
const std::vector<ModelFolder::UnitInfo>& ModelFolder::units() const { return state_->units; }

Result<uint64_t> ModelFolder::FileBytes() const {
  MOEPACK_ASSIGN_OR_RETURN(const auto complete, state_->env.OpenRead(JoinPath(state_->directory, kCompleteFile)));
  MOEPACK_ASSIGN_OR_RETURN(uint64_t total, complete->Size());
  for (const FileRecord& file : state_->files) {
    if (!CheckedAdd(total, file.bytes, &total)) return Status(ErrorCode::kLimit, state_->directory + ": sizes overflow");
  }
  return total;
}

Result<Bytes> ModelFolder::ReadNamedFile(const std::string& name) const {
  if (!IsCallerFile(name)) return Status(ErrorCode::kInternal, "'" + name + "' is not a named file of a model folder");
  return state_->ReadListed(name);
}

Result<Bytes> ModelFolder::ReadUnit(size_t index) const {
  if (index >= state_->units.size())
    return Status(ErrorCode::kInternal, StrFormat("unit %zu of %zu", index, state_->units.size()));
  const std::string path = JoinPath(state_->directory, BlockFileName(state_->units[index].block));
  return ReadStoredUnit(state_->env, path, *state_->stored[index]);
}

}  // namespace moepack
