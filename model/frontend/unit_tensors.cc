#include "model/frontend/unit_tensors.h"

#include <algorithm>
#include <map>
#include <mutex>

#include "model/frontend/safetensors.h"

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
  Result<std::shared_ptr<const Bytes>> Get(const UnitReader& reader, size_t unit) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (bytes_ != nullptr && unit_ == unit) return bytes_;
    MOEPACK_ASSIGN_OR_RETURN(Bytes bytes, reader.ReadUnit(unit));
    bytes_ = std::make_shared<const Bytes>(std::move(bytes));
    unit_ = unit;
    return bytes_;
  }

 private:
  std::mutex mutex_;
  size_t unit_ = 0;
  std::shared_ptr<const Bytes> bytes_;
};

class UnitTensors final : public TensorSource {
 public:
  UnitTensors(std::unique_ptr<const UnitReader> reader, std::string label)
      : reader_(std::move(reader)), label_(std::move(label)) {}

  Status Index() {
    std::map<UnitKey, size_t> expert_units;
    dense_.resize(reader_->program().tensors.size());
    std::vector<bool> found(dense_.size());
    for (size_t u = 0; u < reader_->units().size(); ++u) {
      const ModelFolder::UnitInfo& unit = reader_->units()[u];
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
      if (!found[id]) return Damaged("no unit holds tensor " + reader_->program().tensors[id].name);
    }
    return IndexExperts(expert_units);
  }

  Result<std::vector<float>> Load(TensorId tensor) const override {
    return LoadAt(dense_.at(tensor), reader_->program().tensors[tensor].name);
  }
  Result<std::vector<float>> LoadExpert(uint32_t table, uint32_t expert, ExpertMatrix matrix) const override {
    return LoadAt(Expert(table, expert, matrix), ExpertTensorName(reader_->program().expert_tables[table], expert, matrix));
  }
  Result<QuantizedMatrix> LoadCodes(TensorId tensor) const override {
    return CodesAt(dense_.at(tensor), reader_->program().tensors[tensor].name);
  }
  Result<QuantizedMatrix> LoadExpertCodes(uint32_t table, uint32_t expert, ExpertMatrix matrix) const override {
    return CodesAt(Expert(table, expert, matrix), ExpertTensorName(reader_->program().expert_tables[table], expert, matrix));
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
    for (const UnitTensor& tensor : reader_->units()[unit].tensors) {
      MOEPACK_ASSIGN_OR_RETURN(const uint64_t bytes, PlainBytes(tensor.codec, tensor.shape));
      places.push_back({unit, tensor, offset, bytes});
      offset += bytes;
    }
    if (offset != reader_->units()[unit].plain_bytes) return Damaged("a unit's tensors do not fill it");
    return places;
  }

  // The best variant of every logical expert.
  Status IndexExperts(const std::map<UnitKey, size_t>& units) {
    const auto& tables = reader_->program().expert_tables;
    if (reader_->experts().size() != tables.size()) return Damaged("expert tables and program disagree");
    for (uint32_t t = 0; t < tables.size(); ++t) {
      auto& experts = experts_.emplace_back(tables[t].experts());
      if (reader_->experts()[t].size() != experts.size()) return Damaged("expert tables and program disagree");
      for (uint32_t e = 0; e < experts.size(); ++e) {
        const ExpertEntry& entry = reader_->experts()[t][e];
        const auto unit = entry.variants.empty() ? units.end() : units.find(UnitKey{true, t, entry.variants[0].physical});
        if (unit == units.end()) return Damaged(StrFormat("no unit holds expert %u of table %u", e, t));
        MOEPACK_ASSIGN_OR_RETURN(experts[e], PlacesOf(unit->second));
      }
    }
    return Status::Ok();
  }

  const Place& Expert(uint32_t table, uint32_t expert, ExpertMatrix matrix) const {
    const std::vector<Place>& places = experts_.at(table).at(expert);
    const auto place = std::find_if(places.begin(), places.end(),
                                    [matrix](const Place& p) { return p.tensor.tensor == static_cast<uint32_t>(matrix); });
    return places.at(static_cast<size_t>(place - places.begin()));  // every unit has the matrices of its table
  }

  Result<std::shared_ptr<const Bytes>> UnitOf(const Place& place) const {
    return (reader_->units()[place.unit].key.expert ? expert_cache_ : dense_cache_).Get(*reader_, place.unit);
  }

  Result<QuantizedMatrix> CodesAt(const Place& place, const std::string& name) const {
    MOEPACK_ASSIGN_OR_RETURN(const std::shared_ptr<const Bytes> unit, UnitOf(place));
    Result<QuantizedMatrix> codes =
        FromPlain(place.tensor.codec, place.tensor.shape, ByteSpan(*unit).subspan(place.offset, place.bytes));
    if (!codes.ok()) return codes.status().With(label_ + ": tensor " + name);
    return codes;
  }

  Result<std::vector<float>> LoadAt(const Place& place, const std::string& name) const {
    MOEPACK_ASSIGN_OR_RETURN(const std::shared_ptr<const Bytes> unit, UnitOf(place));
    std::vector<float> out(place.tensor.shape.rows * place.tensor.shape.cols);
    const ByteSpan plain = ByteSpan(*unit).subspan(place.offset, place.bytes);
    if (Status status = DecodePlain(place.tensor.codec, place.tensor.shape, plain, out); !status.ok()) {
      return status.With(label_ + ": tensor " + name);
    }
    if (const uint64_t bad = FirstNotFinite(out); bad < out.size()) {
      return Status(ErrorCode::kNotFinite, StrFormat("%s: tensor %s, value %llu is not finite", label_.c_str(), name.c_str(),
                                                     static_cast<unsigned long long>(bad)));
    }
    return out;
  }

  std::unique_ptr<const UnitReader> reader_;
  std::string label_;
  std::vector<Place> dense_;                              // by TensorId
  std::vector<std::vector<std::vector<Place>>> experts_;  // by table and expert
  mutable UnitCache dense_cache_, expert_cache_;
};

}  // namespace

Result<std::shared_ptr<const TensorSource>> MakeUnitTensors(std::unique_ptr<const UnitReader> reader, std::string label) {
  auto tensors = std::make_shared<UnitTensors>(std::move(reader), std::move(label));
  MOEPACK_RETURN_IF_ERROR(tensors->Index());
  return std::shared_ptr<const TensorSource>(std::move(tensors));
}

}  // namespace moepack
