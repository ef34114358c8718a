#include "model/frontend/compressed.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "format/manifest/model_folder.h"
#include "model/export/gguf.h"
#include "model/frontend/huggingface.h"
#include "model/model_testing.h"

namespace moepack {
namespace {

using ::testing::HasSubstr;

UnitTensor Encode(uint32_t id, const Codec& codec, const MatrixShape& shape, std::vector<float> values, Bytes* plain) {
  QuantizedMatrix matrix;
  matrix.codec = codec;
  matrix.shape = shape;
  matrix.values = std::move(values);
  const Bytes bytes = ToPlain(matrix).value();
  plain->insert(plain->end(), bytes.begin(), bytes.end());
  return {id, codec, shape};
}

// A golden checkpoint written as a compressed folder: dense tensors in f32, experts in bf16, and in table 0 the experts in
// reverse physical order, so that the indirection is used.
class CompressedFolder : public ::testing::Test {
 protected:
  void SetUp() override {
    Result<Model> opened = OpenHuggingFace(PosixEnv(), SourcePath("tests/golden/qwen2_moe"), {});
    ASSERT_TRUE(opened.ok()) << opened.status().message();
    original_ = std::move(*opened);
  }

  std::vector<FolderUnit> UnitsOf(int32_t block) const {
    const Program& program = original_.program;
    std::vector<FolderUnit> units;
    FolderUnit dense;
    for (TensorId id : TensorsOfBlock(program, block)) {
      const TensorDecl& decl = program.tensors[id];
      dense.tensors.push_back(
          Encode(id, Codec(), {decl.rows, decl.cols}, original_.tensors->Load(id).value(), &dense.plain));
    }
    units.push_back(std::move(dense));
    for (uint32_t t = 0; t < program.expert_tables.size(); ++t) {
      if (BlockOfTable(program, t) == block) AddExperts(t, &units);
    }
    return units;
  }

  void AddExperts(uint32_t t, std::vector<FolderUnit>* units) const {
    const ExpertTableDecl& table = original_.program.expert_tables[t];
    Codec bf16;
    bf16.element = Element::kBf16;
    for (uint32_t physical = 0; physical < table.experts(); ++physical) {
      FolderUnit unit;
      unit.key = {true, t, physical};
      const uint32_t e = Logical(t, physical);
      for (int m = 0; m < kExpertMatrices; ++m) {
        const auto matrix = static_cast<ExpertMatrix>(m);
        const MatrixShape shape = matrix == ExpertMatrix::kDown ? MatrixShape{table.hidden, table.intermediate[e]}
                                                                : MatrixShape{table.intermediate[e], table.hidden};
        unit.tensors.push_back(
            Encode(static_cast<uint32_t>(m), bf16, shape, original_.tensors->LoadExpert(t, e, matrix).value(), &unit.plain));
      }
      units->push_back(std::move(unit));
    }
  }

  uint32_t Logical(uint32_t t, uint32_t e) const {
    return t == 0 ? original_.program.expert_tables[t].experts() - 1 - e : e;
  }

  void Write(const std::string& name, bool finish) {
    auto writer = ModelFolderWriter::Create(PosixEnv(), folder_.At(name), false);
    ASSERT_TRUE(writer.ok()) << writer.status().message();
    const Program& program = original_.program;
    for (int32_t block = 0; block < program.blocks(); ++block) {
      const Status status = (*writer)->WriteBlock(block, UnitsOf(block));
      ASSERT_TRUE(status.ok()) << status.message();
    }
    std::vector<std::vector<ExpertEntry>> experts(program.expert_tables.size());
    for (uint32_t t = 0; t < experts.size(); ++t) {
      for (uint32_t e = 0; e < program.expert_tables[t].experts(); ++e) experts[t].push_back({{{Logical(t, e)}}});
    }
    (*writer)->SetExperts(experts);
    ASSERT_TRUE((*writer)->WriteFile("provenance.json", AsBytes(R"({"family":"qwen2_moe"})")).ok());
    if (finish) {
      const Status status = (*writer)->Finish(program);
      ASSERT_TRUE(status.ok()) << status.message();
    }
  }

  TempFolder folder_;
  Model original_;
};

TEST_F(CompressedFolder, GivesTheWeightsThatWereStored) {
  Write("c", true);
  const Result<Model> model = OpenModel(PosixEnv(), folder_.At("c"));
  ASSERT_TRUE(model.ok()) << model.status().message();
  EXPECT_EQ(model->source, ModelSource::kCompressed);
  EXPECT_EQ(model->family, "qwen2_moe");
  EXPECT_EQ(model->program, original_.program);
  for (TensorId id = 0; id < model->program.tensors.size(); ++id) {
    EXPECT_EQ(model->tensors->Load(id).value(), original_.tensors->Load(id).value());
    EXPECT_EQ(model->tensors->StoredCodec(id).Name(), "f32");
  }
  for (uint32_t t = 0; t < model->program.expert_tables.size(); ++t) {
    for (uint32_t e = 0; e < model->program.expert_tables[t].experts(); ++e) {
      for (int m = 0; m < kExpertMatrices; ++m) {
        const auto matrix = static_cast<ExpertMatrix>(m);
        EXPECT_EQ(model->tensors->LoadExpert(t, e, matrix).value(), original_.tensors->LoadExpert(t, e, matrix).value());
        EXPECT_EQ(model->tensors->StoredExpertCodec(t, e, matrix).Name(), "bf16");
      }
    }
  }
}

TEST_F(CompressedFolder, ExportsAsTheModelItHolds) {
  Write("c", true);
  const Result<Model> model = OpenModel(PosixEnv(), folder_.At("c"));
  ASSERT_TRUE(model.ok()) << model.status().message();
  ASSERT_TRUE(ExportGguf(PosixEnv(), *model, folder_.At("c.gguf"), GgufType::kF32, NoProgress()).ok());
  ASSERT_TRUE(ExportGguf(PosixEnv(), original_, folder_.At("o.gguf"), GgufType::kF32, NoProgress()).ok());
  EXPECT_EQ(ReadAll(folder_.At("c.gguf")), ReadAll(folder_.At("o.gguf")));
}

TEST_F(CompressedFolder, UnfinishedIsRefusedWithTheWayOn) {
  Write("c", false);
  const Result<Model> model = OpenModel(PosixEnv(), folder_.At("c.partial"));
  EXPECT_EQ(model.status().code(), ErrorCode::kBadInput);
  EXPECT_THAT(model.status().message(), HasSubstr("--resume"));
}

TEST_F(CompressedFolder, AChangedFileIsRefused) {
  Write("c", true);
  const std::string path = folder_.At("c/block-002.moeu");
  Bytes bytes = ReadAll(path);
  bytes[bytes.size() / 2] ^= 1;
  ASSERT_TRUE(WriteFileAtomically(PosixEnv(), path, bytes).ok());
  const Result<Model> model = OpenModel(PosixEnv(), folder_.At("c"));
  // Whoever opens the folder or loads a tensor of the unit that holds the byte must notice.
  Status status = model.status();
  for (TensorId id = 0; status.ok() && id < original_.program.tensors.size(); ++id)
    status = model->tensors->Load(id).status();
  for (uint32_t e = 0; status.ok() && e < 8; ++e) status = model->tensors->LoadExpert(1, e, ExpertMatrix::kUp).status();
  EXPECT_EQ(status.code(), ErrorCode::kDigest) << status.message();
}

}  // namespace
}  // namespace moepack
