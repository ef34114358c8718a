// From a bundle's file to the first token, in a process of its own: with the runtime as it is, or with weights that nobody
// hashes. No program of moepack can do the latter, so the reader that skips it is here, with what tests mint verified bytes
// by.
//
//     first_token BUNDLE TRUST checked|unchecked TOKEN,...    prints wall and processor milliseconds and the token
#include <sys/resource.h>

#include <algorithm>
#include <cstdio>

#include "base/cli/cli.h"
#include "runtime-min/engine.h"
#include "runtime-min/metrics.h"
#include "runtime-min/sampler.h"
#include "runtime-min/testing/fake_source.h"
#include "runtime-min/unit_source.h"
#include "tests/bench/decompress.h"
#include "verify/trust_json.h"

namespace moepack {
namespace {

// The bundle's own tables, which are verified; chunks as they stand in the file.
class UncheckedSource final : public runtime::UnitSource {
 public:
  UncheckedSource(std::unique_ptr<verify::VerifiedBundle> bundle, std::unique_ptr<RandomAccessFile> file)
      : bundle_(std::move(bundle)), file_(std::move(file)) {}
  const Program& program() const override { return bundle_->program(); }
  const DenseTable& dense() const override { return bundle_->dense(); }
  const std::vector<ExpertTable>& experts() const override { return bundle_->experts(); }
  const std::vector<Unavailable>& unavailable() const override { return bundle_->manifest().unavailable; }
  const HotList& hot_list() const override { return bundle_->hot_list(); }
  const DigestBytes& manifest_digest() const override { return bundle_->manifest_digest(); }
  Result<PlainUnit> ReadDense(size_t unit) override { return Read(dense().units[unit]); }
  Result<PlainUnit> ReadExpert(uint32_t table, uint32_t physical) override { return Read(experts()[table].units[physical]); }
  // Whole, by whoever joins it: there are more experts than threads.
  Status ReadExpertChunk(uint32_t, uint32_t, size_t, runtime::UnitParts*) override { return Status::Ok(); }
  Result<PlainUnit> JoinExpert(uint32_t table, uint32_t physical, runtime::UnitParts*) override {
    return ReadExpert(table, physical);
  }

 private:
  Result<PlainUnit> Read(const Unit& unit) const {
    Bytes plain;
    uint64_t plain_bytes = 0;
    for (const ChunkRef& chunk : unit.chunks) plain_bytes += chunk.plain_bytes;
    plain.reserve(plain_bytes);
    for (const ChunkRef& chunk : unit.chunks) {
      Bytes stored(chunk.stored_bytes);
      MOEPACK_RETURN_IF_ERROR(file_->Read(chunk.offset, stored));
      const size_t at = plain.size();
      plain.resize(at + chunk.plain_bytes);
      MOEPACK_RETURN_IF_ERROR(bench::Decompress(chunk, stored, std::span(plain).subspan(at)));
    }
    return testing::VerifiedPeer::Plain(std::move(plain));
  }

  std::unique_ptr<verify::VerifiedBundle> bundle_;
  std::unique_ptr<RandomAccessFile> file_;
};

double ProcessorMs() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto ms = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) * 1e3 + static_cast<double>(t.tv_usec) / 1e3;
  };
  return ms(usage.ru_utime) + ms(usage.ru_stime);
}

Result<std::unique_ptr<runtime::Engine>> Open(const std::string& path, const std::string& trust, bool checked,
                                              ThreadPool& pool) {
  MOEPACK_ASSIGN_OR_RETURN(const verify::TrustPolicy policy, verify::ReadTrust(PosixEnv(), trust));
  MOEPACK_ASSIGN_OR_RETURN(auto file, PosixEnv().OpenRead(path));
  MOEPACK_ASSIGN_OR_RETURN(auto bundle, verify::VerifiedBundle::Open(std::move(file), policy));
  runtime::EngineOptions options;
  options.expected_tokens = 64;
  if (checked) return runtime::Engine::Create(std::move(bundle), pool, options);
  MOEPACK_ASSIGN_OR_RETURN(auto again, PosixEnv().OpenRead(path));
  std::unique_ptr<runtime::UnitSource> source = std::make_unique<UncheckedSource>(std::move(bundle), std::move(again));
  return runtime::Engine::Create(std::move(source), pool, options);
}

Status Run(int argc, char** argv) {
  if (argc != 5) return Status(ErrorCode::kUsage, "expected BUNDLE TRUST checked|unchecked TOKEN,...");
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, cli::ParseTokens(argv[4]));
  ThreadPool pool(0);
  const double start = runtime::MonotonicMs();
  MOEPACK_ASSIGN_OR_RETURN(const auto engine, Open(argv[1], argv[2], std::strcmp(argv[3], "unchecked") != 0, pool));
  MOEPACK_RETURN_IF_ERROR(engine->Prefill(tokens));
  const int32_t token = runtime::Argmax(engine->logits());
  cli::PrintJson({{"wall_ms", runtime::MonotonicMs() - start}, {"processor_ms", ProcessorMs()}, {"token", token}});
  return Status::Ok();
}

}  // namespace
}  // namespace moepack

int main(int argc, char** argv) {
  return moepack::cli::Main("first_token", [&] { return moepack::Run(argc, argv); });
}
