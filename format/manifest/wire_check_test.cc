#include "format/manifest/wire_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "format/manifest/program_schema.h"
#include "format/manifest/program_wire.h"
#include "format/testing/tiny_program.h"

namespace moepack::wire_check {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr Field kInnerFields[] = {Number(1, "a", Type::kUint32), Number(2, "flag", Type::kBool)};
constexpr Message kInner = {"Inner", kInnerFields};
constexpr Field kOuterFields[] = {
    Number(1, "version", Type::kUint32),
    Number(2, "small", Type::kUint32, 9),
    Number(3, "wide", Type::kUint64),
    Number(4, "real", Type::kFloat),
    Text(5, "name", 4),
    Packed(6, "list", Type::kUint32, 3),
    Many(7, "many", &kInner, 2),
    One(8, "must", &kInner, true),
    Sha256Field(9, "digest"),
    One(10, "either", &kInner, false),
    One(11, "or", &kInner, false),
};
constexpr Message kOuter = {"Outer", kOuterFields, 9};

// A valid message up to and including `must` and `digest`, then `either`.
Bytes Valid(const Bytes& before_must = {}) {
  Bytes bytes = {0x08, 0x01};
  bytes.insert(bytes.end(), before_must.begin(), before_must.end());
  bytes.insert(bytes.end(), {0x42, 0x00, 0x4a, 0x20});
  bytes.insert(bytes.end(), 32, 0xaa);
  bytes.insert(bytes.end(), {0x52, 0x00});
  return bytes;
}

TEST(WireCheck, AcceptsTheCanonicalForm) {
  for (const Bytes& part : std::vector<Bytes>{{},
                                              {0x10, 0x09},
                                              {0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01},
                                              {0x25, 0x00, 0x00, 0x80, 0x3f},
                                              {0x2a, 0x04, 'a', 'b', 'c', 'd'},
                                              {0x32, 0x03, 0x00, 0x00, 0x01},
                                              {0x3a, 0x00, 0x3a, 0x04, 0x08, 0x01, 0x10, 0x01}}) {
    const Status status = Check(kOuter, Valid(part));
    EXPECT_TRUE(status.ok()) << status.message();
  }
}

TEST(WireCheck, RefusesEverythingElse) {
  const struct {
    const char* message;
    Bytes part;
  } cases[] = {
      {"appears twice", {0x10, 0x01, 0x10, 0x01}},
      {"overlong", {0x10, 0x81, 0x00}},
      {"overlong", {0x90, 0x00, 0x01}},
      {"overlong", {0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02}},
      {"overlong", {0x18, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01}},
      {"small at byte 4: value is out of range", {0x10, 0x0a}},
      {"default value must be left out", {0x10, 0x00}},
      {"default value must be left out", {0x25, 0, 0, 0, 0}},
      {"wrong wire type", {0x15, 0, 0, 0, 1}},
      {"wrong wire type", {0x30, 0x01}},
      {"wrong wire type", {0x0b, 0x0c}},  // a group
      {"unknown field", {0x60, 0x01}},
      {"ascending order", {0x18, 0x01, 0x10, 0x01}},
      {"longer than allowed", {0x2a, 0x05, 'a', 'b', 'c', 'd', 'e'}},
      {"empty bytes", {0x2a, 0x00}},
      {"empty list", {0x32, 0x00}},
      {"more elements", {0x32, 0x04, 1, 1, 1, 1}},
      {"list at byte", {0x32, 0x01, 0x80}},
      {"more elements", {0x3a, 0x00, 0x3a, 0x00, 0x3a, 0x00}},
      {"Inner.flag at byte", {0x3a, 0x02, 0x10, 0x02}},
      {"Inner at byte", {0x3a, 0x02, 0x18, 0x01}},
      {"reaches past the end", {0x2a, 0x7f, 'a'}},
      {"reaches past the end", {0x2a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}},
  };
  for (const auto& bad : cases) {
    const Status status = Check(kOuter, Valid(bad.part));
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(status.message(), HasSubstr(bad.message));
    EXPECT_EQ(status.exit_status(), 3);
  }
}

TEST(WireCheck, RequiredFieldsAndAlternatives) {
  EXPECT_THAT(Check(kOuter, Bytes{0x08, 0x01}).message(), HasSubstr("Outer.must at byte 2: is missing"));
  EXPECT_THAT(Check(kOuter, Bytes{0x08, 0x01, 0x42, 0x00}).message(), HasSubstr("digest at byte 4: is missing"));
  Bytes neither = Valid();
  neither.erase(neither.end() - 2, neither.end());
  EXPECT_THAT(Check(kOuter, neither).message(), HasSubstr("one of its kinds is missing"));
  Bytes both = Valid();
  both.insert(both.end(), {0x5a, 0x00});
  EXPECT_THAT(Check(kOuter, both).message(), HasSubstr("excludes the field before it"));
  Bytes short_digest = {0x42, 0x00, 0x4a, 0x01, 0xaa, 0x52, 0x00};
  EXPECT_THAT(Check(kOuter, short_digest).message(), HasSubstr("wrong length"));
}

TEST(WireCheck, EveryTruncationIsRefused) {
  const Bytes whole = Valid({0x10, 0x09, 0x32, 0x02, 0x05, 0x06, 0x3a, 0x02, 0x08, 0x01});
  ASSERT_TRUE(Check(kOuter, whole).ok());
  for (size_t n = 0; n < whole.size(); ++n) EXPECT_FALSE(Check(kOuter, ByteSpan(whole).first(n)).ok()) << n;
}

TEST(WireCheck, LeadingNumber) {
  EXPECT_EQ(LeadingNumber(Bytes{0x08, 0x2a, 0xff}), 42u);
  EXPECT_EQ(LeadingNumber(Bytes{0x08, 0xaa, 0x00}), 0u);
  EXPECT_EQ(LeadingNumber(Bytes{0x10, 0x2a}), 0u);
  EXPECT_EQ(LeadingNumber(Bytes{}), 0u);
}

// What the scan lets through, protobuf reads back as exactly the same bytes: the scan alone makes the encoding unique.
TEST(WireCheck, WhatPassesIsWhatProtobufWouldWrite) {
  const Bytes original = SerializeProgram(testing::TinyProgram());
  std::mt19937 random(7);
  int passed = 0;
  for (int round = 0; round < 20000; ++round) {
    Bytes bytes = original;
    for (uint32_t changes = 1 + random() % 2; changes > 0; --changes) {
      const size_t at = random() % bytes.size();
      switch (random() % 3) {
        case 0:
          bytes[at] = static_cast<uint8_t>(random());
          break;
        case 1:
          bytes.erase(bytes.begin() + static_cast<ptrdiff_t>(at));
          break;
        default:
          bytes.insert(bytes.begin() + static_cast<ptrdiff_t>(at), static_cast<uint8_t>(random() % 2 == 0 ? 0 : random()));
          break;
      }
    }
    if (!Check(kProgram, bytes).ok()) continue;
    ++passed;
    const Status status = ParseProgram(bytes).status();
    ASSERT_THAT(status.message(), Not(HasSubstr("Program: not "))) << "protobuf sees it differently";
  }
  EXPECT_GT(passed, 1000);
}

}  // namespace
}  // namespace moepack::wire_check
