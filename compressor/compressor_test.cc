#include "compressor/compressor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "base/testing/fault_env.h"
#include "compressor/calibration.h"
#include "compressor/compress_testing.h"
#include "compressor/pass/rated.h"
#include "compressor/plan/error_table.h"
#include "compressor/plan/planner.h"
#include "format/manifest/model_folder.h"
#include "format/provenance/provenance.h"
#include "model/model_testing.h"

namespace moepack {
namespace {

using ::testing::HasSubstr;

class CompressTest : public ::testing::Test {
 protected:
  CompressTest() : model_path_(SourcePath("tests/golden/qwen2_moe")), model_(*OpenModel(PosixEnv(), model_path_)) {
    EXPECT_TRUE(WriteProfile(PosixEnv(), folder_.At("p.mprof"), MakeTestProfile(model_, 16, 16)).ok());
  }

  CompressRequest Request(const std::string& recipe, const std::string& output) const {
    CompressRequest request;
    request.model_path = model_path_;
    request.profile_path = folder_.At("p.mprof");
    auto parsed = ParseRecipe("version: 1\n" + recipe, "test.yaml");
    EXPECT_TRUE(parsed.ok()) << parsed.status().message();
    request.recipe = *parsed;
    request.output = folder_.At(output);
    request.tool_version = "test";
    return request;
  }
  Result<CompressReport> Run(const CompressRequest& request, int threads = 2, Env& env = PosixEnv()) const {
    ThreadPool pool(threads);
    return Compress(env, request, pool, NoProgress());
  }
  CompressReport MustRun(const CompressRequest& request, int threads = 2) const {
    auto report = Run(request, threads);
    EXPECT_TRUE(report.ok()) << report.status().message();
    return report.ok() ? *report : CompressReport();
  }
  // `apart`: files that may differ.
  void ExpectSameFolders(const std::string& a, const std::string& b, const std::set<std::string>& apart = {}) const {
    const auto names = *PosixEnv().List(folder_.At(a));
    EXPECT_EQ(names, *PosixEnv().List(folder_.At(b)));
    for (const std::string& name : names) {
      if (apart.contains(name)) continue;
      EXPECT_EQ(ReadAll(folder_.At(a + "/" + name)), ReadAll(folder_.At(b + "/" + name))) << name;
    }
  }
  // Plain bytes of all units as the folder has them.
  uint64_t PlainBytesOf(const std::string& name) const {
    const auto folder = ModelFolder::Open(PosixEnv(), folder_.At(name));
    EXPECT_TRUE(folder.ok()) << folder.status().message();
    uint64_t bytes = 0;
    for (const auto& unit : (*folder)->units()) bytes += unit.plain_bytes;
    return bytes;
  }

  TempFolder folder_;
  const std::string model_path_;
  const Model model_;
};

// A budget over few candidates: what is tested here does not depend on how many there are.
std::string Budget(const char* key, double value) {
  return StrFormat("%s: %.17g\ndefaults: {candidates: [i3g64, i4g64, i5g64, i8g64]}\n", key, value);
}
const std::string kBudget = Budget("target_bpw", 7.5);

TEST_F(CompressTest, LosslessKeepsEveryWeight) {
  CompressRequest request = Request("", "f32");
  request.recipe = *RecipeForCodec("f32");
  request.profile_path.clear();
  MustRun(request);
  const auto compressed = OpenModel(PosixEnv(), request.output);
  ASSERT_TRUE(compressed.ok()) << compressed.status().message();
  EXPECT_EQ(compressed->program, model_.program);
  for (TensorId id = 0; id < model_.program.tensors.size(); ++id)
    EXPECT_EQ(*compressed->tensors->Load(id), *model_.tensors->Load(id));
  EXPECT_EQ(*compressed->tensors->LoadExpert(1, 2, ExpertMatrix::kDown),
            *model_.tensors->LoadExpert(1, 2, ExpertMatrix::kDown));
}

TEST_F(CompressTest, SameBytesOnOneAndTwoThreads) {
  MustRun(Request(kBudget, "a"), 1);
  MustRun(Request(kBudget, "b"), 2);
  ExpectSameFolders("a", "b");
}

TEST_F(CompressTest, DryRunTellsTheSizesOfTheRealRun) {
  CompressRequest request = Request(kBudget, "d");
  const Plan real = MustRun(request).plan;
  request.dry_run = true;
  request.output = folder_.At("nothing");
  const Plan dry = MustRun(request).plan;
  EXPECT_EQ(SerializePlan(dry), SerializePlan(real));
  EXPECT_FALSE(*PosixEnv().Exists(folder_.At("nothing")));
  EXPECT_EQ(PlainBytesOf("d"), dry.plain_bytes);
  EXPECT_LE(dry.bundle_bytes, dry.target_bytes);
  // The size of a plan is a target that the plan meets.
  request.recipe.budget = {.target_bytes = dry.bundle_bytes};
  EXPECT_EQ(MustRun(request).plan.bundle_bytes, dry.bundle_bytes);
}

TEST_F(CompressTest, AResidentLimitHoldsAloneAndBesideALimitOfTheFile) {
  CompressRequest request = Request(kBudget, "r");
  request.dry_run = true;
  const Plan stored = MustRun(request).plan;
  request.recipe.budget = {.target_resident = stored.resident_bytes * 9 / 10};
  const Plan resident = MustRun(request).plan;
  EXPECT_LE(resident.resident_bytes, *request.recipe.budget.target_resident);
  EXPECT_GT(resident.resident_bytes, *request.recipe.budget.target_resident * 95 / 100);
  EXPECT_GE(resident.predicted_kld, stored.predicted_kld);
  // Both bind: the file two pages below what the resident limit alone leads to.
  request.recipe.budget.target_bytes = (resident.bundle_bytes + 4095) / 4096 * 4096 - 2 * 4096;
  const Plan both = MustRun(request).plan;
  EXPECT_LE(both.resident_bytes, *request.recipe.budget.target_resident);
  EXPECT_LE(both.bundle_bytes, *request.recipe.budget.target_bytes);
  EXPECT_GE(both.predicted_kld, resident.predicted_kld);
  EXPECT_LT(both.gap, 0.5);
  // A limit that does not bind changes nothing.
  request.recipe.budget = {.target_bytes = stored.target_bytes, .target_resident = uint64_t{1} << 40};
  EXPECT_EQ(MustRun(request).plan.predicted_kld, stored.predicted_kld);
  request.recipe.budget = {.target_resident = 1000};
  const auto refused = Run(request);
  EXPECT_EQ(refused.status().code(), ErrorCode::kGate);
  EXPECT_THAT(refused.status().message(), HasSubstr("resident target of 1000 bytes"));
}

TEST_F(CompressTest, LimitsThatHoldOneByOneOnlyAreNotCalledImpossibleEach) {
  // Rated codes make the smaller file, plain ones of few bits the smaller weights in memory.
  const auto planned = [&](const char* codecs) {
    CompressRequest request = Request(StrFormat("defaults: {candidates: %s}\n", codecs), "x");
    request.dry_run = true;
    return request;
  };
  const Plan file = MustRun(planned("[i8r@1.5]")).plan, memory = MustRun(planned("[i3g64]")).plan;
  ASSERT_LT(file.bundle_bytes, memory.bundle_bytes);
  ASSERT_LT(memory.resident_bytes, file.resident_bytes);
  CompressRequest request = planned("[i8r@1.5, i3g64]");
  // Whole pages, and one for tables that are longer with other codecs.
  const uint64_t limit = (file.bundle_bytes + 2 * 4096) / 4096 * 4096;
  ASSERT_LT(limit, memory.bundle_bytes);
  request.recipe.budget = {.target_bytes = limit, .target_resident = Budget::kUnlimited};
  EXPECT_TRUE(Run(request).ok());
  request.recipe.budget = {.target_resident = memory.resident_bytes};
  EXPECT_TRUE(Run(request).ok());
  request.recipe.budget.target_bytes = limit;
  const Status refused = Run(request).status();
  EXPECT_EQ(refused.code(), ErrorCode::kGate);
  EXPECT_THAT(refused.message(), HasSubstr("no plan was found within both"));
  EXPECT_THAT(refused.message(), ::testing::Not(HasSubstr("cannot be met")));
}

TEST_F(CompressTest, DryRunFromAConfigurationAlone) {
  CompressRequest request = Request("", "c");
  request.recipe = *RecipeForCodec("i4g64");
  request.profile_path.clear();
  const uint64_t real = MustRun(request).plan.plain_bytes;
  request.model_path = model_path_ + "/config.json";
  request.dry_run = true;
  EXPECT_EQ(MustRun(request).plan.plain_bytes, real);
  request.dry_run = false;
  EXPECT_EQ(Run(request).status().code(), ErrorCode::kBadInput);
}

TEST_F(CompressTest, AShortProfileHoldsNothingBackAndMeasuresNoKld) {
  ASSERT_TRUE(WriteProfile(PosixEnv(), folder_.At("p.mprof"), MakeTestProfile(model_, 4, 16)).ok());
  EXPECT_FALSE(MustRun(Request(kBudget, "short")).kld.has_value());
  EXPECT_FALSE(MustRun(Request("defaults: {codec: i4g64}\ndrop_experts: {count: 2}\n", "dropped")).kld.has_value());
  EXPECT_FALSE(MustRun(Request("defaults: {codec: bf16}\ndistill: {epochs: 1}\n", "distilled")).kld.has_value());
}

TEST_F(CompressTest, AnyInterruptionResumesToTheSameBytes) {
  CompressRequest request = Request(kBudget, "whole");
  request.error_table_path = folder_.At("errors.json");
  MustRun(request);
  for (uint64_t writes : {3, 14, 25, 36}) {
    const std::string name = "killed" + std::to_string(writes);
    request.output = folder_.At(name);
    request.resume = true;  // without it an error removes what was written
    ::moepack::testing::FaultEnv env(PosixEnv(), ::moepack::testing::FaultEnv::Count::kWrites);
    env.FailAt(writes, ErrorCode::kNoSpace, ::moepack::testing::FaultEnv::Duration::kFromThenOn);
    const auto killed = Run(request, 2, env);
    if (!killed.ok()) {
      EXPECT_EQ(killed.status().exit_status(), 7);
      EXPECT_FALSE(*PosixEnv().Exists(request.output));
      EXPECT_TRUE(*PosixEnv().Exists(request.output + ".partial"));
      MustRun(request);
    }
    ExpectSameFolders("whole", name);
  }
}

const std::string kPruned = "defaults: {codec: bf16}\nprune: {sparsity: 0.5}\ngptq: false\n";
const std::string kDistilled = kPruned + "distill: {epochs: 10, rate: 0.01}\n";

TEST_F(CompressTest, DistillationBringsAPrunedModelNearerOnHeldBackText) {
  EXPECT_TRUE(WriteProfile(PosixEnv(), folder_.At("p.mprof"), MakeTestProfile(model_, 128, 16)).ok());
  const CompressReport pruned = MustRun(Request(kPruned, "pruned")),
                       distilled = MustRun(Request(kDistilled, "distilled"), 1);
  ASSERT_TRUE(pruned.kld && distilled.kld);
  EXPECT_LT(*distilled.kld, 0.97 * *pruned.kld);
  EXPECT_EQ(PlainBytesOf("distilled"), PlainBytesOf("pruned"));
  MustRun(Request(kDistilled, "again"), 2);
  ExpectSameFolders("distilled", "again");
  EXPECT_FALSE(*PosixEnv().Exists(folder_.At("distilled.encoded.partial")));
}

TEST_F(CompressTest, InterruptedDistillationResumesToTheSameBytes) {
  const std::string recipe = kPruned + "distill: {epochs: 1, rate: 0.01}\n";
  MustRun(Request(recipe, "whole"));
  // Through all of it, the last steps of Finish included.
  static constexpr uint64_t kStride = 9;
  bool whole = false;
  for (uint64_t writes = 1; !whole; writes += kStride) {
    const std::string name = "killed" + std::to_string(writes);
    CompressRequest request = Request(recipe, name);
    request.resume = true;
    ::moepack::testing::FaultEnv env(PosixEnv(), ::moepack::testing::FaultEnv::Count::kWrites);
    env.FailAt(writes, ErrorCode::kNoSpace, ::moepack::testing::FaultEnv::Duration::kFromThenOn);
    whole = Run(request, 2, env).ok();
    if (!whole) MustRun(request);
    ExpectSameFolders("whole", name);
    EXPECT_FALSE(*PosixEnv().Exists(folder_.At(name + ".encoded.partial"))) << writes;
  }
}

TEST_F(CompressTest, InterruptedTrainingGoesOnFromWhatWasSaved) {
  CompressRequest request = Request(kPruned + "distill: {epochs: 1, rate: 0.01}\n", "whole");
  MustRun(request);
  request.output = folder_.At("killed");
  request.resume = true;
  request.distill_save_seconds = 0;
  const std::string state = folder_.At("killed.encoded.partial/training.state");
  for (uint64_t writes = 30; !*PosixEnv().Exists(state); writes += 5) {
    ::moepack::testing::FaultEnv env(PosixEnv(), ::moepack::testing::FaultEnv::Count::kWrites);
    env.FailAt(writes, ErrorCode::kNoSpace, ::moepack::testing::FaultEnv::Duration::kFromThenOn);
    ASSERT_FALSE(Run(request, 2, env).ok()) << "no state was saved";
  }
  const Bytes saved = ReadAll(state);
  Bytes bytes = saved;
  bytes[bytes.size() / 2] ^= 1;
  ASSERT_TRUE(WriteFileAtomically(PosixEnv(), state, bytes).ok());
  const Status damaged = Run(request).status();
  EXPECT_EQ(damaged.code(), ErrorCode::kDigest);
  EXPECT_THAT(damaged.message(), HasSubstr("training.state: is damaged; remove it"));
  bytes.pop_back();
  ASSERT_TRUE(WriteFileAtomically(PosixEnv(), state, bytes).ok());
  EXPECT_EQ(Run(request).status().code(), ErrorCode::kMalformed);
  ASSERT_TRUE(WriteFileAtomically(PosixEnv(), state, saved).ok());
  // What a kill leaves while a state is being saved.
  ASSERT_TRUE(WriteFileAtomically(PosixEnv(), state + ".tmp-0123456789abcdef", saved).ok());
  MustRun(request);
  ExpectSameFolders("whole", "killed");
}

TEST_F(CompressTest, DistillationThatDoesNotHelpIsNotKept) {
  const CompressReport before = MustRun(Request(kPruned, "before"));
  const CompressReport after = MustRun(Request(kPruned + "distill: {epochs: 1, rate: 1}\n", "after"));
  EXPECT_NEAR(*after.kld, *before.kld, 1e-4 * *before.kld);
  EXPECT_EQ(ReadAll(folder_.At("before/block-002.moeu")), ReadAll(folder_.At("after/block-002.moeu")));
}

TEST_F(CompressTest, WhatIsHeldToARateKeepsItsCodesAndItsRate) {
  const std::string recipe =
      "defaults: {codec: i8r@2}\nrules: [{match: '.*\\.(q|k|v|o)_proj', codec: i2g16}]\ngptq: false\n";
  ASSERT_TRUE(WriteProfile(PosixEnv(), folder_.At("p.mprof"), MakeTestProfile(model_, 64, 16)).ok());
  MustRun(Request(recipe, "before"));
  MustRun(Request(recipe + "distill: {epochs: 4, rate: 0.003, code_rate: 0.03}\n", "after"));
  const auto before = ModelFolder::Open(PosixEnv(), folder_.At("before")),
             after = ModelFolder::Open(PosixEnv(), folder_.At("after"));
  ASSERT_TRUE(before.ok() && after.ok());
  const RatedCodec rated = *ParseRatedCodec("i8r@2");
  size_t checked = 0;
  for (size_t u = 0; u < (*after)->units().size(); ++u) {
    const auto& unit = (*after)->units()[u];
    const Bytes plain = *(*after)->ReadUnit(u);
    const Bytes earlier = *(*before)->ReadUnit(u);
    uint64_t at = 0;
    for (const UnitTensor& tensor : unit.tensors) {
      const uint64_t bytes = *PlainBytes(tensor.codec, tensor.shape);
      if (tensor.codec == rated.codec) {
        const auto codes = FromPlain(tensor.codec, tensor.shape, ByteSpan(plain).subspan(at, bytes));
        EXPECT_EQ(codes->codes, FromPlain(tensor.codec, tensor.shape, ByteSpan(earlier).subspan(at, bytes))->codes) << u;
        EXPECT_TRUE(*KeepsRate(rated, *codes)) << u;
        ++checked;
      }
      at += bytes;
    }
  }
  EXPECT_GT(checked, 10u);
  // The dense units did learn.
  EXPECT_NE(ReadAll(folder_.At("before/block-001.moeu")), ReadAll(folder_.At("after/block-001.moeu")));
}

TEST_F(CompressTest, DistillationNeedsAProfile) {
  CompressRequest request = Request("defaults: {codec: bf16}\ndistill: {}\n", "n");
  request.profile_path.clear();
  EXPECT_EQ(Run(request).status().code(), ErrorCode::kUsage);
}

TEST_F(CompressTest, DistillationRefusesWhatHasNoGradient) {
  CompressRequest request = Request("defaults: {codec: bf16}\ndistill: {}\n", "n");
  request.model_path = SourcePath("tests/golden/gpt_oss");
  request.profile_path = folder_.At("gpt_oss.mprof");
  const Model model = *OpenModel(PosixEnv(), request.model_path);
  ASSERT_TRUE(WriteProfile(PosixEnv(), request.profile_path, MakeTestProfile(model, 16, 8)).ok());
  const Status refused = Run(request).status();
  EXPECT_EQ(refused.code(), ErrorCode::kUnsupported);
  EXPECT_THAT(refused.message(), HasSubstr("distill: block"));
}

TEST_F(CompressTest, ExpertsAloneLearnWithoutLogits) {
  ASSERT_TRUE(WriteProfile(PosixEnv(), folder_.At("p.mprof"), MakeTestProfile(model_, 128, 16)).ok());
  const CompressReport pruned = MustRun(Request(kPruned, "pruned"));
  const CompressReport learnt = MustRun(Request(kPruned + "distill: {epochs: 4, rate: 0.002, logits: none}\n", "learnt"));
  EXPECT_LT(*learnt.kld, *pruned.kld);
  EXPECT_FALSE(*PosixEnv().Exists(folder_.At("learnt.encoded.partial")));
}

TEST_F(CompressTest, AnErrorLeavesNothingBehind) {
  ::moepack::testing::FaultEnv env(PosixEnv(), ::moepack::testing::FaultEnv::Count::kWrites);
  env.FailAt(25, ErrorCode::kNoSpace, ::moepack::testing::FaultEnv::Duration::kFromThenOn);
  EXPECT_EQ(Run(Request(kBudget, "e"), 2, env).status().code(), ErrorCode::kNoSpace);
  EXPECT_EQ(*PosixEnv().List(folder_.path()), std::vector<std::string>{"p.mprof"});
}

TEST_F(CompressTest, ResumeRefusesBlocksOfAnotherRequest) {
  CompressRequest request = Request(kBudget, "r");
  request.resume = true;
  ::moepack::testing::FaultEnv env(PosixEnv(), ::moepack::testing::FaultEnv::Count::kWrites);
  env.FailAt(25, ErrorCode::kNoSpace, ::moepack::testing::FaultEnv::Duration::kFromThenOn);
  ASSERT_FALSE(Run(request, 2, env).ok());
  request = Request(Budget("target_bpw", 8), "r");
  request.resume = true;
  EXPECT_EQ(Run(request).status().code(), ErrorCode::kUsage);
}

TEST_F(CompressTest, SmallerBudgetsLoseMore) {
  const CompressReport small = MustRun(Request(Budget("target_bpw", 7.5), "s")),
                       large = MustRun(Request(Budget("target_bpw", 10), "l"));
  EXPECT_LT(small.plan.bundle_bytes, large.plan.bundle_bytes);
  EXPECT_GT(small.plan.predicted_kld, large.plan.predicted_kld);
  ASSERT_TRUE(small.kld && large.kld);
  EXPECT_GT(*small.kld, *large.kld);
}

TEST_F(CompressTest, AnImpossibleTargetNamesTheSmallestSize) {
  const auto report = Run(Request("target_size: 10KB\n", "x"));
  EXPECT_EQ(report.status().code(), ErrorCode::kGate);
  EXPECT_THAT(report.status().message(), HasSubstr("smallest"));
  EXPECT_FALSE(*PosixEnv().Exists(folder_.At("x")));
}

TEST_F(CompressTest, MaxKldHoldsOnHeldBackText) {
  const double loose = *MustRun(Request(Budget("target_bpw", 7.5), "loose")).kld;
  const CompressReport report = MustRun(Request(Budget("max_kld", loose), "k"));
  ASSERT_TRUE(report.kld.has_value());
  EXPECT_LE(*report.kld, loose);
  EXPECT_EQ(Run(Request(Budget("max_kld", 1e-12), "never")).status().code(), ErrorCode::kGate);
}

TEST_F(CompressTest, LikeKeepsThePlanAndReusedErrorsPlanAlike) {
  CompressRequest request = Request(kBudget, "first");
  request.error_table_path = folder_.At("errors.json");
  MustRun(request);
  request.output = folder_.At("second");
  request.like_path = folder_.At("first/plan.json");
  MustRun(request);
  // The plan that was kept is one of the inputs.
  ExpectSameFolders("first", "second", {"provenance.json", "complete"});
  const auto record = [&](const char* name) {
    return *ParseBuildRecord(ReadAll(folder_.At(std::string(name) + "/provenance.json")));
  };
  EXPECT_EQ(record("first").like, "");
  EXPECT_EQ(record("second").like, record("first").plan);
  request.recipe.gptq = false;
  EXPECT_EQ(Run(request).status().code(), ErrorCode::kBadInput);
}

TEST_F(CompressTest, LikeLeavesMostTensorsAloneWhenTheBudgetMoves) {
  const auto changes = [](const Plan& a, const Plan& b) {
    size_t count = 0;
    for (size_t i = 0; i < a.tensors.size(); ++i) count += a.tensors[i].codec != b.tensors[i].codec;
    return count;
  };
  // Candidates that lie so close together that most moves gain little.
  const std::string recipe = "defaults: {candidates: [i3g64, i3g32, i3g16, i4g64, i4g32, i4g16, i5g64, i5g32, i8g64]}\n";
  const Plan before = MustRun(Request("target_bpw: 7.5\n" + recipe, "before")).plan;
  CompressRequest request = Request("target_bpw: 9\n" + recipe, "after");
  request.dry_run = true;
  const Plan fresh = MustRun(request).plan;
  request.like_path = folder_.At("before/plan.json");
  EXPECT_LT(changes(before, MustRun(request).plan), changes(before, fresh));
}

TEST_F(CompressTest, DroppedExpertsMakeASmallerProgram) {
  const CompressReport report = MustRun(Request("defaults: {codec: i8g64}\ndrop_experts: {count: 2}\n", "dropped"));
  const auto compressed = OpenModel(PosixEnv(), folder_.At("dropped"));
  ASSERT_TRUE(compressed.ok()) << compressed.status().message();
  const ExpertTableDecl& before = model_.program.expert_tables[0];
  const ExpertTableDecl& after = compressed->program.expert_tables[0];
  ASSERT_EQ(after.experts(), before.experts() - 2);
  // Saliency grows with (e * 5) % experts: experts with ranks 0 and 1 go.
  for (uint32_t original : after.original) EXPECT_GE((original * 5) % before.experts(), 2u);
  EXPECT_EQ(compressed->program.original_parameters, model_.program.original_parameters);
  EXPECT_EQ(report.original_parameters, model_.program.original_parameters);
  const auto router = [](const Model& m) {
    for (TensorId id = 0; id < m.program.tensors.size(); ++id) {
      if (m.program.tensors[id].name == "layers.0.router") return *m.tensors->Load(id);
    }
    return std::vector<float>();
  };
  const std::vector<float> full = router(model_), sliced = router(*compressed);
  for (uint32_t e = 0; e < after.experts(); ++e) {
    for (size_t c = 0; c < before.hidden; ++c)
      EXPECT_EQ(sliced[e * before.hidden + c], full[after.original[e] * before.hidden + c]);
  }
  EXPECT_EQ(Run(Request(StrFormat("defaults: {codec: i8g64}\ndrop_experts: {count: %u}\n", before.experts()), "none"))
                .status()
                .code(),
            ErrorCode::kRecipe);
}

TEST_F(CompressTest, PrunedChannelsLeaveTheOnesThatMatter) {
  CompressRequest request = Request("defaults: {codec: f32}\nprune_channels: {share: 0.5}\n", "narrow");
  request.model_path = SourcePath("tests/golden/mixtral");
  const Model model = *OpenModel(PosixEnv(), request.model_path);
  ASSERT_TRUE(WriteProfile(PosixEnv(), request.profile_path, MakeTestProfile(model, 16, 16)).ok());
  MustRun(request);
  const auto narrow = OpenModel(PosixEnv(), request.output);
  ASSERT_TRUE(narrow.ok()) << narrow.status().message();
  const uint64_t width = model.program.expert_tables[0].intermediate[0],
                 kept = narrow->program.expert_tables[0].intermediate[0];
  ASSERT_LT(kept, width);
  EXPECT_EQ(kept % 32, 0u);
  const uint64_t hidden = model.program.expert_tables[0].hidden;
  const std::vector<float> before = *model.tensors->LoadExpert(0, 0, ExpertMatrix::kUp);
  const std::vector<float> after = *narrow->tensors->LoadExpert(0, 0, ExpertMatrix::kUp);
  // Second moments of the test profile grow steeply with the channel: about the last ones stay, in order, rows unchanged.
  size_t from = 0;
  for (uint64_t c = 0; c < kept; ++c, ++from) {
    while (from < width && !std::equal(after.begin() + static_cast<ptrdiff_t>(c * hidden),
                                       after.begin() + static_cast<ptrdiff_t>((c + 1) * hidden),
                                       before.begin() + static_cast<ptrdiff_t>(from * hidden))) {
      ++from;
    }
    ASSERT_LT(from, width) << "row " << c << " is no row of the original in order";
  }
  EXPECT_GT(from, width - 4);
}

TEST_F(CompressTest, DomainsMustBeTheProfiles) {
  const auto report = Run(Request("defaults: {codec: i8g64}\ndomains: {klingon: 2}\n", "x"));
  EXPECT_EQ(report.status().code(), ErrorCode::kRecipe);
  EXPECT_THAT(report.status().message(), HasSubstr("klingon"));
}

TEST_F(CompressTest, PruningLeavesTheWantedShareAndMoePrunerBeatsMagnitude) {
  const auto kld = [&](const char* method) {
    const CompressReport report = MustRun(
        Request(StrFormat("defaults: {codec: bf16}\ngptq: false\nprune: {method: %s, sparsity: 0.5}\n", method), method));
    return report.kld.value_or(-1);
  };
  EXPECT_LT(kld("moe-pruner"), kld("magnitude"));
  const auto compressed = OpenModel(PosixEnv(), folder_.At("moe-pruner"));
  ASSERT_TRUE(compressed.ok());
  const std::vector<float> w = *compressed->tensors->LoadExpert(0, 0, ExpertMatrix::kUp);
  EXPECT_EQ(static_cast<size_t>(std::count(w.begin(), w.end(), 0.0f)), w.size() / 2);
}

TEST_F(CompressTest, ATiedHeadIsStoredOnceAndReadRounded) {
  const TempFolder tied;
  Checkpoint checkpoint = Checkpoint::Read("tests/golden/qwen2_moe");
  checkpoint.config["tie_word_embeddings"] = true;
  checkpoint.tensors.erase("lm_head.weight");
  checkpoint.WriteTo(tied);
  const Model model = *OpenModel(PosixEnv(), tied.path());
  CompressRequest request = Request(Budget("target_bpw", 10), "tied");
  request.model_path = tied.path();
  ASSERT_TRUE(WriteProfile(PosixEnv(), request.profile_path, MakeTestProfile(model, 16, 16)).ok());
  const CompressReport report = MustRun(request);
  for (const PlanTensor& tensor : report.plan.tensors) EXPECT_NE(tensor.name, "lm_head");
  // What was judged while compressing is what the folder holds.
  const auto compressed = OpenModel(PosixEnv(), request.output);
  ASSERT_TRUE(compressed.ok()) << compressed.status().message();
  ThreadPool pool(2);
  const Profile profile = *ReadProfile(PosixEnv(), request.profile_path);
  const Calibration calibration = *MakeCalibration(profile, EnoughTokens(model.program), {});
  const TokenBatch batch = SelectSequences(calibration.batch, calibration.held_back);
  const auto logits = [&](const Model& m) {
    Matrix out;
    const auto keep = [&](uint64_t first, const Matrix& rows) {
      if (first == 0) out.resize(static_cast<Eigen::Index>(batch.size()), rows.cols());
      out.middleRows(static_cast<Eigen::Index>(first), rows.rows()) = rows;
      return Status::Ok();
    };
    EXPECT_TRUE(Forward(m.program, pool).Run(*m.tensors, batch, keep, NoProgress()).ok());
    return out;
  };
  const std::vector<double> klds = RowKlds(logits(model), logits(*compressed), pool);
  double sum = 0;
  size_t rows = 0;
  for (uint64_t s = 0; s < batch.sequences(); ++s) {
    for (uint64_t t = batch.begin(s); t < batch.end(s); ++t) {
      if (!Scored(t - batch.begin(s), batch.end(s) - batch.begin(s))) continue;
      sum += klds[t];
      ++rows;
    }
  }
  EXPECT_NEAR(report.kld.value_or(-1), sum / static_cast<double>(rows), 1e-6);
  // Sequences 7 and 15 were held back, both of the second domain.
  ASSERT_EQ(report.domain_kld.size(), 2u);
  EXPECT_EQ(report.domain_kld.at("novel"), std::nullopt);
  EXPECT_NEAR(report.domain_kld.at("python").value_or(-1), *report.kld, 1e-12);
}

TEST_F(CompressTest, AProfileOfAnotherModelIsRefused) {
  CompressRequest request = Request("defaults: {codec: i8g64}\n", "x");
  request.model_path = SourcePath("tests/golden/mixtral");
  const auto report = Run(request);
  EXPECT_EQ(report.status().code(), ErrorCode::kBadInput);
  EXPECT_THAT(report.status().message(), HasSubstr("profile"));
}

TEST_F(CompressTest, AProfileOfOtherWeightsIsRefusedAndANaNNamedFirst) {
  const TempFolder tuned;
  Checkpoint checkpoint = Checkpoint::Read("tests/golden/qwen2_moe");
  const std::string name = "model.layers.1.mlp.experts.3.up_proj.weight";
  Bytes& data = checkpoint.tensors.at(name).data;
  data[0] ^= 1;  // a mantissa bit
  checkpoint.WriteTo(tuned);
  CompressRequest request = Request("defaults: {codec: i8g64}\n", "x");
  request.model_path = tuned.path();
  Status status = Run(request).status();
  EXPECT_EQ(status.code(), ErrorCode::kBadInput);
  EXPECT_THAT(status.message(), HasSubstr("p.mprof"));
  EXPECT_THAT(status.message(), HasSubstr("layers.1.experts.3.up_proj"));
  std::fill(data.begin(), data.end(), 0xff);
  checkpoint.WriteTo(tuned);
  EXPECT_EQ(Run(request).status().code(), ErrorCode::kNotFinite);
  EXPECT_FALSE(*PosixEnv().Exists(request.output));
}

TEST_F(CompressTest, ADryRunWritesNoErrorTable) {
  CompressRequest request = Request(kBudget, "x");
  request.output.clear();
  request.dry_run = true;
  request.error_table_path = folder_.At("errors.json");
  EXPECT_EQ(Run(request).status().code(), ErrorCode::kUsage);
  EXPECT_EQ(*PosixEnv().List(folder_.path()), std::vector<std::string>{"p.mprof"});
}

TEST_F(CompressTest, ARuleForNoTensorIsRefused) {
  const auto report = Run(Request("rules: [{match: 'layers.9.*', keep: true}]\ndefaults: {codec: i8g64}\n", "x"));
  EXPECT_EQ(report.status().code(), ErrorCode::kBadInput);
  EXPECT_THAT(report.status().message(), HasSubstr("test.yaml: line 2"));
  EXPECT_THAT(report.status().message(), HasSubstr("'layers.9.*'"));
}

TEST_F(CompressTest, SomethingElseUnderTheOutputNameIsLeftAlone) {
  ASSERT_TRUE(PosixEnv().MakeDirectory(folder_.At("mine")).ok());
  folder_.Write("mine/notes.txt", std::string("keep"));
  EXPECT_EQ(Run(Request("defaults: {codec: i8g64}\n", "mine")).status().code(), ErrorCode::kUsage);
  EXPECT_EQ(ReadAll(folder_.At("mine/notes.txt")).size(), 4u);
}

TEST_F(CompressTest, EveryFamilyCompresses) {
  for (const char* family : {"mixtral", "olmoe", "qwen3_moe"}) {
    CompressRequest request = Request("target_bpw: 12\nprobes: false\n", family);
    request.model_path = SourcePath(std::string("tests/golden/") + family);
    const Model model = *OpenModel(PosixEnv(), request.model_path);
    ASSERT_TRUE(WriteProfile(PosixEnv(), request.profile_path, MakeTestProfile(model, 16, 16)).ok());
    const CompressReport report = MustRun(request);
    EXPECT_LT(report.kld.value_or(1), 0.5) << family;
    EXPECT_EQ(report.plan.measured_by, "energy");
  }
}

TEST(ErrorTableJson, ComesBackAsItWasWritten) {
  ErrorTable table{
      "abc", "probes", {{"b", "g", {{"i4g64", 0.1}, {"i8g64", 1e-9}}}, {"a", "g", {{"i4g64", 1.0 / 3}}}}, {{"g", 1e-7 / 3}}};
  const std::string text = SerializeErrorTable(table);
  const auto read = ParseErrorTable(AsBytes(text), "e.json");
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(SerializeErrorTable(*read), text);
  EXPECT_EQ(read->tensors[0].name, "b");
  for (const char* bad :
       {"", "{}", "[1]", "{\"version\": 1}",
        "{\"version\":1,\"made_from\":\"\",\"measured_by\":\"\",\"sensitivity\":{\"g\":\"x\"},\"tensors\":{}}"}) {
    EXPECT_EQ(ParseErrorTable(AsBytes(bad), "e.json").status().code(), ErrorCode::kBadInput) << bad;
  }
}

}  // namespace
}  // namespace moepack
