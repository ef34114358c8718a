// Rotary positions of a configuration: base, part of a head and scaling, reduced to inverse frequencies.
#pragma once

#include <cstdint>
#include <vector>

#include "format/program.h"
#include "model/family/config_reader.h"

namespace moepack {

struct RotarySpec {
  std::vector<float> inv_freq;  // empty: nothing is rotated
  float magnitude = 1;
  bool interleaved = false;
  uint32_t long_from = 0;  // of RotaryNode
  float long_magnitude = 0;
  std::vector<float> long_inv_freq;
  // Where positions are scaled, models with latent attention also multiply their scores with this (YaRN, 2309.00071,
  // section 3.4, by mscale_all_dim).
  float score_factor = 1;

  // The node for heads of head_dim columns of which those from `offset` on are rotated.
  RotaryNode Node(uint32_t heads, uint32_t head_dim, uint32_t offset = 0) const;
};

// Reads rope_theta and rope_scaling, or rope_parameters. `rotary_dim`: columns of a head that are rotated, even, which
// `dim_key` gave.
// rope_type: default, linear, dynamic, yarn, longrope (su), llama3; others are refused by name. Errors stay in the reader.
RotarySpec ReadRotary(ConfigReader& config, uint32_t rotary_dim, uint32_t max_positions, const char* dim_key = "head_dim");

}  // namespace moepack
