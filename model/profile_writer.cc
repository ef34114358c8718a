#include <deque>
#include <nlohmann/json.hpp>

#include "model/profile_layout.h"

namespace moepack {
namespace {

using nlohmann::json;

template <typename T>
ByteSpan BytesOf(const std::vector<T>& values) {
  return {reinterpret_cast<const uint8_t*>(values.data()), values.size() * sizeof(T)};
}

// Collects what is to be written, and checks each array against the shape it must have.
class Collector {
 public:
  template <typename T>
  void Array(const std::string& name, std::vector<uint64_t> shape, const std::vector<T>* values, Presence presence) {
    uint64_t count = 1;
    for (uint64_t d : shape) count *= d;
    if (values->empty() && presence == Presence::kOptional) return;
    if (values->size() != count) {
      return Fail(name,
                  StrFormat("has %zu entries, must have %llu", values->size(), static_cast<unsigned long long>(count)));
    }
    outputs_.push_back({name, DtypeOf(T()), std::move(shape), BytesOf(*values)});
  }

  void Rows(const std::string& name, const std::vector<uint64_t>& widths, const std::vector<std::vector<float>>* rows) {
    if (rows->size() != widths.size()) return Fail(name, "needs one row an expert");
    std::vector<float>& flat = flat_.emplace_back();
    for (size_t e = 0; e < widths.size(); ++e) {
      if ((*rows)[e].size() != widths[e]) return Fail(name, StrFormat("row %zu has another width than the other arrays", e));
      flat.insert(flat.end(), (*rows)[e].begin(), (*rows)[e].end());
    }
    outputs_.push_back({name, Dtype::kF32, {flat.size()}, BytesOf(flat)});
  }

  void Digests(const WeightDigests& weights) {
    const ByteSpan bytes(reinterpret_cast<const uint8_t*>(weights.digests.data()), weights.digests.size() * sizeof(Digest));
    outputs_.push_back({kWeightsName, Dtype::kU8, {weights.digests.size(), sizeof(Digest)}, bytes});
  }

  const Status& status() const { return status_; }
  const std::vector<SafetensorsOutput>& outputs() const { return outputs_; }

 private:
  void Fail(const std::string& name, const std::string& rule) {
    if (status_.ok()) status_ = Status(ErrorCode::kInternal, "profile: " + name + ": " + rule);
  }
  std::vector<SafetensorsOutput> outputs_;
  std::deque<std::vector<float>> flat_;  // owns what outputs_ point at; a deque does not move its elements
  Status status_;
};

TableShape ShapeOf(const TableProfile& table) {
  TableShape shape;
  if (!table.in_sq.empty()) shape.hidden = table.in_sq[0].size();
  for (const std::vector<float>& row : table.down_sq) shape.intermediate.push_back(row.size());
  return shape;
}

json Metadata(const Profile& profile) {
  json tables = json::array();
  for (const TableProfile& table : profile.tables) {
    const TableShape shape = ShapeOf(table);
    tables.push_back({{"experts", table.experts},
                      {"k", table.k},
                      {"hidden", shape.hidden},
                      {"intermediate", shape.intermediate},
                      {"srp", table.srp},
                      {"sch", table.sch},
                      {"shared_attribution", table.shared_attribution}});
  }
  json inputs = json::array();
  for (const auto& [domain, digest] : profile.inputs) inputs.push_back({{"domain", domain}, {"sha256", digest}});
  return {{"version", kProfileVersion}, {"model_digest", profile.model_digest},
          {"domains", profile.domains}, {"inputs", inputs},
          {"tables", tables},           {"dense_tensors", profile.dense_in_sq.size()}};
}

}  // namespace

Status AppendProfile(AtomicFile& file, const Profile& profile) {
  if (Status status = CheckProfile(profile); !status.ok()) return Status(ErrorCode::kInternal, status.message());
  Collector collector;
  VisitSequences(profile, profile.size(), profile.sequence_start.size(), collector);
  collector.Digests(profile.weights);
  for (size_t t = 0; t < profile.tables.size(); ++t) {
    const TableProfile& table = profile.tables[t];
    VisitTable(table, TablePrefix(t), profile.domains.size(), profile.size(), ShapeOf(table), collector);
  }
  for (size_t id = 0; id < profile.dense_in_sq.size(); ++id) {
    const std::vector<float>& moments = profile.dense_in_sq[id];
    if (!moments.empty()) collector.Array(DenseName(id), {moments.size()}, &moments, Presence::kRequired);
  }
  MOEPACK_RETURN_IF_ERROR(collector.status());
  const std::string metadata = Metadata(profile).dump(-1, ' ', false, json::error_handler_t::replace);
  return AppendSafetensors(file, collector.outputs(), {{kProfileKey, metadata}});
}

Status WriteProfile(Env& env, const std::string& path, const Profile& profile) {
  MOEPACK_ASSIGN_OR_RETURN(const auto file, AtomicFile::Create(env, path));
  MOEPACK_RETURN_IF_ERROR(AppendProfile(*file, profile));
  return file->Commit();
}

}  // namespace moepack
