// For tests: a UnitSource without a bundle. Weights come from a function, are rounded to a codec, and can be had back as
// the codec stores them.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "format/codec/codec.h"
#include "format/program.h"
#include "format/verified.h"
#include "runtime-min/unit_source.h"

namespace moepack::testing {

class VerifiedPeer {
 public:
  static PlainUnit Plain(Bytes bytes) { return PlainUnit(std::move(bytes)); }
};

// Nearest codes with scales that span the values of each group.
inline QuantizedMatrix RoundToCodec(const Codec& codec, const MatrixShape& shape, const std::vector<float>& values) {
  QuantizedMatrix q{.codec = codec, .shape = shape};
  if (!codec.coded()) {
    q.values = values;
    return q;
  }
  const uint64_t groups = GroupsPerRow(codec, shape.cols), width = GroupWidth(codec, shape.cols);
  const float top = static_cast<float>((1 << codec.bits) - 1), middle = static_cast<float>(1 << (codec.bits - 1));
  q.codes.resize(values.size());
  for (uint64_t r = 0; r < shape.rows; ++r) {
    for (uint64_t g = 0; g < groups; ++g) {
      const uint64_t begin = g * width, end = std::min(shape.cols, begin + width);
      const auto [low, high] = std::minmax_element(&values[r * shape.cols + begin], &values[r * shape.cols] + end);
      const float reach = std::max(std::fabs(*low), std::fabs(*high));
      const uint16_t scale = F32ToF16(codec.has_min ? (*high - *low) / top : reach / (middle - 1 + (codec.bits == 2)));
      const uint16_t minimum = F32ToF16(*low);
      q.scales.push_back(scale);
      if (codec.has_min) q.mins.push_back(minimum);
      for (uint64_t c = begin; c < end; ++c) {
        const float from = codec.has_min ? F16ToF32(minimum) : -middle * F16ToF32(scale);
        const float code = std::round((values[r * shape.cols + c] - from) / F16ToF32(scale));
        q.codes[r * shape.cols + c] = static_cast<uint8_t>(std::clamp(code, 0.0f, top));
      }
    }
  }
  return q;
}

class FakeSource final : public runtime::UnitSource {
 public:
  using Weights =
      std::function<std::vector<float>(bool expert, uint32_t table_or_tensor, uint32_t index, ExpertMatrix matrix)>;

  // Matrices take `codec` (vectors stay f32). `weights(false, tensor, 0, _)` and `weights(true, table, expert, matrix)`.
  FakeSource(const Program& program, const Codec& codec, const Weights& weights) : program_(program) {
    for (TensorId t = 0; t < program.tensors.size(); ++t) {
      const MatrixShape shape{program.tensors[t].rows, program.tensors[t].cols};
      dense_.units.push_back({});
      dense_plain_.push_back({});
      Add(t, shape.rows == 1 ? Codec{} : codec, shape, weights(false, t, 0, ExpertMatrix::kGate), &dense_.units.back(),
          &dense_plain_.back());
    }
    for (uint32_t t = 0; t < program.expert_tables.size(); ++t) {
      const ExpertTableDecl& decl = program.expert_tables[t];
      experts_.push_back({.table = t});
      expert_plain_.push_back({});
      for (uint32_t e = 0; e < decl.experts(); ++e) {
        experts_[t].experts.push_back({{{e}}});
        experts_[t].units.push_back({});
        expert_plain_[t].push_back({});
        AddMatrices(decl, t, e, codec, weights, &experts_[t].units[e], &expert_plain_[t][e]);
      }
    }
  }

  const Program& program() const override { return program_; }
  const DenseTable& dense() const override { return dense_; }
  const std::vector<ExpertTable>& experts() const override { return experts_; }
  const HotList& hot_list() const override { return hot; }
  const DigestBytes& manifest_digest() const override { return manifest; }
  const std::vector<Unavailable>& unavailable() const override { return policy; }
  Result<PlainUnit> ReadDense(size_t unit) override { return VerifiedPeer::Plain(dense_plain_[unit]); }
  Result<PlainUnit> ReadExpert(uint32_t table, uint32_t physical) override {
    const size_t last = experts_[table].units[physical].chunks.size() - 1;
    MOEPACK_RETURN_IF_ERROR(ReadExpertChunk(table, physical, last, nullptr));
    return VerifiedPeer::Plain(expert_plain_[table][physical]);
  }
  // What happens to an expert happens to its last chunk.
  Status ReadExpertChunk(uint32_t table, uint32_t physical, size_t chunk, runtime::UnitParts*) override {
    if (chunk + 1 < experts_[table].units[physical].chunks.size()) return Status::Ok();
    if (before_read) before_read(table, physical);
    if (broken.count({table, physical}) != 0) return Status(ErrorCode::kDigest, "chunk at offset 4096 does not match");
    if (const auto found = missing.find({table, physical}); found != missing.end() && found->second-- > 0) {
      return Status(ErrorCode::kAccess, "chunk at offset 8192 cannot be read");
    }
    return Status::Ok();
  }
  Result<PlainUnit> JoinExpert(uint32_t table, uint32_t physical, runtime::UnitParts*) override {
    return VerifiedPeer::Plain(expert_plain_[table][physical]);
  }

  // Every expert comes in so many chunks, at most one a byte.
  void CutExperts(size_t chunks) {
    for (ExpertTable& table : experts_) {
      for (Unit& unit : table.units) {
        const ChunkRef whole = unit.chunks[0];
        unit.chunks.assign(chunks, {.stored_bytes = 1, .plain_bytes = 1});
        unit.chunks[0].stored_bytes = unit.chunks[0].plain_bytes = whole.plain_bytes - (chunks - 1);
      }
    }
  }

  // Adds a unit of expert `expert` in another codec and names it as the last variant.
  void AddVariant(uint32_t table, uint32_t expert, const Codec& codec, const Weights& weights) {
    const ExpertTableDecl& decl = program_.expert_tables[table];
    experts_[table].experts[expert].variants.push_back({static_cast<uint32_t>(experts_[table].units.size())});
    experts_[table].units.push_back({});
    expert_plain_[table].push_back({});
    AddMatrices(decl, table, expert, codec, weights, &experts_[table].units.back(), &expert_plain_[table].back());
  }
  // Adds a unit with the shapes of experts[0] and names it as the last variant of all of them.
  void AddDense(uint32_t table, const std::vector<uint32_t>& experts, const Codec& codec, const Weights& weights) {
    AddVariant(table, experts[0], codec, weights);
    const ExpertEntry::Variant dense = experts_[table].experts[experts[0]].variants.back();
    for (size_t i = 1; i < experts.size(); ++i) experts_[table].experts[experts[i]].variants.push_back(dense);
  }
  // An expert's variant becomes its first.
  void MakeFirst(uint32_t table, uint32_t expert, uint32_t variant) {
    std::vector<ExpertEntry::Variant>& variants = experts_[table].experts[expert].variants;
    std::swap(variants[0], variants[variant]);
  }
  // Takes the first variant of every expert away.
  void DropFirstVariants() {
    for (ExpertTable& table : experts_) {
      for (ExpertEntry& expert : table.experts) expert.variants.erase(expert.variants.begin());
    }
  }
  // Names the first unit of expert `twin` as the last variant of `expert`.
  void AddTwin(uint32_t table, uint32_t expert, uint32_t twin) {
    experts_[table].experts[expert].variants.push_back(experts_[table].experts[twin].variants[0]);
  }

  uint64_t ExpertBytes(uint32_t table, uint32_t physical) const {
    uint64_t bytes = 0;
    for (const UnitTensor& t : experts_[table].units[physical].tensors) bytes += ResidentBytes(t.codec, t.shape).value();
    return bytes;
  }

  // Logical experts `expert` and `into` (of equal widths) share the weights of `into`.
  void Merge(uint32_t table, uint32_t expert, uint32_t into) {
    experts_[table].experts[expert] = experts_[table].experts[into];
  }

  HotList hot;
  DigestBytes manifest{};
  std::vector<Unavailable> policy;
  std::function<void(uint32_t table, uint32_t physical)> before_read;  // of an expert, on the thread that reads it
  std::set<std::pair<uint32_t, uint32_t>> broken;                      // experts whose chunks fail their digest
  std::map<std::pair<uint32_t, uint32_t>, std::atomic<int>> missing;   // cannot be read as many times as it says

 private:
  static void AddMatrices(const ExpertTableDecl& decl, uint32_t table, uint32_t expert, const Codec& codec,
                          const Weights& weights, Unit* unit, Bytes* plain) {
    for (int m = decl.gated ? 0 : 1; m < kExpertMatrices; ++m) {
      const auto matrix = static_cast<ExpertMatrix>(m);
      const MatrixShape wide{decl.intermediate[expert], decl.hidden}, tall{decl.hidden, decl.intermediate[expert]};
      Add(static_cast<uint32_t>(m), codec, matrix == ExpertMatrix::kDown ? tall : wide, weights(true, table, expert, matrix),
          unit, plain);
    }
  }

  static void Add(uint32_t id, const Codec& codec, const MatrixShape& shape, const std::vector<float>& values, Unit* unit,
                  Bytes* plain) {
    const Bytes bytes = ToPlain(RoundToCodec(codec, shape, values)).value();
    plain->insert(plain->end(), bytes.begin(), bytes.end());
    unit->tensors.push_back({id, codec, shape});
    unit->chunks.resize(1);
    unit->chunks[0].stored_bytes = unit->chunks[0].plain_bytes = plain->size();
  }

  Program program_;
  DenseTable dense_;
  std::vector<ExpertTable> experts_;
  std::vector<Bytes> dense_plain_;
  std::vector<std::vector<Bytes>> expert_plain_;
};

}  // namespace moepack::testing
