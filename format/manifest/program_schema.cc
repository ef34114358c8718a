#include "format/manifest/program_schema.h"

#include "format/program.h"

namespace moepack::wire_check {
namespace {

constexpr Field Scalar(uint32_t number, const char* name, Type type) { return {number, name, type}; }
constexpr Field Packed(uint32_t number, const char* name, Type type, uint64_t limit) { return {number, name, type, true, limit}; }
constexpr Field Name(uint32_t number, const char* name) { return {number, name, Type::kBytes, false, kMaxNameBytes}; }
constexpr Field One(uint32_t number, const char* name, const Message* message, bool required) {
  return {number, name, Type::kMessage, false, 0, message, required};
}
constexpr Field Many(uint32_t number, const char* name, const Message* message, uint64_t limit) {
  return {number, name, Type::kMessage, true, limit, message};
}

constexpr Field kTensorFields[] = {
    Name(1, "name"), Scalar(2, "rows", Type::kUint64), Scalar(3, "cols", Type::kUint64), Scalar(4, "role", Type::kUint32),
    Scalar(5, "layer", Type::kUint32),  // zigzag
};
constexpr Message kTensor = {"Tensor", kTensorFields};

constexpr Field kValueFields[] = {Name(1, "name"), Scalar(2, "kind", Type::kUint32), Scalar(3, "width", Type::kUint64)};
constexpr Message kValue = {"Value", kValueFields};

constexpr Field kEmbeddingFields[] = {Scalar(1, "table", Type::kUint32)};
constexpr Message kEmbedding = {"Embedding", kEmbeddingFields};

constexpr Field kLinearFields[] = {Scalar(1, "weight", Type::kUint32), Scalar(2, "bias_plus_one", Type::kUint32)};
constexpr Message kLinear = {"Linear", kLinearFields};

constexpr Field kNormFields[] = {
    Scalar(1, "kind", Type::kUint32),  Scalar(2, "weight_plus_one", Type::kUint32), Scalar(3, "bias_plus_one", Type::kUint32),
    Scalar(4, "group", Type::kUint64), Scalar(5, "eps", Type::kFloat),              Scalar(6, "one_plus_weight", Type::kBool),
};
constexpr Message kNorm = {"Norm", kNormFields};

constexpr Field kRotaryFields[] = {
    Scalar(1, "heads", Type::kUint32),     Scalar(2, "head_dim", Type::kUint32),  Scalar(3, "rotary_dim", Type::kUint32),
    Scalar(4, "interleaved", Type::kBool), Scalar(5, "magnitude", Type::kFloat), Packed(6, "inv_freq", Type::kFloat, kMaxInvFreq),
};
constexpr Message kRotary = {"Rotary", kRotaryFields};

constexpr Field kAttentionFields[] = {
    Scalar(1, "heads", Type::kUint32),      Scalar(2, "kv_heads", Type::kUint32), Scalar(3, "head_dim", Type::kUint32),
    Scalar(4, "scale", Type::kFloat),       Scalar(5, "window", Type::kUint32),   Scalar(6, "softcap", Type::kFloat),
    Scalar(7, "state_slot", Type::kUint32),
};
constexpr Message kAttention = {"Attention", kAttentionFields};

constexpr Field kRoutingFields[] = {
    Scalar(1, "score", Type::kUint32),     Scalar(2, "score_before_topk", Type::kBool), Scalar(3, "k", Type::kUint32),
    Scalar(4, "renormalise", Type::kBool), Scalar(5, "eps", Type::kFloat),              Scalar(6, "scale", Type::kFloat),
};
constexpr Message kRouting = {"Routing", kRoutingFields};

constexpr Field kActivationFields[] = {Scalar(1, "function", Type::kUint32), Scalar(2, "gated", Type::kBool)};
constexpr Message kActivation = {"ExpertActivation", kActivationFields};

constexpr Field kMoeFields[] = {
    One(1, "routing", &kRouting, true), One(2, "activation", &kActivation, true), Scalar(3, "table", Type::kUint32)};
constexpr Message kMoe = {"Moe", kMoeFields};

constexpr Field kElementwiseFields[] = {Scalar(1, "op", Type::kUint32), Scalar(2, "alpha", Type::kFloat)};
constexpr Message kElementwise = {"Elementwise", kElementwiseFields};

constexpr Field kSliceFields[] = {Scalar(1, "begin", Type::kUint64)};
constexpr Message kSlice = {"Slice", kSliceFields};

constexpr Message kConcat = {"Concat", {}};

constexpr Field kNodeFields[] = {
    Scalar(1, "semantics", Type::kUint32),
    Scalar(2, "block", Type::kUint32),
    Packed(3, "inputs", Type::kUint32, kMaxNodeInputs),
    Scalar(4, "output", Type::kUint32),
    One(5, "embedding", &kEmbedding, false),
    One(6, "linear", &kLinear, false),
    One(7, "norm", &kNorm, false),
    One(8, "rotary", &kRotary, false),
    One(9, "attention", &kAttention, false),
    One(10, "moe", &kMoe, false),
    One(11, "elementwise", &kElementwise, false),
    One(12, "slice", &kSlice, false),
    One(13, "concat", &kConcat, false),
};
constexpr Message kNode = {"Node", kNodeFields, 4};

constexpr Field kExpertTableFields[] = {
    Scalar(1, "layer", Type::kUint32), Scalar(2, "hidden", Type::kUint64), Packed(3, "intermediate", Type::kUint64, kMaxExperts),
    Packed(4, "original", Type::kUint32, kMaxExperts), Scalar(5, "gated", Type::kBool),
};
constexpr Message kExpertTable = {"ExpertTableDecl", kExpertTableFields};

constexpr Field kProgramFields[] = {
    Scalar(1, "version", Type::kUint32),
    Many(2, "values", &kValue, kMaxValues),
    Packed(3, "inputs", Type::kUint32, kMaxNodeInputs),
    Scalar(4, "output", Type::kUint32),
    Many(5, "nodes", &kNode, kMaxNodes),
    Many(6, "tensors", &kTensor, kMaxTensors),
    Many(7, "expert_tables", &kExpertTable, kMaxExpertTables),
    Scalar(8, "state_slots", Type::kUint32),
    Scalar(9, "max_positions", Type::kUint32),
    Scalar(10, "original_parameters", Type::kUint64),
};

}  // namespace

const Message kProgram = {"Program", kProgramFields};

}  // namespace moepack::wire_check
