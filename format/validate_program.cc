// ValidateProgram: counts and declarations here, nodes in validate_node.cc.
#include <set>
#include <string_view>

#include "base/checked.h"
#include "format/codec/codec.h"
#include "format/program.h"
#include "format/validate_node.h"

namespace moepack {
namespace {

constexpr uint64_t kMaxParameters = 1ull << 60;

Status Malformed(std::string message) { return Status(ErrorCode::kMalformed, "program: " + std::move(message)); }
Status OverLimit(std::string message) { return Status(ErrorCode::kLimit, "program: " + std::move(message)); }

bool IsNameCharacter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
         std::string_view("._/:-").find(c) != std::string_view::npos;
}

bool IsName(std::string_view name) {
  if (name.size() > kMaxNameBytes) return false;
  for (const char c : name) {
    if (!IsNameCharacter(c)) return false;
  }
  return true;
}

Status CheckCounts(const Program& p) {
  if (p.nodes.empty() || p.nodes.size() > kMaxNodes) {
    return OverLimit(StrFormat("%zu nodes, must be 1 to %u", p.nodes.size(), kMaxNodes));
  }
  if (p.values.size() > kMaxValues) return OverLimit(StrFormat("%zu values, at most %u", p.values.size(), kMaxValues));
  if (p.tensors.size() > kMaxTensors) return OverLimit(StrFormat("%zu tensors, at most %u", p.tensors.size(), kMaxTensors));
  if (p.expert_tables.size() > kMaxExpertTables) {
    return OverLimit(StrFormat("%zu expert tables, at most %u", p.expert_tables.size(), kMaxExpertTables));
  }
  if (p.state_slots > kMaxNodes) return OverLimit(StrFormat("%u state slots, at most %u", p.state_slots, kMaxNodes));
  if (p.max_positions == 0 || p.max_positions > kMaxPositions) {
    return OverLimit(StrFormat("max_positions is %u, must be 1 to %u", p.max_positions, kMaxPositions));
  }
  return Status::Ok();
}

Status CheckValues(const Program& p) {
  for (size_t i = 0; i < p.values.size(); ++i) {
    const ValueDecl& value = p.values[i];
    if (!IsName(value.name)) return Malformed(StrFormat("value %zu: name is longer or of other characters than allowed", i));
    if (value.kind == ValueKind::kTokens) {
      if (value.width != 0) return Malformed(StrFormat("value %zu: tokens must have width 0", i));
    } else if (value.kind == ValueKind::kFloat) {
      if (value.width == 0 || value.width > kMaxRows) {
        return OverLimit(StrFormat("value %zu: width %llu, must be 1 to %llu", i,
                                   static_cast<unsigned long long>(value.width), static_cast<unsigned long long>(kMaxRows)));
      }
    } else {
      return Malformed(StrFormat("value %zu: unknown kind %d", i, static_cast<int>(value.kind)));
    }
  }
  return Status::Ok();
}

Status CheckTensors(const Program& p) {
  std::set<std::string_view> names;
  for (size_t i = 0; i < p.tensors.size(); ++i) {
    const TensorDecl& tensor = p.tensors[i];
    if (tensor.name.empty() || !IsName(tensor.name)) {
      return Malformed(StrFormat("tensor %zu: name must be 1 to %u of [A-Za-z0-9._/:-]", i, kMaxNameBytes));
    }
    if (!names.insert(tensor.name).second) {
      return Malformed(StrFormat("tensor %zu: name '%s' is used twice", i, tensor.name.c_str()));
    }
    if (tensor.rows == 0 || tensor.rows > kMaxRows || tensor.cols == 0 || tensor.cols > kMaxCols) {
      return OverLimit(StrFormat("tensor %zu '%s': shape [%llu, %llu], at most [%llu, %llu] and not empty", i,
                                 tensor.name.c_str(), static_cast<unsigned long long>(tensor.rows),
                                 static_cast<unsigned long long>(tensor.cols), static_cast<unsigned long long>(kMaxRows),
                                 static_cast<unsigned long long>(kMaxCols)));
    }
    if (tensor.role > TensorRole::kOther) {
      return Malformed(StrFormat("tensor %zu '%s': unknown role %d", i, tensor.name.c_str(), static_cast<int>(tensor.role)));
    }
    if (tensor.layer < -1 || tensor.layer >= static_cast<int32_t>(kMaxLayers)) {
      return OverLimit(
          StrFormat("tensor %zu '%s': layer %d, must be -1 to %u", i, tensor.name.c_str(), tensor.layer, kMaxLayers - 1));
    }
  }
  return Status::Ok();
}

Status CheckTables(const Program& p) {
  std::set<int32_t> layers;
  for (size_t t = 0; t < p.expert_tables.size(); ++t) {
    const ExpertTableDecl& table = p.expert_tables[t];
    if (table.layer < 0 || table.layer >= static_cast<int32_t>(kMaxLayers)) {
      return OverLimit(StrFormat("expert table %zu: layer %d, must be 0 to %u", t, table.layer, kMaxLayers - 1));
    }
    if (!layers.insert(table.layer).second) {
      return Malformed(StrFormat("expert table %zu: layer %d has a table already", t, table.layer));
    }
    if (table.intermediate.empty() || table.intermediate.size() > kMaxExperts) {
      return OverLimit(
          StrFormat("expert table %zu: %zu experts, must be 1 to %u", t, table.intermediate.size(), kMaxExperts));
    }
    if (table.hidden == 0 || table.hidden > kMaxCols) {
      return OverLimit(
          StrFormat("expert table %zu: hidden width outside 1 to %llu", t, static_cast<unsigned long long>(kMaxCols)));
    }
    if (table.original.size() != table.intermediate.size()) {
      return Malformed(
          StrFormat("expert table %zu: %zu original indices for %u experts", t, table.original.size(), table.experts()));
    }
    for (size_t e = 0; e < table.intermediate.size(); ++e) {
      if (table.intermediate[e] == 0 || table.intermediate[e] > kMaxCols) {
        return OverLimit(StrFormat("expert table %zu, expert %zu: intermediate width outside 1 to %llu", t, e,
                                   static_cast<unsigned long long>(kMaxCols)));
      }
      if (table.original[e] >= kMaxExperts || (e > 0 && table.original[e] <= table.original[e - 1])) {
        return Malformed(
            StrFormat("expert table %zu, expert %zu: original indices must rise and stay below %u", t, e, kMaxExperts));
      }
    }
  }
  return Status::Ok();
}

// Products of these sizes are summed without checks later (CountParameters), so the total is bounded here.
Status CheckParameters(const Program& p) {
  CheckedU64 total = 0;
  for (const TensorDecl& tensor : p.tensors) total = total + CheckedU64(tensor.rows) * tensor.cols;
  for (const ExpertTableDecl& table : p.expert_tables) {
    for (const uint64_t width : table.intermediate) total = total + CheckedU64(table.hidden) * width * (table.gated ? 3 : 2);
  }
  if (!total.valid() || total.value() > kMaxParameters) return OverLimit("more than 2^60 parameters");
  if (p.original_parameters == 0 || p.original_parameters > kMaxParameters) {
    return OverLimit("original_parameters must be 1 to 2^60");
  }
  return Status::Ok();
}

}  // namespace

Status ValidateProgram(const Program& program) {
  MOEPACK_RETURN_IF_ERROR(CheckCounts(program));
  MOEPACK_RETURN_IF_ERROR(CheckValues(program));
  MOEPACK_RETURN_IF_ERROR(CheckTensors(program));
  MOEPACK_RETURN_IF_ERROR(CheckTables(program));
  MOEPACK_RETURN_IF_ERROR(CheckParameters(program));
  NodeChecker nodes(program);
  MOEPACK_RETURN_IF_ERROR(nodes.CheckInputs());
  for (size_t i = 0; i < program.nodes.size(); ++i) MOEPACK_RETURN_IF_ERROR(nodes.CheckNode(i));
  return nodes.CheckCompleteness();
}

}  // namespace moepack
