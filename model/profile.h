// The profile: what calibrate/ saw and what compressor/ decides by. The only thing the two share.
//
// On disk one safetensors file (NAME.mprof): arrays as "tokens", "table.N.in_sq", "dense.ID.in_sq" and so on after their
// fields, everything else in its metadata under "moepack_profile" as JSON with a version. No times, paths or thread counts,
// so the same input gives the same bytes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/env.h"
#include "base/status.h"
#include "format/program.h"
#include "model/weight_digests.h"

namespace moepack {

// Statistics of one expert table over all calibration tokens. E experts, D domains, H hidden, I_e intermediate. Stored with
// the types they have here; tokens are counts of routed tokens. Experts without tokens have zeros, not empty rows. Only
// `attribution`, `sch` and `trace` may be empty.
struct TableProfile {
  uint32_t experts = 0, k = 0;
  std::vector<uint64_t> tokens;                  // [D, E] tokens routed to the expert
  std::vector<double> gate_sum;                  // [D, E] sum of routing weights g
  std::vector<double> gate_sq_sum;               // [D, E] sum of g^2
  std::vector<double> reap;                      // [E] mean over its tokens of g * ||f(x)||_2 (REAP, 2510.13999)
  std::vector<double> output_norm;               // [E] mean ||f(x)||_2
  std::vector<uint64_t> coactivation;            // [E, E] tokens routed to both; diagonal = tokens
  std::vector<std::vector<float>> in_sq;         // [E][H] sum x_j^2: inputs of gate and up
  std::vector<std::vector<float>> in_gate_sq;    // [E][H] sum (g x_j)^2
  std::vector<std::vector<float>> down_sq;       // [E][I_e] sum h_j^2: inputs of down
  std::vector<std::vector<float>> down_gate_sq;  // [E][I_e] sum (g h_j)^2
  std::vector<std::vector<float>> output_mean;   // [E][H] mean f(x)
  // Basic-refinement attribution (2505.24593): mean gain in log p(target) when the expert's gated output is added to the
  // post-attention state. [E] routed; shared: of the sum of everything that is added beside the routed experts (0 if none).
  std::vector<double> attribution;
  double shared_attribution = 0;
  // Local routing consistency (2505.16056) at window 16: SRP in percent, SCH at cache sizes rho = 1, 2, 3 times k.
  double srp = 0;
  std::vector<double> sch;
  // Routing trace: the k experts of every token in order, largest weight first. [tokens, k]
  std::vector<uint16_t> trace;
};

struct Profile {
  std::string model_digest;  // SHA-256 hex over the program bytes: a profile fits one program
  WeightDigests weights;     // and one set of weights
  std::vector<std::string> domains;
  std::vector<int32_t> tokens;           // calibration tokens, sequences one after another; or instead
  std::vector<float> rows;               // of a model whose input is of floats: [n, row_width], each a sequence of its own
  uint64_t row_width = 0;                // 0: tokens
  std::vector<uint64_t> sequence_start;  // strictly increasing from 0; a sequence ends where the next starts
  std::vector<uint32_t> sequence_domain;
  std::vector<TableProfile> tables;  // one a Program::expert_tables
  // Second moments of the inputs of dense linear weights, by TensorId: sum x_j^2 [cols]; empty for other tensors.
  std::vector<std::vector<float>> dense_in_sq;
  std::vector<std::pair<std::string, std::string>> inputs;  // domain -> SHA-256 of its text, or of its file of rows
  uint64_t size() const { return row_width > 0 ? rows.size() / row_width : tokens.size(); }  // tokens, or rows
};

// kInternal with the field when the parts do not fit each other. Atomic.
Status WriteProfile(Env& env, const std::string& path, const Profile& profile);
// The same bytes into a file that gets its name later.
Status AppendProfile(AtomicFile& file, const Profile& profile);
// kBadInput with the field that is wrong; checks every array's shape, and that all numbers are finite.
Result<Profile> ReadProfile(Env& env, const std::string& path);

// What Profile::model_digest must equal: SHA-256 hex over SerializeProgram's bytes.
std::string ProgramDigest(const Program& program);

// kBadInput unless the profile was made from this program, all its widths are the program's, it has a digest for each
// weight (CheckWeights compares them when weights are read) and its tokens are in the vocabulary, its rows as wide as
// the input. A profile is used to index
// a model's tables only after this: the digest alone is a claim of the file.
Status CheckProfileFits(const Profile& profile, const Program& program);

}  // namespace moepack
