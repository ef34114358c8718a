// Program: a model as data. A list of typed nodes over named values; no family name appears here or in anything that
// executes it. The device parses it from a verified blob (format/manifest/program_wire.h), front-ends build it from
// checkpoints.
//
// Every value is a float32 matrix [tokens, width], except an input of kind kTokens (int32 [tokens]). Tokens of one
// sequence are rows in order; position of a row = its index in its sequence. Nodes run in order; a node reads values that
// an input declaration or an earlier node produced; every value is produced exactly once.
#pragma once

#include <array>
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
  kConvolution = 10,
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
// the rotary_dim columns from `offset` on, by position * inv_freq[i], then * `magnitude`. inv_freq has rotary_dim/2 entries;
// the front-end computes it (base, linear, llama3, yarn ... scaling all reduce to it).
// long_from > 0 (LongRoPE, 2402.13753): sequences of more than long_from tokens are rotated by long_inv_freq and
// long_magnitude instead, from their first token on. A runtime that does not know how long a sequence will be goes by the
// longest that it was set up for.
struct RotaryNode {
  uint32_t heads = 0, head_dim = 0, rotary_dim = 0;
  bool interleaved = false;
  float magnitude = 1;
  std::vector<float> inv_freq;
  uint32_t offset = 0;
  uint32_t long_from = 0;
  float long_magnitude = 0;
  std::vector<float> long_inv_freq;
  bool operator==(const RotaryNode&) const = default;
};

// Causal attention over a sequence: inputs q [heads * head_dim], k [kv_heads * head_dim], v [kv_heads * value_dim] (0: same
// as head_dim), output [heads * value_dim]; head h reads kv head h / (heads / kv_heads). score = q.k * scale; position_scale
// a > 0: scores of the query at position p are * (1 + a * ln(1 + floor((p + 1) / position_floor))); softcap c > 0:
// c * tanh(score / c). window w > 0: only the last w positions (own included); chunk c > 0: only positions of the own run of
// c positions (p / c). sinks [1, heads]: a logit a head that takes part in the softmax and has no value (2309.17453). The KV
// cache of `state_slot` holds k and v of earlier positions.
struct AttentionNode {
  uint32_t heads = 0, kv_heads = 0, head_dim = 0;
  float scale = 0;
  uint32_t window = 0;
  float softcap = 0;
  uint32_t state_slot = 0;
  uint32_t value_dim = 0;
  uint32_t chunk = 0;
  TensorId sinks = kNone;
  float position_scale = 0;
  uint32_t position_floor = 0;
  uint32_t value_width() const { return value_dim == 0 ? head_dim : value_dim; }  // of one head
  bool operator==(const AttentionNode&) const = default;
};

// kSparseMixer (2409.12136, inference): see RoutingRecord::mixer_eps.
enum class ScoreFunction : uint8_t { kSoftmax = 0, kSigmoid = 1, kSparseMixer = 2 };
// Score of a group of experts: its largest selection score, or the sum of its two largest.
enum class GroupRule : uint8_t { kLargest = 0, kTwoLargest = 1 };
enum class Activation : uint8_t { kSilu = 0, kGelu = 1, kGeluTanh = 2, kRelu = 3, kIdentity = 4 };

// Routing as data. logits come from the node's second input. score_before_topk: scores = f(logits) over all experts, then
// the k largest; otherwise f over the k largest logits only. Ties go to the lower index. renormalise: divide the chosen
// weights by (their sum + eps). Then * scale.
// Selection goes by score + selection bias (MoeNode; the weight stays the score). group_size > 0: experts whose index in the
// checkpoint falls in the same run of group_size form a group, and only those of the top_groups best groups can be chosen.
// kSparseMixer chooses one by one: of the experts left, the largest logit m; its weight is its softmax over those left whose
// logit l has (m - l) / max(|l|, m) <= 2 * mixer_eps.
// weight_on_input: the expert's input, not its output, is multiplied by the weight.
struct RoutingRecord {
  ScoreFunction score = ScoreFunction::kSoftmax;
  bool score_before_topk = true;
  uint32_t k = 0;
  bool renormalise = false;
  float eps = 0;
  float scale = 1;
  uint32_t group_size = 0, top_groups = 0;
  GroupRule group_rule = GroupRule::kLargest;
  float mixer_eps = 0;
  bool weight_on_input = false;
  bool operator==(const RoutingRecord&) const = default;
};

// One expert: y = down(act(gate(x)) * (up(x) + up_offset)); gated = false: y = down(act(up(x))), no gate matrix. limit > 0:
// gate(x) is capped at limit and up(x) clamped to [-limit, limit] before. sigmoid_scale a > 0, of kSilu: x * sigmoid(a * x);
// 0 is the plain a = 1. The last three are for gated experts.
struct ActivationRecord {
  Activation function = Activation::kSilu;
  bool gated = true;
  float limit = 0, sigmoid_scale = 0, up_offset = 0;
  bool plain() const { return limit == 0 && sigmoid_scale == 0 && up_offset == 0; }
  bool operator==(const ActivationRecord&) const = default;
};

// in: hidden state, router logits [tokens, experts]; out[t] = sum over the chosen experts of weight * expert(in[t]).
// Biases of experts are rows of dense tensors, all three or none: gate and up [experts, widest intermediate] (columns past
// an expert's own width are not read; no gate_bias when not gated), down [experts, hidden].
struct MoeNode {
  RoutingRecord routing;
  ActivationRecord activation;
  uint32_t table = 0;               // index into Program::expert_tables
  TensorId selection_bias = kNone;  // [1, experts]
  TensorId gate_bias = kNone, up_bias = kNone, down_bias = kNone;
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
// Inputs side by side. heads > 0: inputs are cut into that many heads which are laid side by side one by one, and the last
// `shared` inputs are one head that every head gets: out = a0 b0 s, a1 b1 s, ...
struct ConcatNode {
  uint32_t heads = 0, shared = 0;
  bool operator==(const ConcatNode&) const = default;
};
// Causal depthwise convolution over a sequence: out[t, c] = bias[c] + sum over j of weight[c, j] * in[t - (width - 1) + j,
// c], with zeros before the first position; weight [channels, width], bias [1, channels]. `state_slot` holds the last
// inputs.
struct ConvolutionNode {
  TensorId weight = kNone, bias = kNone;
  uint32_t state_slot = 0;
  bool operator==(const ConvolutionNode&) const = default;
};

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
  ConcatNode concat;
  ConvolutionNode convolution;
  bool operator==(const Node&) const = default;
};

// Tensors that a node reads, kNone where an optional one is absent. A matrix is read whole or row by row; a vector (rows =
// 1) all at once.
inline constexpr size_t kMaxNodeTensors = 4;
std::array<TensorId, kMaxNodeTensors> TensorsOfNode(const Node& node);

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
  std::vector<ValueId> inputs;  // one, see format/program_input.h
  ValueId output = kNone;       // logits [tokens, vocab]
  std::vector<Node> nodes;
  std::vector<TensorDecl> tensors;
  std::vector<ExpertTableDecl> expert_tables;
  uint32_t state_slots = 0;          // KV caches and convolution states
  uint32_t max_positions = 0;        // longest sequence
  uint64_t original_parameters = 0;  // of the checkpoint, all experts: the denominator of bits per weight
  bool operator==(const Program&) const = default;
  int32_t blocks() const { return nodes.empty() ? 0 : nodes.back().block + 1; }
};

// Caps on a program from outside. Widths of linear inputs and tensor columns: kMaxCols; rows and value widths: kMaxRows
// (format/codec/codec.h).
inline constexpr uint32_t kMaxNodes = 65536, kMaxTensors = 1 << 20, kMaxValues = 1 << 18, kMaxNodeInputs = 4096;
inline constexpr uint32_t kMaxExpertTables = 1024, kMaxExperts = 4096, kMaxLayers = 4096, kMaxInvFreq = 4096;
inline constexpr uint32_t kMaxPositions = 1 << 24, kMaxNameBytes = 200, kMaxConvolution = 64;
inline constexpr uint32_t kMaxConcatHeads = 65536;

// Every rule above: ids in range, single production, use after production, widths and tensor shapes that fit, closed enums,
// finite numbers, caps. kMalformed (kLimit above a cap) with the node's number and the rule. Nothing may execute a Program
// that was not validated.
Status ValidateProgram(const Program& program);

// Parameters that the program's tensors and expert tables hold now.
uint64_t CountParameters(const Program& program);

// Tensors are loaded and stored with a block: every tensor is used by the nodes of exactly one block, except an embedding
// table that is also a later linear weight (tied head), which belongs to the block of its first use. Each expert table is
// used by exactly one MoE node. The three functions below are for validated programs.

// The node that gives `value`; null for an input of the program.
const Node* ProducerOf(const Program& program, ValueId value);
// Tensors whose first use is in `block`, by increasing id: the dense unit of that block, in its load order.
std::vector<TensorId> TensorsOfBlock(const Program& program, int32_t block);
// Block of the MoE node that uses `table`, -1 when none does.
int32_t BlockOfTable(const Program& program, uint32_t table);

}  // namespace moepack
