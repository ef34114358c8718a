// moepack run bench: how fast a bundle prefills and decodes here.
#include <algorithm>
#include <cstdio>

#include "runtime-min/energy.h"
#include "runtime-min/run/metrics_output.h"
#include "runtime-min/run/session.h"

namespace moepack::run {
namespace {

namespace po = boost::program_options;

struct BenchSize {
  uint32_t prompt_tokens = 0, decode_tokens = 0, repeats = 0;
};

// From the text when there is one; otherwise ids drawn evenly, which spreads routing more than text does.
Result<std::vector<int32_t>> PromptTokens(const cli::Command& command, const Session& session, uint32_t count) {
  std::vector<int32_t> tokens;
  if (command.Has("data")) {
    MOEPACK_ASSIGN_OR_RETURN(tokens, TokenizeFile(session, command.Get<std::string>("data")));
    if (tokens.size() < count) {
      return Status(ErrorCode::kUsage, StrFormat("--data: %zu tokens, --prompt-tokens asks for %u", tokens.size(), count));
    }
    tokens.resize(count);
    return tokens;
  }
  runtime::Random random(command.GetOr<uint64_t>("seed", 0));
  for (uint32_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(random.Next() % session.engine->vocab_size()));
  return tokens;
}

// Prefill and greedy decoding once; appends the duration of each.
Status RunOnce(Session& session, const std::vector<int32_t>& prompt, uint32_t decode_tokens, std::vector<double>* prefill_ms,
               std::vector<double>* first_ms, std::vector<double>* step_ms) {
  runtime::Engine& engine = *session.engine;
  engine.Reset();
  const double start = runtime::MonotonicMs();
  MOEPACK_RETURN_IF_ERROR(engine.Prefill(prompt));
  prefill_ms->push_back(runtime::MonotonicMs() - start);
  int32_t token = runtime::Argmax(engine.logits());
  first_ms->push_back(runtime::MonotonicMs() - start);
  for (uint32_t i = 0; i < decode_tokens; ++i) {
    const double before = runtime::MonotonicMs();
    MOEPACK_RETURN_IF_ERROR(engine.Run({&token, 1}));
    token = runtime::Argmax(engine.logits());
    step_ms->push_back(runtime::MonotonicMs() - before);
  }
  return Status::Ok();
}

// Medians over the repeats; the first one warms caches up and counts for experts only.
Result<runtime::RunMetrics> Measure(Session& session, const std::vector<int32_t>& prompt, const BenchSize& size) {
  std::vector<double> prefill_ms, first_ms, step_ms;
  runtime::EnergyMeter energy;
  MOEPACK_RETURN_IF_ERROR(RunOnce(session, prompt, size.decode_tokens, &prefill_ms, &first_ms, &step_ms));
  if (size.repeats > 1) {
    prefill_ms.clear();
    first_ms.clear();
    step_ms.clear();
  }
  for (uint32_t i = 1; i < size.repeats; ++i) {
    energy.Sample(runtime::MonotonicMs());
    MOEPACK_RETURN_IF_ERROR(RunOnce(session, prompt, size.decode_tokens, &prefill_ms, &first_ms, &step_ms));
  }
  energy.Sample(runtime::MonotonicMs());
  runtime::RunMetrics metrics;
  metrics.ttft_ms = runtime::Percentile(first_ms, 50);
  metrics.prefilled_tokens = prompt.size() * prefill_ms.size();
  metrics.prefill_tokens_per_s = static_cast<double>(prompt.size()) * 1000.0 / *runtime::Percentile(prefill_ms, 50);
  SummarizeDecode(step_ms, &metrics);
  metrics.energy_joules = energy.joules();
  metrics.energy_source = energy.source();
  runtime::FillFromEngine(*session.engine, &metrics);
  return metrics;
}

void PrintReport(const cli::Command& command, const Session& session, const BenchSize& size,
                 const runtime::RunMetrics& metrics) {
  const runtime::Engine& engine = *session.engine;
  if (!command.json()) {
    std::printf("%u prompt tokens, %u decoded, %u times, %d threads\n%s\n", size.prompt_tokens, size.decode_tokens,
                size.repeats, session.pool->threads(), MetricsText(metrics).c_str());
    return;
  }
  nlohmann::json report = {{"prompt_tokens", size.prompt_tokens},
                           {"decode_tokens", size.decode_tokens},
                           {"repeats", size.repeats},
                           {"threads", session.pool->threads()},
                           {"isa", kernels::IsaName(engine.isa())},
                           {"load_ms", session.load_ms},
                           {"dense_bytes", engine.dense_bytes()},
                           {"state_bytes", engine.state_bytes()},
                           {"expert_bytes", engine.experts().used_bytes()},
                           {"expert_bytes_all", engine.experts().all_bytes()},
                           {"weight_bytes_per_token", engine.weight_bytes_per_token()}};
  report.update(MetricsJson(metrics));
  cli::PrintJson(report);
}

}  // namespace

Status Bench(int argc, char** argv) {
  cli::Command command(
      {"moepack run bench",
       "Measures prefill and decoding of a verified bundle.",
       "(BUNDLE --trust T.json | --device ROOT) [--prompt-tokens P] [-n N] [--data FILE] [--repeats R] [--expert-ram SIZE]",
       {"moepack run bench wren.moeb --trust trust.json --json",
        "moepack run bench wren.moeb --trust trust.json --data novel.eval.txt --prompt-tokens 256 -n 128"}});
  AddSessionOptions(&command);
  command.options().add_options()("prompt-tokens,p", po::value<uint32_t>(), "tokens of the prompt (default 128)")(
      "n-tokens,n", po::value<uint32_t>(), "tokens to decode (default 64)")(
      "repeats", po::value<uint32_t>(), "times to measure, the first to warm up (default 6)")(
      "data", po::value<std::string>(), "text file for the prompt (default: ids drawn evenly)")(
      "seed", po::value<uint64_t>(), "seed of the drawn ids (default 0)");
  MetricsOutput::AddOptions(&command, false);
  MOEPACK_RETURN_IF_ERROR(command.Parse(argc, argv));
  if (command.help_shown()) return Status::Ok();
  const BenchSize size{command.GetOr<uint32_t>("prompt-tokens", 128), command.GetOr<uint32_t>("n-tokens", 64),
                       command.GetOr<uint32_t>("repeats", 6)};
  if (size.prompt_tokens == 0 || size.repeats == 0) {
    return Status(ErrorCode::kUsage, "--prompt-tokens and --repeats: expected at least 1");
  }
  if (size.decode_tokens > UINT32_MAX - size.prompt_tokens) {
    return Status(ErrorCode::kUsage, "--prompt-tokens and --n-tokens: together too many");
  }
  MOEPACK_ASSIGN_OR_RETURN(MetricsOutput output, MetricsOutput::Open(command));
  MOEPACK_ASSIGN_OR_RETURN(Session session, OpenSession(command, size.prompt_tokens + size.decode_tokens, false));
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int32_t> prompt, PromptTokens(command, session, size.prompt_tokens));
  MOEPACK_ASSIGN_OR_RETURN(const runtime::RunMetrics metrics, Measure(session, prompt, size));
  MOEPACK_RETURN_IF_ERROR(output.Finish(metrics));
  if (!output.takes_stdout()) PrintReport(command, session, size, metrics);
  return Status::Ok();
}

}  // namespace moepack::run
