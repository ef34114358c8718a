// RotaryEmbedding (ai.onnx 23 and com.microsoft), and the rotation inside GroupQueryAttention: cos and sin caches.
#include <algorithm>

#include "model/frontend/onnx_import.h"

namespace moepack {
namespace {

// Layers share their caches; a graph with many different pairs only wastes time.
constexpr size_t kMaxCaches = 16;

}  // namespace

Result<const RotaryCache*> OnnxImporter::ReadCaches(const OnnxNode& node, int cos_input, int sin_input,
                                                    uint64_t most_columns) {
  MOEPACK_ASSIGN_OR_RETURN(const OnnxTensor* cos, ConstantInput(node, cos_input));
  MOEPACK_ASSIGN_OR_RETURN(const OnnxTensor* sin, ConstantInput(node, sin_input));
  if (cos->shape != sin->shape || cos->shape.size() != 2 || cos->shape[1] == 0 || cos->shape[1] > most_columns ||
      cos->shape[0] > kMaxPositions) {
    return node.Error(ErrorCode::kShape,
                      "cos and sin caches must be [positions, at most half a head], at most 2^24 positions");
  }
  const auto key = std::make_pair(cos->name, sin->name);
  if (!rotary_.contains(key)) {
    if (rotary_.size() == kMaxCaches)
      return node.Error(ErrorCode::kLimit, "more than 16 different pairs of cos and sin caches");
    const auto cos_values = file_.ReadFloats(*cos, 0, cos->elements), sin_values = file_.ReadFloats(*sin, 0, sin->elements);
    if (!cos_values.ok()) return node.Error(cos_values.status().code(), cos_values.status().message());
    if (!sin_values.ok()) return node.Error(sin_values.status().code(), sin_values.status().message());
    const double tolerance = cos->dtype == Dtype::kF32 && sin->dtype == Dtype::kF32 ? 2e-5 : 5e-3;
    auto derived = DeriveRotary(*cos_values, *sin_values, cos->shape[1], tolerance);
    if (!derived.ok()) return node.Error(derived.status().code(), derived.status().message());
    rotary_.emplace(key, std::move(derived).value());
    program.max_positions = std::min(program.max_positions, static_cast<uint32_t>(cos->shape[0]));
  }
  return &rotary_.at(key);
}

ValueId OnnxImporter::Rotate(const RotaryCache& cache, uint32_t heads, uint32_t head_dim, bool interleaved, ValueId in) {
  Node out;
  out.kind = NodeKind::kRotary;
  out.inputs = {in};
  out.rotary.heads = heads;
  out.rotary.head_dim = head_dim;
  out.rotary.rotary_dim = static_cast<uint32_t>(2 * cache.inv_freq.size());
  out.rotary.interleaved = interleaved;
  out.rotary.magnitude = cache.magnitude;
  out.rotary.inv_freq = cache.inv_freq;
  return Emit(std::move(out), program.values[in].width);
}

// Positions count from 0: an integer input of the graph, or what is computed of the mask.
bool OnnxImporter::IsPosition(const std::string& name) const { return integers_.contains(name) || lengths_.contains(name); }

// Inputs: [batch, sequence, heads * head width], caches and position ids.
Status OnnxImporter::ImportRotary(OnnxNode& node) {
  const bool standard = node.op() == "RotaryEmbedding";
  const int64_t interleaved = node.Int("interleaved", 0), num_heads = node.Int("num_heads", 0);
  const int64_t rotary_dim = node.Int("rotary_embedding_dim", 0);
  if (!standard && (node.Float("scale", 1) != 1 || node.Int("is_packed_batching", 0) != 0)) {
    return node.Unsupported("scale and is_packed_batching must have their defaults");
  }
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  MOEPACK_ASSIGN_OR_RETURN(const Value in, PlainInput(node, 0));
  const std::string& positions = node.input(standard ? 3 : 1);
  const int cos = standard ? 1 : 2;
  if (in.rank != 3 || !in.by_sequence) return node.Unsupported("only of [batch, sequence, heads * head width]");
  if (!IsPosition(positions)) return node.Unsupported("positions must be an input of the graph or come of the mask");
  MOEPACK_ASSIGN_OR_RETURN(const RotaryCache* cache, ReadCaches(node, cos, cos + 1, kMaxInvFreq));
  const uint64_t rotated = 2 * cache->inv_freq.size(), width = Width(in);
  if (rotary_dim != 0 && static_cast<uint64_t>(rotary_dim) != rotated) {
    return node.Error(ErrorCode::kShape, "rotary_embedding_dim must be twice the caches' columns");
  }
  // Without a number of heads, each is as wide as its rotation.
  const uint64_t heads = num_heads > 0 ? static_cast<uint64_t>(num_heads) : width / rotated;
  if (heads == 0 || heads > 4096 || width % heads != 0 || width / heads < rotated ||
      (num_heads <= 0 && width % rotated != 0)) {
    return node.Error(ErrorCode::kShape, "the input is not heads as wide as the caches rotate or wider");
  }
  const ValueId out =
      Rotate(*cache, static_cast<uint32_t>(heads), static_cast<uint32_t>(width / heads), interleaved != 0, in.id);
  return Define(node, 0, Like(in, out));
}

}  // namespace moepack
