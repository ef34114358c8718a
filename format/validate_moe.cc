// The part of NodeChecker about experts: routing, activation, biases.
#include <algorithm>
#include <cmath>
#include <map>

#include "format/validate_node.h"

namespace moepack {

Status NodeChecker::CheckMoe(const Node& node) {
  MOEPACK_RETURN_IF_ERROR(Arity(node, 2));
  const MoeNode& moe = node.moe;
  if (moe.table >= program_.expert_tables.size()) return Bad(StrFormat("expert table %u does not exist", moe.table));
  const ExpertTableDecl& table = program_.expert_tables[moe.table];
  MOEPACK_RETURN_IF_ERROR(Width("hidden state", InputWidth(node, 0), table.hidden));
  MOEPACK_RETURN_IF_ERROR(Width("router logits", InputWidth(node, 1), table.experts()));
  MOEPACK_RETURN_IF_ERROR(Width("output", OutputWidth(node), table.hidden));
  MOEPACK_RETURN_IF_ERROR(CheckRouting(moe, table));
  MOEPACK_RETURN_IF_ERROR(CheckActivation(moe.activation, table));
  MOEPACK_RETURN_IF_ERROR(CheckExpertBiases(moe, table));
  if (table_used_[moe.table]) return Bad(StrFormat("expert table %u belongs to another moe", moe.table));
  table_used_[moe.table] = true;
  return Status::Ok();
}

Status NodeChecker::CheckActivation(const ActivationRecord& activation, const ExpertTableDecl& table) const {
  if (activation.function > Activation::kIdentity) return Bad("unknown activation");
  if (activation.gated != table.gated) return Bad("gated differs from its expert table");
  if (!activation.gated && !activation.plain()) return Bad("limit, sigmoid_scale and up_offset need gated experts");
  if (!NotNegative(activation.limit)) return Bad("limit must be finite and not negative");
  if (!NotNegative(activation.sigmoid_scale)) return Bad("sigmoid_scale must be finite and not negative");
  if (activation.sigmoid_scale != 0 && activation.function != Activation::kSilu)
    return Bad("sigmoid_scale is for silu only");
  if (!std::isfinite(activation.up_offset)) return Bad("up_offset is not finite");
  return Status::Ok();
}

Status NodeChecker::CheckExpertBiases(const MoeNode& moe, const ExpertTableDecl& table) {
  MOEPACK_RETURN_IF_ERROR(UseVector("selection bias", moe.selection_bias, table.experts()));
  const bool up = moe.up_bias != kNone, down = moe.down_bias != kNone, gate = moe.gate_bias != kNone;
  if (up != down || gate != (up && table.gated)) return Bad("biases of experts are all there or none is");
  if (!up) return Status::Ok();
  const uint64_t widest = *std::max_element(table.intermediate.begin(), table.intermediate.end());
  if (gate) MOEPACK_RETURN_IF_ERROR(UseTensor("gate bias", moe.gate_bias, table.experts(), widest));
  MOEPACK_RETURN_IF_ERROR(UseTensor("up bias", moe.up_bias, table.experts(), widest));
  return UseTensor("down bias", moe.down_bias, table.experts(), table.hidden);
}

Status NodeChecker::CheckGroups(const RoutingRecord& routing, const ExpertTableDecl& table) const {
  if (routing.group_rule > GroupRule::kTwoLargest) return Bad("unknown group rule");
  if (routing.group_size == 0) {
    const bool clean = routing.top_groups == 0 && routing.group_rule == GroupRule::kLargest;
    return clean ? Status::Ok() : Bad("top_groups or group rule without group_size");
  }
  if (routing.score == ScoreFunction::kSparseMixer || !routing.score_before_topk)
    return Bad("groups need scores before top k");
  if (routing.top_groups == 0) return Bad("top_groups must be at least 1");
  // Enough experts must be left whichever groups win: the smallest groups count.
  std::map<uint32_t, uint32_t> sizes;
  for (const uint32_t original : table.original) ++sizes[original / routing.group_size];
  std::vector<uint32_t> counts;
  for (const auto& [group, count] : sizes) counts.push_back(count);
  std::sort(counts.begin(), counts.end());
  uint64_t least = 0;
  for (size_t i = 0; i < counts.size() && i < routing.top_groups; ++i) least += counts[i];
  return least >= routing.k ? Status::Ok() : Bad("the chosen groups may hold fewer than k experts");
}

Status NodeChecker::CheckRouting(const MoeNode& moe, const ExpertTableDecl& table) const {
  const RoutingRecord& routing = moe.routing;
  if (routing.score > ScoreFunction::kSparseMixer) return Bad("unknown score function");
  if (routing.k == 0 || routing.k > table.experts()) {
    return Bad(StrFormat("k is %u, must be 1 to %u experts", routing.k, table.experts()));
  }
  if (!NotNegative(routing.eps)) return Bad("routing eps must be finite and not negative");
  if (!std::isfinite(routing.scale)) return Bad("routing scale is not finite");
  const bool mixer = routing.score == ScoreFunction::kSparseMixer;
  if (!NotNegative(routing.mixer_eps) || (!mixer && routing.mixer_eps != 0)) return Bad("mixer_eps is set wrongly");
  if (mixer && (!routing.score_before_topk || moe.selection_bias != kNone)) {
    return Bad("a sparse mixer scores before top k and has no selection bias");
  }
  return CheckGroups(routing, table);
}

}  // namespace moepack
