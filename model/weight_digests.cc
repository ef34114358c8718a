#include "model/weight_digests.h"

#include <bit>

namespace moepack {
namespace {

static_assert(std::endian::native == std::endian::little, "digests are of little-endian floats");

Digest DigestOf(const std::vector<float>& values) {
  return Sha256(ByteSpan(reinterpret_cast<const uint8_t*>(values.data()), values.size() * sizeof(float)));
}

// Index of an expert matrix's digest.
size_t ExpertIndex(const Program& program, uint32_t table, uint32_t expert, ExpertMatrix matrix) {
  size_t index = program.tensors.size();
  for (uint32_t t = 0; t < table; ++t) index += size_t{program.expert_tables[t].experts()} * kExpertMatrices;
  return index + size_t{expert} * kExpertMatrices + static_cast<size_t>(matrix);
}

class CheckedSource final : public TensorSource {
 public:
  CheckedSource(const Program& program, std::shared_ptr<const TensorSource> source, WeightDigests expected,
                std::string label)
      : program_(program),
        source_(std::move(source)),
        expected_(std::move(expected)),
        label_(std::move(label)),
        checked_(expected_.digests.size()) {}

  Result<std::vector<float>> Load(TensorId tensor) const override {
    return Check(source_->Load(tensor), tensor, [&] { return program_.tensors[tensor].name; });
  }
  Result<std::vector<float>> LoadExpert(uint32_t table, uint32_t expert, ExpertMatrix matrix) const override {
    return Check(source_->LoadExpert(table, expert, matrix), ExpertIndex(program_, table, expert, matrix),
                 [&] { return ExpertTensorName(program_.expert_tables[table], expert, matrix); });
  }
  Codec StoredCodec(TensorId tensor) const override { return source_->StoredCodec(tensor); }
  Codec StoredExpertCodec(uint32_t table, uint32_t expert, ExpertMatrix matrix) const override {
    return source_->StoredExpertCodec(table, expert, matrix);
  }

 private:
  template <typename NameOf>
  Result<std::vector<float>> Check(Result<std::vector<float>> values, size_t index, const NameOf& name_of) const {
    if (!values.ok() || checked_[index]) return values;
    if (DigestOf(*values) != expected_.digests[index]) {
      return Status(ErrorCode::kBadInput, label_ + ": the profile was made from other weights than these (tensor " +
                                              name_of() + " differs); run `moepack calibrate` on this model");
    }
    checked_[index] = true;
    return values;
  }

  const Program program_;
  const std::shared_ptr<const TensorSource> source_;
  const WeightDigests expected_;
  const std::string label_;
  mutable std::vector<std::atomic<bool>> checked_;
};

}  // namespace

size_t CountWeightDigests(const Program& program) {
  return ExpertIndex(program, static_cast<uint32_t>(program.expert_tables.size()), 0, ExpertMatrix::kGate);
}

DigestingSource::DigestingSource(const Program& program, const TensorSource& source)
    : program_(program), source_(source), known_(CountWeightDigests(program)) {
  seen_.digests.resize(known_.size());
}

// Whoever loads a weight first digests it; a second load gives the same values.
void DigestingSource::Note(size_t index, const std::vector<float>& values) const {
  if (!known_[index].exchange(true)) seen_.digests[index] = DigestOf(values);
}

Result<std::vector<float>> DigestingSource::Load(TensorId tensor) const {
  MOEPACK_ASSIGN_OR_RETURN(std::vector<float> values, source_.Load(tensor));
  Note(tensor, values);
  return values;
}

Result<std::vector<float>> DigestingSource::LoadExpert(uint32_t table, uint32_t expert, ExpertMatrix matrix) const {
  MOEPACK_ASSIGN_OR_RETURN(std::vector<float> values, source_.LoadExpert(table, expert, matrix));
  Note(ExpertIndex(program_, table, expert, matrix), values);
  return values;
}

Result<WeightDigests> DigestingSource::Finish() const {
  for (TensorId id = 0; id < program_.tensors.size(); ++id) {
    if (!known_[id]) return Status(ErrorCode::kInternal, "tensor " + program_.tensors[id].name + " was never loaded");
  }
  for (uint32_t t = 0; t < program_.expert_tables.size(); ++t) {
    const ExpertTableDecl& table = program_.expert_tables[t];
    for (uint32_t e = 0; e < table.experts(); ++e) {
      for (int m = table.gated ? 0 : 1; m < kExpertMatrices; ++m) {
        const auto matrix = static_cast<ExpertMatrix>(m);
        if (known_[ExpertIndex(program_, t, e, matrix)]) continue;
        return Status(ErrorCode::kInternal, "tensor " + ExpertTensorName(table, e, matrix) + " was never loaded");
      }
    }
  }
  return seen_;
}

std::shared_ptr<const TensorSource> CheckWeights(const Program& program, std::shared_ptr<const TensorSource> source,
                                                 WeightDigests expected, std::string label) {
  return std::make_shared<CheckedSource>(program, std::move(source), std::move(expected), std::move(label));
}

}  // namespace moepack
