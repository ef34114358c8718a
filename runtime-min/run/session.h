// What the verbs of moepack run share: options, opening a bundle, JSON of metrics.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "base/cli/cli.h"
#include "base/divergence.h"
#include "base/thread_pool.h"
#include "runtime-min/engine.h"
#include "runtime-min/metrics.h"
#include "runtime-min/sampler.h"
#include "tokenizer/tokenizer.h"

namespace moepack::run {

// The verbs: argv[0] is the verb. Each parses its own options.
Status Generate(int argc, char** argv);
Status Logits(int argc, char** argv);
Status Bench(int argc, char** argv);
Status Eval(int argc, char** argv);

// BUNDLE and the options that every verb takes: where the bundle comes from, memory, prefetching, kernels.
void AddSessionOptions(cli::Command* command);

// A verified bundle ready to run.
struct Session {
  std::unique_ptr<ThreadPool> pool;
  std::unique_ptr<Tokenizer> tokenizer;  // null when the bundle has none
  std::unique_ptr<runtime::Engine> engine;
  // SHA-256, in hex, of every text that calibrated the bundle, as its signed provenance says; empty when it says none.
  std::vector<std::string> calibration_digests;
  double load_ms = 0;  // to verify the manifest and load what is resident from the start
};

// context: 0 for what the program allows; all_logits: logits of every token of a tile may be asked for.
Result<Session> OpenSession(const cli::Command& command, uint32_t context, bool all_logits, uint32_t expected_tokens = 0);

// kTokenizer when the bundle has none.
Status RequireTokenizer(const Session& session);

// Tokens of a whole text file, each with a logit of its own: kTokenizer otherwise.
Result<std::vector<int32_t>> TokenizeFile(const Session& session, const std::string& path);
// kLimit when `tokens` tokens of `what` are more than the context.
Status CheckLength(const Session& session, const char* what, size_t tokens);

// --ctx and --chunks.
void AddChunkOptions(cli::Command* command);

// How --ctx and --chunks cut `tokens` tokens into chunks. kUsage when one is too small or there is no whole chunk.
Result<EvalChunks> ChunksOf(const cli::Command& command, uint64_t tokens);

// Runs chunk `c` of `tokens` as a sequence of its own and calls row_sink(first, count) for tiles of scored rows in order:
// engine->logits() then holds the rows of tokens first .. first + count - 1.
template <typename RowSink>
Status ForEachScoredTile(Session& session, const std::vector<int32_t>& tokens, const EvalChunks& chunks, uint64_t c,
                         const RowSink& row_sink) {
  runtime::Engine& engine = *session.engine;
  engine.Reset();
  const uint64_t first_scored = chunks.token(c, 0), end = first_scored + chunks.rows();
  for (uint64_t at = c * chunks.ctx; at < end;) {
    const uint64_t count = std::min<uint64_t>(engine.tile_tokens(), end - at);
    const uint64_t scored = at + count > first_scored ? std::min(count, at + count - first_scored) : 0;
    MOEPACK_RETURN_IF_ERROR(engine.Run(std::span(tokens).subspan(at, count), static_cast<uint32_t>(scored)));
    at += count;
    if (scored > 0) MOEPACK_RETURN_IF_ERROR(row_sink(at - scored, scored));
  }
  return Status::Ok();
}

nlohmann::json MetricsJson(const runtime::RunMetrics& metrics);
// The metrics in two lines for people.
std::string MetricsText(const runtime::RunMetrics& metrics);

// Bytes that are not UTF-8 become U+FFFD, so that they can stand in JSON.
std::string ValidUtf8(const std::string& text);

}  // namespace moepack::run
