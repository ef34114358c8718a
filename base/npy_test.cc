#include "base/npy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>

namespace moepack {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kHeader[] = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";
const std::vector<float> kNumbers = {1, 2, 3, 4, 5, -6};

template <typename T>
std::string BytesOf(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

std::string File(int version, const std::string& header, const std::string& numbers) {
  std::string out = std::string("\x93NUMPY", 6) + static_cast<char>(version) + '\0';
  for (int i = 0; i < (version == 1 ? 2 : 4); ++i) out += static_cast<char>(header.size() >> (8 * i));
  return out + header + numbers;
}

class NpyTest : public testing::Test {
 protected:
  Result<std::unique_ptr<NpyFile>> Open(const std::string& bytes) {
    EXPECT_TRUE(WriteFileAtomically(PosixEnv(), path_, AsBytes(bytes)).ok());
    return NpyFile::Open(PosixEnv(), path_);
  }
  Status Refused(const std::string& bytes) {
    const auto file = Open(bytes);
    EXPECT_FALSE(file.ok());
    EXPECT_THAT(file.status().message(), HasSubstr(path_));
    return file.status();
  }
  void TearDown() override { std::filesystem::remove(path_); }
  std::string path_ = testing::TempDir() + testing::UnitTest::GetInstance()->current_test_info()->name() + ".npy";
};

TEST_F(NpyTest, ReadsEveryVersionAndBothTypes) {
  for (const int version : {1, 2, 3}) {
    for (const bool wide : {false, true}) {
      std::string header = kHeader;
      if (wide) header.replace(header.find("<f4"), 3, "<f8");
      const std::vector<double> doubles(kNumbers.begin(), kNumbers.end());
      const auto file = Open(File(version, header + "   \n", wide ? BytesOf(doubles) : BytesOf(kNumbers)));
      ASSERT_TRUE(file.ok()) << file.status().message();
      EXPECT_EQ((*file)->rows(), 2u);
      EXPECT_EQ((*file)->columns(), 3u);
      std::vector<float> row(3);
      ASSERT_TRUE((*file)->Read(1, 1, row).ok());
      EXPECT_THAT(row, ElementsAre(4, 5, -6));
      EXPECT_EQ((*file)->CheckColumns(4).code(), ErrorCode::kShape);
      EXPECT_TRUE((*file)->CheckColumns(3).ok());
    }
  }
}

TEST_F(NpyTest, ReadsManyDoubles) {
  std::vector<double> numbers(3000);
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<double>(i);
  const auto file = Open(File(1, "{'shape': (1000, 3), 'fortran_order': False, \"descr\": \"<f8\"}", BytesOf(numbers)));
  ASSERT_TRUE(file.ok()) << file.status().message();
  std::vector<float> rows(2997);
  ASSERT_TRUE((*file)->Read(1, 999, rows).ok());
  for (size_t i = 0; i < rows.size(); ++i) ASSERT_EQ(rows[i], static_cast<float>(i + 3));
}

TEST_F(NpyTest, RefusesHeaders) {
  struct Case {
    const char *header, *says;
    ErrorCode code;
  };
  for (const Case& c :
       {Case{"{'descr': '>f4', 'fortran_order': False, 'shape': (2, 3)}", "'>f4'", ErrorCode::kUnsupported},
        Case{"{'descr': '<i8', 'fortran_order': False, 'shape': (2, 3)}", "'<i8'", ErrorCode::kUnsupported},
        Case{"{'descr': '|O', 'fortran_order': False, 'shape': (2, 3)}", "'|O'", ErrorCode::kUnsupported},
        Case{"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2, 3)}", "'descr'", ErrorCode::kBadInput},
        Case{"{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3)}", "Fortran", ErrorCode::kUnsupported},
        Case{"{'descr': '<f4', 'fortran_order': 0, 'shape': (2, 3)}", "'fortran_order'", ErrorCode::kBadInput},
        Case{"{'descr': '<f4', 'fortran_order': False, 'shape': (6,)}", "1 dimensions", ErrorCode::kUnsupported},
        Case{"{'descr': '<f4', 'fortran_order': False, 'shape': ()}", "0 dimensions", ErrorCode::kUnsupported},
        Case{"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2, 3)}", "3 dimensions", ErrorCode::kUnsupported},
        Case{"{'descr': '<f4', 'fortran_order': False, 'shape': (0, 3)}", "empty", ErrorCode::kBadInput},
        Case{"{'descr': '<f4', 'fortran_order': False, 'shape': (-2, 3)}", "'shape'", ErrorCode::kBadInput},
        Case{"{'descr': '<f4', 'fortran_order': False, 'shape': (02, 3)}", "'shape'", ErrorCode::kBadInput},
        Case{"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3}", "'shape'", ErrorCode::kBadInput},
        Case{"{'descr': '<f4', 'fortran_order': False, 'shape': (2 3)}", "'shape'", ErrorCode::kBadInput},
        Case{"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999, 3)}", "'shape'",
             ErrorCode::kBadInput},
        Case{"{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775808, 2)}", "overflows", ErrorCode::kLimit},
        Case{"{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4)}", "overflows", ErrorCode::kLimit},
        Case{"{'descr': '<f4', 'fortran_order': False}", "missing", ErrorCode::kBadInput},
        Case{"{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}", "twice", ErrorCode::kBadInput},
        Case{"{'extra': 1, 'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}", "unknown", ErrorCode::kBadInput},
        Case{"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)} + evil()", "after", ErrorCode::kBadInput},
        Case{"{'descr': '<f4", "'descr'", ErrorCode::kBadInput},
        Case{"{", "dictionary", ErrorCode::kBadInput},
        Case{"", "not a dictionary", ErrorCode::kBadInput}}) {
    const Status status = Refused(File(1, c.header, BytesOf(kNumbers)));
    EXPECT_EQ(status.code(), c.code) << c.header << "\n" << status.message();
    EXPECT_THAT(status.message(), HasSubstr(c.says));
  }
}

TEST_F(NpyTest, RefusesLengthsThatLie) {
  const std::string whole = File(1, kHeader, BytesOf(kNumbers));
  EXPECT_THAT(Refused(whole + "x").message(), HasSubstr("25 bytes of numbers, 'shape' says 24"));
  for (size_t length = 0; length < whole.size(); ++length) {
    EXPECT_EQ(Refused(whole.substr(0, length)).code(), ErrorCode::kBadInput) << length;
  }
  std::string wrong = whole;
  wrong[0] = 'P';
  EXPECT_THAT(Refused(wrong).message(), HasSubstr("not a .npy file"));
  for (const int version : {0, 4, 255}) EXPECT_EQ(Refused(File(version, kHeader, "")).code(), ErrorCode::kVersion);
  const std::string huge = std::string("\x93NUMPY\x02\0\xff\xff\xff\xff", 12) + kHeader;
  EXPECT_EQ(Refused(huge).code(), ErrorCode::kLimit);
  EXPECT_EQ(Refused(File(2, kHeader + std::string(kMaxNpyHeader, ' '), "")).code(), ErrorCode::kLimit);
}

TEST_F(NpyTest, NamesWhatIsNoNumber) {
  for (const double bad : {std::nan(""), HUGE_VAL, 1e300}) {
    std::vector<double> numbers(6, 1.0);
    numbers[4] = bad;
    std::string header = kHeader;
    header.replace(header.find("<f4"), 3, "<f8");
    const auto file = Open(File(1, header, BytesOf(numbers)));
    ASSERT_TRUE(file.ok());
    std::vector<float> out(6);
    const Status status = (*file)->Read(0, 2, out);
    EXPECT_EQ(status.code(), ErrorCode::kNotFinite);
    EXPECT_THAT(status.message(), HasSubstr("row 1, column 1"));
  }
}

}  // namespace
}  // namespace moepack
