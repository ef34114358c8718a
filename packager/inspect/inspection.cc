#include "packager/inspect/inspection.h"

#include <algorithm>
#include <set>

#include "base/checked.h"
#include "base/progress.h"

namespace moepack {
namespace {

using Json = nlohmann::json;

constexpr char kExpertRole[] = "expert";

unsigned long long Ull(uint64_t v) { return v; }

Status AddTo(WeightSums* sums, const WeightSums& more) {
  if (!CheckedAdd(sums->parameters, more.parameters, &sums->parameters) ||
      !CheckedAdd(sums->bytes_plain, more.bytes_plain, &sums->bytes_plain) ||
      !CheckedAdd(sums->bytes_resident, more.bytes_resident, &sums->bytes_resident)) {
    return Status(ErrorCode::kLimit, "the sizes of the weights add up to more than 64 bits hold");
  }
  sums->tensors += more.tensors;
  return Status::Ok();
}

// Of one matrix.
Result<WeightSums> SumsOf(const Codec& codec, const MatrixShape& shape) {
  WeightSums sums;
  sums.tensors = 1;
  MOEPACK_ASSIGN_OR_RETURN(sums.bytes_plain, PlainBytes(codec, shape));
  MOEPACK_ASSIGN_OR_RETURN(sums.bytes_resident, ResidentBytes(codec, shape));
  if (!CheckedMul(shape.rows, shape.cols, &sums.parameters))
    return Status(ErrorCode::kLimit, "a weight has more than 2^64 entries");
  return sums;
}

Json SumsJson(const WeightSums& sums) {
  return {{"tensors", sums.tensors},
          {"parameters", sums.parameters},
          {"bytes_plain", sums.bytes_plain},
          {"bytes_resident", sums.bytes_resident}};
}

Json GroupsJson(const std::map<std::string, WeightSums>& groups) {
  Json out = Json::object();
  for (const auto& [name, sums] : groups) out[name] = SumsJson(sums);
  return out;
}

std::string GroupLines(const char* title, const std::map<std::string, WeightSums>& groups) {
  std::string out = StrFormat("\n%-16s %8s %14s %12s %12s\n", title, "tensors", "parameters", "plain", "resident");
  for (const auto& [name, sums] : groups) {
    out += StrFormat("  %-14s %8llu %14llu %12s %12s\n", name.c_str(), Ull(sums.tensors), Ull(sums.parameters),
                     FormatBytes(sums.bytes_plain).c_str(), FormatBytes(sums.bytes_resident).c_str());
  }
  return out;
}

}  // namespace

Inspection::Inspection(std::string kind, const Program& program)
    : kind_(std::move(kind)),
      original_parameters_(program.original_parameters),
      parameters_now_(CountParameters(program)),
      max_positions_(program.max_positions),
      tables_(program.expert_tables) {
  for (const TensorDecl& tensor : program.tensors)
    layers_ = std::max<uint64_t>(layers_, static_cast<uint64_t>(tensor.layer + 1));
  for (const ExpertTableDecl& table : tables_) {
    layers_ = std::max<uint64_t>(layers_, static_cast<uint64_t>(table.layer + 1));
    experts_ += table.experts();
  }
  for (const Node& node : program.nodes) {
    if (node.kind == NodeKind::kMoe) top_k_[node.moe.table] = node.moe.routing.k;
  }
}

Status Inspection::Add(const std::string& role, const Codec& codec, const MatrixShape& shape) {
  MOEPACK_ASSIGN_OR_RETURN(const WeightSums more, SumsOf(codec, shape));
  for (WeightSums* sums : {&all_, &by_role_[role], &by_codec_[codec.Name()]}) MOEPACK_RETURN_IF_ERROR(AddTo(sums, more));
  return Status::Ok();
}

Status Inspection::AddTensor(TensorRole role, const Codec& codec, const MatrixShape& shape) {
  return Add(TensorRoleName(role), codec, shape);
}

Status Inspection::AddExpertMatrix(const Codec& codec, const MatrixShape& shape) { return Add(kExpertRole, codec, shape); }

Status Inspection::AddUnit(const Program& program, bool expert, const std::vector<UnitTensor>& tensors) {
  for (const UnitTensor& tensor : tensors) {
    if (expert) {
      MOEPACK_RETURN_IF_ERROR(AddExpertMatrix(tensor.codec, tensor.shape));
      continue;
    }
    if (tensor.tensor >= program.tensors.size())
      return Status(ErrorCode::kMalformed, "a unit names a tensor that does not exist");
    MOEPACK_RETURN_IF_ERROR(AddTensor(program.tensors[tensor.tensor].role, tensor.codec, tensor.shape));
  }
  return Status::Ok();
}

Status Inspection::AddExpertUnits(const Program& program, const std::vector<ExpertEntry>& experts,
                                  const std::vector<const std::vector<UnitTensor>*>& units) {
  std::set<uint32_t> first;
  const std::vector<std::vector<VariantKind>> kinds = VariantKinds(experts);
  for (size_t e = 0; e < experts.size(); ++e) {
    first.insert(experts[e].variants[0].physical);
    for (const VariantKind kind : std::set<VariantKind>(kinds[e].begin(), kinds[e].end())) ++experts_with_[kind];
  }
  for (uint32_t u = 0; u < units.size(); ++u) {
    if (first.contains(u)) {
      MOEPACK_RETURN_IF_ERROR(AddUnit(program, true, *units[u]));
      continue;
    }
    for (const UnitTensor& tensor : *units[u]) {
      MOEPACK_ASSIGN_OR_RETURN(const WeightSums sums, SumsOf(tensor.codec, tensor.shape));
      MOEPACK_RETURN_IF_ERROR(AddTo(&stand_ins_, sums));
    }
  }
  return Status::Ok();
}

nlohmann::json Inspection::TablesJson() const {
  Json out = Json::array();
  for (size_t t = 0; t < tables_.size(); ++t) {
    const ExpertTableDecl& table = tables_[t];
    const auto [least, most] = std::minmax_element(table.intermediate.begin(), table.intermediate.end());
    const auto k = top_k_.find(static_cast<uint32_t>(t));
    out.push_back({{"layer", table.layer},
                   {"experts", table.experts()},
                   {"top_k", k == top_k_.end() ? Json() : Json(k->second)},
                   {"hidden", table.hidden},
                   {"intermediate_min", least == table.intermediate.end() ? 0 : *least},
                   {"intermediate_max", most == table.intermediate.end() ? 0 : *most}});
  }
  return out;
}

nlohmann::json Inspection::ToJson() const {
  const auto expert = by_role_.find(kExpertRole);
  const uint64_t expert_resident = expert == by_role_.end() ? 0 : expert->second.bytes_resident;
  nlohmann::json out;
  out["kind"] = kind_;
  out["parameters"] = original_parameters_;
  out["parameters_now"] = parameters_now_;
  out["bytes_stored"] = nullptr;
  out["bits_per_weight"] = nullptr;
  if (has_stored_bytes_) {
    out["bytes_stored"] = stored_bytes_;
    if (original_parameters_ != 0) {
      out["bits_per_weight"] = static_cast<double>(stored_bytes_) * 8 / static_cast<double>(original_parameters_);
    }
  }
  out["bytes_resident"] = without_weights_ ? nlohmann::json() : nlohmann::json(all_.bytes_resident);
  out["expert_bytes_resident"] = without_weights_ ? nlohmann::json() : nlohmann::json(expert_resident);
  out["layers"] = layers_;
  out["experts"] = experts_;
  out["max_positions"] = max_positions_;
  out["expert_tables"] = TablesJson();
  out["codecs"] = GroupsJson(by_codec_);
  out["roles"] = GroupsJson(by_role_);
  out["stand_ins"] = SumsJson(stand_ins_);
  out["stand_ins"]["experts_lower"] = ExpertsWith(VariantKind::kLower);
  out["stand_ins"]["experts_twin"] = ExpertsWith(VariantKind::kTwin);
  out["stand_ins"]["experts_dense"] = ExpertsWith(VariantKind::kDense);
  out.update(extra_);
  return out;
}

std::string Inspection::ToText() const {
  std::string out = StrFormat("%s: %llu parameters (%llu now), %llu layers, %llu experts\n", kind_.c_str(),
                              Ull(original_parameters_), Ull(parameters_now_), Ull(layers_), Ull(experts_));
  if (has_stored_bytes_ && original_parameters_ != 0) {
    out += StrFormat("stored %s (%llu bytes), %.3f bits per weight\n", FormatBytes(stored_bytes_).c_str(),
                     Ull(stored_bytes_), static_cast<double>(stored_bytes_) * 8 / static_cast<double>(original_parameters_));
  }
  if (!without_weights_)
    out += StrFormat("resident %s (%llu bytes)\n", FormatBytes(all_.bytes_resident).c_str(), Ull(all_.bytes_resident));
  const uint64_t lower = ExpertsWith(VariantKind::kLower), twin = ExpertsWith(VariantKind::kTwin),
                 dense = ExpertsWith(VariantKind::kDense);
  if (lower + twin + dense > 0) {
    out +=
        StrFormat("stand-ins: %llu experts with a lower precision, %llu with a twin, %llu with a dense one (resident %s)\n",
                  Ull(lower), Ull(twin), Ull(dense), FormatBytes(stand_ins_.bytes_resident).c_str());
  }
  for (const auto& [key, value] : extra_.items()) {
    if (value.is_primitive()) out += key + ": " + (value.is_string() ? value.get<std::string>() : value.dump()) + "\n";
  }
  if (without_weights_) return out;
  return out + GroupLines("role", by_role_) + GroupLines("codec", by_codec_) + notes_;
}

}  // namespace moepack
