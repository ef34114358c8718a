#include "packager/inspect/inspection.h"

#include <algorithm>

#include "base/checked.h"
#include "base/progress.h"

namespace moepack {
namespace {

using Json = nlohmann::json;

constexpr char kExpertRole[] = "expert";

unsigned long long Ull(uint64_t v) { return v; }

Status AddTo(WeightSums* sums, uint64_t parameters, uint64_t plain, uint64_t resident) {
  if (!CheckedAdd(sums->parameters, parameters, &sums->parameters) ||
      !CheckedAdd(sums->bytes_plain, plain, &sums->bytes_plain) ||
      !CheckedAdd(sums->bytes_resident, resident, &sums->bytes_resident)) {
    return Status(ErrorCode::kLimit, "the sizes of the weights add up to more than 64 bits hold");
  }
  ++sums->tensors;
  return Status::Ok();
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
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t plain, PlainBytes(codec, shape));
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t resident, ResidentBytes(codec, shape));
  uint64_t parameters = 0;
  if (!CheckedMul(shape.rows, shape.cols, &parameters))
    return Status(ErrorCode::kLimit, "a weight has more than 2^64 entries");
  for (WeightSums* sums : {&all_, &by_role_[role], &by_codec_[codec.Name()]}) {
    MOEPACK_RETURN_IF_ERROR(AddTo(sums, parameters, plain, resident));
  }
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
  for (const auto& [key, value] : extra_.items()) {
    if (value.is_primitive()) out += key + ": " + (value.is_string() ? value.get<std::string>() : value.dump()) + "\n";
  }
  if (without_weights_) return out;
  return out + GroupLines("role", by_role_) + GroupLines("codec", by_codec_) + notes_;
}

}  // namespace moepack
