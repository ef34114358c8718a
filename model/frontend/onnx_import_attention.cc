// com.microsoft.GroupQueryAttention: query, key, value, past key and value, sequence lengths, total length, cos and sin
// caches, position ids, attention bias, head sink.
#include <algorithm>
#include <cmath>

#include "model/frontend/onnx_import.h"

namespace moepack {

struct OnnxImporter::Attention {
  AttentionNode node;
  bool rotate = false, interleaved = false;
  Value query;  // for its rank
  ValueId q = kNone, k = kNone, v = kNone;
};

Status OnnxImporter::ReadAttentionAttributes(OnnxNode& node, Attention* attention) const {
  const int64_t heads = node.Int("num_heads", 0), kv_heads = node.Int("kv_num_heads", 0);
  const int64_t window = node.Int("local_window_size", -1);
  const int64_t do_rotary = node.Int("do_rotary", 0), interleaved = node.Int("rotary_interleaved", 0);
  const int64_t smooth = node.Int("smooth_softmax", 0), qk_output = node.Int("qk_output", 0);
  const int64_t causal = node.Int("causal", 1);
  attention->node.scale = node.Float("scale", 0);
  attention->node.softcap = node.Float("softcap", 0);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  if (heads < 1 || heads > 4096 || kv_heads < 1 || kv_heads > heads || heads % kv_heads != 0) {
    return node.Bad("kv_num_heads must divide num_heads, both at least 1");
  }
  if (smooth > 0 || qk_output != 0 || causal != 1) return node.Unsupported("smooth_softmax, qk_output and causal 0");
  if (window != -1 && (window < 1 || window > kMaxPositions)) return node.Bad("local_window_size must be -1 or positive");
  attention->node.heads = static_cast<uint32_t>(heads);
  attention->node.kv_heads = static_cast<uint32_t>(kv_heads);
  attention->node.window = window < 0 ? 0 : static_cast<uint32_t>(window);
  attention->rotate = do_rotary != 0;
  attention->interleaved = interleaved != 0;
  return Status::Ok();
}

// Past keys and values may come from graph inputs only, lengths and positions from graph inputs or what is computed of them.
Status OnnxImporter::CheckAttentionInputs(const OnnxNode& node) const {
  for (const int past : {3, 4}) {
    const bool graph_input =
        node.input(past).empty() || std::any_of(graph_.input().begin(), graph_.input().end(),
                                                [&](const auto& input) { return input.name() == node.input(past); });
    if (!graph_input) return node.Unsupported(StrFormat("input %d: past keys and values must be graph inputs", past));
  }
  for (const int length : {5, 6, 9}) {
    if (FindValue(node.input(length)) != nullptr)
      return node.Unsupported(StrFormat("input %d is computed from activations", length));
  }
  for (int i = 10; i < node.inputs(); ++i) {
    if (i != 11 && !node.input(i).empty())
      return node.Unsupported(StrFormat("input %d (attention bias, cache scales or norms of heads)", i));
  }
  return CheckOutputs(node, 3);
}

// Query, key and value apart, or packed in the first input.
Status OnnxImporter::ReadHeads(const OnnxNode& node, Attention* attention) {
  MOEPACK_ASSIGN_OR_RETURN(attention->query, PlainInput(node, 0));
  AttentionNode& a = attention->node;
  const bool packed = node.input(1).empty() && node.input(2).empty();
  const uint64_t width = Width(attention->query), parts = packed ? a.heads + 2 * uint64_t{a.kv_heads} : a.heads;
  if (attention->query.rank != 3 || !attention->query.by_sequence || width % parts != 0) {
    return node.Error(ErrorCode::kShape, "the query must be [batch, sequence, heads * head width]");
  }
  const uint64_t head_dim = width / parts;
  a.head_dim = static_cast<uint32_t>(head_dim);
  const uint64_t q_width = a.heads * head_dim, kv_width = a.kv_heads * head_dim;
  if (!packed) {
    MOEPACK_ASSIGN_OR_RETURN(const Value k, PlainInput(node, 1));
    MOEPACK_ASSIGN_OR_RETURN(const Value v, PlainInput(node, 2));
    if (Width(k) != kv_width || Width(v) != kv_width || !k.by_sequence || !v.by_sequence) {
      return node.Error(ErrorCode::kShape, "key and value must be [batch, sequence, kv heads * head width]");
    }
    attention->q = attention->query.id, attention->k = k.id, attention->v = v.id;
    return Status::Ok();
  }
  const auto slice = [&](uint64_t begin, uint64_t columns) {
    Node out;
    out.kind = NodeKind::kSlice;
    out.inputs = {attention->query.id};
    out.slice.begin = begin;
    return Emit(std::move(out), columns);
  };
  attention->q = slice(0, q_width);
  attention->k = slice(q_width, kv_width);
  attention->v = slice(q_width + kv_width, kv_width);
  return Status::Ok();
}

Status OnnxImporter::ImportAttention(OnnxNode& node) {
  Attention attention;
  MOEPACK_RETURN_IF_ERROR(ReadAttentionAttributes(node, &attention));
  MOEPACK_RETURN_IF_ERROR(CheckAttentionInputs(node));
  MOEPACK_RETURN_IF_ERROR(ReadHeads(node, &attention));
  if (attention.rotate) {
    const AttentionNode& a = attention.node;
    MOEPACK_ASSIGN_OR_RETURN(const RotaryCache* cache, ReadCaches(node, 7, 8, a.head_dim / 2));
    attention.q = Rotate(*cache, a.heads, a.head_dim, attention.interleaved, attention.q);
    attention.k = Rotate(*cache, a.kv_heads, a.head_dim, attention.interleaved, attention.k);
  }
  for (const int present : {1, 2}) {
    if (!node.output(present).empty()) kv_outputs_.insert(node.output(present));
  }
  Node out;
  out.kind = NodeKind::kAttention;
  out.inputs = {attention.q, attention.k, attention.v};
  out.attention = attention.node;
  if (out.attention.scale == 0) {
    out.attention.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(attention.node.head_dim)));
  }
  if (!node.input(11).empty()) {
    MOEPACK_ASSIGN_OR_RETURN(const OnnxTensor* sinks, VectorInput(node, 11));
    if (sinks->elements != attention.node.heads) return node.Error(ErrorCode::kShape, "one head sink a head is needed");
    out.attention.sinks = AddVector(*sinks);
  }
  out.attention.state_slot = program.state_slots++;
  const uint64_t width = uint64_t{attention.node.heads} * attention.node.head_dim;
  return Define(node, 0, Like(attention.query, Emit(std::move(out), width), width));
}

}  // namespace moepack
