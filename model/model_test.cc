#include "model/model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/model_testing.h"

namespace moepack {
namespace {

using ::testing::HasSubstr;

TEST(OpenModel, KnowsACheckpointFromAConfig) {
  const auto checkpoint = OpenModel(PosixEnv(), SourcePath("examples/wren/model"));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  EXPECT_EQ(checkpoint->source, ModelSource::kHuggingFace);
  const auto config = OpenModel(PosixEnv(), SourcePath("examples/wren/model/config.json"));
  ASSERT_TRUE(config.ok()) << config.status().message();
  EXPECT_EQ(config->source, ModelSource::kConfigOnly);
}

TEST(OpenModel, SaysWhatItExpectsOfOtherPaths) {
  const auto refused = [](const std::string& path, ErrorCode code, const char* part) {
    const auto model = OpenModel(PosixEnv(), path);
    EXPECT_EQ(model.status().code(), code) << model.status().message();
    EXPECT_THAT(model.status().message(), HasSubstr(part));
  };
  refused(SourcePath("no-such-model"), ErrorCode::kNotFound, "no such file");
  refused(SourcePath("tests"), ErrorCode::kBadInput, "no config.json");
  refused(SourcePath("examples/wren/model/model.safetensors"), ErrorCode::kBadInput, "expected a checkpoint folder");
}

}  // namespace
}  // namespace moepack
