#include "format/manifest/program_schema.h"

#include "format/program.h"

namespace moepack::wire_check {
namespace {

template <typename E>
constexpr uint64_t Last(E value) {
  return static_cast<uint64_t>(value);
}

constexpr Field kTensorFields[] = {
    Text(1, "name", kMaxNameBytes),    Number(2, "rows", Type::kUint64),
    Number(3, "cols", Type::kUint64),  Number(4, "role", Type::kUint32, Last(TensorRole::kOther)),
    Number(5, "layer", Type::kUint32),  // zigzag
};
constexpr Message kTensor = {"Tensor", kTensorFields};

constexpr Field kValueFields[] = {Text(1, "name", kMaxNameBytes), Number(2, "kind", Type::kUint32, Last(ValueKind::kFloat)),
                                  Number(3, "width", Type::kUint64)};
constexpr Message kValue = {"Value", kValueFields};

constexpr Field kEmbeddingFields[] = {Number(1, "table", Type::kUint32)};
constexpr Message kEmbedding = {"Embedding", kEmbeddingFields};

constexpr Field kLinearFields[] = {Number(1, "weight", Type::kUint32), Number(2, "bias_plus_one", Type::kUint32)};
constexpr Message kLinear = {"Linear", kLinearFields};

constexpr Field kNormFields[] = {
    Number(1, "kind", Type::kUint32, Last(NormKind::kLayer)),
    Number(2, "weight_plus_one", Type::kUint32),
    Number(3, "bias_plus_one", Type::kUint32),
    Number(4, "group", Type::kUint64),
    Number(5, "eps", Type::kFloat),
    Number(6, "one_plus_weight", Type::kBool),
};
constexpr Message kNorm = {"Norm", kNormFields};

constexpr Field kRotaryFields[] = {
    Number(1, "heads", Type::kUint32),         Number(2, "head_dim", Type::kUint32),
    Number(3, "rotary_dim", Type::kUint32),    Number(4, "interleaved", Type::kBool),
    Number(5, "magnitude", Type::kFloat),      Packed(6, "inv_freq", Type::kFloat, kMaxInvFreq),
    Number(7, "offset", Type::kUint32),        Number(8, "long_from", Type::kUint32),
    Number(9, "long_magnitude", Type::kFloat), Packed(10, "long_inv_freq", Type::kFloat, kMaxInvFreq),
};
constexpr Message kRotary = {"Rotary", kRotaryFields};

constexpr Field kAttentionFields[] = {
    Number(1, "heads", Type::kUint32),          Number(2, "kv_heads", Type::kUint32),
    Number(3, "head_dim", Type::kUint32),       Number(4, "scale", Type::kFloat),
    Number(5, "window", Type::kUint32),         Number(6, "softcap", Type::kFloat),
    Number(7, "state_slot", Type::kUint32),     Number(8, "value_dim", Type::kUint32),
    Number(9, "chunk", Type::kUint32),          Number(10, "sinks_plus_one", Type::kUint32),
    Number(11, "position_scale", Type::kFloat), Number(12, "position_floor", Type::kUint32),
};
constexpr Message kAttention = {"Attention", kAttentionFields};

constexpr Field kRoutingFields[] = {
    Number(1, "score", Type::kUint32, Last(ScoreFunction::kSparseMixer)),
    Number(2, "score_before_topk", Type::kBool),
    Number(3, "k", Type::kUint32),
    Number(4, "renormalise", Type::kBool),
    Number(5, "eps", Type::kFloat),
    Number(6, "scale", Type::kFloat),
    Number(7, "group_size", Type::kUint32),
    Number(8, "top_groups", Type::kUint32),
    Number(9, "group_rule", Type::kUint32, Last(GroupRule::kTwoLargest)),
    Number(10, "mixer_eps", Type::kFloat),
    Number(11, "weight_on_input", Type::kBool),
};
constexpr Message kRouting = {"Routing", kRoutingFields};

constexpr Field kActivationFields[] = {Number(1, "function", Type::kUint32, Last(Activation::kIdentity)),
                                       Number(2, "gated", Type::kBool), Number(3, "limit", Type::kFloat),
                                       Number(4, "sigmoid_scale", Type::kFloat), Number(5, "up_offset", Type::kFloat)};
constexpr Message kActivation = {"ExpertActivation", kActivationFields};

constexpr Field kMoeFields[] = {One(1, "routing", &kRouting, true),
                                One(2, "activation", &kActivation, true),
                                Number(3, "table", Type::kUint32),
                                Number(4, "selection_bias_plus_one", Type::kUint32),
                                Number(5, "gate_bias_plus_one", Type::kUint32),
                                Number(6, "up_bias_plus_one", Type::kUint32),
                                Number(7, "down_bias_plus_one", Type::kUint32)};
constexpr Message kMoe = {"Moe", kMoeFields};

constexpr Field kElementwiseFields[] = {Number(1, "op", Type::kUint32, Last(ElementOp::kClamp)),
                                        Number(2, "alpha", Type::kFloat)};
constexpr Message kElementwise = {"Elementwise", kElementwiseFields};

constexpr Field kSliceFields[] = {Number(1, "begin", Type::kUint64)};
constexpr Message kSlice = {"Slice", kSliceFields};

constexpr Field kConcatFields[] = {Number(1, "heads", Type::kUint32), Number(2, "shared", Type::kUint32)};
constexpr Message kConcat = {"Concat", kConcatFields};

constexpr Field kConvolutionFields[] = {Number(1, "weight", Type::kUint32), Number(2, "bias_plus_one", Type::kUint32),
                                        Number(3, "state_slot", Type::kUint32)};
constexpr Message kConvolution = {"Convolution", kConvolutionFields};

constexpr Field kNodeFields[] = {
    Number(1, "semantics", Type::kUint32),
    Number(2, "block", Type::kUint32),
    Packed(3, "inputs", Type::kUint32, kMaxNodeInputs),
    Number(4, "output", Type::kUint32),
    One(5, "embedding", &kEmbedding, false),
    One(6, "linear", &kLinear, false),
    One(7, "norm", &kNorm, false),
    One(8, "rotary", &kRotary, false),
    One(9, "attention", &kAttention, false),
    One(10, "moe", &kMoe, false),
    One(11, "elementwise", &kElementwise, false),
    One(12, "slice", &kSlice, false),
    One(13, "concat", &kConcat, false),
    One(14, "convolution", &kConvolution, false),
};
constexpr Message kNode = {"Node", kNodeFields, 4};

constexpr Field kExpertTableFields[] = {
    Number(1, "layer", Type::kUint32),
    Number(2, "hidden", Type::kUint64),
    Packed(3, "intermediate", Type::kUint64, kMaxExperts),
    Packed(4, "original", Type::kUint32, kMaxExperts),
    Number(5, "gated", Type::kBool),
};
constexpr Message kExpertTable = {"ExpertTableDecl", kExpertTableFields};

constexpr Field kProgramFields[] = {
    Number(1, "version", Type::kUint32),
    Many(2, "values", &kValue, kMaxValues),
    Packed(3, "inputs", Type::kUint32, kMaxNodeInputs),
    Number(4, "output", Type::kUint32),
    Many(5, "nodes", &kNode, kMaxNodes),
    Many(6, "tensors", &kTensor, kMaxTensors),
    Many(7, "expert_tables", &kExpertTable, kMaxExpertTables),
    Number(8, "state_slots", Type::kUint32),
    Number(9, "max_positions", Type::kUint32),
    Number(10, "original_parameters", Type::kUint64),
};

}  // namespace

const Message kProgram = {"Program", kProgramFields};

}  // namespace moepack::wire_check
