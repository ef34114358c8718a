// moepack run eval: how far a bundle's next-token distributions are from the full model's.
#include <cmath>
#include <cstdio>

#include "base/checked.h"
#include "base/digest/sha256.h"
#include "runtime-min/run/session.h"

namespace moepack::run {
namespace {

namespace po = boost::program_options;

// Rows of the full model, in order.
class BaseRows {
 public:
  // kBadInput unless the file holds exactly rows * vocab floats.
  static Result<BaseRows> Open(const std::string& path, uint64_t rows, uint64_t vocab) {
    BaseRows base;
    base.vocab_ = vocab;
    MOEPACK_ASSIGN_OR_RETURN(base.file_, PosixEnv().OpenRead(path));
    MOEPACK_ASSIGN_OR_RETURN(const uint64_t size, base.file_->Size());
    const CheckedU64 expected = CheckedU64(rows) * CheckedU64(vocab) * CheckedU64(sizeof(float));
    if (!expected.valid() || size != expected.value()) {
      return Status(
          ErrorCode::kBadInput,
          StrFormat("%s: %llu bytes, expected %llu for %llu rows of %llu logits; make it with moepack logits and the same "
                    "--data, --ctx and --chunks",
                    path.c_str(), static_cast<unsigned long long>(size), static_cast<unsigned long long>(expected.value()),
                    static_cast<unsigned long long>(rows), static_cast<unsigned long long>(vocab)));
    }
    return base;
  }
  // The next `count` rows.
  Status Next(uint64_t count, std::vector<float>* rows) {
    rows->resize(count * vocab_);
    const uint64_t bytes = rows->size() * sizeof(float);
    MOEPACK_RETURN_IF_ERROR(file_->Read(offset_, {reinterpret_cast<uint8_t*>(rows->data()), bytes}));
    offset_ += bytes;
    return Status::Ok();
  }

 private:
  std::unique_ptr<RandomAccessFile> file_;
  uint64_t vocab_ = 0, offset_ = 0;
};

Status Compare(const cli::Command& command, Session& session, const std::vector<int32_t>& tokens, const EvalChunks& chunks,
               BaseRows& base, Divergence* divergence) {
  const uint64_t vocab = session.engine->vocab_size();
  std::vector<float> rows;
  const auto add_tile = [&](uint64_t first, uint64_t count) {
    MOEPACK_RETURN_IF_ERROR(base.Next(count, &rows));
    for (uint64_t i = 0; i < count; ++i) {
      divergence->Add(std::span(rows).subspan(i * vocab, vocab), session.engine->logits().subspan(i * vocab, vocab),
                      tokens[first + i + 1]);
    }
    command.progress().Advance(count);
    return Status::Ok();
  };
  command.progress().Begin("eval", chunks.total_rows(), "tokens");
  for (uint64_t c = 0; c < chunks.chunks; ++c) {
    MOEPACK_RETURN_IF_ERROR(ForEachScoredTile(session, tokens, chunks, c, add_tile));
  }
  command.progress().End();
  return Status::Ok();
}

// Whether the bundle was calibrated on this very text: it then looks closer to the full model than it is on any other.
Result<bool> CalibratedOn(const Session& session, const std::string& path) {
  MOEPACK_ASSIGN_OR_RETURN(const Digest digest, Sha256File(PosixEnv(), path));
  return std::find(session.calibration_digests.begin(), session.calibration_digests.end(), ToHex(digest)) !=
         session.calibration_digests.end();
}

nlohmann::json ReportJson(const DivergenceReport& r, bool on_calibration_text) {
  return {{"tokens", r.tokens},
          {"ppl", r.ppl},
          {"ppl_base", r.ppl_base},
          {"ln_ratio_stderr", r.ln_ratio_stderr},
          {"kld_mean", r.kld_mean},
          {"kld_stderr", r.kld_stderr},
          {"kld_median", r.kld_median},
          {"kld_p90", r.kld_p90},
          {"kld_p95", r.kld_p95},
          {"kld_p99", r.kld_p99},
          {"kld_p999", r.kld_p999},
          {"kld_max", r.kld_max},
          {"same_top1", r.same_top1},
          {"top1_accuracy", r.top1_accuracy},
          {"top1_accuracy_base", r.top1_accuracy_base},
          {"delta_p_mean", r.delta_p_mean},
          {"delta_p_rms", r.delta_p_rms},
          {"on_calibration_text", on_calibration_text},
          {"verified", true}};
}

// Where experts came from and what stood in for them, which the numbers include.
nlohmann::json ExpertsJson(const Session& session) {
  runtime::RunMetrics metrics;
  FillFromEngine(*session.engine, &metrics);
  const nlohmann::json all = MetricsJson(metrics);  // items() refers to it
  nlohmann::json out;
  for (const auto& [key, value] : all.items()) {
    if (key == "hit_rate" || key == "expert_hits" || key == "experts_prefetched" || key == "expert_misses" ||
        key == "expert_bytes_read" || key.starts_with("experts_lowered") || key.starts_with("experts_skipped") ||
        key.starts_with("experts_bridged")) {
      out[key] = value;
    }
  }
  return out;
}

void PrintReport(const cli::Command& command, const Session& session, const DivergenceReport& r, bool on_calibration_text) {
  if (command.json()) {
    nlohmann::json report = ReportJson(r, on_calibration_text);
    report.update(ExpertsJson(session));
    return cli::PrintJson(report);
  }
  std::printf(
      "%llu tokens: perplexity %.4f (full model %.4f), KLD mean %.6f +- %.6f, median %.6f, 99%% %.6f, max %.6f, same top-1 "
      "%.2f%%\n",
      static_cast<unsigned long long>(r.tokens), r.ppl, r.ppl_base, r.kld_mean, r.kld_stderr, r.kld_median, r.kld_p99,
      r.kld_max, 100 * r.same_top1);
  const runtime::StandInStats& stand_ins = session.engine->stand_ins();
  if (stand_ins.lowered + stand_ins.skipped + stand_ins.bridged() == 0) return;
  std::printf("experts: %llu lowered and %llu skipped on a miss, %llu bridged\n",
              static_cast<unsigned long long>(stand_ins.lowered), static_cast<unsigned long long>(stand_ins.skipped),
              static_cast<unsigned long long>(stand_ins.bridged()));
}

Status CheckGateOptions(const cli::Command& command) {
  const double max_kld = command.GetOr<double>("max-kld", 0), min_top1 = command.GetOr<double>("min-top1", 0);
  if (!(max_kld >= 0 && std::isfinite(max_kld)))
    return Status(ErrorCode::kUsage, "--max-kld: expected a number of at least 0");
  if (!(min_top1 >= 0 && min_top1 <= 1)) return Status(ErrorCode::kUsage, "--min-top1: expected a share from 0 to 1");
  return Status::Ok();
}

// kGate when a number is worse than asked for, or not a number.
Status CheckGates(const cli::Command& command, const DivergenceReport& r) {
  if (command.Has("max-kld") && !(r.kld_mean <= command.Get<double>("max-kld"))) {
    return Status(ErrorCode::kGate,
                  StrFormat("mean KLD %.6f is above --max-kld %g", r.kld_mean, command.Get<double>("max-kld")));
  }
  if (command.Has("min-top1") && !(r.same_top1 >= command.Get<double>("min-top1"))) {
    return Status(ErrorCode::kGate,
                  StrFormat("same top-1 %.4f is below --min-top1 %g", r.same_top1, command.Get<double>("min-top1")));
  }
  return Status::Ok();
}

}  // namespace

Status Eval(int argc, char** argv) {
  cli::Command command(
      {"moepack run eval",
       "Compares a verified bundle with the full model's logits on held-out text: the second half of every chunk.",
       "(BUNDLE --trust T.json | --device ROOT) --base L.f32 --data FILE --ctx N [--chunks C] [--max-kld K] [--min-top1 "
       "SHARE]",
       {"moepack logits examples/wren/model --data mixed.eval.txt --ctx 256 -o base.f32",
        "moepack run eval wren.moeb --trust trust.json --base base.f32 --data mixed.eval.txt --ctx 256 --max-kld 0.01"}});
  AddSessionOptions(&command);
  command.options().add_options()("base", po::value<std::string>(), "logits of the full model, from moepack logits")(
      "data", po::value<std::string>(), "the same text file")("max-kld", po::value<double>(),
                                                              "exit 6 when the mean KLD is above it")(
      "min-top1", po::value<double>(), "exit 6 when the share of equal top-1 tokens (0 to 1) is below it");
  AddChunkOptions(&command);
  MOEPACK_RETURN_IF_ERROR(command.Parse(argc, argv));
  if (command.help_shown()) return Status::Ok();
  MOEPACK_RETURN_IF_ERROR(CheckGateOptions(command));
  for (const char* name : {"base", "data", "ctx"}) MOEPACK_RETURN_IF_ERROR(command.Require(name));
  MOEPACK_ASSIGN_OR_RETURN(Session session, OpenSession(command, command.Get<uint32_t>("ctx"), true));
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, TokenizeFile(session, command.Get<std::string>("data")));
  MOEPACK_ASSIGN_OR_RETURN(const bool on_calibration_text, CalibratedOn(session, command.Get<std::string>("data")));
  if (on_calibration_text) {
    command.progress().Note("warning: " + command.Get<std::string>("data") +
                            ": this text calibrated the bundle, so the numbers flatter it; evaluate on held-out text");
  }
  MOEPACK_ASSIGN_OR_RETURN(const EvalChunks chunks, ChunksOf(command, tokens.size()));
  MOEPACK_ASSIGN_OR_RETURN(
      BaseRows base, BaseRows::Open(command.Get<std::string>("base"), chunks.total_rows(), session.engine->vocab_size()));
  Divergence divergence;
  MOEPACK_RETURN_IF_ERROR(Compare(command, session, tokens, chunks, base, &divergence));
  const DivergenceReport report = divergence.Report();
  PrintReport(command, session, report, on_calibration_text);
  return CheckGates(command, report);
}

}  // namespace moepack::run
