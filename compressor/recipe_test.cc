#include "compressor/recipe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace moepack {
namespace {

using ::testing::HasSubstr;

TensorRef Tensor(const std::string& name, uint64_t rows, uint64_t cols, TensorRole role = TensorRole::kAttention) {
  TensorRef ref;
  ref.name = name;
  ref.shape = {rows, cols};
  ref.role = role;
  return ref;
}
TensorRef ExpertTensor(const std::string& name) {
  TensorRef ref = Tensor(name, 256, 256, TensorRole::kOther);
  ref.unit.expert = true;
  return ref;
}
const Codec kStored = {.element = Element::kBf16};

TEST(Recipe, AnErrorNamesLineColumnKeyAndTheNearestValidOne) {
  struct Case {
    std::string yaml;
    std::vector<const char*> says;
  };
  for (const Case& c : std::vector<Case>{
           {"version: 1\nrules:\n  - match: '.*'\n    codecc: i4g64\n",
            {"r.yaml", "line 4", "column 5", "'codecc'", "'codec'"}},
           {"version: 1\ntarget_sise: 8MiB\n", {"line 2", "'target_sise'", "'target_size'"}},
           {"version: 2\n", {"version must be the number 1"}},
           {"version: \"1\"\n", {"line 1", "version must be the number 1"}},
           {"version: 1\nprune_channels: {share: 0.95}\n", {"line 2", "at most 0.9"}},
           {"version: 1\nmax_kld: 0\n", {"line 2", "from 1e-12"}},
           {"gptq: true\n", {"version: 1"}},
           {"version: 1\ndefaults: {codec: i7g64}\n", {"line 2", "i7g64"}},
           {"version: 1\ndefaults: {codec: i4g64, keep: true}\n", {"exactly one"}},
           {"version: 1\nrules: [{match: '(', keep: true}]\n", {"regular expression"}},
           {"version: 1\nrules: [{match: 'a\\99999999999999999999', keep: true}]\n", {"regular expression", "9 digits"}},
           {"version: 1\nrules: [{keep: true}]\n", {"needs 'match'"}},
           {"version: 1\nrules: [{match: '" + std::string(100000, '(') + "', keep: true}]\n", {"at most 1000"}},
           {"version: 1\nprune: {method: wander, sparsity: 0.5}\n", {"'wander'", "'wanda'"}},
           {"version: 1\nprune: {method: wanda}\n", {"one of sparsity and nm"}},
           {"version: 1\nprune: {nm: '3:2'}\n", {"N:M"}},
           {"version: 1\nprune: {sparsity: 1.5}\n", {"from 0 to 1"}},
           {"version: 1\ndrop_experts: {count: 2, share: 0.5}\n", {"one of count, share and per_layer"}},
           {"version: 1\ntarget_bpw: 4\nmax_kld: 0.1\n", {"line 3", "give one of target_size, target_bpw and max_kld"}},
           {"version: 1\nmax_kld: 0.1\ntarget_resident: 8MiB\n", {"line 3", "give target_resident alone or with"}},
           {"version: 1\ntarget_bpw: 1e300\n", {"line 2", "target_bpw", "from 0.001 to 64"}},
           {"version: 1\ntarget_bpw: .nan\n", {"line 2", "from 0.001 to 64"}},
           {"version: 1\ntarget_size: 1.2.3MB\n", {"line 2", "'1.2.3MB' is not a size"}},
           {"version: 1\ndefaults: {candidates: [i4g64, i8r@2.5, i8r@2.50]}\n", {"line 2", "'i8r@2.5' stands twice"}},
           {"version: 1\nsecond_precision: {}\n", {"line 2", "needs 'codec'"}},
           {"version: 1\nsecond_precision: {codec: i8r@2.5}\n", {"line 2", "without a rate"}},
           {"version: 1\nsecond_precision: i2g64\n", {"line 2", "must be a map"}},
           {"version: 1\ndense_fallback: {}\n", {"line 2", "needs 'codec'"}},
           {"version: 1\ndense_fallback: {codec: i8r@2.5}\n", {"line 2", "without a rate"}},
           {"version: 1\ndense_fallback: {codec: i8r+2:4}\n", {"line 2", "keeps every weight"}},
           {"version: 1\ntwins: 2\n", {"line 2", "true or false"}},
           {"version: 1\ndistill: {epochs: 0}\n", {"epochs"}},
           {"version: 1\ndistill: {rate: 2}\n", {"to 1"}},
           {"version: 1\ndistill: {logits: some}\n", {"line 2", "scales, all and none"}},
           {"version: 1\ngptq: perhaps\n", {"true or false"}},
           {"version: 1\ngptq: true\ngptq: false\n", {"twice"}},
           {"version: 1\nrules: {a\n", {"line"}},
           {"- 1\n", {"must be a map"}},
       }) {
    const auto recipe = ParseRecipe(c.yaml, "r.yaml");
    ASSERT_FALSE(recipe.ok()) << c.yaml;
    EXPECT_EQ(recipe.status().code(), ErrorCode::kRecipe);
    for (const char* text : c.says) EXPECT_THAT(recipe.status().message(), HasSubstr(text));
  }
}

TEST(Recipe, AListOfCandidatesIsNoLongerThanThePlannerCounts) {
  const auto parse = [](int count) {
    std::string list;
    for (int i = 0; i < count; ++i) list += StrFormat("%si8r@%d.%02d", i == 0 ? "" : ", ", 1 + i / 100, i % 100);
    return ParseRecipe("version: 1\ndefaults: {candidates: [" + list + "]}\n", "r.yaml");
  };
  EXPECT_EQ(parse(255)->defaults->candidates.size(), 255u);
  EXPECT_EQ(parse(256).status().code(), ErrorCode::kRecipe);
  EXPECT_THAT(parse(256).status().message(), HasSubstr("at most 255"));
}

TEST(Budget, NumbersAreCheckedWhereverTheyComeFrom) {
  const Budget::Names names = {"--target-size", "--target-bpw", "--target-resident", "--max-kld"};
  EXPECT_EQ(Budget{.target_bpw = 4}.Check(names), "");
  EXPECT_EQ((Budget{.target_bytes = 1, .target_resident = Budget::kUnlimited}.Check(names)), "");
  for (double bad : {1e300, 0.0, -1.0, std::nan("")}) {
    EXPECT_THAT(Budget{.target_bpw = bad}.Check(names), HasSubstr("--target-bpw: expected a number from 0.001 to 64"));
    EXPECT_THAT(Budget{.max_kld = bad}.Check(names), HasSubstr("--max-kld: expected a number from 1e-12 to 100"));
  }
  EXPECT_EQ((Budget{.target_bytes = 1, .max_kld = 1}.Check(names)), "give one of --target-size, --target-bpw and --max-kld");
  EXPECT_THAT((Budget{.max_kld = 1, .target_resident = 1}.Check(names)), HasSubstr("give --target-resident alone"));
}

TEST(Recipe, EveryKeyIsRead) {
  const auto recipe = ParseRecipe(
      "version: 1\ntarget_size: 1.5MiB\ntarget_resident: 2MiB\ngptq: false\nprobes: false\n"
      "defaults: {candidates: [i4g64, i5g64]}\n"
      "rules:\n  - {match: 'layers\\.\\d+\\.q_proj', codec: i8g64}\n"
      "prune: {method: magnitude, nm: '2:4', targets: '.*down_proj'}\n"
      "drop_experts: {per_layer: [1, 2], by: reap}\nprune_channels: {share: 0.25}\ndomains: {german: 2}\n",
      "r.yaml");
  ASSERT_TRUE(recipe.ok()) << recipe.status().message();
  EXPECT_EQ(recipe->budget.target_bytes, 1536u * 1024);
  EXPECT_EQ(recipe->budget.target_resident, 2048u * 1024);
  EXPECT_FALSE(recipe->gptq);
  EXPECT_FALSE(recipe->probes);
  EXPECT_EQ(recipe->prune->m, 4);
  EXPECT_EQ(recipe->prune->method, PruneMethod::kMagnitude);
  EXPECT_EQ(recipe->drop_experts->per_layer, (std::vector<uint32_t>{1, 2}));
  EXPECT_EQ(recipe->prune_channels, 0.25);
  EXPECT_EQ(recipe->domains.at("german"), 2);
  EXPECT_EQ(ChoiceFor(*recipe, Tensor("layers.3.q_proj", 64, 64), kStored)->candidates.front().Name(), "i8g64");
  EXPECT_EQ(ChoiceFor(*recipe, Tensor("layers.3.k_proj", 64, 64), kStored)->candidates.size(), 2u);
}

TEST(Recipe, TheLastMatchingRuleWinsAndMatchesWholeNames) {
  const auto recipe = ParseRecipe(
      "version: 1\nrules:\n  - {match: '.*_proj', codec: i4g64}\n  - {match: 'layers\\.0\\..*', keep: true}\n  - {match: "
      "'q', codec: i2g32}\n",
      "r");
  ASSERT_TRUE(recipe.ok());
  EXPECT_EQ(ChoiceFor(*recipe, Tensor("layers.0.q_proj", 64, 64), kStored)->candidates.front().Name(), "bf16");
  EXPECT_EQ(ChoiceFor(*recipe, Tensor("layers.1.q_proj", 64, 64), kStored)->candidates.front().Name(), "i4g64");
}

TEST(Recipe, NormsRoutersAndSmallTensorsAreNeverStarvedByDefault) {
  const Recipe recipe = *RecipeForCodec("i2g32");
  EXPECT_EQ(ChoiceFor(recipe, Tensor("norm", 1, 256, TensorRole::kNorm), kStored)->candidates.front().Name(), "f32");
  EXPECT_EQ(ChoiceFor(recipe, Tensor("layers.0.router", 64, 256, TensorRole::kRouter), kStored)->candidates.front().Name(),
            "bf16");
  EXPECT_EQ(ChoiceFor(recipe, Tensor("layers.0.q_proj", 8, 8), kStored)->candidates.front().Name(), "bf16");
  EXPECT_EQ(ChoiceFor(recipe, ExpertTensor("layers.0.experts.0.up_proj"), kStored)->candidates.front().Name(), "i2g32");
  const std::pair<TensorRole, int> floors[] = {
      {TensorRole::kSharedExpert, 4}, {TensorRole::kAttention, 3}, {TensorRole::kHead, 2}, {TensorRole::kEmbedding, 2}};
  for (const auto& [role, floor] : floors) {
    const auto built_in = ChoiceFor(Recipe(), Tensor("t", 256, 256, role), kStored);
    for (const RatedCodec& candidate : built_in->candidates) {
      const int least = candidate.rate == 0 ? 100 * floor : 100 * floor - 50;
      EXPECT_GE(candidate.rate == 0 ? 100 * candidate.codec.bits : candidate.rate, least);
    }
  }
}

TEST(Recipe, PruningPutsSparsityOnEveryCandidateOfItsTargets) {
  auto recipe = ParseRecipe("version: 1\ndefaults: {codec: i4g64}\nprune: {sparsity: 0.5}\n", "r");
  ASSERT_TRUE(recipe.ok());
  EXPECT_EQ(ChoiceFor(*recipe, ExpertTensor("layers.0.experts.1.up_proj"), kStored)->candidates.front().Name(),
            "i4g64+keep128");
  EXPECT_EQ(ChoiceFor(*recipe, Tensor("layers.0.q_proj", 256, 256), kStored)->candidates.front().Name(), "i4g64");
  recipe = ParseRecipe("version: 1\ndefaults: {codec: bf16}\nprune: {nm: '2:4', targets: '.*q_proj'}\n", "r");
  EXPECT_EQ(ChoiceFor(*recipe, Tensor("layers.0.q_proj", 256, 256), kStored)->candidates.front().Name(), "bf16+2:4");
  EXPECT_EQ(ChoiceFor(*recipe, Tensor("layers.0.q_proj", 250, 250), kStored).status().code(), ErrorCode::kRecipe);
}

TEST(Recipe, WhatIsPrunedIsOfferedNoTrellis) {
  const auto recipe = ParseRecipe("version: 1\nprune: {sparsity: 0.5}\n", "r");
  ASSERT_TRUE(recipe.ok());
  const auto trellises = [&recipe](const TensorRef& tensor) {
    const auto choice = ChoiceFor(*recipe, tensor, kStored);
    EXPECT_TRUE(choice.ok());
    EXPECT_EQ(choice->candidates.front().codec.bits, 2) << "the least that a tensor may have";
    for (const RatedCodec& candidate : choice->candidates)
      EXPECT_TRUE(ValidateCodec(candidate.codec).ok()) << candidate.Name();
    return std::count_if(choice->candidates.begin(), choice->candidates.end(),
                         [](const RatedCodec& c) { return c.codec.element == Element::kTrellis; });
  };
  EXPECT_EQ(trellises(ExpertTensor("layers.0.experts.1.up_proj")), 0);
  EXPECT_GT(trellises(Tensor("lm_head", 256, 256, TensorRole::kHead)), 0);
  const auto named = ParseRecipe("version: 1\ndefaults: {codec: t4g64}\nprune: {sparsity: 0.5}\n", "r");
  ASSERT_TRUE(named.ok());
  EXPECT_EQ(ChoiceFor(*named, ExpertTensor("layers.0.experts.1.up_proj"), kStored).status().code(), ErrorCode::kRecipe);
}

TEST(Recipe, FloatCodecsApplyToEverything) {
  const Recipe recipe = *RecipeForCodec("f32");
  EXPECT_EQ(ChoiceFor(recipe, Tensor("layers.0.router", 64, 256, TensorRole::kRouter), kStored)->candidates.front().Name(),
            "f32");
  EXPECT_EQ(RecipeForCodec("i9g64").status().code(), ErrorCode::kUsage);
}

TEST(Recipe, CanonicalTextIgnoresCommentsAndBudget) {
  const auto a = ParseRecipe("version: 1 # one\ntarget_bpw: 4\ngptq: true\n", "a"),
             b = ParseRecipe("gptq: yes\nversion: 1\n", "b");
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(a->Canonical(), b->Canonical());
  EXPECT_NE(a->Canonical(), ParseRecipe("version: 1\ngptq: false\n", "c")->Canonical());
}

TEST(Recipe, CanonicalTextIsARecipe) {
  for (const char* text : {
           "version: 1\ntarget_size: 9.5MiB\ntarget_resident: unlimited\n"
           "defaults: {candidates: [i3g64, i8r@2.25]}\n"
           "rules: [{match: '.*\\.(q|k)_proj \"\\d\"', codec: i5g64}, {match: lm_head, keep: true}]\n"
           "prune: {sparsity: 0.3, method: wanda, targets: 'a\\.b'}\ndrop_experts: {share: 0.123456789012}\n"
           "prune_channels: {share: 0.125}\ndistill: {epochs: 3, rate: 0.0000123, targets: '.*'}\ndomains: {german: 2, a b: "
           "1e6}\n",
           "version: 1\ntarget_bpw: 4.3\nprune: {nm: '2:4'}\ndrop_experts: {per_layer: [1, 2]}\ngptq: false\nprobes: "
           "false\n",
           "version: 1\nmax_kld: 1e-7\ndrop_experts: {count: 2}\nsecond_precision: {codec: i2mg32}\ntwins: true\n"
           "dense_fallback: {codec: i8g64}\n",
           "version: 1\ntarget_bpw: 4\ntarget_resident: 12345678901\n",
       }) {
    const Result<Recipe> recipe = ParseRecipe(text, "r");
    ASSERT_TRUE(recipe.ok()) << recipe.status().message();
    const std::string canonical = recipe->CanonicalWithBudget();
    const Result<Recipe> again = ParseRecipe(canonical, "canonical");
    ASSERT_TRUE(again.ok()) << canonical << again.status().message();
    EXPECT_EQ(again->CanonicalWithBudget(), canonical);
    EXPECT_EQ(again->rules.size(), recipe->rules.size());
    EXPECT_EQ(again->budget.target_bytes, recipe->budget.target_bytes);
    EXPECT_EQ(again->budget.target_resident, recipe->budget.target_resident);
    EXPECT_EQ(again->budget.target_bpw, recipe->budget.target_bpw);
    EXPECT_EQ(again->budget.max_kld, recipe->budget.max_kld);
    EXPECT_EQ(again->second_precision, recipe->second_precision);
    EXPECT_EQ(again->twins, recipe->twins);
    EXPECT_EQ(again->dense_fallback, recipe->dense_fallback);
    EXPECT_EQ(again->distill.has_value(), recipe->distill.has_value());
    if (recipe->distill) {
      EXPECT_EQ(again->distill->rate, recipe->distill->rate);
    }
    if (recipe->drop_experts) {
      EXPECT_EQ(again->drop_experts->share, recipe->drop_experts->share);
    }
  }
  const Recipe codec = *RecipeForCodec("f32"), again = *ParseRecipe(codec.Canonical(), "canonical");
  EXPECT_EQ(again.rules[0].choice, codec.rules[0].choice);
  EXPECT_EQ(again.gptq, codec.gptq);
}

TEST(Recipe, AnEmptyOneHasNoLine) {
  for (const char* text : {"", "# nothing\n"}) {
    const Status status = ParseRecipe(text, "r.yaml").status();
    EXPECT_EQ(status.code(), ErrorCode::kRecipe);
    EXPECT_THAT(status.message(), ::testing::StartsWith("r.yaml: ")) << status.message();
    EXPECT_THAT(status.message(), ::testing::Not(::testing::HasSubstr("line 0"))) << status.message();
  }
}

TEST(Recipe, APatternThatFitsNoTensorIsNamedWithItsLine) {
  std::vector<TensorRef> tensors(2);
  tensors[0].name = "layers.0.q_proj";
  tensors[1].name = "layers.0.router";
  const auto check = [&](const char* text) { return CheckMatches(*ParseRecipe(text, "r.yaml"), tensors); };
  EXPECT_TRUE(check("version: 1\nrules: [{match: '.*_proj', keep: true}]\n").ok());
  Status status =
      check("version: 1\nrules:\n  - match: '.*_proj'\n    keep: true\n  - match: 'layer\\.0.*'\n    keep: true\n");
  EXPECT_EQ(status.code(), ErrorCode::kBadInput);
  EXPECT_THAT(status.message(), ::testing::HasSubstr("r.yaml: line 5"));
  EXPECT_THAT(status.message(), ::testing::HasSubstr("'layer\\.0.*'"));
  for (const char* text : {"version: 1\nprune:\n  sparsity: 0.5\n  targets: 'experts'\n",
                           "version: 1\ndistill:\n  epochs: 1\n  targets: 'experts'\n"}) {
    status = check(text);
    EXPECT_EQ(status.code(), ErrorCode::kBadInput) << text;
    EXPECT_THAT(status.message(), ::testing::HasSubstr("r.yaml: line 4"));
  }
}

}  // namespace
}  // namespace moepack
