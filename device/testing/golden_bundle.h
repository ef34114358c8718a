// Bundles that run: the tiny one with weights that are numbers, and golden prompts.
#pragma once

#include "device/testing/device_handle.h"
#include "runtime-min/golden.h"
#include "runtime-min/testing/fake_source.h"

namespace moepack::device {

enum class Asked : uint8_t { kNothing, kRight, kWrong };  // golden prompts of a bundle: none, true ones, false ones

// Weights of every tensor of a unit, as its codecs store them.
inline void FillUnit(Unit* unit, uint64_t seed, Bytes* area) {
  Bytes plain;
  for (const UnitTensor& tensor : unit->tensors) {
    std::vector<float> values(tensor.shape.rows * tensor.shape.cols);
    for (float& value : values) {
      seed = seed * 6364136223846793005u + 1442695040888963407u;
      value = static_cast<float>(static_cast<int64_t>(seed >> 40) - (1 << 23)) * 0x1.0p-23f;
    }
    const Bytes bytes = ToPlain(moepack::testing::RoundToCodec(tensor.codec, tensor.shape, values)).value();
    plain.insert(plain.end(), bytes.begin(), bytes.end());
  }
  ChunkRef& chunk = unit->chunks[0];
  std::ranges::copy(plain, area->begin() + static_cast<ptrdiff_t>(chunk.offset));
  chunk.stored_digest = chunk.plain_digest = Sha256(plain);
}

// Bundles of different counters have different weights of one expert, and share all other chunks.
inline Bytes BundleWith(uint64_t counter, const GoldenPrompts& golden) {
  return MakeTinyBundle({.edit = [&](TinyContents& c) {
    c.manifest.security_counter = counter;
    uint64_t seed = 1;
    for (Unit& unit : c.dense.units) FillUnit(&unit, seed++, &c.chunk_area);
    for (Unit& unit : c.experts[0].units) FillUnit(&unit, seed++, &c.chunk_area);
    FillUnit(&c.experts[0].units[1], 100 + counter, &c.chunk_area);
    c.golden = golden;
  }});
}

inline GoldenPrompts RecordOf(const Bytes& bundle) {
  ThreadPool pool(1);
  auto opened = moepack::testing::OpenBytes(bundle).value();
  auto engine = runtime::Engine::Create(std::move(opened), pool, {}).value();
  return runtime::RecordGolden(*engine, {{1, 2, 3}, {40}}, 3).value();
}

inline Bytes RunnableBundle(uint64_t counter, Asked asked) {
  const Bytes silent = BundleWith(counter, {});
  if (asked == Asked::kNothing) return silent;
  GoldenPrompts golden = RecordOf(silent);
  for (GoldenPrompt& prompt : golden.prompts) {
    for (GoldenStep& step : prompt.steps) {
      if (asked == Asked::kWrong) std::swap(step.tokens.front(), step.tokens.back());
    }
  }
  return BundleWith(counter, golden);
}

// Bundle 9 on trial, 8 to return to.
inline std::unique_ptr<SimDisk> DiskWithTrialOf(Asked asked) {
  auto disk = DiskInUse();
  EXPECT_TRUE(Handle(*disk).Install(RunnableBundle(9, asked)).ok());
  return disk;
}
inline std::unique_ptr<SimDisk> DiskWithGoodTrial() { return DiskWithTrialOf(Asked::kRight); }
inline std::unique_ptr<SimDisk> DiskWithBadTrial() { return DiskWithTrialOf(Asked::kWrong); }

}  // namespace moepack::device
