#include "model/frontend/compressed.h"

#include <cmath>
#include <map>
#include <mutex>

#include "base/digest/sha256.h"
#include "format/manifest/model_folder.h"
#include "model/frontend/json_text.h"

namespace moepack {
namespace {

// Where a tensor's plain bytes are.
struct Place {
  size_t unit = 0;
  UnitTensor tensor;
  uint64_t offset = 0, bytes = 0;
};

// The unit that was read last. Tensors of one unit are usually asked for one after another.
class UnitCache {
 public:
  Result<std::shared_ptr<const Bytes>> Get(const ModelFolder& folder, size_t unit) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (bytes_ != nullptr && unit_ == unit) return bytes_;
    MOEPACK_ASSIGN_OR_RETURN(Bytes bytes, folder.ReadUnit(unit));
    bytes_ = std::make_shared<const Bytes>(std::move(bytes));
    unit_ = unit;
    return bytes_;
  }

 private:
  std::mutex mutex_;
  size_t unit_ = 0;
  std::shared_ptr<const Bytes> bytes_;
};

class CompressedSource final : public TensorSource {
 public:
  CompressedSource(std::unique_ptr<ModelFolder> folder, std::string label)
      : folder_(std::move(folder)), label_(std::move(label)) {}

  Status Index() {
    std::map<UnitKey, size_t> expert_units;
    dense_.resize(folder_->program().tensors.size());
    std::vector<bool> found(dense_.size());
    for (size_t u = 0; u < folder_->units().size(); ++u) {
      const ModelFolder::UnitInfo& unit = folder_->units()[u];
      if (unit.key.expert) {
        expert_units.emplace(unit.key, u);
        continue;
      }
      MOEPACK_ASSIGN_OR_RETURN(const std::vector<Place> places, PlacesOf(u));
      for (const Place& place : places) {
        if (place.tensor.tensor >= dense_.size()) return Damaged("a unit names a tensor that the program lacks");
        dense_[place.tensor.tensor] = place;
        found[place.tensor.tensor] = true;
      }
    }
    for (size_t id = 0; id < found.size(); ++id) {
      if (!found[id]) return Damaged("no unit holds tensor " + folder_->program().tensors[id].name);
    }
    return IndexExperts(expert_units);
  }

  Result<std::vector<float>> Load(TensorId tensor) const override {
    return LoadAt(dense_.at(tensor), folder_->program().tensors[tensor].name);
  }
  Result<std::vector<float>> LoadExpert(uint32_t table, uint32_t expert, ExpertMatrix matrix) const override {
    return LoadAt(Expert(table, expert, matrix), ExpertTensorName(folder_->program().expert_tables[table], expert, matrix));
  }
  Codec StoredCodec(TensorId tensor) const override { return dense_.at(tensor).tensor.codec; }
  Codec StoredExpertCodec(uint32_t table, uint32_t expert, ExpertMatrix matrix) const override {
    return Expert(table, expert, matrix).tensor.codec;
  }

 private:
  Status Damaged(const std::string& what) const { return Status(ErrorCode::kBadInput, label_ + ": " + what); }

  // Tensors of a unit stand one after another.
  Result<std::vector<Place>> PlacesOf(size_t unit) const {
    std::vector<Place> places;
    uint64_t offset = 0;
    for (const UnitTensor& tensor : folder_->units()[unit].tensors) {
      MOEPACK_ASSIGN_OR_RETURN(const uint64_t bytes, PlainBytes(tensor.codec, tensor.shape));
      places.push_back({unit, tensor, offset, bytes});
      offset += bytes;
    }
    if (offset != folder_->units()[unit].plain_bytes) return Damaged("a unit's tensors do not fill it");
    return places;
  }

  // The best variant of every logical expert.
  Status IndexExperts(const std::map<UnitKey, size_t>& units) {
    const auto& tables = folder_->program().expert_tables;
    if (folder_->experts().size() != tables.size()) return Damaged("expert tables and program disagree");
    for (uint32_t t = 0; t < tables.size(); ++t) {
      auto& experts = experts_.emplace_back(tables[t].experts());
      if (folder_->experts()[t].size() != experts.size()) return Damaged("expert tables and program disagree");
      for (uint32_t e = 0; e < experts.size(); ++e) {
        const ExpertEntry& entry = folder_->experts()[t][e];
        const auto unit = entry.variants.empty() ? units.end() : units.find(UnitKey{true, t, entry.variants[0].physical});
        if (unit == units.end()) return Damaged(StrFormat("no unit holds expert %u of table %u", e, t));
        MOEPACK_ASSIGN_OR_RETURN(experts[e], PlacesOf(unit->second));
      }
    }
    return Status::Ok();
  }

  const Place& Expert(uint32_t table, uint32_t expert, ExpertMatrix matrix) const {
    const std::vector<Place>& places = experts_.at(table).at(expert);
    for (const Place& place : places) {
      if (place.tensor.tensor == static_cast<uint32_t>(matrix)) return place;
    }
    return places.at(static_cast<size_t>(matrix));
  }

  Result<std::vector<float>> LoadAt(const Place& place, const std::string& name) const {
    UnitCache& cache = folder_->units()[place.unit].key.expert ? expert_cache_ : dense_cache_;
    MOEPACK_ASSIGN_OR_RETURN(const std::shared_ptr<const Bytes> unit, cache.Get(*folder_, place.unit));
    std::vector<float> out(place.tensor.shape.rows * place.tensor.shape.cols);
    const ByteSpan plain = ByteSpan(*unit).subspan(place.offset, place.bytes);
    if (Status status = DecodePlain(place.tensor.codec, place.tensor.shape, plain, out); !status.ok()) {
      return status.With(label_ + ": tensor " + name);
    }
    for (size_t i = 0; i < out.size(); ++i) {
      if (!std::isfinite(out[i])) {
        return Status(ErrorCode::kNotFinite,
                      StrFormat("%s: tensor %s, value %zu is not finite", label_.c_str(), name.c_str(), i));
      }
    }
    return out;
  }

  std::unique_ptr<ModelFolder> folder_;
  std::string label_;
  std::vector<Place> dense_;                              // by TensorId
  std::vector<std::vector<std::vector<Place>>> experts_;  // by table and expert
  mutable UnitCache dense_cache_, expert_cache_;
};

// The family of the checkpoint that the folder was made from, for people; "compressed" when provenance does not say.
std::string FamilyOf(const ModelFolder& folder) {
  const Result<Bytes> text = folder.ReadNamedFile("provenance.json");
  if (!text.ok()) return "compressed";
  const Result<nlohmann::json> json = ParseJson(*text, "provenance.json");
  if (!json.ok() || !json->is_object()) return "compressed";
  const auto family = json->find("family");
  return family != json->end() && family->is_string() ? family->get<std::string>() : "compressed";
}

}  // namespace

Result<Model> OpenCompressed(Env& env, const std::string& directory, const OpenOptions& options) {
  MOEPACK_ASSIGN_OR_RETURN(auto folder, ModelFolder::Open(env, directory));
  Model model;
  model.source = ModelSource::kCompressed;
  model.program = folder->program();
  model.family = FamilyOf(*folder);
  model.tokenizer.assign(folder->tokenizer_blob().begin(), folder->tokenizer_blob().end());
  auto source = std::make_shared<CompressedSource>(std::move(folder), directory);
  MOEPACK_RETURN_IF_ERROR(source->Index());
  model.tensors = std::move(source);
  if (options.digests) {
    // `complete` holds the digests of all other files.
    MOEPACK_ASSIGN_OR_RETURN(const Digest digest, Sha256File(env, JoinPath(directory, "complete")));
    model.input_digests.emplace_back("complete", ToHex(digest));
  }
  return model;
}

}  // namespace moepack
