#include "model/profile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "model/frontend/huggingface.h"
#include "model/model_testing.h"

namespace moepack {
namespace {

using ::testing::HasSubstr;

// Two domains, one table of three experts of unequal width, five tokens in two sequences.
Profile SmallProfile() {
  Profile p;
  p.model_digest = std::string(64, 'a');
  p.weights.digests = {Sha256(AsBytes("one")), Sha256(AsBytes("two"))};
  p.domains = {"novel", "python"};
  p.tokens = {5, 0, 7, 7, 1};
  p.sequence_start = {0, 3};
  p.sequence_domain = {1, 0};
  TableProfile t;
  t.experts = 3;
  t.k = 2;
  t.tokens = {1, 2, 3, 4, 0, 0};
  t.gate_sum = {0.1, 0.2, 0.3, 0.4, 0, 0};
  t.gate_sq_sum = {1.0 / 3, 0, 0, 0, 0, 0};
  t.reap = {1, 2, 3};
  t.output_norm = {4, 5, 6};
  t.coactivation = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  t.in_sq = t.in_gate_sq = t.output_mean = {{1, 2}, {3, 4}, {0, 0}};
  t.down_sq = t.down_gate_sq = {{1}, {2, 3}, {4, 5, 6}};
  t.attribution = {0.5, -0.25, 0};
  t.shared_attribution = 1e-17;
  t.srp = 33.3;
  t.sch = {0.1, 0.2, 0.3};
  t.trace = {0, 1, 1, 2, 2, 0, 0, 2, 1, 0};
  p.tables = {t};
  p.dense_in_sq = {{}, {1, 2, 3}, {}};
  p.inputs = {{"novel", std::string(64, 'b')}};
  return p;
}

bool SameTable(const TableProfile& a, const TableProfile& b) {
  return a.experts == b.experts && a.k == b.k && a.tokens == b.tokens && a.gate_sum == b.gate_sum &&
         a.gate_sq_sum == b.gate_sq_sum && a.reap == b.reap && a.output_norm == b.output_norm &&
         a.coactivation == b.coactivation && a.in_sq == b.in_sq && a.in_gate_sq == b.in_gate_sq && a.down_sq == b.down_sq &&
         a.down_gate_sq == b.down_gate_sq && a.output_mean == b.output_mean && a.attribution == b.attribution &&
         a.shared_attribution == b.shared_attribution && a.srp == b.srp && a.sch == b.sch && a.trace == b.trace;
}

TEST(Profile, ComesBackAsItWasWritten) {
  TempFolder folder;
  const Profile p = SmallProfile();
  ASSERT_TRUE(WriteProfile(PosixEnv(), folder.At("p.mprof"), p).ok());
  const Result<Profile> read = ReadProfile(PosixEnv(), folder.At("p.mprof"));
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(read->model_digest, p.model_digest);
  EXPECT_EQ(read->weights, p.weights);
  EXPECT_EQ(read->domains, p.domains);
  EXPECT_EQ(read->tokens, p.tokens);
  EXPECT_EQ(read->sequence_start, p.sequence_start);
  EXPECT_EQ(read->sequence_domain, p.sequence_domain);
  EXPECT_EQ(read->dense_in_sq, p.dense_in_sq);
  EXPECT_EQ(read->inputs, p.inputs);
  ASSERT_EQ(read->tables.size(), 1u);
  EXPECT_TRUE(SameTable(read->tables[0], p.tables[0]));
}

TEST(Profile, SameInputGivesTheSameBytes) {
  TempFolder folder;
  ASSERT_TRUE(WriteProfile(PosixEnv(), folder.At("a"), SmallProfile()).ok());
  ASSERT_TRUE(WriteProfile(PosixEnv(), folder.At("b"), SmallProfile()).ok());
  EXPECT_EQ(ReadAll(folder.At("a")), ReadAll(folder.At("b")));
}

TEST(Profile, PartsThatDoNotFitAreNotWritten) {
  const auto refused = [](const char* field, const std::function<void(Profile&)>& change) {
    TempFolder folder;
    Profile p = SmallProfile();
    change(p);
    const Status status = WriteProfile(PosixEnv(), folder.At("p.mprof"), p);
    EXPECT_EQ(status.code(), ErrorCode::kInternal) << field;
    EXPECT_THAT(status.message(), HasSubstr(field));
    EXPECT_TRUE(PosixEnv().List(folder.path())->empty());
  };
  refused("table.0.reap", [](Profile& p) { p.tables[0].reap.pop_back(); });
  refused("table.0.in_gate_sq", [](Profile& p) { p.tables[0].in_gate_sq[1].pop_back(); });
  refused("table.0.down_gate_sq", [](Profile& p) { p.tables[0].down_gate_sq.pop_back(); });
  refused("table.0.coactivation", [](Profile& p) { p.tables[0].coactivation.clear(); });
  refused("table.0.trace", [](Profile& p) { p.tables[0].trace[3] = 3; });
  refused("table.0.gate_sum", [](Profile& p) { p.tables[0].gate_sum[0] = std::numeric_limits<double>::quiet_NaN(); });
  refused("sequence_start", [](Profile& p) { p.sequence_start = {0, 0}; });
  refused("sequence_start", [](Profile& p) { p.sequence_start = {0, 5}; });
  refused("sequence_domain", [](Profile& p) { p.sequence_domain[0] = 2; });
  refused("model_digest", [](Profile& p) { p.model_digest = "x"; });
}

// Rewrites a good profile with one thing changed.
class BrokenProfile : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(WriteProfile(PosixEnv(), folder_.At("p.mprof"), SmallProfile()).ok());
    auto file = SafetensorsFile::Open(PosixEnv(), folder_.At("p.mprof"));
    ASSERT_TRUE(file.ok());
    metadata_ = nlohmann::json::parse((*file)->metadata().at("moepack_profile"));
    for (const SafetensorsEntry& entry : (*file)->entries()) {
      const ByteSpan data = (*file)->data(entry);
      tensors_[entry.name] = {entry.dtype, entry.shape, Bytes(data.begin(), data.end())};
    }
  }
  void ExpectRefused(ErrorCode code, const std::string& part) {
    std::vector<SafetensorsOutput> outputs;
    for (const auto& [name, tensor] : tensors_) outputs.push_back({name, tensor.dtype, tensor.shape, tensor.data});
    ASSERT_TRUE(WriteSafetensors(PosixEnv(), folder_.At("q.mprof"), outputs, {{"moepack_profile", metadata_.dump()}}).ok());
    const Result<Profile> read = ReadProfile(PosixEnv(), folder_.At("q.mprof"));
    ASSERT_FALSE(read.ok());
    EXPECT_EQ(read.status().code(), code) << read.status().message();
    EXPECT_THAT(read.status().message(), HasSubstr(part));
  }
  TempFolder folder_;
  nlohmann::json metadata_;
  std::map<std::string, Checkpoint::Tensor> tensors_;
};

TEST_F(BrokenProfile, MissingArray) {
  tensors_.erase("table.0.in_sq");
  ExpectRefused(ErrorCode::kBadInput, "table.0.in_sq: missing");
}

TEST_F(BrokenProfile, ExtraArray) {
  tensors_["table.1.reap"] = tensors_["table.0.reap"];
  ExpectRefused(ErrorCode::kBadInput, "table.1.reap: is not an array");
}

TEST_F(BrokenProfile, OtherShape) {
  tensors_["table.0.tokens"].shape = {3, 2};
  ExpectRefused(ErrorCode::kBadInput, "table.0.tokens: has another type or shape");
}

TEST_F(BrokenProfile, OtherType) {
  tensors_["table.0.reap"].dtype = Dtype::kI64;
  ExpectRefused(ErrorCode::kBadInput, "table.0.reap: has another type or shape");
}

TEST_F(BrokenProfile, WidthsThatDoNotMatch) {
  metadata_["tables"][0]["intermediate"] = {1, 2, 4};
  ExpectRefused(ErrorCode::kBadInput, "table.0.down_sq");
}

TEST_F(BrokenProfile, NumbersOutOfRange) {
  metadata_["tables"][0]["experts"] = 1u << 31;
  ExpectRefused(ErrorCode::kBadInput, "experts");
}

TEST_F(BrokenProfile, TraceOfAnExpertThatIsNotThere) {
  tensors_["table.0.trace"].data[0] = 3;
  ExpectRefused(ErrorCode::kBadInput, "trace: names an expert");
}

TEST_F(BrokenProfile, NumberThatIsNotFinite) {
  for (int i = 6; i < 8; ++i) tensors_["table.0.gate_sum"].data[i] = 0xff;
  ExpectRefused(ErrorCode::kBadInput, "gate_sum: holds a number that is not finite");
}

TEST_F(BrokenProfile, OtherVersion) {
  metadata_["version"] = 3;
  ExpectRefused(ErrorCode::kVersion, "version 3");
}

TEST_F(BrokenProfile, UnknownKey) {
  metadata_["extra"] = 1;
  ExpectRefused(ErrorCode::kUnknownKey, "extra");
}

TEST(Profile, AModelIsNoProfile) {
  const auto read = ReadProfile(PosixEnv(), SourcePath("tests/golden/olmoe/model.safetensors"));
  EXPECT_EQ(read.status().code(), ErrorCode::kBadInput);
  EXPECT_THAT(read.status().message(), HasSubstr("not a profile"));
}

TEST(Profile, FitsOnlyTheProgramItWasMadeFrom) {
  const auto olmoe = OpenConfigOnly(PosixEnv(), SourcePath("tests/golden/olmoe/config.json"), {});
  const auto mixtral = OpenConfigOnly(PosixEnv(), SourcePath("tests/golden/mixtral/config.json"), {});
  ASSERT_TRUE(olmoe.ok() && mixtral.ok());
  EXPECT_EQ(ProgramDigest(olmoe->program).size(), 64u);
  EXPECT_NE(ProgramDigest(olmoe->program), ProgramDigest(mixtral->program));
  Profile p;
  p.model_digest = ProgramDigest(olmoe->program);
  for (const ExpertTableDecl& decl : olmoe->program.expert_tables) {
    TableProfile& t = p.tables.emplace_back();
    t.experts = decl.experts();
    t.in_sq.assign(t.experts, std::vector<float>(decl.hidden));
    t.down_sq.assign(t.experts, std::vector<float>(decl.intermediate[0]));
  }
  p.dense_in_sq.resize(olmoe->program.tensors.size());
  EXPECT_THAT(CheckProfileFits(p, olmoe->program).message(), HasSubstr("another number of tensors")) << "no digests";
  p.weights.digests.resize(CountWeightDigests(olmoe->program));
  EXPECT_TRUE(CheckProfileFits(p, olmoe->program).ok());
  EXPECT_EQ(CheckProfileFits(p, mixtral->program).code(), ErrorCode::kBadInput);
  const auto vocabulary = static_cast<int32_t>(olmoe->program.values[olmoe->program.output].width);
  p.tokens = {0, vocabulary - 1};
  EXPECT_TRUE(CheckProfileFits(p, olmoe->program).ok());
  p.tokens.push_back(vocabulary);
  EXPECT_THAT(CheckProfileFits(p, olmoe->program).message(), HasSubstr("another vocabulary"));
  p.tokens.pop_back();
  p.tables[1].down_sq[2].pop_back();
  EXPECT_THAT(CheckProfileFits(p, olmoe->program).message(), HasSubstr("another width"));
}

}  // namespace
}  // namespace moepack
