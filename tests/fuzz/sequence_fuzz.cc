// A saved sequence, given to an engine with one attention, one convolution and two MoE layers that do not hold all their
// experts. Input: u8 precision of keys and values (bit 0), file. Read as it is, and with the digest that fits it, so that
// what lies behind the digest is reached too; it goes on beside a sequence that is as it should be.
#include <memory>

#include "base/digest/sha256.h"
#include "forward/testing/toy_model.h"
#include "runtime-min/engine.h"
#include "runtime-min/testing/fake_source.h"
#include "tests/fuzz/memory_env.h"

namespace moepack::fuzz {
namespace {

constexpr int32_t kTokens = 8;
constexpr size_t kExperts = 6;
constexpr runtime::SequenceId kOther = 1;
constexpr size_t kDigestBytes = 32;

std::unique_ptr<runtime::Engine> MakeEngine(runtime::KvFormat kv, uint64_t expert_ram_bytes = runtime::kAllExperts) {
  static ThreadPool pool(1);
  testing::ToyProgram p;
  const ValueId x = p.Embedding(kTokens, 4);
  p.block = 1;
  const ValueId h = p.Convolution(x, 3, false);
  const ValueId a =
      p.Attention(p.Linear(h, 4), p.Linear(h, 4), p.Linear(h, 4), {.heads = 1, .kv_heads = 1, .head_dim = 4, .scale = 0.5f});
  ValueId routed = a;
  for (const ScoreFunction score : {ScoreFunction::kSoftmax, ScoreFunction::kSparseMixer}) {
    ++p.block;
    const RoutingRecord routing{.score = score, .k = 2, .mixer_eps = score == ScoreFunction::kSparseMixer ? 0.01f : 0.0f};
    routed = p.Moe(routed, routing, {Activation::kSilu, true}, std::vector<uint64_t>(kExperts, 4));
  }
  p.program.output = p.Linear(routed, kTokens);
  p.program.max_positions = 96;
  const testing::ToySource toy(p.program);
  auto source = std::make_unique<testing::FakeSource>(
      p.program, Codec{}, [&toy](bool expert, uint32_t id, uint32_t index, ExpertMatrix matrix) {
        return expert ? toy.LoadExpert(id, index, matrix).value() : toy.Load(id).value();
      });
  auto engine =
      runtime::Engine::Create(std::move(source), pool, {.expert_ram_bytes = expert_ram_bytes, .sequences = 2, .kv = kv});
  if (!engine.ok()) __builtin_trap();
  if (expert_ram_bytes == runtime::kAllExperts) return MakeEngine(kv, (*engine)->experts().minimum_bytes());
  if (!(*engine)->OpenSequence().ok()) __builtin_trap();
  return std::move(*engine);
}

// What was accepted can be gone on from, and saved again as long as it was.
void Check(runtime::Engine& engine, ByteSpan file) {
  const auto next = engine.RestoreSequence(runtime::kFirstSequence, MemoryFile("saved.seq", file));
  if (!next.ok()) {
    if (engine.position() != 0 || next.status().message().empty()) __builtin_trap();
    return;
  }
  size_t bytes = 0;
  const Status saved = engine.SaveSequence(runtime::kFirstSequence, *next, [&bytes](ByteSpan piece) {
    bytes += piece.size();
    return Status::Ok();
  });
  if (!saved.ok() || bytes != file.size()) __builtin_trap();
  const int32_t token = next->empty() ? 0 : next->front();
  const runtime::SequenceTokens both[] = {{runtime::kFirstSequence, {&token, 1}}, {kOther, {&token, 1}}};
  if (engine.position() < engine.context() && !engine.RunBatch(both).ok()) __builtin_trap();
  engine.Reset();
  if (!engine.ResetSequence(kOther).ok()) __builtin_trap();
}

}  // namespace
}  // namespace moepack::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace moepack;
  static const std::unique_ptr<runtime::Engine> engines[] = {fuzz::MakeEngine(runtime::KvFormat::kF32),
                                                             fuzz::MakeEngine(runtime::KvFormat::kI8)};
  if (size < 1) return 0;
  runtime::Engine& engine = *engines[data[0] & 1];
  Bytes file(data + 1, data + size);
  fuzz::Check(engine, file);
  if (file.size() < fuzz::kDigestBytes) return 0;
  const Digest digest = Sha256(ByteSpan(file).first(file.size() - fuzz::kDigestBytes));
  std::copy(digest.begin(), digest.end(), file.end() - fuzz::kDigestBytes);
  fuzz::Check(engine, file);
  return 0;
}
