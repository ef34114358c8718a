#include "format/manifest/model_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "base/testing/fault_env.h"
#include "format/manifest/folder_files.h"
#include "format/manifest/testing/tiny_bundle.h"

namespace moepack {
namespace {

using testing::FaultEnv;
using ::testing::HasSubstr;
using testing::TempDirectory;
using testing::TinyProgram;

const std::vector<std::vector<ExpertEntry>> kExperts = {{{{{0}}}, {{{0}}}, {{{1}}}, {{{2}}}}};

// Without faults, but without waiting for the disk either.
Env& QuickEnv() {
  static FaultEnv env(PosixEnv());
  return env;
}

FolderUnit MakeUnit(UnitKey key, std::vector<UnitTensor> tensors) {
  FolderUnit unit{key, std::move(tensors), {}};
  uint64_t bytes = 0;
  for (const UnitTensor& tensor : unit.tensors) bytes += *PlainBytes(tensor.codec, tensor.shape);
  for (uint64_t i = 0; i < bytes; ++i) unit.plain.push_back(static_cast<uint8_t>(i * 13 + key.physical + tensors.size()));
  return unit;
}

std::vector<FolderUnit> UnitsOfBlock(const Program& program, int32_t block) {
  std::vector<FolderUnit> units = {MakeUnit({}, testing::BlockTensors(program, block))};
  if (block != BlockOfTable(program, 0)) return units;
  uint32_t physical = 0;
  for (const uint32_t expert : {0u, 2u, 3u}) {
    units.push_back(MakeUnit({true, 0, physical++}, testing::ExpertTensors(program.expert_tables[0], expert)));
  }
  return units;
}

// What a compressor does: all blocks that are not there yet, the other files, Finish.
Status WriteFolder(Env& env, const std::string& directory, bool resume) {
  const Program program = TinyProgram();
  MOEPACK_ASSIGN_OR_RETURN(const auto writer, ModelFolderWriter::Create(env, directory, resume));
  for (int32_t block = 0; block < program.blocks(); ++block) {
    if (!writer->HasBlock(block)) MOEPACK_RETURN_IF_ERROR(writer->WriteBlock(block, UnitsOfBlock(program, block)));
  }
  writer->SetExperts(kExperts);
  MOEPACK_RETURN_IF_ERROR(writer->WriteFile("tokenizer.bin", AsBytes("tokens")));
  MOEPACK_RETURN_IF_ERROR(writer->WriteFile("hot.pb", SerializeHotList({{{0, 2}}})));
  MOEPACK_RETURN_IF_ERROR(writer->WriteFile("plan.json", AsBytes("{}")));
  return writer->Finish(program);
}

// Names and bytes of all files of a folder.
std::vector<std::pair<std::string, Bytes>> Contents(const std::string& directory) {
  std::vector<std::pair<std::string, Bytes>> out;
  const std::vector<std::string> names = *QuickEnv().List(directory);
  for (const std::string& name : names) {
    out.emplace_back(name, *ReadFile(QuickEnv(), JoinPath(directory, name), 1 << 20));
  }
  return out;
}

void Spoil(const std::string& path, const std::function<void(Bytes&)>& change) {
  Bytes bytes = *ReadFile(QuickEnv(), path, 1 << 20);
  change(bytes);
  ASSERT_TRUE(WriteFileAtomically(QuickEnv(), path, bytes).ok());
}

class ModelFolderTest : public ::testing::Test {
 protected:
  void Write() {
    const Status status = WriteFolder(QuickEnv(), folder_, false);
    ASSERT_TRUE(status.ok()) << status.message();
  }
  Status OpenStatus() { return ModelFolder::Open(QuickEnv(), folder_).status(); }

  TempDirectory temp_{::testing::TempDir()};
  const std::string folder_ = temp_.Path("model");
};

TEST_F(ModelFolderTest, GivesBackWhatWasWritten) {
  Write();
  const Program program = TinyProgram();
  const auto folder = ModelFolder::Open(QuickEnv(), folder_);
  ASSERT_TRUE(folder.ok()) << folder.status().message();
  const ModelFolder& model = **folder;
  EXPECT_EQ(model.program(), program);
  EXPECT_EQ(model.experts(), kExperts);
  EXPECT_EQ(AsText(model.tokenizer_blob()), "tokens");
  EXPECT_EQ(model.hot_list(), (HotList{{{0, 2}}}));
  EXPECT_EQ(AsText(*model.ReadNamedFile("plan.json")), "{}");
  EXPECT_TRUE(model.ReadNamedFile("errors.json")->empty()) << "optional";
  EXPECT_EQ(model.ReadNamedFile("../model/plan.json").status().code(), ErrorCode::kInternal);

  std::vector<std::pair<int32_t, FolderUnit>> want;
  for (int32_t block = 0; block < program.blocks(); ++block) want.emplace_back(block, UnitsOfBlock(program, block)[0]);
  for (uint32_t i = 1; i <= 3; ++i) want.emplace_back(1, UnitsOfBlock(program, 1)[i]);
  ASSERT_EQ(model.units().size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    const ModelFolder::UnitInfo& unit = model.units()[i];
    EXPECT_EQ(unit.block, want[i].first);
    EXPECT_EQ(unit.key, want[i].second.key);
    EXPECT_EQ(unit.tensors, want[i].second.tensors);
    EXPECT_EQ(unit.plain_bytes, want[i].second.plain.size());
    EXPECT_EQ(*model.ReadUnit(i), want[i].second.plain);
  }
  EXPECT_FALSE(model.ReadUnit(want.size()).ok());
}

TEST_F(ModelFolderTest, TheSameInputGivesTheSameBytes) {
  Write();
  const auto first = Contents(folder_);
  Write();  // replaces a complete model folder
  EXPECT_EQ(Contents(folder_), first);
  EXPECT_EQ(*QuickEnv().List(temp_.path()), std::vector<std::string>{"model"});
}

TEST_F(ModelFolderTest, ResumeKeepsIntactBlocksOnly) {
  const Program program = TinyProgram();
  {
    auto writer = ModelFolderWriter::Create(QuickEnv(), folder_ + "/", false);
    ASSERT_TRUE(writer.ok()) << writer.status().message();
    for (const int32_t block : {0, 1, 2}) ASSERT_TRUE((*writer)->WriteBlock(block, UnitsOfBlock(program, block)).ok());
    ASSERT_TRUE((*writer)->WriteFile("plan.json", AsBytes("plan")).ok());
  }
  const std::string partial = folder_ + ".partial";
  Spoil(JoinPath(partial, "block-001.moeu"), [](Bytes& b) { b.back() ^= 1; });
  ASSERT_TRUE(WriteFileAtomically(QuickEnv(), JoinPath(partial, "block-002.moeu.tmp-1"), AsBytes("half")).ok());

  auto writer = ModelFolderWriter::Create(QuickEnv(), folder_, true);
  ASSERT_TRUE(writer.ok()) << writer.status().message();
  EXPECT_TRUE((*writer)->HasBlock(0));
  EXPECT_FALSE((*writer)->HasBlock(1));
  EXPECT_TRUE((*writer)->HasBlock(2));
  EXPECT_EQ(AsText(*(*writer)->ReadFileIfPresent("plan.json")), "plan");
  EXPECT_TRUE((*writer)->ReadFileIfPresent("errors.json")->empty());
  const auto block = (*writer)->ReadBlock(2);
  ASSERT_TRUE(block.ok());
  ASSERT_EQ(block->size(), 1u);
  EXPECT_EQ((*block)[0].plain, UnitsOfBlock(program, 2)[0].plain);
  EXPECT_EQ((*writer)->ReadBlock(1).status().code(), ErrorCode::kNotFound);
  EXPECT_EQ(*QuickEnv().List(partial),
            (std::vector<std::string>{"block-000.moeu", "block-002.moeu", "plan.json", "unfinished"}));

  writer = ModelFolderWriter::Create(QuickEnv(), folder_, false);
  ASSERT_TRUE(writer.ok());
  EXPECT_EQ(*QuickEnv().List(partial), std::vector<std::string>{"unfinished"}) << "without resume it starts empty";
}

TEST_F(ModelFolderTest, AResumedFolderHasTheBytesOfAnUninterruptedOne) {
  Write();
  const auto whole = Contents(folder_);
  const std::string other = temp_.Path("other");
  FaultEnv env(PosixEnv());
  env.FailAt(0, ErrorCode::kAccess);
  ASSERT_TRUE(WriteFolder(env, other, false).ok());
  const uint64_t operations = env.operations();
  for (uint64_t n = 1; n <= operations; ++n) {
    ASSERT_TRUE(QuickEnv().RemoveTree(other).ok());
    env.FailAt(n, ErrorCode::kAccess, FaultEnv::Duration::kFromThenOn);
    ASSERT_FALSE(WriteFolder(env, other, false).ok()) << n;
    env.FailAt(0, ErrorCode::kAccess);
    const Status status = WriteFolder(env, other, true);
    ASSERT_TRUE(status.ok()) << n << ": " << status.message();
    ASSERT_EQ(Contents(other), whole) << n;
  }
}

TEST_F(ModelFolderTest, AFullDiskLeavesNothingUnderTheFinalName) {
  FaultEnv env(PosixEnv(), FaultEnv::Count::kWrites);
  env.FailAt(0, ErrorCode::kNoSpace);
  ASSERT_TRUE(WriteFolder(env, folder_, false).ok());
  const uint64_t operations = env.operations();
  ASSERT_GT(operations, 20u);
  // The last operation syncs the parent folder: by then the folder has its name, complete.
  for (uint64_t n = 1; n < operations; ++n) {
    ASSERT_TRUE(QuickEnv().RemoveTree(folder_).ok());
    env.FailAt(n, ErrorCode::kNoSpace, FaultEnv::Duration::kFromThenOn);
    EXPECT_EQ(WriteFolder(env, folder_, false).code(), ErrorCode::kNoSpace) << n;
    EXPECT_FALSE(*QuickEnv().Exists(folder_)) << n;
  }
}

TEST_F(ModelFolderTest, AFailedReplacementKeepsTheOldFolder) {
  Write();
  const auto old = Contents(folder_);
  FaultEnv env(PosixEnv(), FaultEnv::Count::kWrites);
  env.FailAt(0, ErrorCode::kNoSpace);
  ASSERT_TRUE(WriteFolder(env, folder_, false).ok());
  const uint64_t operations = env.operations();
  for (uint64_t n = 1; n < operations; ++n) {
    env.FailAt(n, ErrorCode::kNoSpace);
    EXPECT_FALSE(WriteFolder(env, folder_, false).ok()) << n;
    EXPECT_EQ(Contents(folder_), old) << n;
  }
}

TEST_F(ModelFolderTest, NeverReplacesWhatIsNotAModelFolder) {
  ASSERT_TRUE(QuickEnv().MakeDirectory(folder_).ok());
  EXPECT_TRUE(ModelFolderWriter::Create(QuickEnv(), folder_, false).ok()) << "an empty folder may be used";
  ASSERT_TRUE(WriteFileAtomically(QuickEnv(), JoinPath(folder_, "thesis.tex"), AsBytes("work")).ok());
  EXPECT_EQ(ModelFolderWriter::Create(QuickEnv(), folder_, false).status().code(), ErrorCode::kUsage);
  EXPECT_EQ(WriteFolder(QuickEnv(), JoinPath(folder_, "thesis.tex"), false).code(), ErrorCode::kUsage);
  EXPECT_EQ(*QuickEnv().List(folder_), std::vector<std::string>{"thesis.tex"});
}

TEST_F(ModelFolderTest, NeverTakesAPartialFolderThatItDidNotMark) {
  const std::string partial = folder_ + ".partial";
  ASSERT_TRUE(QuickEnv().MakeDirectory(partial).ok());
  EXPECT_TRUE(ModelFolderWriter::Create(QuickEnv(), folder_, false).ok()) << "an empty folder may be used";
  ASSERT_TRUE(QuickEnv().RemoveTree(partial).ok());
  ASSERT_TRUE(QuickEnv().MakeDirectory(partial).ok());
  ASSERT_TRUE(WriteFileAtomically(QuickEnv(), JoinPath(partial, "thesis.tex"), AsBytes("work")).ok());
  for (const bool resume : {false, true}) {
    const Status status = ModelFolderWriter::Create(QuickEnv(), folder_, resume).status();
    EXPECT_EQ(status.code(), ErrorCode::kUsage);
    EXPECT_THAT(status.message(), HasSubstr("thesis.tex"));
    EXPECT_EQ(*QuickEnv().List(partial), std::vector<std::string>{"thesis.tex"});
  }
  ASSERT_TRUE(WriteFileAtomically(QuickEnv(), JoinPath(partial, "unfinished"), AsBytes("")).ok());
  for (const bool resume : {false, true}) {
    const Status status = ModelFolderWriter::Create(QuickEnv(), folder_, resume).status();
    EXPECT_EQ(status.code(), ErrorCode::kUsage) << "a file of somebody in a folder of ours";
    EXPECT_THAT(status.message(), HasSubstr("thesis.tex"));
  }
  EXPECT_TRUE(*QuickEnv().Exists(JoinPath(partial, "thesis.tex")));
}

TEST_F(ModelFolderTest, CheckOutputSaysWhatWouldBeReplaced) {
  EXPECT_EQ(ModelFolderWriter::CheckOutput(QuickEnv(), folder_).value(), false);
  ASSERT_TRUE(QuickEnv().MakeDirectory(folder_).ok());
  EXPECT_EQ(ModelFolderWriter::CheckOutput(QuickEnv(), folder_ + "/").value(), false) << "empty";
  Write();
  EXPECT_EQ(ModelFolderWriter::CheckOutput(QuickEnv(), folder_).value(), true);
  ASSERT_TRUE(WriteFileAtomically(QuickEnv(), JoinPath(folder_, "notes.txt"), AsBytes("mine")).ok());
  const Status status = ModelFolderWriter::CheckOutput(QuickEnv(), folder_).status();
  EXPECT_EQ(status.code(), ErrorCode::kUsage);
  EXPECT_THAT(status.message(), HasSubstr("notes.txt"));
}

TEST_F(ModelFolderTest, AKillWhileReplacingLosesNeitherFolder) {
  Write();
  const auto old = Contents(folder_);
  FaultEnv env(PosixEnv());
  env.FailAt(0, ErrorCode::kAccess);
  ASSERT_TRUE(WriteFolder(env, folder_, false).ok());
  const uint64_t operations = env.operations();
  for (uint64_t n = 1; n <= operations; ++n) {
    env.FailAt(n, ErrorCode::kAccess, FaultEnv::Duration::kFromThenOn);  // from then on nothing happens: a kill
    EXPECT_FALSE(WriteFolder(env, folder_, false).ok()) << n;
    ASSERT_EQ(Contents(folder_), old) << n;  // the same content, old or new
    env.FailAt(0, ErrorCode::kAccess);
    const Status again = WriteFolder(env, folder_, n % 2 == 0);
    ASSERT_TRUE(again.ok()) << n << ": " << again.message();
    ASSERT_EQ(*QuickEnv().List(temp_.path()), std::vector<std::string>{"model"}) << n;
  }
}

TEST_F(ModelFolderTest, FinishNamesWhatIsMissing) {
  const Program program = TinyProgram();
  auto writer = *ModelFolderWriter::Create(QuickEnv(), folder_, false);
  ASSERT_TRUE(writer->WriteBlock(0, UnitsOfBlock(program, 0)).ok());
  writer->SetExperts(kExperts);
  Status status = writer->Finish(program);
  EXPECT_EQ(status.code(), ErrorCode::kMissingTensor);
  EXPECT_THAT(status.message(), HasSubstr("'layers.0.input_layernorm'"));

  ASSERT_TRUE(writer->WriteBlock(2, UnitsOfBlock(program, 2)).ok());
  std::vector<FolderUnit> units = UnitsOfBlock(program, 1);
  units.pop_back();
  ASSERT_TRUE(writer->WriteBlock(1, units).ok());
  status = writer->Finish(program);
  EXPECT_EQ(status.code(), ErrorCode::kMissingTensor);
  EXPECT_THAT(status.message(), HasSubstr("'layers.0.experts.7'"));
  EXPECT_FALSE(*QuickEnv().Exists(folder_));

  ASSERT_TRUE(writer->WriteBlock(1, UnitsOfBlock(program, 1)).ok());
  ASSERT_TRUE(writer->WriteBlock(3, UnitsOfBlock(program, 2)).ok());
  EXPECT_THAT(writer->Finish(program).message(), HasSubstr("block-003.moeu: the program has 3 blocks"));
  writer->SetExperts({});
  EXPECT_THAT(writer->Finish(program).message(), HasSubstr("0 expert tables"));
}

TEST_F(ModelFolderTest, WriterRefusesWhatTheReaderWould) {
  const Program program = TinyProgram();
  auto writer = *ModelFolderWriter::Create(QuickEnv(), folder_, false);
  std::vector<FolderUnit> units = UnitsOfBlock(program, 1);
  std::swap(units[1], units[2]);
  EXPECT_EQ(writer->WriteBlock(1, units).code(), ErrorCode::kInternal);
  units = UnitsOfBlock(program, 1);
  units[0].plain.pop_back();
  EXPECT_EQ(writer->WriteBlock(1, units).code(), ErrorCode::kInternal);
  EXPECT_EQ(writer->WriteBlock(-1, {}).code(), ErrorCode::kInternal);
  EXPECT_EQ(writer->WriteFile("../plan.json", AsBytes("{}")).code(), ErrorCode::kInternal);
  EXPECT_EQ(writer->WriteFile("complete", AsBytes("{}")).code(), ErrorCode::kInternal);
  EXPECT_FALSE(writer->HasBlock(1));
}

TEST_F(ModelFolderTest, AFolderWithoutCompleteIsNotOne) {
  Write();
  ASSERT_TRUE(QuickEnv().Remove(JoinPath(folder_, "complete")).ok());
  EXPECT_EQ(OpenStatus().code(), ErrorCode::kBadInput);
  EXPECT_EQ(ModelFolder::Open(QuickEnv(), temp_.Path("nothing")).status().code(), ErrorCode::kBadInput);
}

TEST_F(ModelFolderTest, EveryFlippedByteIsNoticed) {
  Write();
  const auto contents = Contents(folder_);
  for (const auto& [name, bytes] : contents) {
    for (size_t i = 0; i < bytes.size(); i += 1 + bytes.size() / 97) {
      Spoil(JoinPath(folder_, name), [&](Bytes& b) { b[i] ^= 0x10; });
      auto folder = ModelFolder::Open(QuickEnv(), folder_);
      Status status = folder.status();
      for (size_t u = 0; folder.ok() && status.ok() && u < (*folder)->units().size(); ++u)
        status = (*folder)->ReadUnit(u).status();
      if (folder.ok() && name == "plan.json") status = (*folder)->ReadNamedFile(name).status();
      EXPECT_FALSE(status.ok()) << name << " byte " << i;
      EXPECT_TRUE(name == "complete" || status.code() == ErrorCode::kDigest)
          << name << " byte " << i << ": " << status.message();
    }
    ASSERT_TRUE(WriteFileAtomically(QuickEnv(), JoinPath(folder_, name), bytes).ok());
  }
  EXPECT_TRUE(OpenStatus().ok());
}

TEST_F(ModelFolderTest, MissingShorterAndLongerFilesAreNoticed) {
  Write();
  const auto contents = Contents(folder_);
  for (const auto& [name, bytes] : contents) {
    if (name == "complete" || name == "plan.json") continue;
    Spoil(JoinPath(folder_, name), [](Bytes& b) { b.pop_back(); });
    EXPECT_EQ(OpenStatus().code(), ErrorCode::kDigest) << name;
    ASSERT_TRUE(WriteFileAtomically(QuickEnv(), JoinPath(folder_, name), bytes).ok());
    Spoil(JoinPath(folder_, name), [](Bytes& b) { b.push_back(0); });
    EXPECT_EQ(OpenStatus().code(), ErrorCode::kDigest) << name;
    ASSERT_TRUE(QuickEnv().Remove(JoinPath(folder_, name)).ok());
    EXPECT_EQ(OpenStatus().code(), ErrorCode::kNotFound) << name;
    ASSERT_TRUE(WriteFileAtomically(QuickEnv(), JoinPath(folder_, name), bytes).ok());
  }
}

TEST_F(ModelFolderTest, EveryFailedReadIsReported) {
  Write();
  FaultEnv env(PosixEnv());
  const auto read_all = [&] {
    MOEPACK_ASSIGN_OR_RETURN(const auto folder, ModelFolder::Open(env, folder_));
    for (size_t i = 0; i < folder->units().size(); ++i) MOEPACK_RETURN_IF_ERROR(folder->ReadUnit(i).status());
    return folder->ReadNamedFile("plan.json").status();
  };
  env.FailAt(0, ErrorCode::kAccess);
  ASSERT_TRUE(read_all().ok());
  const uint64_t operations = env.operations();
  for (uint64_t n = 1; n <= operations; ++n) {
    env.FailAt(n, ErrorCode::kAccess);
    EXPECT_EQ(read_all().code(), ErrorCode::kAccess) << n;
  }
}

TEST(BlockFileName, OnlyItsOwnFormIsRead) {
  EXPECT_EQ(BlockFileName(7), "block-007.moeu");
  EXPECT_EQ(BlockFileName(4097), "block-4097.moeu");
  EXPECT_EQ(ParseBlockFileName("block-4097.moeu"), 4097);
  for (const char* name :
       {"block-7.moeu", "block--01.moeu", "block-007.moeu.tmp-1", "block-.moeu", "block-0007.moeu", "blok-007.moeu"}) {
    EXPECT_FALSE(ParseBlockFileName(name).has_value()) << name;
  }
}

}  // namespace
}  // namespace moepack
