// Decoding with few experts in memory: the tokens of a profile, one at a time, through its bundle. One JSON object: how
// routers found experts, beside Belady's MIN on the profile's traces; time of a token; and what reading, digest and
// decompression of experts reach here on one thread.
//
//   moepack-expert-bench BUNDLE TRUST PROFILE TOKENS SHARE PREFETCH [LANES]     SHARE: of all experts' resident bytes
//
// The profile is of the folder that was packed (moepack calibrate FOLDER), so that its traces are the bundle's.

#include <algorithm>
#include <cstdlib>

#include "base/cli/cli.h"
#include "base/digest/sha256.h"
#include "compressor/cache_simulation.h"
#include "model/profile.h"
#include "runtime-min/engine.h"
#include "runtime-min/metrics.h"
#include "tests/bench/decompress.h"
#include "verify/trust_json.h"

namespace moepack {
namespace {

constexpr int kThreads = 2;

struct Rates {
  double stored_bytes = 0, read_ms = 0, hash_ms = 0, decompress_ms = 0;
  double PerSecond(double ms) const { return stored_bytes * 1e3 / ms; }
};

// Every chunk of every expert once, on this thread.
Status MeasureOnce(const verify::VerifiedBundle& bundle, const RandomAccessFile& file, Rates* rates) {
  Bytes stored(kMaxChunkPlainBytes), plain(kMaxChunkPlainBytes);
  for (const ExpertTable& table : bundle.experts()) {
    for (const Unit& unit : table.units) {
      for (const ChunkRef& chunk : unit.chunks) {
        const std::span<uint8_t> bytes = std::span(stored).first(chunk.stored_bytes);
        const double start = runtime::MonotonicMs();
        MOEPACK_RETURN_IF_ERROR(file.Read(chunk.offset, bytes));
        const double read = runtime::MonotonicMs();
        if (Sha256(bytes) != chunk.stored_digest) return Status(ErrorCode::kDigest, "a chunk is damaged");
        const double hashed = runtime::MonotonicMs();
        MOEPACK_RETURN_IF_ERROR(bench::Decompress(chunk, bytes, std::span(plain).first(chunk.plain_bytes)));
        rates->stored_bytes += static_cast<double>(chunk.stored_bytes);
        rates->read_ms += read - start;
        rates->hash_ms += hashed - read;
        rates->decompress_ms += runtime::MonotonicMs() - hashed;
      }
    }
  }
  return Status::Ok();
}

// The fastest of five rounds.
Result<Rates> MeasureRates(const verify::VerifiedBundle& bundle, const RandomAccessFile& file) {
  Rates best;
  for (int i = 0; i < 5; ++i) {
    Rates rates;
    MOEPACK_RETURN_IF_ERROR(MeasureOnce(bundle, file, &rates));
    if (i == 0) best = rates;
    best.read_ms = std::min(best.read_ms, rates.read_ms);
    best.hash_ms = std::min(best.hash_ms, rates.hash_ms);
    best.decompress_ms = std::min(best.decompress_ms, rates.decompress_ms);
  }
  return best;
}

CacheTrace TraceOf(const Profile& profile, const runtime::Engine& engine, uint64_t tokens) {
  CacheTrace trace;
  for (uint32_t t = 0; t < profile.tables.size(); ++t) {
    const TableProfile& table = profile.tables[t];
    CacheTrace::Table out{
        table.k, {table.trace.begin(), table.trace.begin() + static_cast<ptrdiff_t>(tokens * table.k)}, {}};
    out.bytes.assign(table.experts, engine.experts().mean_bytes(t));
    trace.tables.push_back(std::move(out));
  }
  return trace;
}

// Milliseconds of each token.
Result<std::vector<double>> RunTokens(const Profile& profile, runtime::Engine& engine, uint64_t tokens) {
  std::vector<double> ms;
  for (uint64_t t = 0, sequence = 0; t < tokens; ++t) {
    if (sequence < profile.sequence_start.size() && profile.sequence_start[sequence] == t) {
      engine.Reset();
      ++sequence;
    }
    const double start = runtime::MonotonicMs();
    MOEPACK_RETURN_IF_ERROR(engine.Run({&profile.tokens[t], 1}));
    ms.push_back(runtime::MonotonicMs() - start);
  }
  return ms;
}

Result<std::unique_ptr<runtime::Engine>> MakeEngine(char** argv, double share, const char* lanes, ThreadPool& pool) {
  MOEPACK_ASSIGN_OR_RETURN(const verify::TrustPolicy policy, verify::ReadTrust(PosixEnv(), argv[2]));
  const auto open = [&](const runtime::EngineOptions& options) -> Result<std::unique_ptr<runtime::Engine>> {
    MOEPACK_ASSIGN_OR_RETURN(auto file, PosixEnv().OpenRead(argv[1]));
    MOEPACK_ASSIGN_OR_RETURN(auto bundle, verify::VerifiedBundle::Open(std::move(file), policy));
    return runtime::Engine::Create(std::move(bundle), pool, options);
  };
  runtime::EngineOptions options;
  options.prefetch = 0;
  MOEPACK_ASSIGN_OR_RETURN(const auto probe, open(options));
  const double all = static_cast<double>(probe->experts().all_bytes());
  options.expert_ram_bytes = static_cast<uint64_t>(share * all);
  if (share < 1) options.prefetch = static_cast<uint32_t>(std::atoi(argv[6]));
  if (*options.prefetch > 0) options.prefetch_lanes = static_cast<uint32_t>(std::atoi(lanes));
  return open(options);
}

Status Run(int argc, char** argv) {
  if (argc != 7 && argc != 8)
    return Status(ErrorCode::kUsage, "expected BUNDLE TRUST PROFILE TOKENS SHARE PREFETCH [LANES]");
  MOEPACK_ASSIGN_OR_RETURN(const Profile profile, ReadProfile(PosixEnv(), argv[3]));
  const uint64_t tokens = std::min<uint64_t>(std::strtoull(argv[4], nullptr, 10), profile.tokens.size());
  MOEPACK_ASSIGN_OR_RETURN(const verify::TrustPolicy policy, verify::ReadTrust(PosixEnv(), argv[2]));
  MOEPACK_ASSIGN_OR_RETURN(auto file, PosixEnv().OpenRead(argv[1]));
  MOEPACK_ASSIGN_OR_RETURN(const auto again, PosixEnv().OpenRead(argv[1]));
  MOEPACK_ASSIGN_OR_RETURN(const auto bundle, verify::VerifiedBundle::Open(std::move(file), policy));
  MOEPACK_RETURN_IF_ERROR(CheckProfileFits(profile, bundle->program()));
  ThreadPool pool(kThreads);
  MOEPACK_ASSIGN_OR_RETURN(const auto engine, MakeEngine(argv, std::atof(argv[5]), argc > 7 ? argv[7] : "0", pool));
  const uint64_t preloaded = engine->experts().stats().bytes_read;
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<double> ms, RunTokens(profile, *engine, tokens));
  runtime::RunMetrics metrics;
  SummarizeDecode(ms, &metrics);
  FillFromEngine(*engine, &metrics);
  const CacheTrace trace = TraceOf(profile, *engine, tokens);
  MOEPACK_ASSIGN_OR_RETURN(const Rates rates, MeasureRates(*bundle, *again));
  const uint64_t lookups = *metrics.expert_hits + *metrics.experts_prefetched + *metrics.expert_misses;
  cli::PrintJson({{"tokens", ms.size()},
                  {"ms_a_token", *metrics.decode_ms / static_cast<double>(ms.size())},
                  {"p50_ms", *metrics.p50_ms},
                  {"lookups", lookups},
                  {"hits", *metrics.expert_hits},
                  {"prefetched", *metrics.experts_prefetched},
                  {"misses", *metrics.expert_misses},
                  {"late", *metrics.experts_prefetched_late},
                  {"foreseen", *metrics.experts_foreseen},
                  {"prefetches", *metrics.prefetches},
                  {"wasted", *metrics.prefetches_wasted},
                  {"bytes_read", *metrics.expert_bytes_read - preloaded},
                  {"cache_policy", *metrics.cache_policy},
                  {"budget_bytes", *metrics.expert_budget_bytes},
                  {"belady", SimulateBelady(trace, *metrics.expert_budget_bytes).hit_rate()},
                  {"simulated", SimulateCache(trace, engine->experts().policy(), *metrics.expert_budget_bytes).hit_rate()},
                  {"read_bytes_per_s", rates.PerSecond(rates.read_ms)},
                  {"hash_bytes_per_s", rates.PerSecond(rates.hash_ms)},
                  {"decompress_bytes_per_s", rates.PerSecond(rates.decompress_ms)}});
  return Status::Ok();
}

}  // namespace
}  // namespace moepack

int main(int argc, char** argv) {
  return moepack::cli::Main("moepack-expert-bench", [&] { return moepack::Run(argc, argv); });
}
