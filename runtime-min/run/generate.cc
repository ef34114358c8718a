// moepack run generate: text from a prompt, as it comes.
#include <cstdio>

#include "runtime-min/generation.h"
#include "runtime-min/run/chat_prompt.h"
#include "runtime-min/run/metrics_output.h"
#include "runtime-min/run/session.h"

namespace moepack::run {
namespace {

namespace po = boost::program_options;

constexpr uint64_t kMaxPromptBytes = 64 << 20;

struct Generation {
  uint32_t restored = 0;  // tokens of the sequence that was loaded
  std::vector<int32_t> prompt, tokens;
  std::string text;
  runtime::StopReason stopped = runtime::StopReason::kLength;
  runtime::RunMetrics metrics;
};

// What a saved sequence has left to run, when one is loaded.
Result<std::vector<int32_t>> LoadState(const cli::Command& command, Session& session) {
  const std::string path = command.Get<std::string>("load-state");
  MOEPACK_ASSIGN_OR_RETURN(const auto file, PosixEnv().OpenRead(path));
  Result<std::vector<int32_t>> next = session.engine->RestoreSequence(runtime::kFirstSequence, *file);
  const ErrorCode code = next.status().code();
  if (code != ErrorCode::kUsage && code != ErrorCode::kLimit) return next;
  return Status(code, next.status().message() + "; give the --kv that it was saved with, and a --ctx as long");
}

// The last token was chosen and not run, unless it ended the text.
Status SaveState(const Session& session, const Generation& g, AtomicFile& file) {
  std::span<const int32_t> next = g.tokens;
  next = next.last(g.stopped == runtime::StopReason::kEndOfText || next.empty() ? 0 : 1);
  MOEPACK_RETURN_IF_ERROR(
      session.engine->SaveSequence(runtime::kFirstSequence, next, [&file](ByteSpan piece) { return file.Append(piece); }));
  return file.Commit();
}

Result<std::string> PromptText(const cli::Command& command) {
  if (command.Has("prompt") && command.Has("prompt-file")) {
    return Status(ErrorCode::kUsage, "--prompt and --prompt-file: give one of them");
  }
  std::string text;
  if (command.Has("prompt-file")) {
    MOEPACK_ASSIGN_OR_RETURN(const Bytes bytes,
                             ReadFile(PosixEnv(), command.Get<std::string>("prompt-file"), kMaxPromptBytes));
    text = AsText(bytes);
  } else {
    MOEPACK_RETURN_IF_ERROR(command.Require("prompt"));
    text = command.Get<std::string>("prompt");
  }
  if (text.empty()) return Status(ErrorCode::kUsage, "the prompt is empty");
  return text;
}

// What is to be run first. A loaded sequence goes on with what it has left and needs no prompt.
Result<std::vector<int32_t>> Prompt(const cli::Command& command, Session& session) {
  if (IsChat(command)) {
    std::string text;
    if (!command.Has("messages")) {
      MOEPACK_ASSIGN_OR_RETURN(text, PromptText(command));
    }
    MOEPACK_ASSIGN_OR_RETURN(std::vector<int32_t> chat, ChatTokens(command, *session.tokenizer, text));
    MOEPACK_RETURN_IF_ERROR(CheckLength(session, "the conversation", chat.size()));
    return chat;
  }
  std::vector<int32_t> tokens(session.tokenizer->beginning().begin(), session.tokenizer->beginning().end());
  const bool loads = command.Has("load-state");
  if (loads) {
    MOEPACK_ASSIGN_OR_RETURN(tokens, LoadState(command, session));
  }
  if (!loads || command.Has("prompt") || command.Has("prompt-file")) {
    MOEPACK_ASSIGN_OR_RETURN(const std::string text, PromptText(command));
    const std::vector<int32_t> encoded = session.tokenizer->Encode(text);
    tokens.insert(tokens.end(), encoded.begin(), encoded.end());
  }
  if (tokens.empty()) {
    return Status(ErrorCode::kUsage,
                  "--load-state: the saved text had ended; give --prompt or --prompt-file to go on from it");
  }
  MOEPACK_RETURN_IF_ERROR(
      CheckLength(session, "the prompt and what it follows", session.engine->position() + tokens.size()));
  return tokens;
}

Result<runtime::SamplerOptions> SamplerOptionsOf(const cli::Command& command) {
  runtime::SamplerOptions options;
  options.temperature = command.GetOr<float>("temperature", options.temperature);
  options.top_k = command.GetOr<uint32_t>("top-k", options.top_k);
  options.top_p = command.GetOr<float>("top-p", options.top_p);
  options.seed = command.GetOr<uint64_t>("seed", options.seed);
  MOEPACK_RETURN_IF_ERROR(runtime::ValidateSamplerOptions(options));
  return options;
}

// Every token into `out`, its text to standard output when it streams, metrics where they are asked for.
Status RunGeneration(Session& session, const runtime::SamplerOptions& sampling, uint64_t limit, bool stream,
                     MetricsOutput& metrics, Generation* out) {
  runtime::Sampler sampler(sampling);
  runtime::Recorder recorder;
  const auto measure = [&] {
    runtime::RunMetrics now;
    recorder.Fill(*session.engine, &now);
    return now;
  };
  Status written;
  const auto take = [&](int32_t token, std::string_view text) {
    out->text += text;
    if (stream) {
      std::fwrite(text.data(), 1, text.size(), stdout);
      std::fflush(stdout);
    }
    if (token == runtime::kRestOfText) return false;
    out->tokens.push_back(token);
    written = metrics.Update(measure);
    return written.ok() && std::ferror(stdout) == 0;  // nobody reads any more
  };
  MOEPACK_ASSIGN_OR_RETURN(out->stopped, runtime::Generate(*session.engine, session.tokenizer.get(), sampler,
                                                           {out->prompt, limit}, take, recorder));
  MOEPACK_RETURN_IF_ERROR(written);
  out->metrics = measure();
  return metrics.Finish(out->metrics);
}

nlohmann::json Report(const Session& session, const Generation& g) {
  nlohmann::json report = {{"text", ValidUtf8(g.text)},
                           {"tokens", g.tokens},
                           {"prompt_tokens", g.prompt},
                           {"restored_tokens", g.restored},
                           {"stopped", runtime::StopReasonName(g.stopped)},
                           {"load_ms", session.load_ms}};
  report.update(MetricsJson(g.metrics));
  return report;
}

}  // namespace

Status Generate(int argc, char** argv) {
  cli::Command command(
      {"moepack run generate",
       "Generates text from a verified bundle and streams it to standard output.",
       "(BUNDLE --trust T.json | --device ROOT) ([--chat [--system TEXT]] (--prompt TEXT | --prompt-file FILE) | "
       "--messages FILE | --load-state FILE) [-n N] "
       "[--temperature T] [--expert-ram SIZE] [--save-state FILE]",
       {"moepack run generate wren.moeb --trust trust.json --prompt 'In the beginning' -n 64",
        "moepack run generate wren.moeb --trust trust.json --prompt 'def ' --temperature 0.8 --top-p 0.95 --seed 7 "
        "--expert-ram 4MiB --json",
        "moepack run generate olmoe.moeb --trust trust.json --chat --system 'Be brief.' --prompt 'What is a wren?'",
        "moepack run generate wren.moeb --trust trust.json --prompt 'In the beginning' -n 64 --save-state story.seq",
        "moepack run generate wren.moeb --trust trust.json --load-state story.seq --prompt ' And then' -n 64"}});
  AddSessionOptions(&command);
  command.options().add_options()("prompt", po::value<std::string>(), "text to go on from")(
      "prompt-file", po::value<std::string>(), "file with the text to go on from")("n-tokens,n", po::value<uint64_t>(),
                                                                                   "most tokens to generate (default 128)")(
      "ctx", po::value<uint32_t>(),
      "longest sequence in tokens, prompt included (default: what the model allows; with LongRoPE its original context)")(
      "temperature", po::value<float>(), "0: always the most likely token (default)")(
      "top-k", po::value<uint32_t>(), "sample among the k most likely tokens (default 0: all)")(
      "top-p", po::value<float>(), "sample among the most likely tokens of this total probability (default 1: all)")(
      "seed", po::value<uint64_t>(), "seed of the sampling (default 0)")(
      "save-state", po::value<std::string>(), "file for the state of the sequence at the end, to go on from it later")(
      "load-state", po::value<std::string>(),
      "go on from a sequence that was saved with the same bundle: with the prompt, or as if it had not ended");
  AddChatOptions(&command);
  MetricsOutput::AddOptions(&command, true);
  MOEPACK_RETURN_IF_ERROR(command.Parse(argc, argv));
  if (command.help_shown()) return Status::Ok();
  MOEPACK_RETURN_IF_ERROR(CheckChatOptions(command));
  MOEPACK_ASSIGN_OR_RETURN(const runtime::SamplerOptions sampling, SamplerOptionsOf(command));
  const uint64_t limit = command.GetOr<uint64_t>("n-tokens", 128);
  if (limit == 0) return Status(ErrorCode::kUsage, "-n: expected at least 1");
  MOEPACK_ASSIGN_OR_RETURN(MetricsOutput metrics, MetricsOutput::Open(command));
  MOEPACK_ASSIGN_OR_RETURN(Session session, OpenSession(command, command.GetOr<uint32_t>("ctx", 0), false));
  MOEPACK_RETURN_IF_ERROR(RequireTokenizer(session));
  Generation generation;
  MOEPACK_ASSIGN_OR_RETURN(generation.prompt, Prompt(command, session));
  generation.restored = session.engine->position();
  std::unique_ptr<AtomicFile> state;
  if (command.Has("save-state")) {
    MOEPACK_ASSIGN_OR_RETURN(state, AtomicFile::Create(PosixEnv(), command.Get<std::string>("save-state")));
  }
  const bool stream = !command.json() && !metrics.takes_stdout();
  MOEPACK_RETURN_IF_ERROR(RunGeneration(session, sampling, limit, stream, metrics, &generation));
  if (state != nullptr) MOEPACK_RETURN_IF_ERROR(SaveState(session, generation, *state));
  if (command.json()) {
    cli::PrintJson(Report(session, generation));
  } else {
    if (stream) std::printf("\n");
    if (!command.Has("quiet")) std::fprintf(stderr, "%s\n", MetricsText(generation.metrics).c_str());
  }
  return Status::Ok();
}

}  // namespace moepack::run
