#include "compressor/variants.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "base/checked.h"

namespace moepack {
namespace {

const Node* RouterOf(const Program& program, uint32_t table) {
  for (const Node& node : program.nodes) {
    if (node.kind != NodeKind::kMoe || node.moe.table != table) continue;
    for (const Node& maker : program.nodes) {
      if (maker.kind == NodeKind::kLinear && maker.output == node.inputs[1]) return &maker;
    }
  }
  return nullptr;
}

double Cosine(std::span<const float> a, std::span<const float> b) {
  double product = 0, a_square = 0, b_square = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    product += double{a[i]} * double{b[i]};
    a_square += double{a[i]} * double{a[i]};
    b_square += double{b[i]} * double{b[i]};
  }
  const double norm = std::sqrt(a_square * b_square);
  return norm > 0 ? product / norm : 0;
}

}  // namespace

Result<ExpertBytes> BytesOfExpert(std::span<const TensorRef> matrices, std::span<const RatedCodec> codecs) {
  CheckedU64 plain(0), stored(0);
  for (size_t i = 0; i < matrices.size(); ++i) {
    const auto in = [&](const Status& status) { return status.With(matrices[i].name + " as " + codecs[i].Name()); };
    const auto plain_bytes = PlainBytes(codecs[i], matrices[i].shape);
    if (!plain_bytes.ok()) return in(plain_bytes.status());
    const auto stored_bytes = StoredBytes(codecs[i], matrices[i].shape);
    if (!stored_bytes.ok()) return in(stored_bytes.status());
    plain = plain + *plain_bytes;
    stored = stored + *stored_bytes;
  }
  if (!plain.valid() || !stored.valid()) return Status(ErrorCode::kLimit, "the model's size exceeds 64 bits");
  return ExpertBytes{plain.value(), stored.value()};
}

Result<ExpertIndex> SecondUnits(const Program& program, std::span<const TensorRef> tensors,
                                std::span<const RatedCodec> codecs, const std::optional<RatedCodec>& second) {
  ExpertIndex out;
  std::vector<uint32_t> next;
  for (const ExpertTableDecl& table : program.expert_tables) {
    out.emplace_back(table.experts());
    next.push_back(table.experts());
  }
  if (!second) return out;
  const std::vector<RatedCodec> seconds(kExpertMatrices, *second);
  for (size_t i = 0; i < tensors.size();) {
    const TensorRef& first = tensors[i];
    size_t count = 1;
    while (i + count < tensors.size() && tensors[i + count].unit == first.unit && first.is_expert()) ++count;
    if (first.is_expert()) {
      const std::span<const TensorRef> matrices = tensors.subspan(i, count);
      MOEPACK_ASSIGN_OR_RETURN(const ExpertBytes full, BytesOfExpert(matrices, codecs.subspan(i, count)));
      MOEPACK_ASSIGN_OR_RETURN(const ExpertBytes less, BytesOfExpert(matrices, seconds));
      if (less.stored < full.stored) out[first.table][first.expert] = next[first.table]++;
    }
    i += count;
  }
  return out;
}

Result<ExpertIndex> TwinsOf(const Program& program, const TensorSource& source) {
  ExpertIndex out;
  for (uint32_t t = 0; t < program.expert_tables.size(); ++t) {
    const ExpertTableDecl& table = program.expert_tables[t];
    const Node* router = RouterOf(program, t);
    if (router == nullptr)
      return Status(ErrorCode::kRecipe, StrFormat("twins: the router of layer %d is no matrix", table.layer));
    MOEPACK_ASSIGN_OR_RETURN(const std::vector<float> rows, source.Load(router->linear.weight));
    const size_t cols = program.tensors[router->linear.weight].cols;
    const auto row = [&](uint32_t e) { return std::span(rows).subspan(e * cols, cols); };
    auto& twins = out.emplace_back(table.experts());
    for (uint32_t e = 0; e < table.experts(); ++e) {
      double best = -2;
      for (uint32_t other = 0; other < table.experts(); ++other) {
        if (other == e || table.intermediate[other] != table.intermediate[e]) continue;
        const double cosine = Cosine(row(e), row(other));
        if (!(cosine > best)) continue;
        best = cosine;
        twins[e] = other;
      }
    }
  }
  return out;
}

ExpertIndex DenseUnits(const Program& program, const ExpertIndex& seconds) {
  ExpertIndex out;
  for (uint32_t t = 0; t < program.expert_tables.size(); ++t) {
    const ExpertTableDecl& table = program.expert_tables[t];
    const auto has = [](const std::optional<uint32_t>& unit) { return unit.has_value(); };
    uint32_t next = table.experts() + static_cast<uint32_t>(std::count_if(seconds[t].begin(), seconds[t].end(), has));
    std::map<uint64_t, uint32_t> unit_of;  // by width
    auto& units = out.emplace_back(table.experts());
    for (uint32_t e = 0; e < table.experts(); ++e) {
      const uint64_t width = table.intermediate[e];
      if (std::count(table.intermediate.begin(), table.intermediate.end(), width) < 2) continue;
      if (!unit_of.contains(width)) unit_of[width] = next++;
      units[e] = unit_of[width];
    }
  }
  return out;
}

std::vector<ExpertEntry> EntriesOf(const Program& program, uint32_t table, const FurtherUnits& further) {
  std::vector<ExpertEntry> out(program.expert_tables[table].experts());
  for (uint32_t e = 0; e < out.size(); ++e) {
    out[e].variants.push_back({e});
    for (const ExpertIndex* units : {&further.seconds, &further.twins, &further.dense}) {
      if (!units->empty() && (*units)[table][e]) out[e].variants.push_back({*(*units)[table][e]});
    }
  }
  return out;
}

}  // namespace moepack
