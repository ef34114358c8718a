#include "runtime-min/expert_load.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "runtime-min/testing/toy_engine.h"

namespace moepack::runtime {
namespace {

using testing::FakeSource;

constexpr uint32_t kExperts = 7;
constexpr size_t kRoom = 1 << 14;  // of one expert

// Memory that kernels could read from.
class Places {
 public:
  Places() : memory_(static_cast<uint8_t*>(std::aligned_alloc(kExpertAlignment, kExperts * kRoom)), &std::free) {
    std::fill_n(memory_.get(), kExperts * kRoom, uint8_t{0xee});
  }
  uint8_t* of(uint32_t expert) { return memory_.get() + expert * kRoom; }
  std::vector<uint8_t> all() const { return {memory_.get(), memory_.get() + kExperts * kRoom}; }

 private:
  std::unique_ptr<uint8_t, decltype(&std::free)> memory_;
};

class ExpertLoadsTest : public ::testing::Test {
 protected:
  ExpertLoadsTest() : program_(testing::ToyLanguageModel()), source_(testing::ToyUnits(program_, "i4g16")) {}
  void AddAll(Places* places) {
    loads_.Clear();
    for (uint32_t e = 0; e < kExperts; ++e) loads_.Add(0, e, places->of(e), &weights_[e]);
  }

  Program program_;
  std::unique_ptr<FakeSource> source_;
  ExpertWeights weights_[kExperts];
  ExpertLoads loads_;
};

TEST_F(ExpertLoadsTest, GiveWhatOneThreadLoadsWhateverTheChunksAndThreads) {
  Places expected;
  for (uint32_t e = 0; e < kExperts; ++e) ASSERT_TRUE(LoadExpert(*source_, 0, e, expected.of(e), &weights_[e]).ok());
  for (const size_t chunks : {1, 2, 5}) {
    source_->CutExperts(chunks);
    for (const int threads : {1, 2, 4}) {
      ThreadPool pool(threads);
      Places places;
      for (int again = 0; again < 20; ++again) {
        AddAll(&places);
        loads_.Run(*source_, pool);
        ASSERT_EQ(loads_.size(), kExperts);
        for (uint32_t e = 0; e < kExperts; ++e) {
          ASSERT_TRUE(loads_.status(e).ok()) << loads_.status(e).message();
          EXPECT_EQ(weights_[e][0].codec(), source_->experts()[0].units[e].tensors[0].codec);
        }
        ASSERT_EQ(places.all(), expected.all()) << chunks << " chunks, " << threads << " threads";
      }
    }
    source_ = testing::ToyUnits(program_, "i4g16");
  }
}

TEST_F(ExpertLoadsTest, AFailedChunkFailsItsExpertAlone) {
  source_->CutExperts(3);
  ThreadPool pool(2);
  Places places;
  source_->broken.insert({0, 2});
  source_->missing[{0, 5}] = 1;
  AddAll(&places);
  loads_.Run(*source_, pool);
  for (uint32_t e = 0; e < kExperts; ++e) {
    EXPECT_EQ(loads_.status(e).code(), e == 2 ? ErrorCode::kDigest : e == 5 ? ErrorCode::kAccess : ErrorCode::kOk) << e;
  }
  const std::vector<uint8_t> written(places.of(2), places.of(2) + kRoom);
  EXPECT_EQ(written, std::vector<uint8_t>(kRoom, 0xee)) << "nothing of an expert is used before all of it is verified";
  source_->broken.clear();
  AddAll(&places);
  loads_.Run(*source_, pool);
  for (uint32_t e = 0; e < kExperts; ++e) EXPECT_TRUE(loads_.status(e).ok()) << "an error is forgotten with the next load";
}

}  // namespace
}  // namespace moepack::runtime
