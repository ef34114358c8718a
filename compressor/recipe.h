// Recipes: what compress may do to a model, as YAML a person writes. docs/recipes.md is the reference.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <regex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "compressor/pass/prune.h"
#include "compressor/rated_codec.h"
#include "compressor/tensors.h"
#include "format/codec/codec.h"

namespace moepack {

// What may become of one tensor: exactly one codec, or the best of several by measured error under a budget.
inline constexpr size_t kMaxCandidates = 255;  // the planner counts them in a byte
struct Choice {
  bool keep = false;                   // as it is stored in the checkpoint, exactly
  std::vector<RatedCodec> candidates;  // otherwise at least one
  bool operator==(const Choice&) const = default;
};

// An ECMAScript regular expression that must match a whole tensor name.
struct Pattern {
  std::string text;  // empty: none was given
  std::regex regex;
  std::string place;  // "recipe.yaml: line 7", for messages
  bool empty() const { return text.empty(); }
  bool Matches(const std::string& name) const { return std::regex_match(name, regex); }
};

struct RecipeRule {
  Pattern match;
  Choice choice;
};

struct PruneRecipe {
  PruneMethod method = PruneMethod::kMoePruner;
  double sparsity = 0;   // share of every row that is removed, 0 < sparsity < 1; or
  uint8_t n = 0, m = 0;  // n of every m consecutive weights kept
  Pattern targets;       // tensors to prune; routed experts when empty
};

struct DropRecipe {
  uint32_t count = 0;               // experts to drop in every layer
  double share = 0;                 // or this share of them, rounded down
  std::vector<uint32_t> per_layer;  // or one number an expert table
};

// Training after encoding: experts block by block (compressor/pass/distill_experts.h), then the whole model against the
// full one's predictions (compressor/pass/distill.h).
enum class DistillLogits : uint8_t { kNone, kScales, kAll };
struct DistillRecipe {
  uint32_t epochs = 2;
  DistillLogits logits = DistillLogits::kScales;  // what the second stage moves
  double rate = 0.001;                            // first step of a weight, in units of its tensor's root mean square
  double code_rate = 0.01;                        // of a code, in units of a quantization step
  Pattern targets;                                // tensors that learn; all but routers when empty; embeddings never
};

// Sources of the size gate: at most one of the first three is set; the last alone or with a target of the file.
struct Budget {
  std::optional<uint64_t> target_bytes;  // of the bundle file
  std::optional<double> target_bpw;      // bundle bytes * 8 / parameters of the original model
  std::optional<double> max_kld;         // mean KLD on held-back calibration tokens
  // Bytes of all weight buffers once loaded, with scales and packing. Absent beside a target of the file: the same bytes.
  std::optional<uint64_t> target_resident;
  static constexpr uint64_t kUnlimited = UINT64_MAX;
  bool set() const { return target_bytes || target_bpw || max_kld || target_resident; }
  // What the fields are called where they were written.
  struct Names {
    const char *target_size, *target_bpw, *target_resident, *max_kld;
  };
  // What is wrong with a number or with the fields that are set together; empty when nothing is.
  std::string Check(const Names& names) const;
};

struct Recipe {
  std::optional<Choice> defaults;  // for matrices without a rule; the built-in choice when absent
  std::vector<RecipeRule> rules;   // the last rule that matches a tensor wins
  std::optional<PruneRecipe> prune;
  std::optional<DropRecipe> drop_experts;
  double prune_channels = 0;                   // share of every expert's intermediate channels to remove
  std::optional<RatedCodec> second_precision;  // of every expert that takes fewer bytes in it (compressor/variants.h)
  bool twins = false;                          // name each expert's nearest as its last variant
  std::optional<RatedCodec> dense_fallback;    // of a dense stand-in for every layer (compressor/pass/dense_fallback.h)
  bool gptq = true;
  std::optional<DistillRecipe> distill;
  bool probes = true;                     // measure sensitivities by KLD (compressor/plan/error_table.h)
  std::map<std::string, double> domains;  // weight of each calibration domain; 1 when absent
  Budget budget;

  // Normalised JSON of everything that determines the result, which ParseRecipe reads back to the same recipe: without the
  // budget, and with it, as provenance records it. Comments and order of keys are not part of it.
  std::string Canonical() const;
  std::string CanonicalWithBudget() const;
};

// kRecipe with line, column, the key and the nearest valid one for anything that is not in the reference.
Result<Recipe> ParseRecipe(std::string_view yaml, const std::string& file_name);
// The recipe of `--codec NAME`: every matrix that is not kept by default in one codec. f32, bf16 and f16 apply to all
// tensors.
Result<Recipe> RecipeForCodec(const std::string& codec_name);

// kBadInput naming the first `match` or `targets` that no tensor's name fits, with its line. `tensors`: of the model before
// anything is dropped from it.
Status CheckMatches(const Recipe& recipe, std::span<const TensorRef> tensors);

// What may become of a tensor: the last matching rule, else the defaults, else the built-in choice. `stored`: the tensor's
// codec in the checkpoint. Norms, biases, routers and matrices of fewer than kSmallTensor weights are kept unless a rule
// names them; by default shared experts never go below 4 bits, attention not below 3.
inline constexpr uint64_t kSmallTensor = 4096;
Result<Choice> ChoiceFor(const Recipe& recipe, const TensorRef& tensor, const Codec& stored);

}  // namespace moepack
