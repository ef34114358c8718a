#include "format/manifest/folder_files.h"

#include <algorithm>
#include <charconv>

#include "base/checked.h"
#include "base/digest/sha256.h"
#include "format/blocks.h"
#include "format/manifest/tables_schema.h"
#include "format/manifest/unit_check.h"
#include "format/manifest/unit_wire.h"
#include "format/manifest/wire_io.h"
#include "format/proto/folder.pb.h"

namespace moepack {
namespace {

constexpr std::array<uint8_t, 8> kBlockMagic = {'M', 'O', 'E', 'U', 'N', 'I', 'T', '\n'};
constexpr uint32_t kFolderVersion = 1;
constexpr uint64_t kBlockPreludeBytes = 16;  // magic, version, index length
constexpr uint32_t kMaxIndexBytes = 1 << 26;

// Length of the index that follows the prelude.
Result<uint32_t> ParsePrelude(ByteSpan prelude, uint64_t file_bytes) {
  ByteReader reader(prelude);
  const ByteSpan magic = reader.Take(kBlockMagic.size());
  if (!std::equal(magic.begin(), magic.end(), kBlockMagic.begin(), kBlockMagic.end())) {
    return Status(ErrorCode::kBadInput, "not a block file (its first 8 bytes differ)");
  }
  const uint32_t version = reader.U32();
  if (version != kFolderVersion) {
    return Status(ErrorCode::kVersion, StrFormat("block file version %u, this build knows %u", version, kFolderVersion));
  }
  const uint32_t index_bytes = reader.U32();
  if (index_bytes > kMaxIndexBytes || index_bytes > file_bytes - kBlockPreludeBytes) {
    return Status(ErrorCode::kBadInput, StrFormat("index of %u bytes does not fit the file", index_bytes));
  }
  return index_bytes;
}

Result<std::vector<StoredUnit>> ParseIndex(ByteSpan bytes, int32_t block) {
  wire::BlockIndex message;
  MOEPACK_RETURN_IF_ERROR(ParseMessage(wire_check::kBlockIndex, kFolderVersion, bytes, &message));
  if (message.block() != static_cast<uint32_t>(block)) {
    return Status(ErrorCode::kBadInput, StrFormat("holds block %u, its name says %d", message.block(), block));
  }
  std::vector<StoredUnit> units;
  for (const wire::FolderUnit& in : message.units()) {
    StoredUnit& unit = units.emplace_back();
    unit.key = {in.expert(), in.table(), in.physical()};
    MOEPACK_ASSIGN_OR_RETURN(unit.tensors, ReadUnitTensors(in.tensors()));
    unit.plain_bytes = in.plain_bytes();
    unit.plain_digest = ReadDigest(in.plain_digest());
    MOEPACK_ASSIGN_OR_RETURN(const uint64_t plain_bytes, UnitPlainBytes(unit.tensors));
    if (plain_bytes != unit.plain_bytes) {
      return Status(ErrorCode::kBadInput,
                    StrFormat("unit %zu: size differs from that of its codecs and shapes", units.size() - 1));
    }
    if (units.size() > 1 && !(units[units.size() - 2].key < unit.key)) {
      return Status(ErrorCode::kBadInput, StrFormat("unit %zu: keys must rise", units.size() - 1));
    }
  }
  return units;
}

// Gives the units their places behind a head of `head_bytes`; returns the file's size.
Result<uint64_t> PlaceUnits(uint64_t head_bytes, std::vector<StoredUnit>* units) {
  uint64_t offset = head_bytes;
  for (StoredUnit& unit : *units) {
    unit.offset = offset;
    if (!CheckedAdd(offset, unit.plain_bytes, &offset)) return Status(ErrorCode::kLimit, "block is larger than 2^64 bytes");
  }
  return offset;
}

Bytes SerializeIndex(const BlockHead& head) {
  wire::BlockIndex message;
  message.set_version(kFolderVersion);
  message.set_block(static_cast<uint32_t>(head.block));
  for (const StoredUnit& unit : head.units) {
    wire::FolderUnit* out = message.add_units();
    out->set_expert(unit.key.expert);
    out->set_table(unit.key.table);
    out->set_physical(unit.key.physical);
    WriteUnitTensors(unit.tensors, out->mutable_tensors());
    out->set_plain_bytes(unit.plain_bytes);
    out->set_plain_digest(WriteDigest(unit.plain_digest));
  }
  return SerializeMessage(message);
}

Status DamagedFile(const std::string& path, const char* what) {
  return Status(ErrorCode::kDigest, path + ": " + what + " differs from what `complete` says; compress the model again");
}

// The head's bytes: prelude and index.
Result<Bytes> ReadHeadBytes(const RandomAccessFile& file, uint64_t file_bytes) {
  if (file_bytes < kBlockPreludeBytes) return Status(ErrorCode::kBadInput, "shorter than a block file's head");
  Bytes head(kBlockPreludeBytes);
  MOEPACK_RETURN_IF_ERROR(file.Read(0, head));
  MOEPACK_ASSIGN_OR_RETURN(const uint32_t index_bytes, ParsePrelude(head, file_bytes));
  head.resize(kBlockPreludeBytes + index_bytes);
  MOEPACK_RETURN_IF_ERROR(file.Read(kBlockPreludeBytes, std::span(head).subspan(kBlockPreludeBytes)));
  return head;
}

}  // namespace

bool IsCallerFile(const std::string& name) {
  return name == kTokenizerFile || name == kHotFile || name == "plan.json" || name == "errors.json" ||
         name == "provenance.json";
}

std::string BlockFileName(int32_t block) { return StrFormat("block-%03d.moeu", block); }

std::optional<int32_t> ParseBlockFileName(const std::string& name) {
  constexpr std::string_view kPrefix = "block-";
  int32_t block = -1;
  if (name.compare(0, kPrefix.size(), kPrefix) != 0) return std::nullopt;
  std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), block);
  if (block < 0 || BlockFileName(block) != name) return std::nullopt;
  return block;
}

Bytes SerializeBlockHead(BlockHead* head) {
  const Bytes index = SerializeIndex(*head);
  ByteWriter writer;
  writer.Append(kBlockMagic);
  writer.U32(kFolderVersion);
  writer.U32(static_cast<uint32_t>(index.size()));
  writer.Append(index);
  const Result<uint64_t> file_bytes = PlaceUnits(writer.size(), &head->units);
  head->file_bytes = file_bytes.ok() ? *file_bytes : 0;  // sizes of units in memory cannot overflow
  head->digest = Sha256(writer.bytes());
  return writer.Release();
}

Result<BlockHead> ReadBlockHead(Env& env, const std::string& path, int32_t block, const FileRecord* expected) {
  MOEPACK_ASSIGN_OR_RETURN(const auto file, env.OpenRead(path));
  BlockHead head;
  head.block = block;
  MOEPACK_ASSIGN_OR_RETURN(head.file_bytes, file->Size());
  if (expected != nullptr && head.file_bytes != expected->bytes) return DamagedFile(path, "size");
  const Result<Bytes> bytes = ReadHeadBytes(*file, head.file_bytes);
  if (!bytes.ok()) {
    if (expected != nullptr && bytes.status().exit_status() == 3) return DamagedFile(path, "head");
    return bytes.status().With(path);
  }
  head.digest = Sha256(*bytes);
  if (expected != nullptr && head.digest != expected->digest) return DamagedFile(path, "head");
  Result<std::vector<StoredUnit>> units = ParseIndex(ByteSpan(*bytes).subspan(kBlockPreludeBytes), block);
  if (!units.ok()) return units.status().With(path);
  head.units = std::move(*units);
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t end, PlaceUnits(bytes->size(), &head.units));
  if (end != head.file_bytes) {
    return Status(ErrorCode::kBadInput,
                  StrFormat("%s: %llu bytes, its index says %llu", path.c_str(),
                            static_cast<unsigned long long>(head.file_bytes), static_cast<unsigned long long>(end)));
  }
  return head;
}

Result<Bytes> ReadStoredUnit(Env& env, const std::string& path, const StoredUnit& unit) {
  MOEPACK_ASSIGN_OR_RETURN(const auto file, env.OpenRead(path));
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t file_bytes, file->Size());
  if (unit.offset > file_bytes || unit.plain_bytes > file_bytes - unit.offset) {
    return Status(ErrorCode::kTruncated, path + ": became shorter since it was opened");
  }
  Bytes plain(unit.plain_bytes);
  MOEPACK_RETURN_IF_ERROR(file->Read(unit.offset, plain));
  if (Sha256(plain) == unit.plain_digest) return plain;
  return Status(ErrorCode::kDigest, StrFormat("%s: the unit at byte %llu is damaged; compress the model again", path.c_str(),
                                              static_cast<unsigned long long>(unit.offset)));
}

Bytes SerializeComplete(const std::vector<FileRecord>& files) {
  wire::FolderComplete message;
  message.set_version(kFolderVersion);
  for (const FileRecord& file : files) {
    wire::FolderFile* out = message.add_files();
    out->set_name(file.name);
    out->set_bytes(file.bytes);
    out->set_digest(WriteDigest(file.digest));
  }
  return SerializeMessage(message);
}

Result<std::vector<FileRecord>> ParseComplete(ByteSpan bytes) {
  wire::FolderComplete message;
  MOEPACK_RETURN_IF_ERROR(ParseMessage(wire_check::kFolderComplete, kFolderVersion, bytes, &message));
  std::vector<FileRecord> files;
  for (const wire::FolderFile& in : message.files()) {
    const bool known = IsCallerFile(in.name()) || in.name() == kProgramFile || in.name() == kExpertsFile ||
                       ParseBlockFileName(in.name()).has_value();
    if (!known) return Status(ErrorCode::kBadInput, StrFormat("complete: file %zu has an unknown name", files.size()));
    if (!files.empty() && files.back().name >= in.name()) return Status(ErrorCode::kBadInput, "complete: names must rise");
    files.push_back({in.name(), in.bytes(), ReadDigest(in.digest())});
  }
  return files;
}

Bytes SerializeFolderExperts(const std::vector<std::vector<ExpertEntry>>& experts) {
  wire::FolderExperts message;
  message.set_version(kFolderVersion);
  for (const std::vector<ExpertEntry>& table : experts) WriteExpertEntries(table, message.add_tables()->mutable_experts());
  return SerializeMessage(message);
}

Result<std::vector<std::vector<ExpertEntry>>> ParseFolderExperts(ByteSpan bytes) {
  wire::FolderExperts message;
  MOEPACK_RETURN_IF_ERROR(ParseMessage(wire_check::kFolderExperts, kFolderVersion, bytes, &message));
  std::vector<std::vector<ExpertEntry>> experts;
  for (const wire::FolderExpertTable& table : message.tables()) experts.push_back(ReadExpertEntries(table.experts()));
  return experts;
}

namespace {

// Units of one block against the program; expert units are collected by table for CheckExpertUnits.
Status CheckBlock(const Program& program, const BlockHead& head, const std::vector<TensorId>& tensors,
                  const std::vector<int32_t>& table_blocks,
                  std::vector<std::vector<const std::vector<UnitTensor>*>>* expert_units) {
  size_t next = 0;
  if (!tensors.empty()) {
    static const std::vector<UnitTensor> kNothing;
    const bool stored = !head.units.empty() && !head.units[0].key.expert;
    MOEPACK_RETURN_IF_ERROR(CheckDenseUnit(program, tensors, stored ? head.units[0].tensors : kNothing));
    next = 1;
  }
  for (; next < head.units.size(); ++next) {
    const StoredUnit& unit = head.units[next];
    const bool here = unit.key.expert && unit.key.table < table_blocks.size() && table_blocks[unit.key.table] == head.block;
    if (!here || unit.key.physical != (*expert_units)[unit.key.table].size()) {
      return Status(ErrorCode::kBadInput, StrFormat("%s: unit %zu is not one of this block, or out of order",
                                                    BlockFileName(head.block).c_str(), next));
    }
    (*expert_units)[unit.key.table].push_back(&unit.tensors);
  }
  return Status::Ok();
}

}  // namespace

Status CheckFolderBlocks(const Program& program, const std::map<int32_t, BlockHead>& blocks,
                         const std::vector<std::vector<ExpertEntry>>& experts) {
  if (experts.size() != program.expert_tables.size()) {
    return Status(ErrorCode::kBadInput, StrFormat("entries for %zu expert tables, the program has %zu", experts.size(),
                                                  program.expert_tables.size()));
  }
  std::vector<std::vector<const std::vector<UnitTensor>*>> expert_units(experts.size());
  const BlockHead empty;
  const std::vector<std::vector<TensorId>> dense = TensorsByBlock(program);
  const std::vector<int32_t> table_blocks = BlocksOfTables(program);
  for (int32_t block = 0; block < program.blocks(); ++block) {
    const auto found = blocks.find(block);
    const BlockHead& head = found == blocks.end() ? empty : found->second;
    MOEPACK_RETURN_IF_ERROR(CheckBlock(program, head, dense[static_cast<size_t>(block)], table_blocks, &expert_units));
  }
  if (!blocks.empty() && blocks.rbegin()->first >= program.blocks()) {
    return Status(ErrorCode::kBadInput, StrFormat("%s: the program has %d blocks",
                                                  BlockFileName(blocks.rbegin()->first).c_str(), program.blocks()));
  }
  for (uint32_t table = 0; table < experts.size(); ++table) {
    MOEPACK_RETURN_IF_ERROR(CheckExpertUnits(program, table, experts[table], expert_units[table]));
  }
  return Status::Ok();
}

}  // namespace moepack
