// moepack run classify: classes of rows of numbers.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>

#include "base/npy.h"
#include "runtime-min/run/session.h"

namespace moepack::run {
namespace {

namespace po = boost::program_options;

static_assert(std::endian::native == std::endian::little, "logits are written as they lie in memory");

// What is said about rows, in order: to standard output at the end, to a file, and beside the full model's logits.
class Answers {
 public:
  explicit Answers(bool json) : as_json_(json) {}

  Status OpenOutput(const std::string& path) {
    MOEPACK_ASSIGN_OR_RETURN(file_, AtomicFile::Create(PosixEnv(), path));
    return Status::Ok();
  }
  Status OpenBase(const std::string& path, uint64_t rows, uint64_t classes) {
    MOEPACK_ASSIGN_OR_RETURN(base_, BaseRows::Open(path, rows, classes, "--inputs"));
    return Status::Ok();
  }

  // logits: [count, classes]
  Status Add(std::span<const float> logits, uint64_t classes) {
    const uint64_t count = logits.size() / classes;
    if (file_ != nullptr) {
      MOEPACK_RETURN_IF_ERROR(file_->Append({reinterpret_cast<const uint8_t*>(logits.data()), logits.size_bytes()}));
    }
    std::vector<float> base;
    if (base_) MOEPACK_RETURN_IF_ERROR(base_->Next(count, &base));
    for (uint64_t r = 0; r < count; ++r) {
      const std::span<const float> row = logits.subspan(r * classes, classes);
      if (!std::all_of(row.begin(), row.end(), [](float logit) { return std::isfinite(logit); })) {
        return Status(ErrorCode::kNotFinite, StrFormat("row %llu: the model answers with a logit that is no number; its values "
                                                       "are too far from those of the calibration",
                                                       static_cast<unsigned long long>(rows_)));
      }
      ++rows_;
      AddRow(row);
      if (!base_) continue;
      const auto full = std::span<const float>(base).subspan(r * classes, classes);
      divergence_.Add(full, row, static_cast<int32_t>(std::max_element(full.begin(), full.end()) - full.begin()));
    }
    return Status::Ok();
  }

  Status Commit() { return file_ == nullptr ? Status::Ok() : file_->Commit(); }

  void Print(const Session& session, uint64_t rows, bool on_calibration_inputs) {
    const DivergenceReport r = divergence_.Report();
    if (as_json_) {
      nlohmann::json report = {{"rows", rows},
                               {"classes", session.engine->vocab_size()},
                               {"predictions", std::move(predictions_)},
                               {"on_calibration_inputs", on_calibration_inputs},
                               {"verified", true}};
      for (const auto& [key, value] : {std::pair("kld_mean", r.kld_mean), std::pair("kld_p99", r.kld_p99),
                                       std::pair("kld_max", r.kld_max), std::pair("same_top1", r.same_top1)}) {
        report[key] = base_ ? nlohmann::json(value) : nlohmann::json(nullptr);
      }
      report.update(ExpertsJson(session));
      return cli::PrintJson(report);
    }
    std::fputs(text_.c_str(), stdout);
    if (!base_) return;
    std::printf("%llu rows: KLD from the full model mean %.6f, 99%% %.6f, max %.6f, same class %.2f%%\n",
                static_cast<unsigned long long>(rows), r.kld_mean, r.kld_p99, r.kld_max, 100 * r.same_top1);
  }

 private:
  void AddRow(std::span<const float> row) {
    const auto best = static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin());
    const double probability = std::exp(-NegativeLogLikelihood(row, best));
    if (as_json_) {
      predictions_.push_back(
          {{"class", best}, {"probability", probability}, {"logits", std::vector<float>(row.begin(), row.end())}});
    } else {
      text_ += StrFormat("%d %.6f\n", best, probability);
    }
  }

  bool as_json_;
  uint64_t rows_ = 0;
  std::string text_;
  nlohmann::json predictions_ = nlohmann::json::array();
  std::unique_ptr<AtomicFile> file_;
  std::optional<BaseRows> base_;
  Divergence divergence_;
};

Status RunTable(const cli::Command& command, Session& session, const NpyFile& table, Answers* answers) {
  runtime::Engine& engine = *session.engine;
  std::vector<float> rows;
  command.progress().Begin("classify", table.rows(), "rows");
  for (uint64_t at = 0; at < table.rows();) {
    const uint64_t count = std::min<uint64_t>(engine.tile_tokens(), table.rows() - at);
    rows.resize(count * table.columns());
    MOEPACK_RETURN_IF_ERROR(table.Read(at, count, rows));
    MOEPACK_RETURN_IF_ERROR(engine.RunRows(rows));
    MOEPACK_RETURN_IF_ERROR(answers->Add(engine.logits(), engine.vocab_size()));
    at += count;
    command.progress().Advance(count);
  }
  command.progress().End();
  return Status::Ok();
}

}  // namespace

Status Classify(int argc, char** argv) {
  cli::Command command(
      {"moepack run classify",
       "Classes of rows of numbers by a verified bundle: for each row its most likely class and that one's probability.",
       "(BUNDLE --trust T.json | --device ROOT) --inputs FILE.npy [--base L.f32] [-o L.f32]",
       {"moepack run classify classifier.moeb --trust trust.json --inputs rows.npy --json",
        "moepack logits classifier.onnx --inputs rows.npy -o base.f32",
        "moepack run classify classifier.moeb --trust trust.json --inputs rows.npy --base base.f32"}});
  AddSessionOptions(&command);
  command.options().add_options()("inputs", po::value<std::string>(),
                                  "rows [rows, columns], float32 or float64, as numpy.save writes them")(
      "base", po::value<std::string>(), "logits of the full model, from moepack logits: how far the bundle's are from them")(
      "output,o", po::value<std::string>(), "file for the logits, little-endian float32 rows");
  MOEPACK_RETURN_IF_ERROR(command.Parse(argc, argv));
  if (command.help_shown()) return Status::Ok();
  MOEPACK_RETURN_IF_ERROR(command.Require("inputs"));
  const std::string path = command.Get<std::string>("inputs");
  MOEPACK_ASSIGN_OR_RETURN(Session session, OpenRowSession(command));
  MOEPACK_ASSIGN_OR_RETURN(const auto table, NpyFile::Open(PosixEnv(), path));
  MOEPACK_RETURN_IF_ERROR(table->CheckColumns(session.engine->input_width()));
  MOEPACK_ASSIGN_OR_RETURN(const bool on_calibration_inputs, CalibratedOn(session, path));
  Answers answers(command.json());
  if (command.Has("output")) MOEPACK_RETURN_IF_ERROR(answers.OpenOutput(command.Get<std::string>("output")));
  if (command.Has("base")) {
    MOEPACK_RETURN_IF_ERROR(answers.OpenBase(command.Get<std::string>("base"), table->rows(), session.engine->vocab_size()));
    if (on_calibration_inputs)
      command.progress().Note("warning: " + path + ": these rows calibrated the bundle, so the numbers flatter it");
  }
  MOEPACK_RETURN_IF_ERROR(RunTable(command, session, *table, &answers));
  MOEPACK_RETURN_IF_ERROR(answers.Commit());
  answers.Print(session, table->rows(), on_calibration_inputs);
  return Status::Ok();
}

}  // namespace moepack::run
