#include "format/manifest/unavailable.h"

#include <gtest/gtest.h>

namespace moepack {
namespace {

TEST(Unavailable, IsWrittenAndReadAlike) {
  for (unsigned set = 0; set < 32; ++set) {
    std::vector<Unavailable> steps;
    for (unsigned step = 0; step < 5; ++step) {
      if ((set >> step & 1) != 0) steps.push_back(static_cast<Unavailable>(step + 1));
    }
    const std::string text = DescribeUnavailable(steps);
    const auto read = ParseUnavailable(text);
    ASSERT_TRUE(read.ok()) << text;
    EXPECT_EQ(*read, steps) << text;
  }
  EXPECT_EQ(DescribeUnavailable({}), "fail");
  EXPECT_EQ(DescribeUnavailable({Unavailable::kRetry, Unavailable::kRenormalise}), "retry,renormalise");
}

TEST(Unavailable, RefusesOtherNamesAndOrders) {
  for (const char* text : {"", ",", "retry,", ",retry", "retry,,lower", "lower,retry", "retry,retry", "Retry", "fail,retry",
                           "retry,fail", "retry lower", "dense,renormalise", "sparse"})
    EXPECT_EQ(ParseUnavailable(text).status().code(), ErrorCode::kUsage) << text;
}

}  // namespace
}  // namespace moepack
