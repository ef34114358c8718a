// moepack logits: logits of a model in float32, for comparison with what a device computes.
#include <sys/resource.h>

#include <chrono>
#include <cmath>

#include "base/cli/accept_keys.h"
#include "base/divergence.h"
#include "forward/forward.h"
#include "tokenizer/tokenizer.h"

namespace moepack {
namespace {

// What is run and which rows of it are written.
struct Job {
  TokenBatch batch;
  std::optional<EvalChunks> chunks;  // absent: every row is written
};

struct Totals {
  uint64_t rows = 0;
  double nll = 0;
};

Result<Job> TextJob(const Model& model, const std::string& path, int64_t ctx_option, int64_t most_chunks) {
  const uint64_t ctx = static_cast<uint64_t>(std::max<int64_t>(ctx_option, 0));
  if (ctx < kMinEvalContext || ctx > model.program.max_positions) {
    return Status(ErrorCode::kUsage,
                  StrFormat("--ctx: expected %llu to %u, the longest sequence of this model",
                            static_cast<unsigned long long>(kMinEvalContext), model.program.max_positions));
  }
  if (most_chunks < 1) return Status(ErrorCode::kUsage, "--chunks: expected at least 1");
  if (model.tokenizer.empty()) {
    return Status(ErrorCode::kTokenizer, "the model has no tokenizer (tokenizer.json), which --data needs; use --tokens");
  }
  MOEPACK_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Parse(model.tokenizer));
  MOEPACK_ASSIGN_OR_RETURN(const Bytes text, ReadFile(PosixEnv(), path, cli::kMaxTextBytes));
  const std::vector<int32_t> tokens = tokenizer->Encode(AsText(text));
  EvalChunks chunks(tokens.size(), ctx);
  chunks.chunks = std::min(chunks.chunks, static_cast<uint64_t>(most_chunks));
  if (chunks.chunks == 0) {
    return Status(ErrorCode::kBadInput, StrFormat("%s: %zu tokens, fewer than one chunk of %llu (--ctx); give a longer text",
                                                  path.c_str(), tokens.size(), static_cast<unsigned long long>(ctx)));
  }
  MOEPACK_ASSIGN_OR_RETURN(TokenBatch batch, ChunkBatch(model.program, tokens, chunks));
  return Job{std::move(batch), chunks};
}

Result<Job> MakeJob(const cli::Command& command, const Model& model) {
  if (command.Has("inputs")) {
    MOEPACK_ASSIGN_OR_RETURN(TokenBatch rows, ReadRows(PosixEnv(), command.Get<std::string>("inputs"), model.program));
    return Job{std::move(rows), std::nullopt};
  }
  MOEPACK_RETURN_IF_ERROR(CheckTakesTokens(model.program));
  if (command.Has("data")) {
    return TextJob(model, command.Get<std::string>("data"), command.Get<int64_t>("ctx"),
                   command.GetOr<int64_t>("chunks", INT64_MAX));
  }
  MOEPACK_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, cli::ParseTokens(command.Get<std::string>("tokens")));
  return Job{{std::move(tokens), {0}}, std::nullopt};
}

// Appends the scored rows of a run of logits, and adds up how well they predict.
Status WriteRows(const Job& job, uint64_t first, const Matrix& logits, ThreadPool& pool, AtomicFile* file, Totals* totals) {
  static_assert(std::endian::native == std::endian::little, "logits are written as they lie in memory");
  std::vector<uint64_t> rows;
  for (uint64_t r = 0; r < static_cast<uint64_t>(logits.rows()); ++r) {
    if (!job.chunks || job.chunks->scored(first + r)) rows.push_back(r);
  }
  const size_t vocabulary = static_cast<size_t>(logits.cols());
  std::vector<double> nll(rows.size(), 0.0);
  pool.ParallelFor(job.chunks ? rows.size() : 0, 16, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      nll[i] = NegativeLogLikelihood({logits.row(rows[i]).data(), vocabulary}, job.batch.tokens[first + rows[i] + 1]);
    }
  });
  for (double value : nll) totals->nll += value;
  totals->rows += rows.size();
  for (uint64_t r : rows) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(logits.row(r).data());
    MOEPACK_RETURN_IF_ERROR(file->Append({bytes, vocabulary * sizeof(float)}));
  }
  return Status::Ok();
}

nlohmann::json Summary(const Job& job, const Program& program, const Totals& totals, double seconds) {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  nlohmann::json json;
  json["tokens"] = job.batch.size();
  json["rows"] = totals.rows;
  json["vocabulary"] = program.values[program.output].width;
  json["ppl"] = nullptr;
  if (job.chunks) json["ppl"] = std::exp(totals.nll / static_cast<double>(totals.rows));
  json["seconds"] = seconds;
  json["tokens_per_s"] = static_cast<double>(job.batch.size()) / seconds;
  json["peak_rss_bytes"] = static_cast<uint64_t>(usage.ru_maxrss) * 1024;
  return json;
}

Status CheckOptions(const cli::Command& command) {
  MOEPACK_RETURN_IF_ERROR(command.Require("model"));
  MOEPACK_RETURN_IF_ERROR(command.Require("output"));
  if (command.Has("tokens") + command.Has("data") + command.Has("inputs") != 1)
    return Status(ErrorCode::kUsage, "give one of --tokens, --data and --inputs");
  return command.Has("data") ? command.Require("ctx") : Status::Ok();
}

Status Run(int argc, char** argv) {
  namespace po = boost::program_options;
  cli::Command command(
      {"moepack logits",
       "Float32 logits of a model, or of a compressed folder dequantized, little endian, row after row.\n"
       "--data writes the scored half of each chunk: positions ctx/2 to ctx-2.",
       "MODEL|DIR (--tokens 1,2,3 | --data FILE --ctx N | --inputs FILE.npy) -o L.f32",
       {"moepack logits examples/wren/model --tokens 54,287,2061 -o l.f32",
        "moepack logits examples/wren/model --data examples/wren/text/mixed.eval.txt --ctx 256 -o base.f32"}});
  command.options().add_options()("tokens", po::value<std::string>(),
                                  "token ids, separated by commas; all rows are written")(
      "data", po::value<std::string>(), "text file, cut into chunks of --ctx tokens")(
      "inputs", po::value<std::string>(), "rows of numbers (.npy) for a model that takes them; all rows are written")(
      "ctx", po::value<int64_t>(), "tokens of a chunk")("chunks", po::value<int64_t>(), "at most this many chunks")(
      "output,o", po::value<std::string>(), "file to write");
  cli::AddAcceptKeyOption(&command);
  command.Positional("model");
  MOEPACK_RETURN_IF_ERROR(command.Parse(argc, argv));
  if (command.help_shown()) return Status::Ok();
  MOEPACK_RETURN_IF_ERROR(CheckOptions(command));

  MOEPACK_ASSIGN_OR_RETURN(const std::vector<std::string> accept_keys, cli::AcceptKeys(command));
  MOEPACK_ASSIGN_OR_RETURN(const Model model,
                           OpenModel(PosixEnv(), command.Get<std::string>("model"), {.accept_keys = accept_keys}));
  if (model.tensors == nullptr) return Status(ErrorCode::kBadInput, "a configuration without weights has no logits");
  MOEPACK_ASSIGN_OR_RETURN(const Job job, MakeJob(command, model));
  MOEPACK_ASSIGN_OR_RETURN(const auto file, AtomicFile::Create(PosixEnv(), command.Get<std::string>("output")));
  ThreadPool pool(command.threads());
  MOEPACK_RETURN_IF_ERROR(pool.status());
  Totals totals;
  const auto start = std::chrono::steady_clock::now();
  const auto sink = [&](uint64_t first, const Matrix& logits) {
    return WriteRows(job, first, logits, pool, file.get(), &totals);
  };
  MOEPACK_RETURN_IF_ERROR(Forward(model.program, pool).Run(*model.tensors, job.batch, sink, command.progress()));
  MOEPACK_RETURN_IF_ERROR(file->Commit());
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (command.json()) cli::PrintJson(Summary(job, model.program, totals, seconds));
  return Status::Ok();
}

}  // namespace
}  // namespace moepack

int main(int argc, char** argv) {
  return moepack::cli::Main("moepack logits", [&] { return moepack::Run(argc, argv); });
}
