// Device::Trial: a new bundle shows that it works, or goes.
#include "device/device.h"
#include "runtime-min/engine.h"

namespace moepack::device {
namespace {

Status RunGolden(std::unique_ptr<verify::VerifiedBundle> bundle, const TrialOptions& options, ThreadPool& pool,
                 Progress& progress, runtime::GoldenReport* report) {
  MOEPACK_RETURN_IF_ERROR(bundle->VerifyAll(pool, progress));
  const GoldenPrompts golden = bundle->golden();
  runtime::EngineOptions engine_options;
  engine_options.expert_ram_bytes = options.expert_ram_bytes;
  engine_options.context = static_cast<uint32_t>(golden.context());  // within the program's positions: R-424
  engine_options.bridge_unavailable = false;  // the answer is to be the whole bundle's
  const auto engine = runtime::Engine::Create(std::move(bundle), pool, engine_options);
  if (engine.ok()) return runtime::CheckGolden(**engine, golden, report);
  // The budget is the only option that does not come from the bundle.
  if (engine.status().code() == ErrorCode::kUsage) return Status(ErrorCode::kNoMemory, engine.status().message());
  return engine.status();
}

Status CutOffTooOften(uint32_t runs) {
  return Status(ErrorCode::kGate, StrFormat("%u runs of the golden prompts began and did not end", runs));
}

}  // namespace

Result<TrialReport> Device::Trial(const TrialOptions& options, ThreadPool& pool, Progress& progress) {
  MOEPACK_ASSIGN_OR_RETURN(std::optional<Active> active, ReadActive());
  TrialReport report;
  report.on_trial = active.has_value() && active->on_trial;
  if (!report.on_trial) {
    MOEPACK_RETURN_IF_ERROR(Confirm());
    return report;
  }
  auto bundle = OpenInstalled(active->current);
  const bool untested = bundle.ok() && (*bundle)->golden().prompts.empty();
  if (untested && !options.untested) {
    return Status(ErrorCode::kPolicy,
                  "the bundle on trial has no golden prompts, so nothing shows that it works; pack it with --golden, or "
                  "confirm it with --untested or 'moepack device confirm', or use 'moepack device rollback'");
  }
  if (active->trials >= kMaxTrialRuns) {
    report.verdict = CutOffTooOften(active->trials);
  } else if (!bundle.ok()) {
    report.verdict = bundle.status();
  } else if (!untested) {
    ++active->trials;
    MOEPACK_RETURN_IF_ERROR(WriteActive(*active));
    report.verdict = RunGolden(std::move(*bundle), options, pool, progress, &report.golden);
  }
  const Status decided = report.verdict.ok() ? Confirm() : Rollback();
  if (decided.ok()) return report;
  if (report.verdict.ok()) return decided;
  return decided.With("the bundle on trial failed (" + report.verdict.message() + ") and stays on trial");
}

}  // namespace moepack::device
