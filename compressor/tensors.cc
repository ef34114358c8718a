#include "compressor/tensors.h"

#include "format/blocks.h"

namespace moepack {
namespace {

void AddExperts(const Program& program, uint32_t table, int32_t block, std::vector<TensorRef>* out) {
  const ExpertTableDecl& decl = program.expert_tables[table];
  for (uint32_t e = 0; e < decl.experts(); ++e) {
    for (int m = decl.gated ? 0 : 1; m < kExpertMatrices; ++m) {
      TensorRef ref;
      ref.matrix = static_cast<ExpertMatrix>(m);
      ref.name = ExpertTensorName(decl, e, ref.matrix);
      const bool down = ref.matrix == ExpertMatrix::kDown;
      ref.shape = down ? MatrixShape{decl.hidden, decl.intermediate[e]} : MatrixShape{decl.intermediate[e], decl.hidden};
      ref.unit = {true, table, e};
      ref.block = block;
      ref.layer = decl.layer;
      ref.table = table;
      ref.expert = e;
      out->push_back(std::move(ref));
    }
  }
}

}  // namespace

std::vector<TensorRef> ListTensors(const Program& program) {
  std::vector<TensorRef> out;
  const std::vector<std::vector<TensorId>> dense = TensorsByBlock(program);
  const std::vector<int32_t> table_blocks = BlocksOfTables(program);
  for (int32_t block = 0; block < program.blocks(); ++block) {
    for (TensorId id : dense[static_cast<size_t>(block)]) {
      const TensorDecl& decl = program.tensors[id];
      TensorRef ref;
      ref.name = decl.name;
      ref.shape = {decl.rows, decl.cols};
      ref.block = block;
      ref.layer = decl.layer;
      ref.role = decl.role;
      ref.dense = id;
      out.push_back(std::move(ref));
    }
    for (uint32_t table = 0; table < table_blocks.size(); ++table) {
      if (table_blocks[table] == block) AddExperts(program, table, block, &out);
    }
  }
  return out;
}

Result<std::vector<TensorBytes>> BytesOfTensors(const FolderUnit& unit) {
  std::vector<TensorBytes> out;
  uint64_t offset = 0;
  for (const UnitTensor& tensor : unit.tensors) {
    MOEPACK_ASSIGN_OR_RETURN(const uint64_t bytes, PlainBytes(tensor.codec, tensor.shape));
    if (bytes > unit.plain.size() - offset)
      return Status(ErrorCode::kBadInput, "a unit of the interrupted run is too short");
    out.push_back({&tensor, offset, bytes});
    offset += bytes;
  }
  return out;
}

}  // namespace moepack
