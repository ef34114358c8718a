#include "compressor/variants.h"

#include <gtest/gtest.h>

#include "base/testing/fault_env.h"
#include "compressor/compress_testing.h"
#include "compressor/compressor.h"
#include "format/manifest/model_folder.h"
#include "model/model_testing.h"

namespace moepack {
namespace {

class VariantsTest : public ::testing::Test {
 protected:
  VariantsTest() : model_path_(SourcePath("tests/golden/qwen2_moe")), model_(*OpenModel(PosixEnv(), model_path_)) {
    EXPECT_TRUE(WriteProfile(PosixEnv(), folder_.At("p.mprof"), MakeTestProfile(model_, 32, 16)).ok());
  }

  Result<CompressReport> Compressed(const std::string& recipe, const std::string& output, int threads = 2,
                                    Env& env = PosixEnv(), bool resume = false) const {
    CompressRequest request;
    request.model_path = model_path_;
    if (profile_) request.profile_path = folder_.At("p.mprof");
    request.recipe = *ParseRecipe("version: 1\n" + recipe, "test.yaml");
    request.output = folder_.At(output);
    request.tool_version = "test";
    request.resume = resume;
    ThreadPool pool(threads);
    return Compress(env, request, pool, NoProgress());
  }
  std::unique_ptr<ModelFolder> Open(const std::string& name) const {
    auto folder = ModelFolder::Open(PosixEnv(), folder_.At(name));
    EXPECT_TRUE(folder.ok()) << folder.status().message();
    return std::move(*folder);
  }
  static std::map<UnitKey, Bytes> UnitsOf(const ModelFolder& folder) {
    std::map<UnitKey, Bytes> out;
    for (size_t u = 0; u < folder.units().size(); ++u) {
      // Dense units have no key of their own.
      if (folder.units()[u].key.expert) out[folder.units()[u].key] = *folder.ReadUnit(u);
    }
    return out;
  }
  uint32_t experts(uint32_t table) const { return model_.program.expert_tables[table].experts(); }
  void ExpectSameFolders(const std::string& a, const std::string& b) const {
    const auto names = *PosixEnv().List(folder_.At(a));
    EXPECT_EQ(names, *PosixEnv().List(folder_.At(b)));
    for (const std::string& name : names)
      EXPECT_EQ(ReadAll(folder_.At(a + "/" + name)), ReadAll(folder_.At(b + "/" + name)));
  }

  TempFolder folder_;
  bool profile_ = true;
  const std::string model_path_;
  const Model model_;
};

const std::string kOne = "defaults: {codec: i8g32}\n", kTwo = kOne + "second_precision: {codec: i2mg32}\n";

TEST_F(VariantsTest, ASecondPrecisionStandsBehindTheFirst) {
  const auto one = Compressed(kOne, "one"), two = Compressed(kTwo, "two");
  ASSERT_TRUE(one.ok() && two.ok()) << two.status().message();
  EXPECT_GT(two->plan.bundle_bytes, one->plan.bundle_bytes);
  EXPECT_EQ(two->plan.resident_bytes, one->plan.resident_bytes);
  EXPECT_EQ(two->kld, one->kld);
  const auto first = Open("one"), both = Open("two");
  const std::map<UnitKey, Bytes> firsts = UnitsOf(*first), all = UnitsOf(*both);
  EXPECT_EQ(all.size(), 2 * firsts.size());
  for (const auto& [key, bytes] : firsts) {
    EXPECT_EQ(all.at(key), bytes);
    const UnitKey second{true, key.table, key.physical + experts(key.table)};
    EXPECT_LT(all.at(second).size(), bytes.size() / 2);
    const ExpertEntry& entry = both->experts()[key.table][key.physical];
    EXPECT_EQ(entry.variants, (std::vector<ExpertEntry::Variant>{{key.physical}, {second.physical}}));
  }
  // Whoever opens the folder as a model gets the first.
  const auto opened = OpenModel(PosixEnv(), folder_.At("two"));
  ASSERT_TRUE(opened.ok());
  EXPECT_EQ(opened->tensors->StoredExpertCodec(0, 1, ExpertMatrix::kUp).Name(), "i8g32");
}

// Rounded to nearest, so nothing depends on what stands before a block.
TEST_F(VariantsTest, TheSecondIsWhatItsCodecGivesAlone) {
  profile_ = false;
  ASSERT_TRUE(Compressed(kTwo, "two").ok() && Compressed("defaults: {codec: i2mg32}\n", "low").ok());
  const auto both = Open("two"), low = Open("low");
  const std::map<UnitKey, Bytes> all = UnitsOf(*both), lows = UnitsOf(*low);
  EXPECT_EQ(all.size(), 2 * lows.size());
  for (const auto& [key, bytes] : lows) EXPECT_EQ(all.at({true, key.table, key.physical + experts(key.table)}), bytes);
}

TEST_F(VariantsTest, SameBytesOnAnyNumberOfThreadsAndAfterAKill) {
  const std::string recipe = kTwo + "twins: true\n";
  ASSERT_TRUE(Compressed(recipe, "whole", 1).ok());
  ASSERT_TRUE(Compressed(recipe, "two", 2).ok());
  ExpectSameFolders("whole", "two");
  for (const uint64_t writes : {4, 13, 22}) {
    const std::string name = "killed" + std::to_string(writes);
    ::moepack::testing::FaultEnv env(PosixEnv(), ::moepack::testing::FaultEnv::Count::kWrites);
    env.FailAt(writes, ErrorCode::kNoSpace, ::moepack::testing::FaultEnv::Duration::kFromThenOn);
    if (!Compressed(recipe, name, 2, env, true).ok()) {
      ASSERT_TRUE(Compressed(recipe, name, 2, PosixEnv(), true).ok());
    }
    ExpectSameFolders("whole", name);
  }
}

TEST_F(VariantsTest, AnExpertThatIsAsSmallHasNoSecond) {
  const std::string rule = "rules: [{match: '.*experts\\.3\\..*', codec: i2mg32}]\n";
  ASSERT_TRUE(Compressed(kTwo + rule, "some").ok());
  const auto folder = Open("some");
  for (uint32_t t = 0; t < 2; ++t) {
    uint32_t next = experts(t);
    for (uint32_t e = 0; e < experts(t); ++e) {
      const auto& variants = folder->experts()[t][e].variants;
      ASSERT_EQ(variants.size(), e == 3 ? 1u : 2u);
      if (e != 3) {
        EXPECT_EQ(variants[1].physical, next++);
      }
    }
  }
}

TEST_F(VariantsTest, APlanCountsTheSecondsOfWhatItChooses) {
  // i2mg32 beside i2g64 is never smaller, beside the others it is.
  const std::string recipe = "target_bpw: 11\ndefaults: {candidates: [i2g64, i4g64, i8g64]}\n";
  const auto with = Compressed(recipe + "second_precision: {codec: i2mg32}\n", "with");
  const auto without = Compressed(recipe, "without");
  ASSERT_TRUE(with.ok() && without.ok()) << with.status().message();
  EXPECT_LE(with->plan.bundle_bytes, with->plan.target_bytes);
  EXPECT_GT(with->plan.predicted_kld, without->plan.predicted_kld);  // the seconds took bytes from the firsts
  EXPECT_GT(with->second_experts, 0u);
  EXPECT_GT(with->second_bytes, 0u);
  EXPECT_EQ(without->second_experts, 0u);
}

const std::string kDense = kTwo + "twins: true\ndense_fallback: {codec: i8g32}\n";

TEST_F(VariantsTest, ADenseStandInIsTheLastVariantOfAllExpertsOfAWidth) {
  const auto two = Compressed(kTwo + "twins: true\n", "two"), dense = Compressed(kDense, "dense");
  ASSERT_TRUE(two.ok() && dense.ok()) << dense.status().message();
  EXPECT_GT(dense->plan.bundle_bytes, two->plan.bundle_bytes);
  EXPECT_EQ(dense->plan.resident_bytes, two->plan.resident_bytes);
  EXPECT_EQ(dense->kld, two->kld);
  const auto folder = Open("dense"), less = Open("two");
  EXPECT_EQ(dense->dense_units, folder->experts().size());
  EXPECT_GT(dense->dense_bytes, 0u);
  std::map<UnitKey, Bytes> units = UnitsOf(*folder);
  for (uint32_t t = 0; t < folder->experts().size(); ++t) {
    const UnitKey key{true, t, 2 * experts(t)};
    ASSERT_EQ(units.count(key), 1u);
    EXPECT_EQ(units[key].size(), units[(UnitKey{true, t, 0})].size());
    units.erase(key);
    for (const ExpertEntry& entry : folder->experts()[t]) EXPECT_EQ(entry.variants.back().physical, key.physical);
    for (const std::vector<VariantKind>& kinds : VariantKinds(folder->experts()[t])) {
      EXPECT_EQ(kinds, (std::vector<VariantKind>{VariantKind::kFirst, VariantKind::kLower, VariantKind::kTwin,
                                                 VariantKind::kDense}));
    }
  }
  EXPECT_TRUE(units == UnitsOf(*less)) << "something else changed";
}

TEST_F(VariantsTest, ADenseStandInIsTheSameOnAnyNumberOfThreadsAndAfterAKill) {
  ASSERT_TRUE(Compressed(kDense, "whole", 1).ok());
  ASSERT_TRUE(Compressed(kDense, "three", 3).ok());
  ExpectSameFolders("whole", "three");
  ::moepack::testing::FaultEnv env(PosixEnv(), ::moepack::testing::FaultEnv::Count::kWrites);
  env.FailAt(13, ErrorCode::kNoSpace, ::moepack::testing::FaultEnv::Duration::kFromThenOn);
  ASSERT_FALSE(Compressed(kDense, "killed", 2, env, true).ok());
  ASSERT_TRUE(Compressed(kDense, "killed", 2, PosixEnv(), true).ok());
  ExpectSameFolders("whole", "killed");
}

TEST_F(VariantsTest, ADenseStandInNeedsCalibrationText) {
  profile_ = false;
  const auto refused = Compressed("defaults: {codec: i8g32}\ndense_fallback: {codec: i8g32}\n", "none");
  EXPECT_EQ(refused.status().code(), ErrorCode::kUsage);
  EXPECT_NE(refused.status().message().find("--profile"), std::string::npos) << refused.status().message();
}

TEST_F(VariantsTest, DistillationLeavesTheSecondsWhole) {
  const std::string recipe = kDense + "distill: {epochs: 1, logits: scales}\n";
  ASSERT_TRUE(Compressed(recipe, "d").ok());
  const auto folder = Open("d");
  uint64_t all = 0;
  for (uint32_t t = 0; t < folder->experts().size(); ++t) {
    all += experts(t);
    for (const ExpertEntry& entry : folder->experts()[t]) EXPECT_EQ(entry.variants.size(), 4u);
  }
  EXPECT_EQ(UnitsOf(*folder).size(), 2 * all + folder->experts().size());
}

TEST_F(VariantsTest, ATwinHasTheMostSimilarRouterRow) {
  ASSERT_TRUE(Compressed(kOne + "twins: true\n", "twins").ok());
  const auto folder = Open("twins");
  const auto twins = TwinsOf(model_.program, *model_.tensors);
  ASSERT_TRUE(twins.ok());
  for (uint32_t t = 0; t < 2; ++t) {
    TensorId router = kNone;
    for (const Node& node : model_.program.nodes) {
      if (node.kind != NodeKind::kMoe || node.moe.table != t) continue;
      for (const Node& maker : model_.program.nodes) {
        if (maker.output == node.inputs[1]) router = maker.linear.weight;
      }
    }
    const std::vector<float> values = *model_.tensors->Load(router);
    const auto cols = static_cast<Eigen::Index>(model_.program.tensors[router].cols);
    const Eigen::Map<const Eigen::Matrix<float, -1, -1, Eigen::RowMajor>> rows(values.data(), experts(t), cols);
    for (uint32_t e = 0; e < experts(t); ++e) {
      const uint32_t twin = (*twins)[t][e].value();
      EXPECT_NE(twin, e);
      EXPECT_EQ(folder->experts()[t][e].variants, (std::vector<ExpertEntry::Variant>{{e}, {twin}}));
      const auto likeness = [&](uint32_t other) { return rows.row(e).normalized().dot(rows.row(other).normalized()); };
      for (uint32_t other = 0; other < experts(t); ++other) {
        if (other != e) {
          EXPECT_GE(likeness(twin), likeness(other) - 1e-6f);
        }
      }
    }
  }
}

}  // namespace
}  // namespace moepack
