// The files of a model folder as bytes (SPEC.md, section Model folder). Internal to format/manifest.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/env.h"
#include "format/manifest/model_folder.h"

namespace moepack {

inline constexpr char kProgramFile[] = "program.pb";
inline constexpr char kTokenizerFile[] = "tokenizer.bin";
inline constexpr char kHotFile[] = "hot.pb";
inline constexpr char kExpertsFile[] = "experts.pb";
inline constexpr char kCompleteFile[] = "complete";
inline constexpr char kUnfinishedFile[] = "unfinished";   // in NAME.partial only: the mark that the folder is ours
inline constexpr char kStateFile[] = "training.state";    // in NAME.partial only
inline constexpr uint64_t kMaxFolderFileBytes = 1 << 28;  // of any file but a block

// One of the names ModelFolderWriter::WriteFile takes.
bool IsCallerFile(const std::string& name);
std::string BlockFileName(int32_t block);
// Number of a block file's name, nothing for any other name.
std::optional<int32_t> ParseBlockFileName(const std::string& name);

struct StoredUnit {
  UnitKey key;
  std::vector<UnitTensor> tensors;
  uint64_t offset = 0;  // in the block file
  uint64_t plain_bytes = 0;
  DigestBytes plain_digest{};
};

// What a block file holds before the units' bytes.
struct BlockHead {
  int32_t block = 0;
  std::vector<StoredUnit> units;
  uint64_t file_bytes = 0;
  DigestBytes digest{};  // of the head's bytes
};

// Name, size and digest of a file as `complete` lists it; of a block file the digest is that of its head.
struct FileRecord {
  std::string name;
  uint64_t bytes = 0;
  DigestBytes digest{};
};

// Bytes of the head for these units; fills every unit's offset and the file's size and digest in `head`.
Bytes SerializeBlockHead(BlockHead* head);
// Reads and checks a head: structure, plain sizes and the exact file size. With `expected`, its size and digest are
// compared first (kDigest). Units are not read.
Result<BlockHead> ReadBlockHead(Env& env, const std::string& path, int32_t block, const FileRecord* expected);
// Plain bytes of one unit; kDigest when they are not what the head says.
Result<Bytes> ReadStoredUnit(Env& env, const std::string& path, const StoredUnit& unit);

Bytes SerializeComplete(const std::vector<FileRecord>& files);
Result<std::vector<FileRecord>> ParseComplete(ByteSpan bytes);  // names are known ones, strictly increasing

Bytes SerializeFolderExperts(const std::vector<std::vector<ExpertEntry>>& experts);
Result<std::vector<std::vector<ExpertEntry>>> ParseFolderExperts(ByteSpan bytes);

// Every tensor of the program is in its block's file, every expert has its units, and no block holds anything else.
Status CheckFolderBlocks(const Program& program, const std::map<int32_t, BlockHead>& blocks,
                         const std::vector<std::vector<ExpertEntry>>& experts);

}  // namespace moepack
