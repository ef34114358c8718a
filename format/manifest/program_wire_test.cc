#include "format/manifest/program_wire.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "format/testing/tiny_program.h"

namespace moepack {
namespace {

using ::testing::HasSubstr;
using testing::NodeOf;
using testing::TinyProgram;

TEST(ProgramWire, RoundTripOfEveryNodeKind) {
  const Program program = TinyProgram();
  const Bytes bytes = SerializeProgram(program);
  const Result<Program> read = ParseProgram(bytes);
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(*read, program);
  EXPECT_EQ(SerializeProgram(*read), bytes);
}

TEST(ProgramWire, EveryRecordFieldSurvives) {
  Program program = TinyProgram();
  NormNode& norm = NodeOf(program, NodeKind::kNorm).norm;
  norm.kind = NormKind::kLayer;
  norm.one_plus_weight = true;
  RotaryNode& rotary = NodeOf(program, NodeKind::kRotary).rotary;
  rotary.interleaved = true;
  rotary.magnitude = 0.25f;
  rotary.rotary_dim = 2;
  rotary.inv_freq = {0.0f};
  AttentionNode& attention = NodeOf(program, NodeKind::kAttention).attention;
  attention.window = 12;
  attention.softcap = 30;
  MoeNode& moe = NodeOf(program, NodeKind::kMoe).moe;
  moe.routing = {ScoreFunction::kSigmoid, false, 3, true, 1e-20f, 2.5f};
  moe.activation = {Activation::kRelu, false};
  program.expert_tables[0].gated = false;
  program.expert_tables[0].layer = 5;
  const Result<Program> read = ParseProgram(SerializeProgram(program));
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(*read, program);
}

TEST(ProgramWire, ValidatesWhatItReads) {
  Program program = TinyProgram();
  NodeOf(program, NodeKind::kMoe).moe.routing.scale = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(ParseProgram(SerializeProgram(program)).status().message(), HasSubstr("routing scale is not finite"));
  program = TinyProgram();
  program.tensors[0].role = static_cast<TensorRole>(9);
  EXPECT_THAT(ParseProgram(SerializeProgram(program)).status().message(), HasSubstr("Tensor.role"));
}

TEST(ProgramWire, LaterVersionsAreNamed) {
  Bytes bytes = SerializeProgram(TinyProgram());
  bytes[1] = 2;
  EXPECT_EQ(ParseProgram(bytes).status().code(), ErrorCode::kVersion);
  EXPECT_EQ(ParseProgram({}).status().code(), ErrorCode::kVersion);

  // The first node begins with its semantics version: tag 0x2a, length, 0x08, version.
  bytes = SerializeProgram(TinyProgram());
  bool found = false;
  for (size_t i = 0; i + 3 < bytes.size() && !found; ++i) {
    if (bytes[i] != 0x2a || bytes[i + 2] != 0x08 || bytes[i + 3] != 0x01) continue;
    bytes[i + 3] = 2;
    found = true;
  }
  ASSERT_TRUE(found);
  const Status status = ParseProgram(bytes).status();
  EXPECT_EQ(status.code(), ErrorCode::kVersion);
  EXPECT_THAT(status.message(), HasSubstr("node 0 has semantics version 2"));
}

TEST(ProgramWire, TruncatedOrFlippedIsRefusedOrAnotherProgram) {
  const Program program = TinyProgram();
  const Bytes bytes = SerializeProgram(program);
  for (size_t n = 0; n < bytes.size(); ++n) EXPECT_FALSE(ParseProgram(ByteSpan(bytes).first(n)).ok()) << n;
  for (size_t i = 0; i < bytes.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      Bytes flipped = bytes;
      flipped[i] = static_cast<uint8_t>(flipped[i] ^ (1 << bit));
      const Result<Program> read = ParseProgram(flipped);
      EXPECT_TRUE(!read.ok() || *read != program) << "byte " << i << " bit " << bit;
    }
  }
}

}  // namespace
}  // namespace moepack
