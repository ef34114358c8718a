// Which experts the routers of a bundle choose for the tokens of a text, as the device runtime computes their logits. Two
// bundles' outputs side by side tell how often they choose alike (quantized_router.py).
//
//     router_choices BUNDLE TRUST TEXT CTX CHUNKS BITS
//
// BITS: of the routers' inputs, 15 or 8. Prints a line a token and expert table: the experts of the k largest logits.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "base/cli/cli.h"
#include "runtime-min/engine.h"
#include "runtime-min/unit_source.h"
#include "tokenizer/tokenizer.h"
#include "verify/trust_json.h"

namespace moepack {
namespace {

constexpr uint32_t kTile = 128;

// A bundle whose program gives the logits of one router.
class RouterSource final : public runtime::UnitSource {
 public:
  RouterSource(std::unique_ptr<verify::VerifiedBundle> bundle, ValueId output)
      : program_(bundle->program()), source_(std::move(bundle)) {
    program_.output = output;
  }
  const Program& program() const override { return program_; }
  const DenseTable& dense() const override { return source_.dense(); }
  const std::vector<ExpertTable>& experts() const override { return source_.experts(); }
  const HotList& hot_list() const override { return source_.hot_list(); }
  const std::vector<Unavailable>& unavailable() const override { return source_.unavailable(); }
  const DigestBytes& manifest_digest() const override { return source_.manifest_digest(); }
  Result<PlainUnit> ReadDense(size_t unit) override { return source_.ReadDense(unit); }
  Result<PlainUnit> ReadExpert(uint32_t table, uint32_t physical) override { return source_.ReadExpert(table, physical); }
  Status ReadExpertChunk(uint32_t table, uint32_t physical, size_t chunk, runtime::UnitParts* parts) override {
    return source_.ReadExpertChunk(table, physical, chunk, parts);
  }
  Result<PlainUnit> JoinExpert(uint32_t table, uint32_t physical, runtime::UnitParts* parts) override {
    return source_.JoinExpert(table, physical, parts);
  }

 private:
  Program program_;
  runtime::BundleSource source_;
};

Result<std::unique_ptr<verify::VerifiedBundle>> Open(char** argv) {
  MOEPACK_ASSIGN_OR_RETURN(const verify::TrustPolicy policy, verify::ReadTrust(PosixEnv(), argv[2]));
  MOEPACK_ASSIGN_OR_RETURN(auto file, PosixEnv().OpenRead(argv[1]));
  return verify::VerifiedBundle::Open(std::move(file), policy);
}

void PrintChoices(uint32_t table, uint64_t token, std::span<const float> logits, uint32_t k) {
  std::vector<uint32_t> order(logits.size());
  for (size_t e = 0; e < order.size(); ++e) order[e] = static_cast<uint32_t>(e);
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return logits[a] > logits[b]; });
  std::printf("%u %llu", table, static_cast<unsigned long long>(token));
  for (uint32_t i = 0; i < k; ++i) std::printf(" %u", order[i]);
  std::printf("\n");
}

Status PrintTable(char** argv, const Node& node, const std::vector<int32_t>& tokens, uint64_t ctx, uint64_t chunks,
                  ThreadPool& pool) {
  MOEPACK_ASSIGN_OR_RETURN(auto bundle, Open(argv));
  runtime::EngineOptions options;
  options.tile_tokens = options.logit_rows = kTile;
  options.context = static_cast<uint32_t>(ctx);
  options.router_input_bits = static_cast<uint32_t>(std::strtoul(argv[6], nullptr, 10));
  MOEPACK_ASSIGN_OR_RETURN(
      const auto engine,
      runtime::Engine::Create(std::make_unique<RouterSource>(std::move(bundle), node.inputs[1]), pool, options));
  for (uint64_t begin = 0; begin + ctx <= tokens.size() && begin < chunks * ctx; begin += ctx) {
    engine->Reset();
    for (uint64_t at = begin; at < begin + ctx;) {
      const uint64_t count = std::min<uint64_t>(engine->tile_tokens(), begin + ctx - at);
      MOEPACK_RETURN_IF_ERROR(engine->Run(std::span(tokens).subspan(at, count), static_cast<uint32_t>(count)));
      const uint64_t experts = engine->vocab_size();
      for (uint64_t i = 0; i < count; ++i)
        PrintChoices(node.moe.table, at + i, engine->logits().subspan(i * experts, experts), node.moe.routing.k);
      at += count;
    }
  }
  return Status::Ok();
}

Status Run(int argc, char** argv) {
  if (argc != 7) return Status(ErrorCode::kUsage, "expected BUNDLE TRUST TEXT CTX CHUNKS BITS");
  ThreadPool pool(0);
  MOEPACK_ASSIGN_OR_RETURN(const auto bundle, Open(argv));
  MOEPACK_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Parse(bundle->tokenizer_blob()));
  MOEPACK_ASSIGN_OR_RETURN(const Bytes text, ReadFile(PosixEnv(), argv[3], cli::kMaxTextBytes));
  const std::vector<int32_t> tokens = tokenizer->Encode(AsText(text));
  const uint64_t ctx = std::strtoull(argv[4], nullptr, 10), chunks = std::strtoull(argv[5], nullptr, 10);
  if (ctx == 0) return Status(ErrorCode::kUsage, "CTX: expected at least 1");
  for (const Node& node : bundle->program().nodes) {
    if (node.kind == NodeKind::kMoe) MOEPACK_RETURN_IF_ERROR(PrintTable(argv, node, tokens, ctx, chunks, pool));
  }
  return Status::Ok();
}

}  // namespace
}  // namespace moepack

int main(int argc, char** argv) {
  return moepack::cli::Main("router_choices", [&] { return moepack::Run(argc, argv); });
}
