#include "runtime-min/run/session.h"

#include "base/checked.h"
#include "base/digest/sha256.h"
#include "device/device.h"
#include "device/file_store.h"
#include "format/program_input.h"
#include "format/provenance/provenance.h"
#include "runtime-min/metric_list.h"
#include "verify/trust_json.h"

namespace moepack::run {
namespace {

namespace po = boost::program_options;

Result<kernels::Isa> ParseIsa(const std::string& name) {
  std::string known;
  for (kernels::Isa isa : kernels::SupportedIsas()) {
    if (name == kernels::IsaName(isa)) return isa;
    known += std::string(known.empty() ? "" : ", ") + kernels::IsaName(isa);
  }
  return Status(ErrorCode::kUsage, "--isa " + name + ": this processor has " + known);
}

// "auto", "SIZE" or "START..LIMIT".
Status ReadExpertRam(const std::string& text, runtime::EngineOptions* options) {
  if (text == "auto") {
    options->expert_ram_bytes = runtime::kAutoExperts;
    options->expert_ram_start_bytes = 0;
    return Status::Ok();
  }
  const size_t dots = text.find("..");
  if (dots != std::string::npos) {
    MOEPACK_ASSIGN_OR_RETURN(options->expert_ram_start_bytes, ParseSize(text.substr(0, dots)));
  }
  MOEPACK_ASSIGN_OR_RETURN(options->expert_ram_bytes, ParseSize(dots == std::string::npos ? text : text.substr(dots + 2)));
  if (dots != std::string::npos && options->expert_ram_start_bytes > options->expert_ram_bytes) {
    return Status(ErrorCode::kUsage, "--expert-ram " + text + ": the first size is above the second");
  }
  return Status::Ok();
}

Status ReadCacheOptions(const cli::Command& command, runtime::EngineOptions* options) {
  if (command.Has("expert-ram")) {
    MOEPACK_RETURN_IF_ERROR(ReadExpertRam(command.Get<std::string>("expert-ram"), options));
  }
  options->grow_below = command.GetOr<double>("grow-below", options->grow_below);
  if (!(options->grow_below >= 0 && options->grow_below <= 1)) {
    return Status(ErrorCode::kUsage, "--grow-below: expected a share from 0 to 1");
  }
  if (command.Has("prefetch")) options->prefetch = command.Get<uint32_t>("prefetch");
  options->prefetch_lanes = command.GetOr<uint32_t>("prefetch-lanes", options->prefetch_lanes);
  if (command.Has("cache-policy")) {
    auto policy = ParseCachePolicy(command.Get<std::string>("cache-policy"));
    if (!policy.ok()) return policy.status().With("--cache-policy");
    options->cache_policy = *policy;
  }
  return Status::Ok();
}

Result<runtime::KvFormat> KvFormatOf(const cli::Command& command) {
  const uint32_t bits = command.GetOr<uint32_t>("kv", 32);
  if (bits == 32) return runtime::KvFormat::kF32;
  if (bits == 8) return runtime::KvFormat::kI8;
  return Status(ErrorCode::kUsage, StrFormat("--kv %u: expected 32 or 8", bits));
}

// "T1,T2".
Status ReadThresholds(const std::string& text, runtime::MissPolicy* misses) {
  double first = 0, second = 0;
  int end = 0;
  if (std::sscanf(text.c_str(), "%lf,%lf%n", &first, &second, &end) != 2 || static_cast<size_t>(end) != text.size()) {
    return Status(ErrorCode::kUsage, "--miss-thresholds " + text + ": expected two numbers, such as 0.6,0.9");
  }
  misses->lower_above = first;
  misses->skip_above = second;
  const Status valid = misses->Check();
  return valid.ok() ? valid : valid.With("--miss-thresholds");
}

Status ReadMissOptions(const cli::Command& command, runtime::MissPolicy* misses) {
  if (command.Has("on-miss")) {
    const std::string action = command.Get<std::string>("on-miss");
    if (action != "load" && action != "lower" && action != "skip")
      return Status(ErrorCode::kUsage, "--on-miss " + action + ": expected load, lower or skip");
    if (action != "load") misses->on_miss = action == "lower" ? runtime::OnMiss::kLower : runtime::OnMiss::kSkip;
  }
  if (!command.Has("miss-thresholds")) return Status::Ok();
  if (misses->on_miss == runtime::OnMiss::kLoad)
    return Status(ErrorCode::kUsage, "--miss-thresholds needs --on-miss lower or skip");
  return ReadThresholds(command.Get<std::string>("miss-thresholds"), misses);
}

// Logits of a whole tile are large where the vocabulary is: then tiles are smaller.
constexpr uint32_t kTileOfAllLogits = 128;

Result<runtime::EngineOptions> EngineOptionsOf(const cli::Command& command, bool all_logits) {
  runtime::EngineOptions options;
  if (all_logits) options.tile_tokens = kTileOfAllLogits;
  MOEPACK_RETURN_IF_ERROR(ReadCacheOptions(command, &options));
  if (command.Has("isa")) {
    MOEPACK_ASSIGN_OR_RETURN(options.isa, ParseIsa(command.Get<std::string>("isa")));
  }
  options.tile_tokens = command.GetOr<uint32_t>("tile", options.tile_tokens);
  options.sequences = command.GetOr<uint32_t>("sequences", options.sequences);  // of run bench
  MOEPACK_ASSIGN_OR_RETURN(options.kv, KvFormatOf(command));
  options.router_input_bits = command.GetOr<uint32_t>("router-inputs", options.router_input_bits);
  MOEPACK_RETURN_IF_ERROR(ReadMissOptions(command, &options.misses));
  options.notice = [](const std::string& message) { std::fprintf(stderr, "moepack run: %s\n", message.c_str()); };
  return options;
}

// Of the texts that calibrated the bundle, as its provenance says; none when it says nothing that can be read.
std::vector<std::string> CalibrationDigests(ByteSpan provenance) {
  std::vector<std::string> digests;
  const Result<RecordedBuild> build = ParseProvenance(provenance);
  if (!build.ok()) return digests;
  for (const NamedDigest& text : build->record.calibration) digests.push_back(text.sha256);
  return digests;
}

std::string Number(const std::optional<double>& value, int decimals, const char* unit, double factor = 1) {
  return value.has_value() ? StrFormat("%.*f%s", decimals, *value * factor, unit) : "-";
}

Result<std::unique_ptr<verify::VerifiedBundle>> OpenBundle(const cli::Command& command) {
  if (command.Has("device")) {
    for (const char* name : {"BUNDLE", "trust"}) {
      if (command.Has(name)) return Status(ErrorCode::kUsage, "give --device, or BUNDLE and --trust");
    }
    const std::string root = command.Get<std::string>("device");
    MOEPACK_ASSIGN_OR_RETURN(verify::FileRollbackStore store, device::OpenFileStore(PosixEnv(), root));
    MOEPACK_ASSIGN_OR_RETURN(const auto opened, device::Device::Open(PosixEnv(), root, store));
    return opened->OpenCurrent();
  }
  for (const char* name : {"BUNDLE", "trust"}) MOEPACK_RETURN_IF_ERROR(command.Require(name));
  MOEPACK_ASSIGN_OR_RETURN(const verify::TrustPolicy policy,
                           verify::ReadTrust(PosixEnv(), command.Get<std::string>("trust")));
  MOEPACK_ASSIGN_OR_RETURN(auto file, PosixEnv().OpenRead(command.Get<std::string>("BUNDLE")));
  return verify::VerifiedBundle::Open(std::move(file), policy);
}

// ", 12.5% loaded ahead (40 too late, 7 in vain)": of the experts that routers chose; empty without prefetching.
std::string PrefetchText(const runtime::RunMetrics& m) {
  if (m.prefetch_depth.value_or(0) == 0) return "";
  const uint64_t in_time = m.experts_prefetched.value_or(0);
  const uint64_t lookups = m.expert_hits.value_or(0) + in_time + m.expert_misses.value_or(0);
  return StrFormat(", %.1f%% loaded ahead (%llu too late, %llu in vain)",
                   lookups == 0 ? 0 : 100 * static_cast<double>(in_time) / static_cast<double>(lookups),
                   static_cast<unsigned long long>(m.experts_prefetched_late.value_or(0)),
                   static_cast<unsigned long long>(m.prefetches_wasted.value_or(0)));
}

}  // namespace

void AddSessionOptions(cli::Command* command) {
  command->Positional("BUNDLE");
  command->options().add_options()("trust", po::value<std::string>(), "trust file (T.json) or trust anchor")(
      "device", po::value<std::string>(),
      "run the bundle in use of this folder (moepack device), without BUNDLE and --trust")(
      "expert-ram", po::value<std::string>(),
      "most memory for experts, e.g. 8MiB; 4MiB..8MiB: grows from the first to the second when experts have to be loaded "
      "too "
      "often; auto: grows to what memory is free (default: all of them)")(
      "grow-below", po::value<double>(), "grow when fewer than this share of lookups find their expert (default 0.9)")(
      "cache-policy", po::value<std::string>(),
      "which expert makes room instead of what the bundle says: lru, lfu, hobbit, or in full \"hobbit recency 10 frequency "
      "80 "
      "nearness 10 half-life 64 pinned 25\"")(
      "prefetch", po::value<uint32_t>(),
      "layers ahead to predict experts for and load them, 0 to 4; 0: off (default: 2; 0 when all experts fit, or no thread "
      "would ever wait)")("prefetch-lanes", po::value<uint32_t>(),
                          "threads that load them, beside --threads (default 0: those that wait for others to load)")(
      "on-miss", po::value<std::string>(),
      "an expert that is not resident when the router has decided: load (default), lower (its lower precision where it "
      "matters less) or skip (also leave it out where it matters least); lower and skip change results")(
      "miss-thresholds", po::value<std::string>(),
      "shares of a token's gate weight, before an expert in order of weight, above which it is lowered and skipped (default "
      "0.6,0.9)")("tile", po::value<uint32_t>(),
                  "tokens computed at once in prefill (default 256, 128 where all logits are wanted)")(
      "kv", po::value<uint32_t>(),
      "bits of the keys and values of a sequence: 32 (default), or 8 for about a quarter of the memory")(
      "router-inputs", po::value<uint32_t>(),
      "bits of what goes into quantized routers: 15 (default), as into every matrix of integers, or 8, which changes "
      "results")("isa", po::value<std::string>(), "kernels to use instead of the best: scalar, avx2, avx512-vnni, neon-dot");
}

namespace {

// kUsage when the bundle's model takes something else than the verb has: rows of numbers or tokens.
Status CheckInput(const Program& program, bool rows) {
  if (rows == (InputWidth(program) > 0)) return Status::Ok();
  if (rows)
    return Status(ErrorCode::kUsage, "the model takes tokens, not rows of numbers: moepack run generate, logits or eval");
  return Status(ErrorCode::kUsage,
                StrFormat("the model takes rows of %llu numbers, not text or tokens: moepack run classify",
                          static_cast<unsigned long long>(InputWidth(program))));
}

Result<Session> OpenWith(const cli::Command& command, const runtime::EngineOptions& options, bool rows) {
  const double start = runtime::MonotonicMs();
  MOEPACK_ASSIGN_OR_RETURN(auto bundle, OpenBundle(command));
  MOEPACK_RETURN_IF_ERROR(CheckInput(bundle->program(), rows));
  Session session;
  session.pool = std::make_unique<ThreadPool>(command.threads());
  MOEPACK_RETURN_IF_ERROR(session.pool->status());
  if (!bundle->tokenizer_blob().empty()) {
    MOEPACK_ASSIGN_OR_RETURN(session.tokenizer, Tokenizer::Parse(bundle->tokenizer_blob()));
  }
  session.calibration_digests = CalibrationDigests(bundle->provenance_blob());
  MOEPACK_ASSIGN_OR_RETURN(session.engine, runtime::Engine::Create(std::move(bundle), *session.pool, options));
  session.load_ms = runtime::MonotonicMs() - start;
  return session;
}

}  // namespace

Result<Session> OpenSession(const cli::Command& command, uint32_t context, bool all_logits, uint32_t expected_tokens) {
  MOEPACK_ASSIGN_OR_RETURN(runtime::EngineOptions options, EngineOptionsOf(command, all_logits));
  options.context = context;
  options.expected_tokens = expected_tokens;
  if (all_logits) options.logit_rows = options.tile_tokens;
  return OpenWith(command, options, false);
}

Result<Session> OpenRowSession(const cli::Command& command) {
  MOEPACK_ASSIGN_OR_RETURN(const runtime::EngineOptions options, EngineOptionsOf(command, false));
  return OpenWith(command, options, true);
}

Result<bool> CalibratedOn(const Session& session, const std::string& path) {
  MOEPACK_ASSIGN_OR_RETURN(const Digest digest, Sha256File(PosixEnv(), path));
  return std::find(session.calibration_digests.begin(), session.calibration_digests.end(), ToHex(digest)) !=
         session.calibration_digests.end();
}

Status RequireTokenizer(const Session& session) {
  if (session.tokenizer != nullptr) return Status::Ok();
  return Status(ErrorCode::kTokenizer,
                "the bundle holds no tokenizer, so it takes token ids only: moepack run logits --tokens");
}

Result<std::vector<int32_t>> TokenizeFile(const Session& session, const std::string& path) {
  MOEPACK_RETURN_IF_ERROR(RequireTokenizer(session));
  MOEPACK_ASSIGN_OR_RETURN(const Bytes text, ReadFile(PosixEnv(), path, cli::kMaxTextBytes));
  std::vector<int32_t> tokens = session.tokenizer->Encode(AsText(text));
  MOEPACK_RETURN_IF_ERROR(CheckTargets(tokens, session.engine->vocab_size()));
  return tokens;
}

Status CheckLength(const Session& session, const char* what, size_t tokens) {
  if (tokens <= session.engine->context()) return Status::Ok();
  return Status(ErrorCode::kLimit, StrFormat("%s: %zu tokens, a sequence holds at most %u (--ctx, or what the model takes); "
                                             "give fewer",
                                             what, tokens, session.engine->context()));
}

void AddChunkOptions(cli::Command* command) {
  command->options().add_options()("ctx", po::value<uint32_t>(), "tokens of a chunk (with --data)")(
      "chunks", po::value<uint64_t>(), "at most this many chunks (default: all)");
}

Result<EvalChunks> ChunksOf(const cli::Command& command, uint64_t tokens) {
  const uint32_t ctx = command.Get<uint32_t>("ctx");
  if (ctx < kMinEvalContext) {
    return Status(ErrorCode::kUsage,
                  StrFormat("--ctx: expected at least %llu", static_cast<unsigned long long>(kMinEvalContext)));
  }
  const uint64_t most = command.GetOr<uint64_t>("chunks", UINT64_MAX);
  if (most == 0) return Status(ErrorCode::kUsage, "--chunks: expected at least 1");
  EvalChunks chunks(tokens, ctx);
  chunks.chunks = std::min(chunks.chunks, most);
  if (chunks.chunks > 0) return chunks;
  return Status(ErrorCode::kUsage, StrFormat("--data: %llu tokens do not fill one chunk of %u tokens",
                                             static_cast<unsigned long long>(tokens), ctx));
}

Result<BaseRows> BaseRows::Open(const std::string& path, uint64_t rows, uint64_t vocab, const char* made_with) {
  BaseRows base;
  base.vocab_ = vocab;
  MOEPACK_ASSIGN_OR_RETURN(base.file_, PosixEnv().OpenRead(path));
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t size, base.file_->Size());
  const CheckedU64 expected = CheckedU64(rows) * CheckedU64(vocab) * CheckedU64(sizeof(float));
  if (expected.valid() && size == expected.value()) return base;
  return Status(
      ErrorCode::kBadInput,
      StrFormat("%s: %llu bytes, expected %llu for %llu rows of %llu logits; make it with moepack logits and the "
                "same %s",
                path.c_str(), static_cast<unsigned long long>(size), static_cast<unsigned long long>(expected.value()),
                static_cast<unsigned long long>(rows), static_cast<unsigned long long>(vocab), made_with));
}

Status BaseRows::Next(uint64_t count, std::vector<float>* rows) {
  rows->resize(count * vocab_);
  const uint64_t bytes = rows->size() * sizeof(float);
  MOEPACK_RETURN_IF_ERROR(file_->Read(offset_, {reinterpret_cast<uint8_t*>(rows->data()), bytes}));
  offset_ += bytes;
  return Status::Ok();
}

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

nlohmann::json MetricsJson(const runtime::RunMetrics& metrics) {
  nlohmann::json object;
  for (const runtime::Metric& metric : runtime::MetricList()) {
    std::visit(
        [&](const auto& value) {
          if constexpr (std::is_same_v<std::decay_t<decltype(value)>, std::monostate>) {
            object[metric.key] = nullptr;
          } else {
            object[metric.key] = value;
          }
        },
        metric.value(metrics));
  }
  return object;
}

// How often something took the place of an expert that could not be read; empty when nothing did.
std::string BridgedText(const runtime::RunMetrics& m) {
  uint64_t bridged = 0;
  for (const std::optional<uint64_t>& step : {m.experts_bridged_retry, m.experts_bridged_lower, m.experts_bridged_twin,
                                              m.experts_bridged_renormalise, m.experts_bridged_dense})
    bridged += step.value_or(0);
  return bridged == 0 ? "" : ", " + std::to_string(bridged) + " bridged";
}

std::string MetricsText(const runtime::RunMetrics& m) {
  std::string text = "first token " + Number(m.ttft_ms, 1, " ms") + ", prefill " +
                     Number(m.prefill_tokens_per_s, 0, " tokens/s") + ", decode " +
                     Number(m.decode_tokens_per_s, 0, " tokens/s") + " (a token: median " + Number(m.p50_ms, 2, "") +
                     ", 95% " + Number(m.p95_ms, 2, "") + ", 99% " + Number(m.p99_ms, 2, " ms") + ")\n";
  text += "expert cache: " + Number(m.hit_rate, 1, "% hits", 100) + PrefetchText(m) + ", " +
          std::to_string(m.expert_loads.value_or(0)) + " loads, " + FormatBytes(m.expert_bytes_read.value_or(0)) + " read" +
          BridgedText(m) + "; peak memory " + FormatBytes(m.peak_rss_bytes.value_or(0)) +
          (m.verified ? "; verified" : "; NOT verified");
  return text;
}

std::string ValidUtf8(const std::string& text) {
  const std::string quoted = nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  return nlohmann::json::parse(quoted).get<std::string>();
}

}  // namespace moepack::run
