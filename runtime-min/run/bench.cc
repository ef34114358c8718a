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
  uint32_t prompt_tokens = 0, decode_tokens = 0, repeats = 0, sequences = 1;
};

// From the text when there is one; otherwise ids drawn evenly, which spreads routing more than text does.
Result<std::vector<int32_t>> PromptTokens(const cli::Command& command, const Session& session, uint64_t count) {
  std::vector<int32_t> tokens;
  if (command.Has("data")) {
    MOEPACK_ASSIGN_OR_RETURN(tokens, TokenizeFile(session, command.Get<std::string>("data")));
    if (tokens.size() < count) {
      return Status(ErrorCode::kUsage, StrFormat("--data: %zu tokens, the prompts take %llu", tokens.size(),
                                                 static_cast<unsigned long long>(count)));
    }
    tokens.resize(count);
    return tokens;
  }
  runtime::Random random(command.GetOr<uint64_t>("seed", 0));
  for (uint64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(random.Next() % session.engine->vocab_size()));
  return tokens;
}

struct Durations {
  std::vector<double> prefill_ms, first_ms, step_ms;
};

// Prefill of each sequence with a prompt of its own and greedy decoding of all together, once; appends the duration of each.
Status RunOnce(Session& session, std::span<const int32_t> prompts, const BenchSize& size, Durations* durations,
               runtime::EnergyMeter* energy) {
  runtime::Engine& engine = *session.engine;
  std::vector<int32_t> tokens(size.sequences);
  std::vector<runtime::SequenceTokens> batch;
  for (uint32_t id = 0; id < size.sequences; ++id) {
    MOEPACK_RETURN_IF_ERROR(engine.ResetSequence(id));
    const double start = runtime::MonotonicMs();
    MOEPACK_RETURN_IF_ERROR(engine.Prefill(prompts.subspan(uint64_t{id} * size.prompt_tokens, size.prompt_tokens), id));
    durations->prefill_ms.push_back(runtime::MonotonicMs() - start);
    tokens[id] = runtime::Argmax(engine.logits());
    durations->first_ms.push_back(runtime::MonotonicMs() - start);
    batch.push_back({id, {&tokens[id], 1}});
    energy->SampleInTime(runtime::MonotonicMs());
  }
  const uint64_t vocabulary = engine.vocab_size();
  for (uint32_t i = 0; i < size.decode_tokens; ++i) {
    const double before = runtime::MonotonicMs();
    MOEPACK_RETURN_IF_ERROR(engine.RunBatch(batch));
    for (uint32_t s = 0; s < size.sequences; ++s) {
      tokens[s] = runtime::Argmax(engine.logits().subspan(s * vocabulary, vocabulary));
    }
    durations->step_ms.push_back(runtime::MonotonicMs() - before);
    energy->SampleInTime(runtime::MonotonicMs());
  }
  return Status::Ok();
}

// Medians over the repeats; the first one warms caches up and counts for experts only.
Result<runtime::RunMetrics> Measure(Session& session, const std::vector<int32_t>& prompts, const BenchSize& size) {
  Durations durations;
  runtime::EnergyMeter energy;
  MOEPACK_RETURN_IF_ERROR(RunOnce(session, prompts, size, &durations, &energy));
  if (size.repeats > 1) {
    durations = {};
    energy = runtime::EnergyMeter();
  }
  for (uint32_t i = 1; i < size.repeats; ++i) MOEPACK_RETURN_IF_ERROR(RunOnce(session, prompts, size, &durations, &energy));
  energy.Sample(runtime::MonotonicMs());
  runtime::RunMetrics metrics;
  metrics.ttft_ms = runtime::Percentile(durations.first_ms, 50);
  metrics.prefilled_tokens = size.prompt_tokens * durations.prefill_ms.size();
  metrics.prefill_tokens_per_s = size.prompt_tokens * 1000.0 / *runtime::Percentile(durations.prefill_ms, 50);
  SummarizeDecode(durations.step_ms, &metrics);
  if (metrics.decode_tokens_per_s) *metrics.decode_tokens_per_s *= size.sequences;  // a step is a token of each
  metrics.decoded_tokens = durations.step_ms.size() * size.sequences;
  metrics.energy_joules = energy.joules();
  metrics.energy_source = energy.source();
  runtime::FillFromEngine(*session.engine, &metrics);
  return metrics;
}

void PrintReport(const cli::Command& command, const Session& session, const BenchSize& size,
                 const runtime::RunMetrics& metrics) {
  const runtime::Engine& engine = *session.engine;
  if (!command.json()) {
    std::printf("%u prompt tokens, %u decoded, %u sequences, %u times, %d threads\n%s\n", size.prompt_tokens,
                size.decode_tokens, size.sequences, size.repeats, session.pool->threads(), MetricsText(metrics).c_str());
    return;
  }
  nlohmann::json report = {{"prompt_tokens", size.prompt_tokens},
                           {"decode_tokens", size.decode_tokens},
                           {"repeats", size.repeats},
                           {"sequences", size.sequences},
                           {"threads", session.pool->threads()},
                           {"isa", kernels::IsaName(engine.isa())},
                           {"load_ms", session.load_ms},
                           {"dense_bytes", engine.dense_bytes()},
                           {"state_bytes", engine.state_bytes()},
                           {"used_state_bytes", engine.used_state_bytes()},
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
       "(BUNDLE --trust T.json | --device ROOT) [--prompt-tokens P] [-n N] [--data FILE] [--repeats R] [--sequences S] "
       "[--expert-ram SIZE]",
       {"moepack run bench wren.moeb --trust trust.json --json",
        "moepack run bench wren.moeb --trust trust.json --data novel.eval.txt --prompt-tokens 256 -n 128",
        "moepack run bench wren.moeb --trust trust.json --prompt-tokens 64 -n 64 --sequences 8"}});
  AddSessionOptions(&command);
  command.options().add_options()("prompt-tokens,p", po::value<uint32_t>(), "tokens of the prompt (default 128)")(
      "n-tokens,n", po::value<uint32_t>(), "tokens to decode (default 64)")(
      "repeats", po::value<uint32_t>(), "times to measure, the first to warm up (default 6)")(
      "sequences", po::value<uint32_t>(),
      "sequences that decode together, each after a prompt of its own (default 1); tokens/s are of all")(
      "data", po::value<std::string>(), "text file for the prompts (default: ids drawn evenly)")(
      "seed", po::value<uint64_t>(), "seed of the drawn ids (default 0)");
  MetricsOutput::AddOptions(&command, false);
  MOEPACK_RETURN_IF_ERROR(command.Parse(argc, argv));
  if (command.help_shown()) return Status::Ok();
  const BenchSize size{command.GetOr<uint32_t>("prompt-tokens", 128), command.GetOr<uint32_t>("n-tokens", 64),
                       command.GetOr<uint32_t>("repeats", 6), command.GetOr<uint32_t>("sequences", 1)};
  if (size.prompt_tokens == 0 || size.repeats == 0 || size.sequences == 0) {
    return Status(ErrorCode::kUsage, "--prompt-tokens, --repeats and --sequences: expected at least 1");
  }
  if (size.decode_tokens > UINT32_MAX - size.prompt_tokens) {
    return Status(ErrorCode::kUsage, "--prompt-tokens and --n-tokens: together too many");
  }
  MOEPACK_ASSIGN_OR_RETURN(MetricsOutput output, MetricsOutput::Open(command));
  MOEPACK_ASSIGN_OR_RETURN(Session session, OpenSession(command, size.prompt_tokens + size.decode_tokens, false));
  for (uint32_t i = 1; i < size.sequences; ++i) {
    MOEPACK_ASSIGN_OR_RETURN([[maybe_unused]] const runtime::SequenceId id, session.engine->OpenSequence());
  }
  const uint64_t prompt_tokens = uint64_t{size.prompt_tokens} * size.sequences;
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int32_t> prompts, PromptTokens(command, session, prompt_tokens));
  MOEPACK_ASSIGN_OR_RETURN(const runtime::RunMetrics metrics, Measure(session, prompts, size));
  MOEPACK_RETURN_IF_ERROR(output.Finish(metrics));
  if (!output.takes_stdout()) PrintReport(command, session, size, metrics);
  return Status::Ok();
}

}  // namespace moepack::run
