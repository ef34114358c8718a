// --metrics-jsonl and --metrics-prometheus: metrics in files while a verb runs.
#pragma once

#include <cstdio>
#include <functional>
#include <memory>
#include <string>

#include "base/cli/cli.h"
#include "runtime-min/metrics.h"
#include "runtime-min/stdio_file.h"

namespace moepack::run {

class MetricsOutput {
 public:
  // while_running: the verb calls Update.
  static void AddOptions(cli::Command* command, bool while_running);
  // Opens the file of JSON lines, to which lines are appended. kUsage for options that cannot be, kAccess.
  static Result<MetricsOutput> Open(const cli::Command& command);

  // Standard output belongs to the JSON lines.
  bool takes_stdout() const { return lines_ == stdout; }
  // Writes what `measure` returns when --metrics-every seconds have gone by since the last time.
  Status Update(const std::function<runtime::RunMetrics()>& measure);
  // The last line, and the last state of the Prometheus file.
  Status Finish(const runtime::RunMetrics& metrics);

 private:
  Status Write(const runtime::RunMetrics& metrics, bool last);

  runtime::StdioFile file_;
  std::FILE* lines_ = nullptr;  // file_, stdout or none
  std::string lines_name_, prometheus_;
  double every_ms_ = 0, start_ms_ = 0, written_ms_ = 0;
};

}  // namespace moepack::run
