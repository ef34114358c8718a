// Program: a model as data. A list of typed nodes over named values; no family name appears here or in anything that
// executes it. The device parses it from a verified blob (format/manifest/program_wire.h), front-ends build it from
// checkpoints.
//
// Every value is a float32 matrix [tokens, width], except an input of kind kTokens (int32 [tokens]). Tokens of one
// sequence are rows in order; position of a row = its index in its sequence. Nodes run in order; a node reads values that
// an input declaration or an earlier node produced; every value is produced exactly once.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace moepack {

using ValueId = uint32_t;
using TensorId = uint32_t;
inline constexpr uint32_t kNone = 0xffffffffu;  // "no value", "no tensor"

// What a dense tensor is for: recipes, sensitivities and reports go by it. Execution does not.
enum class TensorRole : uint8_t {
  kEmbedding = 0,
  kHead = 1,
  kNorm = 2,
  kAttention = 3,
  kRouter = 4,
  kSharedExpert = 5,
  kDenseFfn = 6,
  kBias = 7,
  kOther = 8,
};
const char* TensorRoleName(TensorRole role);

// A dense tensor [rows, cols]; vectors have rows = 1. Names are unique and Hugging-Face-like without ".weight":
// "embed_tokens", "layers.0.q_proj", "layers.0.q_proj.bias", "layers.0.router", "layers.0.shared_expert.gate_proj", "norm",
// "lm_head".
struct TensorDecl {
  std::string name;
  uint64_t rows = 0, cols = 0;
  TensorRole role = TensorRole::kOther;
  int32_t layer = -1;  // decoder layer, -1 outside of layers
  bool operator==(const TensorDecl&) const = default;
};

enum class ValueKind : uint8_t { kTokens = 0, kFloat = 1 };
struct ValueDecl {
  std::string name;
  ValueKind kind = ValueKind::kFloat;
  uint64_t width = 0;  // columns; 0 for tokens
  bool operator==(const ValueDecl&) const = default;
};

enum class NodeKind : uint8_t {
  kEmbedding = 1,
  kLinear = 2,
  kNorm = 3,
  kRotary = 4,
  kAttention = 5,
  kMoe = 6,
  kElementwise = 7,
  kSlice = 8,
  kConcat = 9,
};

// out[t] = table[token[t]]
struct EmbeddingNode {
  TensorId table = kNone;
  bool operator==(const EmbeddingNode&) const = default;
};
// out = in * W^T (+ bias), W [out width, in width]
struct LinearNode {
  TensorId weight = kNone, bias = kNone;
  bool operator==(const LinearNode&) const = default;
};

enum class NormKind : uint8_t { kRms = 0, kLayer = 1 };
// Over each run of `group` columns (group divides width; = width for an ordinary norm, = head_dim for a per-head norm).
// kRms: x / sqrt(mean(x^2) + eps); kLayer: (x - mean) / sqrt(var + eps). Then * weight (or * (1 + weight)) (+ bias);
// weight and bias have `group` entries.
struct NormNode {
  NormKind kind = NormKind::kRms;
  TensorId weight = kNone, bias = kNone;
  uint64_t group = 0;
  float eps = 0;
  bool one_plus_weight = false;
  bool operator==(const NormNode&) const = default;
};

// Rotates each head of head_dim columns by its position: pairs (i, i + rotary_dim/2), or (2i, 2i+1) when interleaved, of
// the first rotary_dim columns, by position * inv_freq[i], then * `magnitude`. inv_freq has rotary_dim/2 entries; the
// front-end computes it (base, linear, llama3, yarn ... scaling all reduce to it).
struct RotaryNode {
  uint32_t heads = 0, head_dim = 0, rotary_dim = 0;
  bool interleaved = false;
  float magnitude = 1;
  std::vector<float> inv_freq;
  bool operator==(const RotaryNode&) const = default;
};

// Causal attention over a sequence: inputs q [heads * head_dim], k, v [kv_heads * head_dim]; head h reads kv head
// h / (heads / kv_heads). score = q.k * scale, softcap c > 0: c * tanh(score / c); window w > 0: only the last w positions
// (own included). The KV cache of `state_slot` holds k and v of earlier positions.
struct AttentionNode {
  uint32_t heads = 0, kv_heads = 0, head_dim = 0;
  float scale = 0;
  uint32_t window = 0;
  float softcap = 0;
  uint32_t state_slot = 0;
  bool operator==(const AttentionNode&) const = default;
};

enum class ScoreFunction : uint8_t { kSoftmax = 0, kSigmoid = 1 };
enum class Activation : uint8_t { kSilu = 0, kGelu = 1, kGeluTanh = 2, kRelu = 3, kIdentity = 4 };

// Routing as data. logits come from the node's second input. score_before_topk: scores = f(logits) over all experts, then
// the k largest; otherwise f over the k largest logits only. Ties go to the lower index. renormalise: divide the chosen
// weights by (their sum + eps). Then * scale.
struct RoutingRecord {
  ScoreFunction score = ScoreFunction::kSoftmax;
  bool score_before_topk = true;
  uint32_t k = 0;
  bool renormalise = false;
  float eps = 0;
  float scale = 1;
  bool operator==(const RoutingRecord&) const = default;
};

// One expert: y = down(act(gate(x)) * up(x)); gated = false: y = down(act(up(x))), no gate matrix.
struct ActivationRecord {
  Activation function = Activation::kSilu;
  bool gated = true;
  bool operator==(const ActivationRecord&) const = default;
};

// in: hidden state, router logits [tokens, experts]; out[t] = sum over the chosen experts of weight * expert(in[t]).
struct MoeNode {
  RoutingRecord routing;
  ActivationRecord activation;
  uint32_t table = 0;  // index into Program::expert_tables
  bool operator==(const MoeNode&) const = default;
};

enum class ElementOp : uint8_t {
  kAdd = 0,
  kMul = 1,
  kScale = 2,
  kSigmoid = 3,
  kSilu = 4,
  kGelu = 5,
  kGeluTanh = 6,
  kRelu = 7,
  kClamp = 8
};
// kAdd, kMul: two inputs of equal width, or the second of width 1 (broadcast over columns). kScale: * alpha. kClamp: to
// [-alpha, alpha].
struct ElementwiseNode {
  ElementOp op = ElementOp::kAdd;
  float alpha = 0;
  bool operator==(const ElementwiseNode&) const = default;
};
// out = in[:, begin : begin + out width]
struct SliceNode {
  uint64_t begin = 0;
  bool operator==(const SliceNode&) const = default;
};
// kConcat has no fields: inputs side by side.

struct Node {
  NodeKind kind = NodeKind::kLinear;
  int32_t block = 0;  // 0 embedding, 1..layers the decoder layers, layers + 1 the final norm and head; never falls
  std::vector<ValueId> inputs;
  ValueId output = kNone;
  // The one that `kind` names is used, the others keep their defaults.
  EmbeddingNode embedding;
  LinearNode linear;
  NormNode norm;
  RotaryNode rotary;
  AttentionNode attention;
  MoeNode moe;
  ElementwiseNode elementwise;
  SliceNode slice;
  bool operator==(const Node&) const = default;
};

enum class ExpertMatrix : uint8_t { kGate = 0, kUp = 1, kDown = 2 };
inline constexpr int kExpertMatrices = 3;
const char* ExpertMatrixName(ExpertMatrix m);  // "gate_proj" "up_proj" "down_proj"

// The experts of one MoE node. gate, up [intermediate, hidden], down [hidden, intermediate]. `original` maps an expert of
// this table to its index in the checkpoint (identity until experts are dropped); `intermediate[e]` may differ between
// experts after channel pruning.
struct ExpertTableDecl {
  int32_t layer = 0;
  uint64_t hidden = 0;
  std::vector<uint64_t> intermediate;  // one an expert
  std::vector<uint32_t> original;      // one an expert, strictly increasing
  bool gated = true;
  uint32_t experts() const { return static_cast<uint32_t>(intermediate.size()); }
  bool operator==(const ExpertTableDecl&) const = default;
};

// "layers.3.experts.5.gate_proj": 5 is the original index.
std::string ExpertTensorName(const ExpertTableDecl& table, uint32_t expert, ExpertMatrix m);

struct Program {
  std::vector<ValueDecl> values;
  std::vector<ValueId> inputs;  // today: one kTokens input
  ValueId output = kNone;       // logits [tokens, vocab]
  std::vector<Node> nodes;
  std::vector<TensorDecl> tensors;
  std::vector<ExpertTableDecl> expert_tables;
  uint32_t state_slots = 0;          // KV caches
  uint32_t max_positions = 0;        // longest sequence
  uint64_t original_parameters = 0;  // of the checkpoint, all experts: the denominator of bits per weight
  bool operator==(const Program&) const = default;
  int32_t blocks() const { return nodes.empty() ? 0 : nodes.back().block + 1; }
};

// Caps on a program from outside. Widths of linear inputs and tensor columns: kMaxCols; rows and value widths: kMaxRows
// (format/codec/codec.h).
inline constexpr uint32_t kMaxNodes = 65536, kMaxTensors = 1 << 20, kMaxValues = 1 << 18, kMaxNodeInputs = 4096;
inline constexpr uint32_t kMaxExpertTables = 1024, kMaxExperts = 4096, kMaxLayers = 4096, kMaxInvFreq = 4096;
inline constexpr uint32_t kMaxPositions = 1 << 24, kMaxNameBytes = 200;

// Every rule above: ids in range, single production, use after production, widths and tensor shapes that fit, closed enums,
// finite numbers, caps. kMalformed (kLimit above a cap) with the node's number and the rule. Nothing may execute a Program
// that was not validated.
Status ValidateProgram(const Program& program);

// Parameters that the program's tensors and expert tables hold now.
uint64_t CountParameters(const Program& program);

// Tensors are loaded and stored with a block: every tensor is used by the nodes of exactly one block, except an embedding
// table that is also a later linear weight (tied head), which belongs to the block of its first use. Each expert table is
// used by exactly one MoE node. The three functions below are for validated programs.

// Block of the first node that uses `tensor`, -1 when none does.
int32_t BlockOfTensor(const Program& program, TensorId tensor);
// Tensors whose first use is in `block`, by increasing id: the dense unit of that block, in its load order.
std::vector<TensorId> TensorsOfBlock(const Program& program, int32_t block);
// Block of the MoE node that uses `table`, -1 when none does.
int32_t BlockOfTable(const Program& program, uint32_t table);

}  // namespace moepack
