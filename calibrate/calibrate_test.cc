// Every statistic of the profile against a direct float64 computation on golden checkpoints.
#include "calibrate/calibrate.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <map>

#include "base/testing/fault_env.h"
#include "calibrate/testing/tiny_model.h"
#include "forward/testing/naive_forward.h"

namespace moepack {
namespace {

using testing::GoldenModel;
using testing::NaiveForward;
using testing::NaiveRouted;
using testing::NaiveRun;
using testing::NotingProgress;
using testing::Rows;
using testing::ToyText;

// 4 sequences of 60 tokens: attribution then uses every token that has a successor.
constexpr CalibrateOptions kOptions{.tokens = 240, .ctx = 60, .min_tokens_per_expert = 40};

std::vector<CalibrationText> Texts() { return {{"first", ToyText(400, 1)}, {"second", ToyText(300, 2)}}; }

Profile MustCalibrate(const Model& model, int threads, Progress& progress, const CalibrateOptions& options = kOptions) {
  ThreadPool pool(threads);
  auto profile = Calibrate(model, Texts(), options, pool, progress);
  EXPECT_TRUE(profile.ok()) << profile.status().message();
  return profile.ok() ? std::move(*profile) : Profile{};
}

void ExpectClose(const std::vector<float>& got, const std::vector<double>& want, const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  double largest = 1e-12;
  for (double w : want) largest = std::max(largest, std::abs(w));
  for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], 2e-5 * largest) << what << " [" << i << "]";
}

void Accumulate(std::vector<double>* sums, const std::vector<double>& x, double factor, bool square) {
  sums->resize(x.size(), 0);
  for (size_t i = 0; i < x.size(); ++i) (*sums)[i] += factor * (square ? x[i] * x[i] : x[i]);
}

// Sums of one table, straight from the definitions in model/profile.h.
struct DirectTable {
  struct Expert {
    uint64_t tokens = 0;
    std::vector<double> in, in_gate, down, down_gate, output;
    double norm = 0, gated_norm = 0;
  };
  std::vector<Expert> experts;
  std::map<std::pair<uint32_t, uint32_t>, uint64_t> tokens;  // (domain, expert)
  std::map<std::pair<uint32_t, uint32_t>, double> gates, gates_sq;
  std::map<std::pair<uint32_t, uint32_t>, uint64_t> both;
  std::vector<uint16_t> trace;

  void Add(const NaiveRouted& r, const std::vector<double>& x, uint32_t domain) {
    for (size_t i = 0; i < r.ids.size(); ++i) {
      Expert& e = experts[r.ids[i]];
      const double g = r.gates[i];
      double norm = 0;
      for (double y : r.output[i]) norm += y * y;
      ++e.tokens;
      e.norm += std::sqrt(norm);
      e.gated_norm += g * std::sqrt(norm);
      Accumulate(&e.in, x, 1, true);
      Accumulate(&e.in_gate, x, g * g, true);
      Accumulate(&e.down, r.hidden[i], 1, true);
      Accumulate(&e.down_gate, r.hidden[i], g * g, true);
      Accumulate(&e.output, r.output[i], 1, false);
      ++tokens[{domain, r.ids[i]}];
      gates[{domain, r.ids[i]}] += g;
      gates_sq[{domain, r.ids[i]}] += g * g;
      for (uint32_t other : r.ids) ++both[{r.ids[i], other}];
      trace.push_back(static_cast<uint16_t>(r.ids[i]));
    }
  }

  void Check(const TableProfile& table, size_t domains) {
    const uint32_t n = table.experts;
    EXPECT_EQ(table.trace, trace);
    for (uint32_t e = 0; e < n; ++e) {
      Expert& want = experts[e];
      for (uint32_t d = 0; d < domains; ++d) {
        EXPECT_EQ(table.tokens[d * n + e], (tokens[{d, e}]));
        EXPECT_NEAR(table.gate_sum[d * n + e], (gates[{d, e}]), 1e-4);
        EXPECT_NEAR(table.gate_sq_sum[d * n + e], (gates_sq[{d, e}]), 1e-4);
      }
      for (uint32_t other = 0; other < n; ++other) EXPECT_EQ(table.coactivation[e * n + other], (both[{e, other}]));
      EXPECT_EQ(table.coactivation[e * n + e], want.tokens);
      if (want.tokens == 0) continue;
      const double count = static_cast<double>(want.tokens);
      EXPECT_NEAR(table.reap[e], want.gated_norm / count, 1e-4 * want.gated_norm / count);
      EXPECT_NEAR(table.output_norm[e], want.norm / count, 1e-4 * want.norm / count);
      ExpectClose(table.in_sq[e], want.in, "in_sq");
      ExpectClose(table.in_gate_sq[e], want.in_gate, "in_gate_sq");
      ExpectClose(table.down_sq[e], want.down, "down_sq");
      ExpectClose(table.down_gate_sq[e], want.down_gate, "down_gate_sq");
      for (double& y : want.output) y /= count;
      ExpectClose(table.output_mean[e], want.output, "output_mean");
    }
  }
};

double LogP(const std::vector<double>& logits, int32_t target) {
  double sum = 0;
  for (double x : logits) sum += std::exp(x);
  return logits[static_cast<size_t>(target)] - std::log(sum);
}

// Attribution by running the plain forward again with the last block's input replaced.
struct DirectAttribution {
  const Program& program;
  NaiveForward& naive;
  const Node& moe;
  ValueId state = kNone, leaving = kNone, head_input = kNone;
  std::vector<double> gain, count;
  double shared = 0, tokens = 0;

  DirectAttribution(const Program& p, NaiveForward& n, const Node& m) : program(p), naive(n), moe(m) {
    for (const Node& node : program.nodes) {
      if (node.output == moe.inputs[0]) state = node.inputs[0];  // the norm before the experts
      if (node.block == moe.block + 1 && leaving == kNone) leaving = node.inputs[0];
      if (node.block + 1 == program.blocks() && head_input == kNone) head_input = node.inputs[0];
    }
    gain.resize(program.expert_tables[moe.moe.table].experts(), 0);
    count.resize(gain.size(), 0);
  }

  std::vector<double> LogLikelihood(const std::vector<int32_t>& sequence, const Rows& states) {
    const NaiveRun run = naive.Run(sequence, {{head_input, states}});
    std::vector<double> log_p;
    for (size_t t = 0; t + 1 < sequence.size(); ++t)
      log_p.push_back(LogP(run.values.at(program.output)[t], sequence[t + 1]));
    return log_p;
  }

  void Add(const std::vector<int32_t>& sequence, const NaiveRun& run) {
    const Rows& u = run.values.at(state);
    const auto& routed = run.routed.at(moe.moe.table);
    const std::vector<double> base = LogLikelihood(sequence, u);
    for (size_t slot = 0; slot < moe.moe.routing.k; ++slot) {
      Rows with = u;
      for (size_t t = 0; t < with.size(); ++t) Accumulate(&with[t], routed[t].output[slot], routed[t].gates[slot], false);
      const std::vector<double> log_p = LogLikelihood(sequence, with);
      for (size_t t = 0; t < log_p.size(); ++t) {
        gain[routed[t].ids[slot]] += log_p[t] - base[t];
        count[routed[t].ids[slot]] += 1;
      }
    }
    Rows with = run.values.at(leaving);
    for (size_t t = 0; t < with.size(); ++t) Accumulate(&with[t], run.values.at(moe.output)[t], -1, false);
    const std::vector<double> log_p = LogLikelihood(sequence, with);
    for (size_t t = 0; t < log_p.size(); ++t) shared += log_p[t] - base[t];
    tokens += static_cast<double>(log_p.size());
  }
};

void CheckAgainstDirect(const std::string& family, bool shared_expert) {
  const Model model = GoldenModel(family);
  const Program& program = model.program;
  NotingProgress progress;
  const Profile profile = MustCalibrate(model, 1, progress);
  ASSERT_EQ(profile.sequence_start.size(), 4u);
  NaiveForward naive(program, *model.tensors);
  std::vector<DirectTable> direct(program.expert_tables.size());
  std::vector<DirectAttribution> attribution;
  for (const Node& node : program.nodes) {
    if (node.kind != NodeKind::kMoe) continue;
    direct[node.moe.table].experts.resize(program.expert_tables[node.moe.table].experts());
    attribution.emplace_back(program, naive, node);
  }
  std::map<TensorId, std::vector<double>> dense;
  for (size_t s = 0; s < 4; ++s) {
    const std::vector<int32_t> tokens(profile.tokens.begin() + s * 60, profile.tokens.begin() + (s + 1) * 60);
    const NaiveRun run = naive.Run(tokens);
    for (const Node& node : program.nodes) {
      for (size_t t = 0; t < tokens.size(); ++t) {
        if (node.kind == NodeKind::kLinear)
          Accumulate(&dense[node.linear.weight], run.values.at(node.inputs[0])[t], 1, true);
        if (node.kind == NodeKind::kMoe) {
          direct[node.moe.table].Add(run.routed.at(node.moe.table)[t], run.values.at(node.inputs[0])[t],
                                     profile.sequence_domain[s]);
        }
      }
    }
    for (DirectAttribution& a : attribution) a.Add(tokens, run);
  }
  for (size_t t = 0; t < direct.size(); ++t) direct[t].Check(profile.tables[t], profile.domains.size());
  for (TensorId id = 0; id < program.tensors.size(); ++id)
    ExpectClose(profile.dense_in_sq[id], dense[id], program.tensors[id].name);
  for (const DirectAttribution& a : attribution) {
    const TableProfile& table = profile.tables[a.moe.moe.table];
    for (size_t e = 0; e < a.gain.size(); ++e) {
      EXPECT_NEAR(table.attribution[e], a.count[e] == 0 ? 0 : a.gain[e] / a.count[e], 1e-4) << "expert " << e;
    }
    EXPECT_NEAR(table.shared_attribution, shared_expert ? a.shared / a.tokens : 0, 1e-4);
    EXPECT_EQ(shared_expert, std::abs(table.shared_attribution) > 1e-3);
  }
}

TEST(CalibrateTest, StatisticsMatchADirectComputationWithSharedExpert) { CheckAgainstDirect("qwen2_moe", true); }
TEST(CalibrateTest, StatisticsMatchADirectComputationRenormalised) { CheckAgainstDirect("mixtral", false); }

class CalibrateFilesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "calibrate_test.XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  Bytes Written(const Profile& profile, const std::string& name) {
    const Status status = WriteProfile(PosixEnv(), folder_ + "/" + name, profile);
    EXPECT_TRUE(status.ok()) << status.message();
    return ReadFile(PosixEnv(), folder_ + "/" + name, 1 << 26).value();
  }
  std::string folder_;
};

TEST_F(CalibrateFilesTest, ThreadsDoNotChangeAByte) {
  const Model model = GoldenModel("qwen2_moe");
  CalibrateOptions options = kOptions;
  options.tokens = 660;
  const Bytes one = Written(MustCalibrate(model, 1, NoProgress(), options), "1.mprof");
  for (int threads : {1, 2, 5}) {
    EXPECT_EQ(Written(MustCalibrate(model, threads, NoProgress(), options), "n.mprof"), one) << threads;
  }
}

TEST_F(CalibrateFilesTest, ProfileSurvivesItsFile) {
  const Model model = GoldenModel("qwen3_moe");
  const Profile profile = MustCalibrate(model, 2, NoProgress());
  const Bytes bytes = Written(profile, "p.mprof");
  auto read = ReadProfile(PosixEnv(), folder_ + "/p.mprof");
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(read->model_digest, ProgramDigest(model.program));
  EXPECT_EQ(read->weights.digests.size(), CountWeightDigests(model.program));
  EXPECT_EQ(read->weights, profile.weights);
  EXPECT_EQ(read->domains, (std::vector<std::string>{"first", "second"}));
  EXPECT_EQ(read->tokens, profile.tokens);
  EXPECT_EQ(read->tables[1].trace, profile.tables[1].trace);
  EXPECT_EQ(read->tables[1].sch, profile.tables[1].sch);
  EXPECT_EQ(Written(*read, "q.mprof"), bytes);
}

TEST(CalibrateTest, NamesExpertsThatSawTooFewTokens) {
  const Model model = GoldenModel("olmoe");
  NotingProgress progress;
  const Profile profile = MustCalibrate(model, 1, progress);
  const auto thin = FindThinExperts(profile, kOptions.min_tokens_per_expert);
  ASSERT_FALSE(thin.empty());
  for (const ThinExpert& t : thin) EXPECT_LT(t.tokens, kOptions.min_tokens_per_expert);
  const std::string expected = std::to_string(thin[0].expert) + " (" + std::to_string(thin[0].tokens) + ")";
  ASSERT_FALSE(progress.notes.empty());
  EXPECT_NE(progress.notes[0].find("layer " + std::to_string(model.program.expert_tables[thin[0].table].layer)),
            std::string::npos);
  EXPECT_NE(progress.notes[0].find("fewer than 40 tokens"), std::string::npos);
  EXPECT_NE(progress.notes[0].find(expected), std::string::npos);
  EXPECT_TRUE(FindThinExperts(profile, 0).empty());
}

TEST(CalibrateTest, ReportShowsEveryCellAndEscapesNames) {
  const Model model = GoldenModel("olmoe");
  ThreadPool pool(1);
  const auto profile =
      Calibrate(model, {{"<b>&co", ToyText(400, 1)}, {"second", ToyText(300, 2)}}, kOptions, pool, NoProgress());
  ASSERT_TRUE(profile.ok());
  const std::string html = HtmlReport(model.program, *profile, kOptions);
  EXPECT_EQ(html.find("<b>&co"), std::string::npos);
  EXPECT_NE(html.find("&lt;b&gt;&amp;co"), std::string::npos);
  size_t cells = 0, wanted = 0;
  for (size_t at = html.find("<rect"); at != std::string::npos; at = html.find("<rect", at + 1)) ++cells;
  for (const TableProfile& table : profile->tables) wanted += table.experts * (2 + 2);  // two domains, saliency, attribution
  EXPECT_EQ(cells, wanted);
  EXPECT_NE(html.find("fewer than 40 tokens reached expert"), std::string::npos);
  for (const char* outside : {"http://", "https://", "<script", "src="}) EXPECT_EQ(html.find(outside), std::string::npos);
}

TEST(CalibrateTest, RefusesAModelWithoutWeights) {
  Model model = GoldenModel("olmoe");
  model.tensors = nullptr;
  ThreadPool pool(1);
  EXPECT_EQ(Calibrate(model, Texts(), kOptions, pool, NoProgress()).status().code(), ErrorCode::kBadInput);
}

TEST(WriteCalibration, AFailureAnywhereLeavesBothFilesAsTheyWere) {
  using Fault = ::moepack::testing::FaultEnv;
  const Model model = GoldenModel("qwen2_moe");
  const Profile profile = MustCalibrate(model, 1, NoProgress());
  const ::moepack::testing::TempDirectory folder(::testing::TempDir());
  const std::string output = folder.Path("p.mprof"), report = folder.Path("r.html");
  const auto text = [](const std::string& path) {
    return std::string(AsText(ReadFile(PosixEnv(), path, 1 << 26).value()));
  };
  ASSERT_TRUE(WriteFileAtomically(PosixEnv(), output, AsBytes("earlier profile")).ok());
  ASSERT_TRUE(WriteFileAtomically(PosixEnv(), report, AsBytes("earlier page")).ok());
  Fault env(PosixEnv(), Fault::Count::kWrites);
  uint64_t failed = 0;
  for (;; ++failed) {
    env.FailAt(failed + 1, ErrorCode::kNoSpace);
    if (WriteCalibration(env, output, report, model.program, profile, kOptions).ok()) break;
    ASSERT_EQ(text(output), "earlier profile") << failed;
    ASSERT_EQ(text(report), "earlier page") << failed;
    ASSERT_EQ(PosixEnv().List(folder.path())->size(), 2u) << failed;
  }
  EXPECT_GT(failed, 6u);
  EXPECT_TRUE(ReadProfile(PosixEnv(), output).ok());
  EXPECT_NE(text(report), "earlier page");
}

}  // namespace
}  // namespace moepack
