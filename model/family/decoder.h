// The pre-norm decoder that the supported families are variants of:
//   x += attention(norm(x));  x += ffn(norm(x))   in every layer, then norm and head.
// A family's file turns its configuration into a DecoderSpec; BuildDecoder turns that into a program.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/family/config_reader.h"
#include "model/family/program_builder.h"

namespace moepack {

enum class QkNorm : uint8_t { kNone, kPerHead, kFullWidth };

struct MoeSpec {
  uint64_t experts = 0, intermediate = 0;
  uint64_t shared_intermediate = 0;  // 0: no shared expert; with one, its output is times sigmoid(shared_expert_gate)
  RoutingRecord routing;
  std::string module;    // "mlp": below "model.layers.N."
  ExpertNames matrices;  // last part of the names of gate, up and down
};

struct DecoderSpec {
  uint64_t vocab = 0, hidden = 0, layers = 0;
  uint32_t max_positions = 0;
  uint32_t heads = 0, kv_heads = 0, head_dim = 0;
  float norm_eps = 0;
  std::vector<float> inv_freq;
  bool qkv_bias = false, output_bias = false;
  QkNorm qk_norm = QkNorm::kNone;
  float clip_qkv = 0;            // > 0: q, k and v are clamped to [-clip, clip]
  std::vector<uint32_t> window;  // by layer; 0: none
  std::vector<bool> sparse;      // by layer; false: a dense MLP
  uint64_t dense_intermediate = 0;
  MoeSpec moe;
  bool tied_head = false;
};

// Reads what all families share: sizes, heads, norm, rotary, tied head, activation (SiLU only). `head_dim` is read where the
// family allows it, otherwise hidden / heads.
DecoderSpec ReadDecoder(ConfigReader& config);

// window[l] of families with use_sliding_window: layers from max_window_layers on, or as layer_types says.
void ReadSwitchedWindow(ConfigReader& config, DecoderSpec* spec);

// sparse[l] and dense_intermediate of families with decoder_sparse_step and mlp_only_layers.
void ReadSparseLayers(ConfigReader& config, DecoderSpec* spec);

// Expert count, width and k from the keys that the family uses; routing is a softmax over all experts, then the k largest,
// then (renormalise) divided by their sum.
void ReadMoe(ConfigReader& config, const char* experts_key, const char* intermediate_key, bool renormalise,
             DecoderSpec* spec);

CheckpointLayout BuildDecoder(const DecoderSpec& spec);

}  // namespace moepack
