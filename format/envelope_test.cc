#include "format/envelope.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace moepack {
namespace {

using ::testing::HasSubstr;

Envelope TwoSignatures() {
  Envelope envelope;
  envelope.manifest_bytes = 0x1234;
  envelope.signatures.resize(2);
  envelope.signatures[0].public_key.fill(1);
  envelope.signatures[0].signature.fill(2);
  envelope.signatures[1].public_key.fill(3);
  envelope.signatures[1].signature.fill(4);
  return envelope;
}

TEST(Envelope, RoundTrip) {
  for (const size_t count : {0u, 1u, 2u, 16u}) {
    Envelope envelope;
    envelope.manifest_bytes = kMaxManifestBytes;
    envelope.signatures.resize(count);
    for (size_t i = 0; i < count; ++i) envelope.signatures[i].public_key[0] = static_cast<uint8_t>(i);
    const Bytes bytes = SerializeEnvelope(envelope);
    EXPECT_EQ(bytes.size(), kEnvelopeBytes);
    const Result<uint32_t> head = ParseEnvelopeHead(ByteSpan(bytes).first(kEnvelopeHeadBytes));
    ASSERT_TRUE(head.ok());
    EXPECT_EQ(*head, count);
    const Result<Envelope> read = ParseEnvelope(bytes);
    ASSERT_TRUE(read.ok()) << read.status().message();
    EXPECT_EQ(read->manifest_bytes, envelope.manifest_bytes);
    EXPECT_EQ(read->signatures, envelope.signatures);
  }
}

// The offsets of SPEC.md, byte by byte.
TEST(Envelope, Layout) {
  const Bytes bytes = SerializeEnvelope(TwoSignatures());
  ASSERT_EQ(bytes.size(), 1568u);
  EXPECT_EQ(AsText(ByteSpan(bytes).first(8)), "MOEBNDL\n");
  EXPECT_EQ(ToHex(ByteSpan(bytes).subspan(8, 24)), "010000000200000034120000000000000000000000000000");
  EXPECT_EQ(bytes[32], 1);
  EXPECT_EQ(bytes[64], 2);
  EXPECT_EQ(bytes[128], 3);
  EXPECT_EQ(bytes[160], 4);
  EXPECT_EQ(bytes[224], 0);
}

TEST(Envelope, Rules) {
  const struct {
    ErrorCode code;
    const char* message;
    size_t at;
    uint8_t value;
  } cases[] = {
      {ErrorCode::kNotABundle, "not a moepack bundle", 7, '\r'},
      {ErrorCode::kVersion, "format version 2", 8, 2},
      {ErrorCode::kEnvelope, "17 signatures", 12, 17},
      {ErrorCode::kEnvelope, "manifest of", 22, 1},
      {ErrorCode::kEnvelope, "reserved bytes", 31, 1},
      {ErrorCode::kEnvelope, "signature 1: public keys must rise", 128, 0},
      {ErrorCode::kEnvelope, "an unused signature slot", kEnvelopeBytes - 1, 1},
      {ErrorCode::kEnvelope, "an unused signature slot", 12, 1},
  };
  for (const auto& bad : cases) {
    Bytes bytes = SerializeEnvelope(TwoSignatures());
    bytes[bad.at] = bad.value;
    const Status status = ParseEnvelope(bytes).status();
    EXPECT_EQ(status.code(), bad.code) << status.message();
    EXPECT_THAT(status.message(), HasSubstr(bad.message));
  }
  Envelope empty = TwoSignatures();
  empty.manifest_bytes = 0;
  EXPECT_THAT(ParseEnvelope(SerializeEnvelope(empty)).status().message(), HasSubstr("manifest of 0 bytes"));
  Envelope twice = TwoSignatures();
  twice.signatures[1] = twice.signatures[0];
  EXPECT_THAT(ParseEnvelope(SerializeEnvelope(twice)).status().message(), HasSubstr("must rise"));
}

TEST(Envelope, EveryOtherSizeIsRefused) {
  Bytes bytes = SerializeEnvelope(TwoSignatures());
  for (size_t n = 0; n < bytes.size(); ++n) {
    const ErrorCode want = n < 8 ? ErrorCode::kNotABundle : ErrorCode::kEnvelope;
    EXPECT_EQ(ParseEnvelope(ByteSpan(bytes).first(n)).status().code(), want) << n;
  }
  bytes.push_back(0);
  EXPECT_EQ(ParseEnvelope(bytes).status().code(), ErrorCode::kEnvelope);
}

TEST(Envelope, EveryFlippedByteIsRefusedOrChangesWhatIsRead) {
  const Envelope envelope = TwoSignatures();
  const Bytes bytes = SerializeEnvelope(envelope);
  for (size_t i = 0; i < bytes.size(); ++i) {
    Bytes flipped = bytes;
    flipped[i] ^= 0x40;
    const Result<Envelope> read = ParseEnvelope(flipped);
    EXPECT_TRUE(!read.ok() || read->manifest_bytes != envelope.manifest_bytes || read->signatures != envelope.signatures)
        << i;
  }
}

TEST(SignedMessage, BindsDomainVersionRoleAndLength) {
  const Bytes manifest = {0xaa, 0xbb};
  const Bytes message = SignedMessage(KeyRole::kRelease, manifest);
  EXPECT_EQ(AsText(ByteSpan(message).first(24)), "moepack signed manifest\n");
  EXPECT_EQ(ToHex(ByteSpan(message).subspan(24)), "01000000010000000200000000000000aabb");
}

}  // namespace
}  // namespace moepack
