// The compressed model folder: what compressor/ writes and packager/ and model/ read. A bundle without compression and
// signatures: program, tokenizer, plain bytes of every unit, one file a program block so that a killed run can resume.
//
//   program.pb      SerializeProgram
//   experts.pb      variants of every logical expert
//   tokenizer.bin   compiled tokenizer (tokenizer/tokenizer.h), absent when the model has none
//   block-NNN.moeu  the units of program block NNN (SPEC.md, section Model folder): index, then plain bytes, digests
//   hot.pb          SerializeHotList, optional
//   plan.json errors.json provenance.json   for people and for --like; provenance goes into the bundle
//   complete        written last: sizes and digests of all files above (of a block file, of its index, which holds those of
//                   its units)
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/env.h"
#include "format/manifest/manifest.h"

namespace moepack {

// Whose weights a unit holds.
struct UnitKey {
  bool expert = false;
  uint32_t table = 0;     // expert units: index into Program::expert_tables
  uint32_t physical = 0;  // expert units: index of the unit in its table, from 0 without gaps
  auto operator<=>(const UnitKey&) const = default;
};

// A unit's tensors with plain bytes, in load order. Dense units: tensors of one block by id; expert units: gate, up, down.
struct FolderUnit {
  UnitKey key;
  std::vector<UnitTensor> tensors;
  Bytes plain;  // concatenation; size = sum of PlainBytes
};

class ModelFolderWriter {
 public:
  // What may stand at `directory` before: nothing, an empty folder, or a finished model folder, which is replaced (true).
  // At `directory`.partial: nothing, an empty folder, or what an earlier run left there, known by its file `unfinished`.
  // Anything else, and any file of another name in them: kUsage, which names it. Nothing is changed.
  static Result<bool> CheckOutput(Env& env, const std::string& directory);
  // CheckOutput, then writes into `directory`.partial, created when absent; with `resume`, blocks already there and intact
  // are kept, otherwise it starts empty.
  static Result<std::unique_ptr<ModelFolderWriter>> Create(Env& env, const std::string& directory, bool resume);
  bool HasBlock(int32_t block) const;
  // Units of a block, dense unit first, experts in physical order. Atomic: after a kill the block is there whole or not.
  Status WriteBlock(int32_t block, const std::vector<FolderUnit>& units);
  // Reads a block back (for resume).
  Result<std::vector<FolderUnit>> ReadBlock(int32_t block) const;
  // tokenizer.bin, hot.pb, plan.json, errors.json or provenance.json.
  Status WriteFile(const std::string& name, ByteSpan bytes);
  Result<Bytes> ReadFileIfPresent(const std::string& name) const;  // empty when absent
  // Where a pass over the whole model may keep what --resume goes on from. A folder with that file cannot be finished.
  std::string StatePath() const;
  // Expert indirection (one entry a Program::expert_tables; only `experts` is used, units come from the blocks).
  void SetExperts(const std::vector<std::vector<ExpertEntry>>& experts);
  // Checks completeness against the program, writes program.pb and `complete`, renames .partial to `directory`
  // (replacing what CheckOutput allows only). After a kill the earlier folder or the new one is there, whole.
  Status Finish(const Program& program);

 private:
  struct State;
  explicit ModelFolderWriter(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;

 public:
  ~ModelFolderWriter();
};

class ModelFolder {
 public:
  // kBadInput when `complete` is missing, kDigest when a file does not match it.
  static Result<std::unique_ptr<ModelFolder>> Open(Env& env, const std::string& directory);
  ~ModelFolder();
  const Program& program() const;
  ByteSpan tokenizer_blob() const;
  const HotList& hot_list() const;
  const std::vector<std::vector<ExpertEntry>>& experts() const;
  // Of all its files together.
  Result<uint64_t> FileBytes() const;
  // plan.json, errors.json, provenance.json: all optional, empty when the folder has none.
  Result<Bytes> ReadNamedFile(const std::string& name) const;
  // Tensors of every unit without their bytes, sorted by key (dense units in block order first).
  struct UnitInfo {
    UnitKey key;
    int32_t block = 0;
    std::vector<UnitTensor> tensors;
    uint64_t plain_bytes = 0;
    DigestBytes plain_digest{};
  };
  const std::vector<UnitInfo>& units() const;
  // Plain bytes of units()[index], digest checked. Thread-safe.
  Result<Bytes> ReadUnit(size_t index) const;

 private:
  struct State;
  explicit ModelFolder(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace moepack
