#include "runtime-min/run/metrics_output.h"

#include <cerrno>
#include <cmath>
#include <cstring>

#include "base/env.h"
#include "runtime-min/metric_list.h"

namespace moepack::run {
namespace {

namespace po = boost::program_options;

constexpr double kDefaultEverySeconds = 1;
constexpr double kMsPerSecond = 1000;

}  // namespace

void MetricsOutput::AddOptions(cli::Command* command, bool while_running) {
  command->options().add_options()("metrics-jsonl", po::value<std::string>(),
                                   "file to append metrics to, a JSON object a line; -: standard output, without the text")(
      "metrics-prometheus", po::value<std::string>(),
      "file to replace by metrics as Prometheus text, for node_exporter's textfile collector (name it *.prom)");
  if (!while_running) return;
  command->options().add_options()("metrics-every", po::value<double>(),
                                   "seconds between two states of these; 0: after every token (default 1)");
}

Result<MetricsOutput> MetricsOutput::Open(const cli::Command& command) {
  MetricsOutput output;
  const double every = command.GetOr<double>("metrics-every", kDefaultEverySeconds);
  if (!(every >= 0 && std::isfinite(every))) {
    return Status(ErrorCode::kUsage, "--metrics-every: expected a number of seconds of at least 0");
  }
  output.every_ms_ = every * kMsPerSecond;
  output.start_ms_ = output.written_ms_ = runtime::MonotonicMs();
  output.prometheus_ = command.GetOr<std::string>("metrics-prometheus", "");
  output.lines_name_ = command.GetOr<std::string>("metrics-jsonl", "");
  if (output.lines_name_ == "-") {
    if (command.json()) return Status(ErrorCode::kUsage, "--json and --metrics-jsonl -: give one of them");
    output.lines_ = stdout;
  } else if (!output.lines_name_.empty()) {
    output.file_.reset(std::fopen(output.lines_name_.c_str(), "ae"));
    if (output.file_ == nullptr) {
      return Status(ErrorCode::kAccess, output.lines_name_ + ": cannot append to it: " + std::strerror(errno));
    }
    output.lines_ = output.file_.get();
  }
  return output;
}

Status MetricsOutput::Write(const runtime::RunMetrics& metrics, bool last) {
  written_ms_ = runtime::MonotonicMs();
  if (lines_ != nullptr) {
    const std::string line =
        StrFormat("{\"elapsed_ms\": %.3f, \"last\": %s, ", written_ms_ - start_ms_, last ? "true" : "false") +
        runtime::MetricsJsonLine(metrics).substr(1) + "\n";
    if (std::fwrite(line.data(), 1, line.size(), lines_) != line.size() || std::fflush(lines_) != 0) {
      return Status(ErrorCode::kNoSpace, lines_name_ + ": cannot write metrics: " + std::strerror(errno));
    }
  }
  if (prometheus_.empty()) return Status::Ok();
  const std::string text = runtime::MetricsPrometheusText(metrics);
  return WriteFileAtomically(PosixEnv(), prometheus_, {reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

Status MetricsOutput::Update(const std::function<runtime::RunMetrics()>& measure) {
  if (lines_ == nullptr && prometheus_.empty()) return Status::Ok();
  if (runtime::MonotonicMs() - written_ms_ < every_ms_) return Status::Ok();
  return Write(measure(), false);
}

Status MetricsOutput::Finish(const runtime::RunMetrics& metrics) { return Write(metrics, true); }

}  // namespace moepack::run
