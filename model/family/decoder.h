// The pre-norm decoder that the supported families are variants of:
//   x += mixer(norm(x));  x += ffn(norm(x))   in every layer, then norm and head.
// The mixer is attention or a gated convolution, the feed-forward part a dense MLP or a mixture of experts. A family's file
// turns its configuration into a DecoderSpec; BuildDecoder turns that into a program.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/family/config_reader.h"
#include "model/family/program_builder.h"
#include "model/family/rotary.h"

namespace moepack {

// Largest width of a hidden state or an expert that a configuration may have.
inline constexpr uint64_t kMaxWidth = 1 << 18;

// Of q and k; kUnweightedPerHead comes after the rotation and only where there is one.
enum class QkNorm : uint8_t { kNone, kPerHead, kFullWidth, kUnweightedPerHead };

// How a checkpoint lays out the matrices of a layer's experts, E experts of I channels over H columns.
enum class ExpertLayout : uint8_t {
  kPerExpert,              // experts.N.GATE.weight [I, H] ...
  kStacked,                // NAME [E, 2I, H], gate first; NAME [E, H, I]
  kStackedTransposed,      // NAME [E, H, 2I], gate first; NAME [E, I, H]
  kInterleavedTransposed,  // NAME [E, H, 2I], gate and up in turns; NAME [E, I, H]
  kInterleavedMxfp4,       // as MXFP4 [E, 2I, H], gate and up in turns; [E, H, I]
};

struct MoeSpec {
  uint64_t experts = 0, intermediate = 0;
  uint64_t shared_intermediate = 0;  // 0: no shared expert
  bool shared_gate = true;           // its output is times sigmoid(shared_expert_gate)
  RoutingRecord routing;
  ActivationRecord activation;
  bool router_bias = false;
  std::string selection_bias;  // name below the module; empty: none
  bool expert_biases = false;  // beside the matrices of a stack, NAME_bias
  ExpertLayout layout = ExpertLayout::kPerExpert;
  // Names in the checkpoint below "model.layers.N.".
  std::string module = "mlp", router = "gate", shared = "shared_expert";
  // kPerExpert: last part of the names of gate, up and down; otherwise the names of both stacks below the module.
  std::array<std::string, kExpertMatrices> matrices = {"gate_proj", "up_proj", "down_proj"};
  std::string stacked_in, stacked_out;
};

// Multi-head latent attention (DeepSeek-V2, 2405.04434, section 2.1): keys and values come from a latent of kv_rank columns,
// and one rotated key is shared by all heads.
struct LatentSpec {
  uint32_t q_rank = 0, kv_rank = 0;  // q_rank 0: queries come from the hidden state; kv_rank 0: ordinary attention
  uint32_t nope = 0, rope = 0, value = 0;
};

struct ConvolutionSpec {
  std::vector<bool> layers;  // by layer; empty: none
  uint32_t width = 0;
  bool bias = false;
};

// Names of modules in the checkpoint, below the prefix of the model or of a layer.
struct DecoderNames {
  std::string model = "model.", head = "lm_head";
  std::string input_norm = "input_layernorm", ffn_norm = "post_attention_layernorm", final_norm = "norm";
  std::string attention = "self_attn", output = "o_proj", q_norm = "q_norm", k_norm = "k_norm";
  std::string ffn = "mlp";
  std::array<std::string, kExpertMatrices> ffn_matrices = {"gate_proj", "up_proj", "down_proj"};
};

struct DecoderSpec {
  uint64_t vocab = 0, hidden = 0, layers = 0;
  uint32_t max_positions = 0;
  uint32_t heads = 0, kv_heads = 0, head_dim = 0;
  NormKind norm = NormKind::kRms;  // layer norms have biases
  float norm_eps = 0;
  RotarySpec rotary;
  std::vector<bool> unrotated;  // by layer; empty: all are rotated
  bool qkv_bias = false, output_bias = false, head_bias = false;
  QkNorm qk_norm = QkNorm::kNone;
  float clip_qkv = 0;            // > 0: q, k and v are clamped to [-clip, clip]
  float attention_scale = 0;     // 0: 1 / sqrt(head_dim)
  std::vector<uint32_t> window;  // by layer; 0: none
  std::vector<uint32_t> chunk;   // by layer; empty: none
  bool sinks = false;
  float position_scale = 0;  // of AttentionNode, in layers that are not rotated
  uint32_t position_floor = 0;
  LatentSpec latent;
  ConvolutionSpec convolution;
  std::vector<bool> sparse;  // by layer; false: a dense MLP
  uint64_t dense_intermediate = 0;
  MoeSpec moe;
  float embedding_scale = 1, residual_scale = 1, logits_scale = 1;
  bool tied_head = false;
  DecoderNames names;
  Fp8Blocks fp8;
  uint64_t extra_layers = 0;  // predict further tokens and are not run
};

// What differs between families in the keys that all of them have.
struct DecoderKeys {
  const char* norm_eps = "rms_norm_eps";
  const char* activation = "hidden_act";  // null: always SiLU
  bool tied_head = false;                 // when tie_word_embeddings is absent
  const char* rotary_share = nullptr;     // key of the part of a head that is rotated; null: all of it
};

// Reads what all families share: sizes, heads, norm, rotary, tied head, activation (SiLU only), fp8 weights. head_dim is
// read where it is there, otherwise hidden / heads.
DecoderSpec ReadDecoder(ConfigReader& config, const DecoderKeys& keys = {});
// Its parts: everything but heads, rotary and fp8; heads and rotary; fp8 weights.
DecoderSpec ReadSizes(ConfigReader& config, const DecoderKeys& keys);
void ReadHeadsAndRotary(ConfigReader& config, const DecoderKeys& keys, DecoderSpec* spec);
void ReadFp8(ConfigReader& config, DecoderSpec* spec);

// window[l] of families with use_sliding_window: layers from max_window_layers on, or as layer_types says.
void ReadSwitchedWindow(ConfigReader& config, DecoderSpec* spec);

// sparse[l] and dense_intermediate of families with decoder_sparse_step and mlp_only_layers.
void ReadSparseLayers(ConfigReader& config, DecoderSpec* spec);
// Of those with first_k_dense_replace and moe_layer_freq.
void ReadDenseFirstLayers(ConfigReader& config, DecoderSpec* spec);
// n_group and topk_group into groups of the given rule; one group is none.
void ReadGroups(ConfigReader& config, GroupRule rule, DecoderSpec* spec);
// num_nextn_predict_layers: layers of the checkpoint beyond num_hidden_layers.
void ReadExtraLayers(ConfigReader& config, DecoderSpec* spec);
// layer_types, one entry a layer, each one of `known`; empty when absent.
std::vector<std::string> ReadLayerTypes(ConfigReader& config, const DecoderSpec& spec,
                                        const std::vector<std::string>& known);

// Expert count, width and k from the keys that the family uses; routing is a softmax over all experts, then the k largest,
// then (renormalise) divided by their sum.
void ReadMoe(ConfigReader& config, const char* experts_key, const char* intermediate_key, bool renormalise,
             DecoderSpec* spec, const char* k_key = "num_experts_per_tok");

// After ReadMoe: as many shared experts, side by side and without a gate, as the key says; none when it is absent.
void ReadSharedExperts(ConfigReader& config, const char* count_key, DecoderSpec* spec);

CheckpointLayout BuildDecoder(const DecoderSpec& spec);

}  // namespace moepack
