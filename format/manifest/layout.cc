// ValidateLayout: what must hold between manifest, program and tables of one bundle.
#include "base/checked.h"
#include "format/blocks.h"
#include "format/manifest/manifest.h"
#include "format/manifest/unit_check.h"

namespace moepack {
namespace {

// Walks the chunks in file order: dense units, then the tables' units.
class ChunkWalk {
 public:
  explicit ChunkWalk(uint64_t blobs_end) : end_(blobs_end) {}

  Status Visit(const Unit& unit, const std::string& name) {
    uint64_t plain = 0;
    for (const ChunkRef& chunk : unit.chunks) {
      uint64_t begin = 0;
      if (!CheckedAlign(end_, kBundleAlignment, &begin) || chunk.offset != begin) {
        return Status(ErrorCode::kMalformed,
                      StrFormat("%s: chunk at byte %llu must be at %llu, right behind the one before it", name.c_str(),
                                static_cast<unsigned long long>(chunk.offset), static_cast<unsigned long long>(begin)));
      }
      if (!CheckedAdd(chunk.offset, chunk.stored_bytes, &end_) || !CheckedAdd(plain, chunk.plain_bytes, &plain)) {
        return Status(ErrorCode::kMalformed, name + ": chunk sizes overflow");
      }
      ++count_;
    }
    const Result<uint64_t> wanted = UnitPlainBytes(unit.tensors);
    if (!wanted.ok()) return wanted.status().With(name);
    if (plain == *wanted) return Status::Ok();
    return Status(ErrorCode::kMalformed,
                  StrFormat("%s: chunks hold %llu plain bytes, its tensors take %llu", name.c_str(),
                            static_cast<unsigned long long>(plain), static_cast<unsigned long long>(*wanted)));
  }

  uint64_t end() const { return end_; }
  uint64_t count() const { return count_; }

 private:
  uint64_t end_;
  uint64_t count_ = 0;
};

Status CheckDense(const Program& program, const DenseTable& dense, ChunkWalk* walk) {
  size_t next = 0;
  const std::vector<std::vector<TensorId>> blocks = TensorsByBlock(program);
  for (size_t block = 0; block < blocks.size(); ++block) {
    const std::vector<TensorId>& tensors = blocks[block];
    if (tensors.empty()) continue;
    const std::string name = StrFormat("dense unit %zu (block %zu)", next, block);
    if (next == dense.units.size()) {
      return Status(ErrorCode::kMissingTensor,
                    name + " is missing: tensor '" + program.tensors[tensors[0]].name + "' is not stored");
    }
    if (Status status = CheckDenseUnit(program, tensors, dense.units[next].tensors); !status.ok()) return status.With(name);
    MOEPACK_RETURN_IF_ERROR(walk->Visit(dense.units[next], name));
    ++next;
  }
  if (next == dense.units.size()) return Status::Ok();
  return Status(ErrorCode::kMalformed,
                StrFormat("%zu dense units, the program has tensors in %zu blocks", dense.units.size(), next));
}

Status CheckTables(const Program& program, const std::vector<ExpertTable>& tables, ChunkWalk* walk) {
  if (tables.size() != program.expert_tables.size()) {
    return Status(ErrorCode::kMalformed,
                  StrFormat("%zu expert tables, the program has %zu", tables.size(), program.expert_tables.size()));
  }
  for (uint32_t t = 0; t < tables.size(); ++t) {
    if (tables[t].table != t)
      return Status(ErrorCode::kMalformed, StrFormat("expert table %u says it is table %u", t, tables[t].table));
    std::vector<const std::vector<UnitTensor>*> units;
    for (const Unit& unit : tables[t].units) units.push_back(&unit.tensors);
    MOEPACK_RETURN_IF_ERROR(CheckExpertUnits(program, t, tables[t].experts, units));
    for (size_t u = 0; u < tables[t].units.size(); ++u) {
      MOEPACK_RETURN_IF_ERROR(walk->Visit(tables[t].units[u], StrFormat("expert table %u, unit %zu", t, u)));
    }
  }
  return Status::Ok();
}

Status CheckHotList(const Program& program, const HotList& hot) {
  for (const auto& [table, expert] : hot.experts) {
    if (table < program.expert_tables.size() && expert < program.expert_tables[table].experts()) continue;
    return Status(ErrorCode::kMalformed, StrFormat("hot list: expert %u of table %u does not exist", expert, table));
  }
  return Status::Ok();
}

}  // namespace

Status ValidateLayout(const Manifest& manifest, const Program& program, const DenseTable& dense,
                      const std::vector<ExpertTable>& experts, const HotList& hot, uint64_t blobs_end) {
  ChunkWalk walk(blobs_end);
  MOEPACK_RETURN_IF_ERROR(CheckDense(program, dense, &walk));
  MOEPACK_RETURN_IF_ERROR(CheckTables(program, experts, &walk));
  MOEPACK_RETURN_IF_ERROR(CheckHotList(program, hot));
  if (walk.count() != manifest.chunk_count) {
    return Status(ErrorCode::kMalformed,
                  StrFormat("tables hold %llu chunks, the manifest says %llu", static_cast<unsigned long long>(walk.count()),
                            static_cast<unsigned long long>(manifest.chunk_count)));
  }
  if (walk.end() != manifest.file_bytes) {
    return Status(ErrorCode::kMalformed, StrFormat("chunks end at byte %llu, the manifest says the file has %llu",
                                                   static_cast<unsigned long long>(walk.end()),
                                                   static_cast<unsigned long long>(manifest.file_bytes)));
  }
  return Status::Ok();
}

}  // namespace moepack
