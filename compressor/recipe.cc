#include "compressor/recipe.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <span>

#include "base/checked.h"

namespace moepack {
namespace {

Codec Trellis(uint8_t bits, uint16_t group) { return {.element = Element::kTrellis, .bits = bits, .group_size = group}; }

Codec GroupInt(uint8_t bits, uint16_t group) { return {.element = Element::kGroupInt, .bits = bits, .group_size = group}; }

// Candidates from 2 to 8 bits; `floor` leaves out everything with fewer bits. Wide groups: under GPTQ a finer scale buys
// less than the same bytes spent on codes. Up to 6 bits a trellis loses less than any grid of its bytes; it has no mask, so
// what is pruned gets grids.
std::vector<RatedCodec> BuiltInCandidates(int floor, bool pruned) {
  static const Codec kDense[] = {Trellis(2, 128), Trellis(2, 64),  Trellis(3, 128), Trellis(3, 64),   Trellis(4, 128),
                                 Trellis(4, 64),  Trellis(5, 128), Trellis(6, 128), GroupInt(8, 128), GroupInt(8, 64)};
  static const Codec kPruned[] = {GroupInt(2, 128), GroupInt(2, 64),  GroupInt(3, 128), GroupInt(3, 64), GroupInt(4, 128),
                                  GroupInt(4, 64),  GroupInt(4, 32),  GroupInt(5, 128), GroupInt(5, 64), GroupInt(6, 128),
                                  GroupInt(6, 64),  GroupInt(8, 128), GroupInt(8, 64)};
  std::vector<RatedCodec> out;
  for (const Codec& codec : pruned ? std::span<const Codec>(kPruned) : std::span<const Codec>(kDense)) {
    if (codec.bits >= floor) out.push_back(codec);
  }
  if (pruned) return out;
  // Codes held to a rate: at the same bytes in the bundle they lose far less, for more bytes once loaded. A rate is worth
  // half a bit more than as many bits of a plain codec. Of narrower ones only 4 bits pay: codes of 5 and 6 bits lie in two
  // planes, which are coded apart.
  for (uint16_t rate : {100, 112, 125, 137, 150, 162, 175, 187, 200, 212, 225, 237, 250, 262, 275,
                        287, 300, 312, 325, 350, 375, 400, 425, 450, 475, 500, 550, 600, 650, 700}) {
    if (rate >= 100 * floor - 50) out.emplace_back(GroupInt(8, 0), rate);
  }
  for (uint16_t rate : {150, 175, 200, 225, 250}) {
    if (rate >= 100 * floor - 50) out.emplace_back(GroupInt(4, 0), rate);
  }
  return out;
}

bool KeptByDefault(const TensorRef& tensor) {
  if (tensor.is_expert()) return false;
  if (tensor.shape.rows == 1 || tensor.shape.cols == 1 || tensor.parameters() < kSmallTensor) return true;
  return tensor.role == TensorRole::kNorm || tensor.role == TensorRole::kBias || tensor.role == TensorRole::kRouter;
}

// Shared experts see every token and have no twin that could make up for them, so measured errors alone must not starve
// them; of the rest the planner decides.
int FloorBits(const TensorRef& tensor) {
  static constexpr int kAlwaysOn = 4, kAttention = 3, kLeast = 2;
  if (tensor.is_expert() || tensor.role == TensorRole::kEmbedding || tensor.role == TensorRole::kHead) return kLeast;
  return tensor.role == TensorRole::kAttention ? kAttention : kAlwaysOn;
}

bool Prunes(const PruneRecipe& prune, const TensorRef& tensor) {
  return prune.targets.empty() ? tensor.is_expert() : prune.targets.Matches(tensor.name);
}

// The candidate with the recipe's sparsity on top.
Result<Codec> Sparse(const PruneRecipe& prune, const TensorRef& tensor, Codec codec) {
  if (prune.m != 0) {
    if (tensor.shape.cols % prune.m != 0) {
      return Status(ErrorCode::kRecipe, StrFormat("prune: %s has %llu columns, not a multiple of %u", tensor.name.c_str(),
                                                  static_cast<unsigned long long>(tensor.shape.cols), prune.m));
    }
    codec.sparsity = Sparsity::kNM;
    codec.n = prune.n;
    codec.m = prune.m;
    return codec;
  }
  const auto cols = static_cast<double>(tensor.shape.cols);
  codec.sparsity = Sparsity::kBitmask;
  codec.kept_per_row =
      static_cast<uint32_t>(std::max(1.0, cols - static_cast<double>(static_cast<uint64_t>(cols * prune.sparsity))));
  return codec;
}

nlohmann::json ChoiceJson(const Choice& choice) {
  if (choice.keep) return {{"keep", true}};
  nlohmann::json names = nlohmann::json::array();
  for (const RatedCodec& codec : choice.candidates) names.push_back(codec.Name());
  return {{"candidates", names}};
}

const char* MethodName(PruneMethod method) {
  switch (method) {
    case PruneMethod::kMoePruner:
      return "moe-pruner";
    case PruneMethod::kWanda:
      return "wanda";
    case PruneMethod::kMagnitude:
      return "magnitude";
  }
  return "";
}

}  // namespace

std::string Budget::Check(const Names& names) const {
  static constexpr double kLeastBpw = 1e-3, kMostBpw = 64, kLeastKld = 1e-12, kMostKld = 100;
  // Written so that a NaN is refused.
  const auto outside = [](const std::optional<double>& v, double low, double high) {
    return v && !(*v >= low && *v <= high);
  };
  if (outside(target_bpw, kLeastBpw, kMostBpw))
    return StrFormat("%s: expected a number from %g to %g", names.target_bpw, kLeastBpw, kMostBpw);
  if (outside(max_kld, kLeastKld, kMostKld))
    return StrFormat("%s: expected a number from %g to %g", names.max_kld, kLeastKld, kMostKld);
  if (target_bytes.has_value() + target_bpw.has_value() + max_kld.has_value() > 1)
    return StrFormat("give one of %s, %s and %s", names.target_size, names.target_bpw, names.max_kld);
  if (max_kld && target_resident)
    return StrFormat("give %s alone or with %s or %s", names.target_resident, names.target_size, names.target_bpw);
  return "";
}

namespace {

nlohmann::json StructureJson(const Recipe& recipe) {
  nlohmann::json out = nlohmann::json::object();
  if (recipe.prune) {
    nlohmann::json& prune = out["prune"];
    prune["method"] = MethodName(recipe.prune->method);
    if (recipe.prune->m != 0) {
      prune["nm"] = StrFormat("%d:%d", recipe.prune->n, recipe.prune->m);
    } else {
      prune["sparsity"] = recipe.prune->sparsity;
    }
    if (!recipe.prune->targets.empty()) prune["targets"] = recipe.prune->targets.text;
  }
  if (recipe.drop_experts) {
    const DropRecipe& drop = *recipe.drop_experts;
    if (!drop.per_layer.empty()) {
      out["drop_experts"]["per_layer"] = drop.per_layer;
    } else if (drop.share > 0) {
      out["drop_experts"]["share"] = drop.share;
    } else {
      out["drop_experts"]["count"] = drop.count;
    }
  }
  if (recipe.prune_channels > 0) out["prune_channels"]["share"] = recipe.prune_channels;
  return out;
}

nlohmann::json RecipeJson(const Recipe& recipe) {
  nlohmann::json out = StructureJson(recipe);
  out["version"] = 1;
  if (recipe.defaults) out["defaults"] = ChoiceJson(*recipe.defaults);
  for (const RecipeRule& rule : recipe.rules) {
    out["rules"].push_back(ChoiceJson(rule.choice));
    out["rules"].back()["match"] = rule.match.text;
  }
  if (recipe.second_precision) out["second_precision"]["codec"] = recipe.second_precision->Name();
  if (recipe.twins) out["twins"] = true;
  if (recipe.dense_fallback) out["dense_fallback"]["codec"] = recipe.dense_fallback->Name();
  out["gptq"] = recipe.gptq;
  out["probes"] = recipe.probes;
  if (recipe.distill) {
    static constexpr const char* kLogits[] = {"none", "scales", "all"};
    out["distill"] = {{"epochs", recipe.distill->epochs},
                      {"logits", kLogits[static_cast<size_t>(recipe.distill->logits)]},
                      {"rate", recipe.distill->rate},
                      {"code_rate", recipe.distill->code_rate}};
    if (!recipe.distill->targets.empty()) out["distill"]["targets"] = recipe.distill->targets.text;
  }
  for (const auto& [name, weight] : recipe.domains) out["domains"][name] = weight;
  return out;
}

std::string Dump(const nlohmann::json& json) { return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace); }

}  // namespace

std::string Recipe::Canonical() const { return Dump(RecipeJson(*this)); }

std::string Recipe::CanonicalWithBudget() const {
  nlohmann::json out = RecipeJson(*this);
  if (budget.target_bytes) out["target_size"] = *budget.target_bytes;
  if (budget.target_bpw) out["target_bpw"] = *budget.target_bpw;
  if (budget.max_kld) out["max_kld"] = *budget.max_kld;
  if (budget.target_resident == Budget::kUnlimited) {
    out["target_resident"] = "unlimited";
  } else if (budget.target_resident) {
    out["target_resident"] = *budget.target_resident;
  }
  return Dump(out);
}

Result<Recipe> RecipeForCodec(const std::string& codec_name) {
  auto codec = ParseRatedCodec(codec_name);
  if (!codec.ok()) return Status(ErrorCode::kUsage, "--codec: " + codec.status().message());
  Recipe recipe;
  if (codec->codec.coded()) {
    recipe.defaults = Choice{false, {*codec}};
    return recipe;
  }
  recipe.rules.push_back({{".*", std::regex(".*"), "--codec"}, {false, {*codec}}});
  recipe.gptq = false;
  return recipe;
}

Status CheckMatches(const Recipe& recipe, std::span<const TensorRef> tensors) {
  std::vector<const Pattern*> patterns;
  for (const RecipeRule& rule : recipe.rules) patterns.push_back(&rule.match);
  if (recipe.prune) patterns.push_back(&recipe.prune->targets);
  if (recipe.distill) patterns.push_back(&recipe.distill->targets);
  for (const Pattern* pattern : patterns) {
    const auto fits = [&](const TensorRef& tensor) { return pattern->Matches(tensor.name); };
    if (pattern->empty() || std::any_of(tensors.begin(), tensors.end(), fits)) continue;
    return Status(ErrorCode::kBadInput, pattern->place + ": '" + pattern->text + "' matches no tensor of this model; " +
                                            "plan.json of any run lists the names, such as " +
                                            tensors[tensors.size() / 2].name);
  }
  return Status::Ok();
}

Result<Choice> ChoiceFor(const Recipe& recipe, const TensorRef& tensor, const Codec& stored) {
  std::optional<Choice> choice;
  for (const RecipeRule& rule : recipe.rules) {
    if (rule.match.Matches(tensor.name)) choice = rule.choice;
  }
  if (!choice) {
    if (KeptByDefault(tensor)) {
      choice = Choice{true, {}};
    } else {
      const bool pruned = recipe.prune && Prunes(*recipe.prune, tensor);
      choice = recipe.defaults ? *recipe.defaults : Choice{false, BuiltInCandidates(FloorBits(tensor), pruned)};
    }
  }
  // Vectors and other tiny tensors are read as f32 by every executor.
  const bool vector = tensor.shape.rows == 1 || tensor.shape.cols == 1;
  if (choice->keep) *choice = {true, {vector || stored.coded() ? Codec{} : stored}};
  if (vector && !choice->keep) *choice = {true, {Codec{}}};
  if (!recipe.prune || choice->keep || !Prunes(*recipe.prune, tensor)) return *choice;
  std::erase_if(choice->candidates,
                [](const RatedCodec& codec) { return codec.rate != 0 || codec.codec.element == Element::kTrellis; });
  for (RatedCodec& codec : choice->candidates) {
    auto sparse = Sparse(*recipe.prune, tensor, codec);
    if (!sparse.ok()) return sparse.status();
    codec = *sparse;
  }
  if (choice->candidates.empty()) {
    return Status(ErrorCode::kRecipe,
                  "prune: " + tensor.name + " has only candidates with a rate or of a trellis, which cannot be pruned");
  }
  return *choice;
}

}  // namespace moepack
