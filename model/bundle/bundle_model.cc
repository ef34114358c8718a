#include "model/bundle/bundle_model.h"

#include "format/manifest/unit_check.h"
#include "format/provenance/provenance.h"
#include "model/frontend/unit_tensors.h"
#include "runtime-min/unit_source.h"
#include "verify/trust_json.h"

namespace moepack {
namespace {

class BundleUnits final : public UnitReader {
 public:
  explicit BundleUnits(std::unique_ptr<verify::VerifiedBundle> bundle) : source_(std::move(bundle)) {}

  // Dense units first, as in a model folder.
  Status Index() {
    for (size_t u = 0; u < source_.dense().units.size(); ++u) {
      MOEPACK_RETURN_IF_ERROR(Add({}, source_.dense().units[u]));
    }
    for (uint32_t t = 0; t < source_.experts().size(); ++t) {
      const ExpertTable& table = source_.experts()[t];
      experts_.push_back(table.experts);
      for (uint32_t p = 0; p < table.units.size(); ++p) MOEPACK_RETURN_IF_ERROR(Add({true, t, p}, table.units[p]));
    }
    return Status::Ok();
  }

  const Program& program() const override { return source_.program(); }
  const std::vector<ModelFolder::UnitInfo>& units() const override { return units_; }
  const std::vector<std::vector<ExpertEntry>>& experts() const override { return experts_; }

  Result<Bytes> ReadUnit(size_t index) const override {
    const UnitKey& key = units_[index].key;
    const Result<PlainUnit> plain = key.expert ? source_.ReadExpert(key.table, key.physical) : source_.ReadDense(index);
    if (!plain.ok()) return plain.status();
    return Bytes(plain->bytes().begin(), plain->bytes().end());
  }

 private:
  Status Add(const UnitKey& key, const Unit& unit) {
    ModelFolder::UnitInfo info;
    info.key = key;
    info.tensors = unit.tensors;
    MOEPACK_ASSIGN_OR_RETURN(info.plain_bytes, UnitPlainBytes(unit.tensors));
    units_.push_back(std::move(info));
    return Status::Ok();
  }

  mutable runtime::BundleSource source_;  // thread-safe
  std::vector<ModelFolder::UnitInfo> units_;
  std::vector<std::vector<ExpertEntry>> experts_;
};

}  // namespace

Result<Model> OpenBundle(Env& env, const std::string& path, const std::string& trust_path, ThreadPool& pool,
                         Progress& progress) {
  MOEPACK_ASSIGN_OR_RETURN(const verify::TrustPolicy policy, verify::ReadTrust(env, trust_path));
  MOEPACK_ASSIGN_OR_RETURN(auto file, env.OpenRead(path));
  MOEPACK_ASSIGN_OR_RETURN(auto bundle, verify::VerifiedBundle::Open(std::move(file), policy));
  MOEPACK_RETURN_IF_ERROR(bundle->VerifyAll(pool, progress));
  Model model;
  model.source = ModelSource::kCompressed;
  model.program = bundle->program();
  const Result<RecordedBuild> build = ParseProvenance(bundle->provenance_blob());
  model.family = build.ok() ? build->record.family : "compressed";
  model.tokenizer.assign(bundle->tokenizer_blob().begin(), bundle->tokenizer_blob().end());
  auto units = std::make_unique<BundleUnits>(std::move(bundle));
  MOEPACK_RETURN_IF_ERROR(units->Index());
  MOEPACK_ASSIGN_OR_RETURN(model.tensors, MakeUnitTensors(std::move(units), path));
  return model;
}

}  // namespace moepack
