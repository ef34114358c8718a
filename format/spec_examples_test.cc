// The byte examples of SPEC.md, section 7: what a second implementation is written against.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "format/codec/codec.h"

namespace moepack {
namespace {

struct Example {
  const char* codec;
  MatrixShape shape;
  const char* plain;
  std::vector<float> weights;
};

TEST(SpecExamples, PlainBytesMeanTheWeightsBesideThem) {
  const Example examples[] = {
      {"f32", {1, 2}, "0000803f000000c0", {1, -2}},
      {"bf16", {1, 2}, "803f00c0", {1, -2}},
      {"f16", {1, 2}, "003c00c0", {1, -2}},
      {"i4r", {2, 3}, "810f90020000383c", {-3.5f, 0, 3.5f, -8, 1, -6}},
      {"i5r", {1, 3}, "800f05003c", {-15, 0, 15}},
      {"i3mr", {1, 5}, "e00312003800bc", {-1, -0.5f, 1, 2, 2.5f}},
      {"bf16+2:4", {1, 8}, "69803f00c040408040", {1, 0, 0, -2, 0, 3, 4, 0}},
      {"t2r", {1, 6}, "390d003c", {-49, -47, 32, 40, 56, 50}},
      {"t3r", {1, 5}, "9c0315003c", {-63, 41, 11, 3, -46}},
      {"t4r", {1, 3}, "e107003c", {-88, 12, 12}},
      {"t5r", {1, 3}, "f00801003c", {-117, -49, 35}},
      {"t6r", {1, 3}, "f00839003c", {-58, 20, -12}},
      {"i4r+keep2", {2, 4}, "0a03798f00003c40", {0, 1, 0, -1, 14, 0, 0, 0}},
  };
  for (const Example& example : examples) {
    SCOPED_TRACE(example.codec);
    const Result<Codec> codec = ParseCodec(example.codec);
    ASSERT_TRUE(codec.ok());
    Bytes plain(std::string_view(example.plain).size() / 2);
    ASSERT_TRUE(FromHex(example.plain, plain));
    std::vector<float> weights(example.weights.size());
    const Status status = DecodePlain(*codec, example.shape, plain, weights);
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(weights, example.weights);
    EXPECT_EQ(*ToPlain(*FromPlain(*codec, example.shape, plain)), plain);
  }
}

}  // namespace
}  // namespace moepack
