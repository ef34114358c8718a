#include <set>

#include "forward/forward.h"

namespace moepack {
namespace {

std::set<TensorId> DenseTensors(const Program& program, int32_t block) {
  std::set<TensorId> ids;
  for (const Node& node : program.nodes) {
    if (node.block != block) continue;
    for (TensorId id : TensorsOfNode(node)) {
      if (id != kNone) ids.insert(id);
    }
  }
  return ids;
}

// One weight to load: where from and where to.
struct Item {
  TensorId dense = kNone;
  uint32_t table = 0, expert = 0;
  ExpertMatrix matrix = ExpertMatrix::kGate;
  uint64_t rows = 0, cols = 0;
  Matrix* destination = nullptr;
};

Status LoadItem(const Program& program, const TensorSource& source, const Item& item) {
  auto loaded = item.dense != kNone ? source.Load(item.dense) : source.LoadExpert(item.table, item.expert, item.matrix);
  if (!loaded.ok()) return loaded.status();
  if (loaded->size() != item.rows * item.cols) {
    const std::string name = item.dense != kNone
                                 ? program.tensors[item.dense].name
                                 : ExpertTensorName(program.expert_tables[item.table], item.expert, item.matrix);
    return Status(ErrorCode::kShape, StrFormat("%s: the program declares %llu x %llu, the source gave %zu values",
                                               name.c_str(), static_cast<unsigned long long>(item.rows),
                                               static_cast<unsigned long long>(item.cols), loaded->size()));
  }
  *item.destination = Eigen::Map<const Matrix>(loaded->data(), item.rows, item.cols);
  return Status::Ok();
}

}  // namespace

Result<BlockWeights> BlockWeights::Load(const Program& program, const TensorSource& source, int32_t block,
                                        ThreadPool& pool) {
  BlockWeights weights;
  std::vector<Item> items;
  for (TensorId id : DenseTensors(program, block)) {
    const TensorDecl& decl = program.tensors[id];
    items.push_back({.dense = id, .rows = decl.rows, .cols = decl.cols, .destination = &weights.dense_[id]});
  }
  for (const Node& node : program.nodes) {
    if (node.block != block || node.kind != NodeKind::kMoe) continue;
    const uint32_t t = node.moe.table;
    const ExpertTableDecl& table = program.expert_tables[t];
    for (uint32_t e = 0; e < table.experts(); ++e) {
      for (ExpertMatrix m : {ExpertMatrix::kGate, ExpertMatrix::kUp, ExpertMatrix::kDown}) {
        if (m == ExpertMatrix::kGate && !table.gated) continue;
        const uint64_t width = table.intermediate[e];
        const bool down = m == ExpertMatrix::kDown;
        items.push_back({.table = t,
                         .expert = e,
                         .matrix = m,
                         .rows = down ? table.hidden : width,
                         .cols = down ? width : table.hidden,
                         .destination = &weights.experts_[{t, e, static_cast<uint8_t>(m)}]});
      }
    }
  }
  std::vector<Status> statuses(items.size());
  pool.ParallelFor(items.size(), 1, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) statuses[i] = LoadItem(program, source, items[i]);
  });
  for (const Status& status : statuses) MOEPACK_RETURN_IF_ERROR(status);
  return weights;
}

}  // namespace moepack
