#include "model/plain_nodes.h"

namespace moepack {
namespace {

const char* InAttention(const AttentionNode& a) {
  if (a.value_dim != 0) return "values of another width than keys";
  if (a.chunk != 0) return "chunked attention";
  if (a.sinks != kNone) return "attention sinks";
  if (a.position_scale != 0) return "an attention scale that depends on the position";
  return nullptr;
}

const char* InMoe(const MoeNode& moe) {
  if (moe.routing.score == ScoreFunction::kSparseMixer) return "routing by a sparse mixer";
  if (moe.routing.group_size != 0) return "routing by groups";
  if (moe.routing.weight_on_input) return "routing weights on the experts' inputs";
  if (moe.selection_bias != kNone) return "a selection bias";
  if (moe.up_bias != kNone) return "biases of experts";
  if (!moe.activation.plain()) return "an activation with limits";
  return nullptr;
}

}  // namespace

const char* BeyondPlain(const Node& node) {
  switch (node.kind) {
    case NodeKind::kRotary:
      if (node.rotary.offset != 0) return "a rotation that does not begin at a head's first column";
      return node.rotary.long_from == 0 ? nullptr : "frequencies that depend on the length of the sequence";
    case NodeKind::kAttention:
      return InAttention(node.attention);
    case NodeKind::kMoe:
      return InMoe(node.moe);
    case NodeKind::kConcat:
      return node.concat.heads == 0 ? nullptr : "joining by heads";
    case NodeKind::kConvolution:
      return "a convolution";
    default:
      return nullptr;
  }
}

}  // namespace moepack
