#include "verify/trust_anchor.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "verify/testing/tiny_bundle.h"

namespace moepack::verify {
namespace {

using moepack::testing::MakeTestKey;
using moepack::testing::SignWith;
using moepack::testing::TestKey;

constexpr uint64_t kNow = 1700000000;

std::vector<PublicKey> PublicKeys(const std::vector<TestKey>& keys) {
  std::vector<PublicKey> out;
  for (const TestKey& key : keys) out.push_back(key.public_key);
  std::sort(out.begin(), out.end());
  return out;
}

Bytes SignRecord(const Magic& magic, KeyRole role, const Bytes& body, const std::vector<TestKey>& keys) {
  Envelope envelope;
  envelope.manifest_bytes = body.size();
  for (const TestKey& key : keys) envelope.signatures.push_back(SignWith(key, SignedMessage(role, body)));
  std::sort(envelope.signatures.begin(), envelope.signatures.end(),
            [](const auto& a, const auto& b) { return a.public_key < b.public_key; });
  Bytes out = SerializeEnvelope(envelope, magic);
  out.insert(out.end(), body.begin(), body.end());
  return out;
}

Bytes Sign(const TrustAnchor& anchor, const std::vector<TestKey>& keys) {
  return SignRecord(kAnchorMagic, KeyRole::kRoot, SerializeTrustAnchor(anchor), keys);
}

const TestKey kRelease = MakeTestKey(1), kRootA = MakeTestKey(11), kRootB = MakeTestKey(12), kRootC = MakeTestKey(13),
              kChannel = MakeTestKey(21);

// Product and floors of TinyPolicy; two of the root keys A and B.
TrustAnchor Anchor() {
  TrustAnchor anchor;
  anchor.product = "tiny";
  anchor.key_epoch = 3;
  anchor.minimum_security_counter = 7;
  anchor.roles = {{KeyRole::kRelease, 1, PublicKeys({kRelease})},
                  {KeyRole::kRoot, 2, PublicKeys({kRootA, kRootB})},
                  {KeyRole::kChannel, 1, PublicKeys({kChannel})}};
  return anchor;
}

TrustAnchor Next(const std::function<void(TrustAnchor&)>& edit = [](TrustAnchor&) {}) {
  TrustAnchor next = Anchor();
  ++next.root_version;
  next.roles[1] = {KeyRole::kRoot, 1, PublicKeys({kRootC})};
  edit(next);
  return next;
}

TEST(TrustAnchor, OpensABundle) {
  const auto anchor = OpenAnchor(Sign(Anchor(), {kRootA, kRootB}));
  ASSERT_TRUE(anchor.ok()) << anchor.status().message();
  EXPECT_EQ(*anchor, Anchor());
  const Bytes bundle = moepack::testing::MakeTinyBundle();
  EXPECT_TRUE(moepack::testing::OpenBytes(bundle, PolicyOf(*anchor, {})).ok());
  // What the device has confirmed raises the floor; an older state does not lower it.
  const RollbackState confirmed = {1, 3, 8, 0}, older = {1, 2, 99, 0};
  EXPECT_EQ(moepack::testing::OpenBytes(bundle, PolicyOf(*anchor, confirmed)).status().code(), ErrorCode::kRollback);
  EXPECT_TRUE(moepack::testing::OpenBytes(bundle, PolicyOf(*anchor, older)).ok());
}

TEST(TrustAnchor, OneRootKeyOfTwoIsNotEnough) {
  EXPECT_EQ(OpenAnchor(Sign(Anchor(), {kRootA})).status().code(), ErrorCode::kUntrusted);
  EXPECT_EQ(OpenAnchor(Sign(Anchor(), {kRootA, kRelease})).status().code(), ErrorCode::kUntrusted);
  const Bytes wrong_role = SignRecord(kAnchorMagic, KeyRole::kRelease, SerializeTrustAnchor(Anchor()), {kRootA, kRootB});
  EXPECT_EQ(OpenAnchor(wrong_role).status().code(), ErrorCode::kSignature);
}

TEST(TrustAnchor, RotationNeedsOldAndNewKeys) {
  const TrustAnchor current = Anchor();
  EXPECT_EQ(RotateAnchor(current, Sign(Next(), {kRootA, kRootB, kRootC})).value(), Next());
  EXPECT_EQ(RotateAnchor(current, Sign(Next(), {kRootC})).status().code(), ErrorCode::kUntrusted);
  EXPECT_EQ(RotateAnchor(current, Sign(Next(), {kRootA, kRootC})).status().code(), ErrorCode::kUntrusted);
  EXPECT_EQ(RotateAnchor(current, Sign(Next(), {kRootA, kRootB})).status().code(), ErrorCode::kUntrusted);
}

TEST(TrustAnchor, RotationNeverGoesBack) {
  const auto code = [](const std::function<void(TrustAnchor&)>& edit) {
    return RotateAnchor(Anchor(), Sign(Next(edit), {kRootA, kRootB, kRootC})).status().code();
  };
  EXPECT_EQ(code([](TrustAnchor& a) { a.root_version = 1; }), ErrorCode::kRollback);
  EXPECT_EQ(code([](TrustAnchor& a) { a.root_version = 3; }), ErrorCode::kRollback);
  EXPECT_EQ(code([](TrustAnchor& a) { a.key_epoch = 2; }), ErrorCode::kRollback);
  EXPECT_EQ(code([](TrustAnchor& a) { a.minimum_security_counter = 6; }), ErrorCode::kRollback);
  EXPECT_EQ(code([](TrustAnchor& a) { a.key_epoch = 4, a.minimum_security_counter = 0; }), ErrorCode::kOk);
  EXPECT_EQ(code([](TrustAnchor& a) { a.product = "camera"; }), ErrorCode::kPolicy);
}

ChannelHead Head() {
  ChannelHead head;
  head.product = "tiny";
  head.channel = "stable";
  head.head_version = 5;
  head.expires = kNow;
  head.key_epoch = 3;
  head.security_counter = 7;
  return head;
}

ErrorCode HeadCode(const std::function<void(ChannelHead&)>& edit, const RollbackState& state = {},
                   const TestKey& key = kChannel) {
  ChannelHead head = Head();
  edit(head);
  const Bytes file = SignRecord(kChannelMagic, KeyRole::kChannel, SerializeChannelHead(head), {key});
  return OpenChannelHead(Anchor(), state, {"stable", kNow, "device"}, file).status().code();
}

TEST(ChannelHead, IsOfTheChannelNewAndSigned) {
  EXPECT_EQ(HeadCode([](ChannelHead&) {}), ErrorCode::kOk);
  EXPECT_EQ(HeadCode([](ChannelHead&) {}, {}, kRelease), ErrorCode::kUntrusted);
  EXPECT_EQ(HeadCode([](ChannelHead& h) { h.channel = "beta"; }), ErrorCode::kPolicy);
  EXPECT_EQ(HeadCode([](ChannelHead& h) { h.expires = kNow - 1; }), ErrorCode::kPolicy);
  EXPECT_EQ(HeadCode([](ChannelHead&) {}, {1, 3, 7, 6}), ErrorCode::kRollback);
  EXPECT_EQ(HeadCode([](ChannelHead&) {}, {1, 3, 8, 5}), ErrorCode::kRollback);
  EXPECT_EQ(HeadCode([](ChannelHead& h) { h.security_counter = 6; }), ErrorCode::kRollback);
}

TEST(ChannelHead, NamesOneBundle) {
  const auto bundle = moepack::testing::OpenBytes(moepack::testing::MakeTinyBundle()).value();
  ChannelHead head = Head();
  head.manifest_digest = bundle->manifest_digest();
  head.file_bytes = bundle->manifest().file_bytes;
  EXPECT_TRUE(CheckAgainstHead(head, *bundle).ok());
  head.manifest_digest[31] ^= 1;
  EXPECT_EQ(CheckAgainstHead(head, *bundle).code(), ErrorCode::kPolicy);
}

TEST(ChannelHead, ALargerShareHoldsTheSmallerOne) {
  ChannelHead small = Head(), large = Head();
  small.rollout_permille = 100;
  large.rollout_permille = 500;
  large.head_version = 9;
  int in_small = 0, in_large = 0;
  for (int i = 0; i < 2000; ++i) {
    const std::string id = "device-" + std::to_string(i);
    in_small += InRollout(small, id);
    in_large += InRollout(large, id);
    EXPECT_TRUE(!InRollout(small, id) || InRollout(large, id));
  }
  EXPECT_NEAR(in_small, 200, 60);
  EXPECT_NEAR(in_large, 1000, 120);
  small.rollout_permille = 0;
  EXPECT_FALSE(InRollout(small, "device-1"));
  EXPECT_TRUE(InRollout(Head(), "device-1"));
}

}  // namespace
}  // namespace moepack::verify
