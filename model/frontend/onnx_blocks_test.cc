#include "model/frontend/onnx_blocks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "model/frontend/onnx_testing.h"
#include "model/model_testing.h"

namespace moepack {
namespace {

using ::testing::HasSubstr;

constexpr int32_t kUint4 = 21, kInt4 = 22;
constexpr int64_t kRows = 3, kCols = 40, kBlock = 16, kBlocks = 3;

// One shape of constants that operators have.
struct Form {
  const char* name;
  int64_t bits;
  int32_t type;
  bool padded_rows;
  enum class Zeros : uint8_t { kNone, kPacked, kFloats } zeros;
};

class OnnxBlocksTest : public testing::Test {
 protected:
  std::shared_ptr<const OnnxFile> Open(TinyOnnx& tiny) {
    const Bytes bytes = tiny.Serialize();
    std::ofstream(folder_.At("m.onnx"), std::ios::binary) << AsText(bytes);
    auto file = OnnxFile::Open(PosixEnv(), folder_.At("m.onnx"));
    EXPECT_TRUE(file.ok()) << file.status().message();
    return file.ok() ? *file : nullptr;
  }
  static Result<std::shared_ptr<const OnnxBlocks>> Bind(const OnnxFile& file, const OnnxBlockShape& shape) {
    return BindBlocks(*file.Find("codes"), *file.Find("scales"), file.Find("zeros"), shape);
  }
  TempFolder folder_;
};

class OnnxBlockFormsTest : public OnnxBlocksTest, public testing::WithParamInterface<Form> {};

// Bits [at, at + bits) of a string of bytes, the low ones of a byte first.
int Code(const std::string& data, int64_t at, int64_t bits, bool is_signed) {
  const int code = (static_cast<uint8_t>(data[static_cast<size_t>(at / 8)]) >> (at % 8)) & ((1 << bits) - 1);
  return is_signed && code >= 1 << (bits - 1) ? code - (1 << bits) : code;
}

TEST_P(OnnxBlockFormsTest, ValuesAreCodesLessZeroPointsTimesScales) {
  const Form& form = GetParam();
  const bool nibbles = form.type != onnx::TensorProto::UINT8, is_signed = form.type == kInt4;
  const int64_t row_bits = (form.padded_rows ? kBlocks * kBlock : kCols) * form.bits;
  const int64_t zero_row_bits = nibbles ? kBlocks * 4 : (kBlocks * form.bits + 7) / 8 * 8;
  TinyOnnx tiny;
  const std::vector<int64_t> shape =
      nibbles ? std::vector<int64_t>{kRows, kCols} : std::vector<int64_t>{kRows, row_bits / 8};
  const std::string codes = tiny.Codes("codes", shape, static_cast<size_t>(kRows * row_bits / 8), form.type)->raw_data();
  const auto* scales = tiny.Floats("scales", {kRows, kBlocks});
  std::vector<float> scale(scales->float_data().begin(), scales->float_data().end()), zero(kRows * kBlocks);
  for (float& z : zero) z = nibbles ? 0 : static_cast<float>(1 << (form.bits - 1));
  if (form.zeros == Form::Zeros::kFloats) {
    const auto* floats = tiny.Floats("zeros", {kRows, kBlocks});
    zero.assign(floats->float_data().begin(), floats->float_data().end());
  } else if (form.zeros == Form::Zeros::kPacked) {
    const auto bytes = static_cast<size_t>((kRows * zero_row_bits + 7) / 8);
    const std::vector<int64_t> packed =
        nibbles ? std::vector<int64_t>{kRows, kBlocks} : std::vector<int64_t>{static_cast<int64_t>(bytes)};
    const std::string zeros = tiny.Codes("zeros", packed, bytes, form.type)->raw_data();
    for (int64_t i = 0; i < kRows * kBlocks; ++i) {
      zero[static_cast<size_t>(i)] =
          static_cast<float>(Code(zeros, i / kBlocks * zero_row_bits + i % kBlocks * form.bits, form.bits, is_signed));
    }
  }
  const auto file = Open(tiny);
  ASSERT_NE(file, nullptr);
  OnnxBlockShape what{kRows, kCols, form.bits, kBlock, form.padded_rows, false};
  const auto blocks = Bind(*file, what);
  ASSERT_TRUE(blocks.ok()) << blocks.status().message();
  const auto all = ReadBlocks(*file, *file->Find("codes"), **blocks, 0, kRows * kCols);
  ASSERT_TRUE(all.ok()) << all.status().message();
  for (int64_t i = 0; i < kRows * kCols; ++i) {
    const auto block = static_cast<size_t>(i / kCols * kBlocks + i % kCols / kBlock);
    const int code = Code(codes, i / kCols * row_bits + i % kCols * form.bits, form.bits, is_signed);
    EXPECT_EQ((*all)[static_cast<size_t>(i)], (static_cast<float>(code) - zero[block]) * scale[block]) << i;
  }
  // Parts of rows are parts of the whole.
  const auto part = ReadBlocks(*file, *file->Find("codes"), **blocks, 33, 50);
  ASSERT_TRUE(part.ok());
  EXPECT_EQ(*part, std::vector<float>(all->begin() + 33, all->begin() + 83));
  EXPECT_FALSE(ReadBlocks(*file, *file->Find("codes"), **blocks, 100, 21).ok());
}

using Zeros = Form::Zeros;
constexpr Form kForms[] = {{"two", 2, onnx::TensorProto::UINT8, true, Zeros::kNone},
                           {"two_zeros", 2, onnx::TensorProto::UINT8, false, Zeros::kPacked},
                           {"four", 4, onnx::TensorProto::UINT8, true, Zeros::kNone},
                           {"four_zeros", 4, onnx::TensorProto::UINT8, true, Zeros::kPacked},
                           {"four_floats", 4, onnx::TensorProto::UINT8, false, Zeros::kFloats},
                           {"eight_zeros", 8, onnx::TensorProto::UINT8, true, Zeros::kPacked},
                           {"eight_floats", 8, onnx::TensorProto::UINT8, false, Zeros::kFloats},
                           {"uint4", 4, kUint4, false, Zeros::kNone},
                           {"uint4_zeros", 4, kUint4, false, Zeros::kPacked},
                           {"int4", 4, kInt4, false, Zeros::kNone},
                           {"int4_zeros", 4, kInt4, false, Zeros::kPacked}};
INSTANTIATE_TEST_SUITE_P(Forms, OnnxBlockFormsTest, testing::ValuesIn(kForms),
                         [](const auto& test) { return std::string(test.param.name); });

TEST_F(OnnxBlocksTest, RefusesConstantsThatDoNotFit) {
  const OnnxBlockShape fits{kRows, kCols, 4, kBlock, false, false};
  const auto refused = [&](ErrorCode code, const std::string& part, auto change) {
    TinyOnnx tiny;
    tiny.Codes("codes", {kRows, kCols / 2}, kRows * kCols / 2);
    tiny.Floats("scales", {kRows, kBlocks});
    OnnxBlockShape shape = fits;
    change(tiny, shape);
    const auto file = Open(tiny);
    ASSERT_NE(file, nullptr);
    const auto blocks = Bind(*file, shape);
    EXPECT_EQ(blocks.status().code(), code) << part << blocks.status().message();
    EXPECT_THAT(blocks.status().message(), HasSubstr(part));
  };
  const auto shape = ErrorCode::kShape, unsupported = ErrorCode::kUnsupported;
  refused(ErrorCode::kOk, "", [](TinyOnnx&, OnnxBlockShape&) {});
  for (const int64_t bits : {0, 1, 3, 16, -4}) {
    refused(unsupported, "must be 2, 4 or 8", [&](TinyOnnx&, OnnxBlockShape& s) { s.bits = bits; });
  }
  for (const int64_t block : {8, 24, -16}) {
    refused(unsupported, "a power of two", [&](TinyOnnx&, OnnxBlockShape& s) { s.block = block; });
  }
  refused(shape, "bytes of codes", [](TinyOnnx&, OnnxBlockShape& s) { s.rows = 4; });
  refused(shape, "bytes of codes", [](TinyOnnx&, OnnxBlockShape& s) { s.padded_rows = true; });
  refused(shape, "no rows", [](TinyOnnx&, OnnxBlockShape& s) { s.rows = 0; });
  refused(shape, "too many", [](TinyOnnx&, OnnxBlockShape& s) { s.cols = ~uint64_t{0}; });
  refused(shape, "too many", [](TinyOnnx&, OnnxBlockShape& s) { s.rows = uint64_t{1} << 60; });
  refused(shape, "9 scales", [](TinyOnnx& t, OnnxBlockShape&) {
    t.Constant("scales").mutable_float_data()->RemoveLast();
    t.Constant("scales").clear_dims();
    t.Constant("scales").add_dims(8);
  });
  refused(unsupported, "scales as floats", [](TinyOnnx& t, OnnxBlockShape&) {
    t.Constant("scales").set_name("other");
    t.Codes("scales", {9}, 9);
  });
  refused(unsupported, "must hold codes",
          [](TinyOnnx& t, OnnxBlockShape&) { t.Constant("codes").set_data_type(onnx::TensorProto::INT8); });
  refused(shape, "6 bytes of zero points", [](TinyOnnx& t, OnnxBlockShape&) { t.Codes("zeros", {5}, 5); });
  refused(shape, "9 zero points", [](TinyOnnx& t, OnnxBlockShape&) { t.Floats("zeros", {10}); });
  refused(unsupported, "zero points must be", [](TinyOnnx& t, OnnxBlockShape&) { t.Ints("zeros", {0, 0, 0}); });
}

TEST_F(OnnxBlocksTest, ValuesThatOverflowAreFound) {
  TinyOnnx tiny;
  tiny.Codes("codes", {kRows, kCols}, kRows * kCols);
  tiny.Floats("scales", {kRows, kBlocks})->set_float_data(4, 3e38f);
  const auto file = Open(tiny);
  ASSERT_NE(file, nullptr);
  const auto blocks = Bind(*file, {kRows, kCols, 8, kBlock, false, false});
  ASSERT_TRUE(blocks.ok()) << blocks.status().message();
  const auto values = ReadBlocks(*file, *file->Find("codes"), **blocks, 0, kRows * kCols);
  EXPECT_EQ(values.status().code(), ErrorCode::kNotFinite);
  EXPECT_THAT(values.status().message(), HasSubstr("'codes'"));
}

}  // namespace
}  // namespace moepack
