#include "model/export/gguf_architecture.h"

#include <algorithm>
#include <cmath>

namespace moepack {
namespace {

// What llama.cpp's graph of an architecture has; each computes routing weights its own way and reads no key about it.
struct Row {
  const char* name;
  QkNorm qk_norm;
  bool qkv_bias, shared_expert, renormalise;
  bool full_width_heads;  // heads * head_dim must be the hidden size
  bool equal_heads;       // as many kv heads as heads
  bool interleaved_rotary;
};
constexpr Row kRows[] = {
    {"llama", QkNorm::kNone, false, false, true, false, false, true},
    {"olmoe", QkNorm::kFullWidth, false, false, false, true, true, false},
    {"qwen2moe", QkNorm::kNone, true, true, false, true, false, false},
    {"qwen3moe", QkNorm::kPerHead, false, false, true, false, false, false},
};

Status Unsupported(const std::string& what) {
  return Status(ErrorCode::kUnsupported, "GGUF: " + what + "; use --onnx, which has no such limit");
}

const TensorDecl* FindTensor(const Program& program, const std::string& name) {
  for (const TensorDecl& tensor : program.tensors) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

const Node* FindNode(const Program& program, NodeKind kind) {
  const auto it =
      std::find_if(program.nodes.begin(), program.nodes.end(), [kind](const Node& node) { return node.kind == kind; });
  return it == program.nodes.end() ? nullptr : &*it;
}

// GGUF stacks the experts of a layer and knows one count and one width for all layers.
Status CheckUniformExperts(const Program& program) {
  const ExpertTableDecl& first = program.expert_tables[0];
  for (const ExpertTableDecl& table : program.expert_tables) {
    if (table.experts() != first.experts()) {
      return Unsupported(StrFormat("layer %d has %u experts, layer %d has %u; all layers must have the same number",
                                   table.layer, table.experts(), first.layer, first.experts()));
    }
    const auto other = [&](uint64_t width) { return width != first.intermediate[0]; };
    if (std::any_of(table.intermediate.begin(), table.intermediate.end(), other)) {
      return Unsupported(StrFormat("experts of layer %d differ in width; all experts must have the same", table.layer));
    }
  }
  return Status::Ok();
}

// A decoder that agrees with the program wherever a DecoderSpec says something.
Result<DecoderSpec> Describe(const Program& program) {
  const Node* attention = FindNode(program, NodeKind::kAttention);
  const Node* rotary = FindNode(program, NodeKind::kRotary);
  const Node* norm = FindNode(program, NodeKind::kNorm);
  const Node* moe = FindNode(program, NodeKind::kMoe);
  const Node* embedding = FindNode(program, NodeKind::kEmbedding);
  if (!attention || !rotary || !norm || !moe || !embedding)
    return Unsupported("the program is not a decoder with MoE layers");
  DecoderSpec spec;
  const TensorDecl& table = program.tensors[embedding->embedding.table];
  spec.vocab = table.rows;
  spec.hidden = table.cols;
  spec.layers = static_cast<uint64_t>(std::max(program.blocks() - 2, 0));
  spec.max_positions = program.max_positions;
  spec.heads = attention->attention.heads;
  spec.kv_heads = attention->attention.kv_heads;
  spec.head_dim = attention->attention.head_dim;
  spec.norm_eps = norm->norm.eps;
  spec.rotary.inv_freq = rotary->rotary.inv_freq;
  spec.qkv_bias = FindTensor(program, "layers.0.q_proj.bias") != nullptr;
  if (const TensorDecl* q_norm = FindTensor(program, "layers.0.q_norm")) {
    spec.qk_norm = q_norm->cols == spec.head_dim ? QkNorm::kPerHead : QkNorm::kFullWidth;
  }
  spec.window.assign(spec.layers, 0);
  spec.sparse.assign(spec.layers, true);
  spec.moe.experts = program.expert_tables[moe->moe.table].experts();
  spec.moe.intermediate = program.expert_tables[moe->moe.table].intermediate[0];
  if (const TensorDecl* shared = FindTensor(program, "layers.0.shared_expert.gate_proj"))
    spec.moe.shared_intermediate = shared->rows;
  spec.moe.routing = moe->moe.routing;
  spec.tied_head = program.nodes.back().linear.weight == embedding->embedding.table;
  return spec;
}

// The program that the description stands for must be this one, node for node.
Status CheckSame(const DecoderSpec& spec, const Program& program) {
  const Program again = BuildDecoder(spec).program;
  const auto differs = std::mismatch(program.nodes.begin(), program.nodes.end(), again.nodes.begin(), again.nodes.end());
  if (differs.first != program.nodes.end() || differs.second != again.nodes.end()) {
    return Unsupported(StrFormat(
        "node %zu of the program is not what llama.cpp's decoders compute (sliding window, clamp, bias, dense layer "
        "or another order of nodes)",
        static_cast<size_t>(differs.first - program.nodes.begin())));
  }
  return again.tensors == program.tensors ? Status::Ok()
                                          : Unsupported("the program's tensors are not those of a plain decoder");
}

// Base and linear factor that the frequencies came from. They were rounded to float32 one by one.
Status FindRotary(GgufArchitecture* out) {
  const std::vector<float>& f = out->decoder.rotary.inv_freq;
  const double dim = 2.0 * static_cast<double>(f.size());
  const size_t last = f.size() - 1;
  out->rope_factor = 1.0 / f[0];
  out->rope_base =
      last == 0 ? 10000.0 : std::pow(static_cast<double>(f[0]) / f[last], dim / (2.0 * static_cast<double>(last)));
  const double whole = std::round(out->rope_base);
  if (std::abs(out->rope_base - whole) < 1e-6 * whole) out->rope_base = whole;
  for (size_t i = 0; i < f.size(); ++i) {
    const double expected = std::pow(out->rope_base, -2.0 * static_cast<double>(i) / dim) / out->rope_factor;
    if (std::abs(f[i] - expected) > 1e-6 * expected)
      return Unsupported("rotary frequencies that no base and linear factor give");
  }
  return Status::Ok();
}

const char* NormText(QkNorm norm) {
  if (norm == QkNorm::kNone) return "no norm of q and k";
  return norm == QkNorm::kPerHead ? "a norm of each head of q and k" : "a norm of q and k over their full width";
}

}  // namespace

Result<GgufArchitecture> FindGgufArchitecture(const Program& program) {
  if (program.expert_tables.empty()) return Unsupported("the program has no experts");
  MOEPACK_RETURN_IF_ERROR(CheckUniformExperts(program));
  GgufArchitecture out;
  MOEPACK_ASSIGN_OR_RETURN(out.decoder, Describe(program));
  MOEPACK_RETURN_IF_ERROR(CheckSame(out.decoder, program));
  MOEPACK_RETURN_IF_ERROR(FindRotary(&out));
  const DecoderSpec& spec = out.decoder;
  const RoutingRecord& routing = spec.moe.routing;
  const bool shared = spec.moe.shared_intermediate != 0;
  RoutingRecord plain;
  plain.k = routing.k;
  plain.renormalise = routing.renormalise;
  if (!(routing == plain)) return Unsupported("routing other than a softmax over all experts, then top k, without scale");
  for (const Row& row : kRows) {
    if (row.qk_norm != spec.qk_norm || row.qkv_bias != spec.qkv_bias || row.shared_expert != shared ||
        row.renormalise != routing.renormalise)
      continue;
    if (row.full_width_heads && uint64_t{spec.heads} * spec.head_dim != spec.hidden) continue;
    if (row.equal_heads && spec.heads != spec.kv_heads) continue;
    out.name = row.name;
    out.interleaved_rotary = row.interleaved_rotary;
    return out;
  }
  return Unsupported(StrFormat(
      "llama.cpp has no architecture with %s, %s bias on q, k and v, %s shared expert, routing weights %s, %u heads "
      "of %u over %llu (%u kv heads)",
      NormText(spec.qk_norm), spec.qkv_bias ? "a" : "no", shared ? "a" : "no",
      routing.renormalise ? "renormalised" : "not renormalised", spec.heads, spec.head_dim,
      static_cast<unsigned long long>(spec.hidden), spec.kv_heads));
}

}  // namespace moepack
