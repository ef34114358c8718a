#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <numeric>
#include <thread>
#include <vector>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cli/cli.h"
#include "base/digest/sha256.h"
#include "base/env.h"
#include "base/outputs.h"
#include "base/status.h"
#include "base/testing/fault_env.h"
#include "base/thread_pool.h"

namespace moepack {
namespace {

TEST(StatusTest, ExitStatusIsTheHundredsOfTheCode) {
  EXPECT_EQ(Status::Ok().exit_status(), 0);
  EXPECT_EQ(Status(ErrorCode::kInternal, "").exit_status(), 1);
  EXPECT_EQ(Status(ErrorCode::kRecipe, "").exit_status(), 2);
  EXPECT_EQ(Status(ErrorCode::kMalformed, "").exit_status(), 3);
  EXPECT_EQ(Status(ErrorCode::kTruncated, "").exit_status(), 4);
  EXPECT_EQ(Status(ErrorCode::kRollback, "").exit_status(), 5);
  EXPECT_EQ(Status(ErrorCode::kGate, "").exit_status(), 6);
  EXPECT_EQ(Status(ErrorCode::kNoSpace, "").exit_status(), 7);
}

TEST(StatusTest, ContextComesFirst) {
  EXPECT_EQ(Status(ErrorCode::kShape, "rows 3, expected 4").With("model.safetensors").message(),
            "model.safetensors: rows 3, expected 4");
}

TEST(CheckedTest, OverflowIsNoticedAndSticks) {
  uint64_t out = 0;
  EXPECT_TRUE(CheckedAdd(1, 2, &out));
  EXPECT_EQ(out, 3u);
  EXPECT_FALSE(CheckedAdd(UINT64_MAX, 1, &out));
  EXPECT_FALSE(CheckedMul(1ull << 33, 1ull << 31, &out));
  EXPECT_FALSE(CheckedAlign(UINT64_MAX - 5, 4096, &out));
  EXPECT_TRUE(CheckedAlign(4097, 4096, &out));
  EXPECT_EQ(out, 8192u);
  EXPECT_FALSE((CheckedU64(UINT64_MAX) * 2 - UINT64_MAX).valid());
  EXPECT_EQ((CheckedU64(6) * 7 - 2).value(), 40u);
}

TEST(ByteReaderTest, ReadsPastTheEndFailForGood) {
  const Bytes data = {1, 2, 3, 4, 5, 6};
  ByteReader reader(data);
  EXPECT_EQ(reader.U32(), 0x04030201u);
  EXPECT_EQ(reader.U32(), 0u);
  EXPECT_FALSE(reader.ok());
  EXPECT_EQ(reader.U8(), 0u) << "a failed reader gives nothing, even where bytes remain";
}

TEST(ByteReaderTest, WriterRoundTrip) {
  ByteWriter writer;
  writer.U8(7);
  writer.U16(0x1234);
  writer.U64(0x1122334455667788);
  writer.Zeros(3);
  ByteReader reader(writer.bytes());
  EXPECT_EQ(reader.U8(), 7);
  EXPECT_EQ(reader.U16(), 0x1234);
  EXPECT_EQ(reader.U64(), 0x1122334455667788u);
  EXPECT_EQ(reader.Take(3).size(), 3u);
  EXPECT_EQ(reader.remaining(), 0u);
  EXPECT_TRUE(reader.ok());
}

TEST(HexTest, RoundTripAndRefusals) {
  const Bytes data = {0x00, 0xab, 0xff};
  EXPECT_EQ(ToHex(ByteSpan(data)), "00abff");
  Bytes back(3);
  EXPECT_TRUE(FromHex("00ABff", back));
  EXPECT_EQ(back, data);
  EXPECT_FALSE(FromHex("00abf", back));
  EXPECT_FALSE(FromHex("00abfg", back));
}

TEST(Sha256Test, KnownAnswer) {
  EXPECT_EQ(ToHex(Sha256(AsBytes("abc"))), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  Sha256Stream stream;
  stream.Update(AsBytes("a"));
  stream.Update(AsBytes("bc"));
  EXPECT_EQ(stream.Finish(), Sha256(AsBytes("abc")));
}

TEST(ThreadPoolTest, EveryIndexOnceAndBlocksDoNotDependOnThreads) {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (size_t count : {size_t{0}, size_t{1}, size_t{7}, size_t{1000}}) {
      std::vector<std::atomic<int>> seen(count);
      std::vector<size_t> block_of(count);
      pool.ParallelFor(count, 16, [&](size_t begin, size_t end) {
        EXPECT_EQ(begin % 16, 0u);
        for (size_t i = begin; i < end; ++i) {
          seen[i].fetch_add(1);
          block_of[i] = begin / 16;
        }
      });
      for (size_t i = 0; i < count; ++i) {
        EXPECT_EQ(seen[i].load(), 1);
        EXPECT_EQ(block_of[i], i / 16);
      }
    }
  }
}

TEST(ThreadPoolTest, ManySmallLoops) {
  ThreadPool pool(3);
  std::vector<uint64_t> sums(64);
  for (int round = 0; round < 2000; ++round) {
    pool.ParallelFor(sums.size(), 4, [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) ++sums[i];
    });
  }
  EXPECT_EQ(std::accumulate(sums.begin(), sums.end(), uint64_t{0}), 2000u * 64);
}

class FileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = ::testing::TempDir() + "moepack_base_test_" + std::to_string(::getpid());
    ASSERT_TRUE(PosixEnv().MakeDirectory(directory_ + "/a/b").ok());
  }
  void TearDown() override { EXPECT_TRUE(PosixEnv().RemoveTree(directory_).ok()); }
  std::string directory_;
};

TEST_F(FileTest, AtomicFileAppearsOnCommitOnly) {
  const std::string path = directory_ + "/file";
  {
    auto file = AtomicFile::Create(PosixEnv(), path);
    ASSERT_TRUE(file.ok());
    ASSERT_TRUE((*file)->Append(AsBytes("half")).ok());
  }
  EXPECT_EQ(PosixEnv().List(directory_).value(), std::vector<std::string>{"a"}) << "an uncommitted file leaves nothing";
  ASSERT_TRUE(WriteFileAtomically(PosixEnv(), path, AsBytes("whole")).ok());
  EXPECT_EQ(AsText(ReadFile(PosixEnv(), path, 100).value()), "whole");
}

TEST_F(FileTest, TemporaryNamesCannotBeForeseenAndAreNotFollowed) {
  const std::string path = directory_ + "/file", bait = directory_ + "/bait";
  EXPECT_NE(TemporaryPath(path).value(), TemporaryPath(path).value());
  ASSERT_TRUE(WriteFileAtomically(PosixEnv(), bait, AsBytes("bait")).ok());
  std::filesystem::create_symlink(bait, path);
  EXPECT_EQ(PosixEnv().CreateNew(path, "shown").status().message(), "shown: cannot create: File exists");
  EXPECT_EQ(AsText(ReadFile(PosixEnv(), bait, 100).value()), "bait");
}

TEST_F(FileTest, ErrorsOfAnAtomicFileNameItsPath) {
  const std::string path = directory_ + "/file";
  auto file = AtomicFile::Create(PosixEnv(), path);
  ASSERT_TRUE(file.ok());
  ASSERT_TRUE((*file)->Append(AsBytes("whole")).ok());
  ASSERT_TRUE((*file)->Finish().ok());
  EXPECT_FALSE(PosixEnv().Exists(path).value()) << "finished, but without its name";
  EXPECT_EQ((*file)->OpenWritten().value()->path(), path);
  ASSERT_TRUE(PosixEnv().MakeDirectory(path).ok());
  EXPECT_EQ((*file)->Commit().message(), path + ": cannot put it in its place: Is a directory");
}

TEST_F(FileTest, FilesCommittedTogetherReplaceAllOrNone) {
  const std::string a = directory_ + "/one", b = directory_ + "/two", c = directory_ + "/three";
  const auto write = [&](Env& env) {
    MOEPACK_ASSIGN_OR_RETURN(const auto first, AtomicFile::Create(env, a));
    MOEPACK_ASSIGN_OR_RETURN(const auto second, AtomicFile::Create(env, b));
    MOEPACK_ASSIGN_OR_RETURN(const auto third, AtomicFile::Create(env, c));
    for (AtomicFile* file : {first.get(), second.get(), third.get()}) MOEPACK_RETURN_IF_ERROR(file->Append(AsBytes("new")));
    return CommitTogether(env, {{a, first.get()}, {b, second.get()}, {c, third.get()}});
  };
  const auto reset = [&] {
    for (const std::string& path : {b, c}) ASSERT_TRUE(PosixEnv().RemoveTree(path).ok());
    ASSERT_TRUE(WriteFileAtomically(PosixEnv(), a, AsBytes("old")).ok());
  };
  testing::FaultEnv env(PosixEnv(), testing::FaultEnv::Count::kWrites);
  reset();
  env.FailAt(0, ErrorCode::kNoSpace);
  ASSERT_TRUE(write(env).ok());
  EXPECT_EQ(PosixEnv().List(directory_).value(), (std::vector<std::string>{"a", "one", "three", "two"}));
  EXPECT_EQ(AsText(ReadFile(PosixEnv(), a, 100).value()), "new");
  const uint64_t operations = env.operations();
  for (uint64_t n = 1; n <= operations; ++n) {
    reset();
    env.FailAt(n, ErrorCode::kNoSpace);
    EXPECT_FALSE(write(env).ok()) << n;
    EXPECT_EQ(PosixEnv().List(directory_).value(), (std::vector<std::string>{"a", "one"})) << n;
    EXPECT_EQ(AsText(ReadFile(PosixEnv(), a, 100).value()), "old") << n;
  }
}

TEST_F(FileTest, ExchangeSwapsFoldersAndLosesNeither) {
  const std::string a = directory_ + "/x", b = directory_ + "/y";
  const auto in = [](const std::string& folder) { return PosixEnv().List(folder).value(); };
  const auto make = [&] {
    for (const std::string& folder : {a, b}) {
      ASSERT_TRUE(PosixEnv().RemoveTree(folder).ok());
      ASSERT_TRUE(PosixEnv().MakeDirectory(folder + "/from_" + folder.back()).ok());
    }
  };
  make();
  ASSERT_TRUE(ExchangeNames(PosixEnv(), a, b).ok());
  EXPECT_EQ(in(a), std::vector<std::string>{"from_y"});
  EXPECT_EQ(in(b), std::vector<std::string>{"from_x"});
  make();
  ASSERT_TRUE(ExchangeByRenames(PosixEnv(), a, b).ok());
  EXPECT_EQ(in(a), std::vector<std::string>{"from_y"});
  EXPECT_EQ(in(b), std::vector<std::string>{"from_x"});
  testing::FaultEnv env(PosixEnv());
  for (uint64_t n = 1; n <= 2; ++n) {
    make();
    env.FailAt(n, ErrorCode::kAccess);
    EXPECT_FALSE(ExchangeByRenames(env, a, b).ok()) << n;
    EXPECT_EQ(in(a), std::vector<std::string>{"from_x"}) << n;
    EXPECT_EQ(in(b), std::vector<std::string>{"from_y"}) << n;
  }
}

TEST_F(FileTest, PrivateFileIsForItsOwnerWhateverTheUmask) {
  const mode_t before = ::umask(0);
  const auto mode = [&](const char* name) {
    struct stat info {};
    EXPECT_EQ(::stat((directory_ + name).c_str(), &info), 0);
    return info.st_mode & 0777u;
  };
  EXPECT_TRUE(WritePrivateFile(PosixEnv(), directory_ + "/key", Bytes{1, 2}).ok());
  EXPECT_TRUE(WriteFileAtomically(PosixEnv(), directory_ + "/other", Bytes{1}).ok());
  ::umask(before);
  EXPECT_EQ(mode("/key"), 0600u);
  EXPECT_EQ(mode("/other"), 0666u);  // the umask is as it was
  EXPECT_EQ(ReadFile(PosixEnv(), directory_ + "/key", 10).value(), (Bytes{1, 2}));
}

TEST_F(FileTest, ErrorsNameThePathAndTheKind) {
  const Status missing = ReadFile(PosixEnv(), directory_ + "/none", 10).status();
  EXPECT_EQ(missing.code(), ErrorCode::kNotFound);
  EXPECT_NE(missing.message().find("/none"), std::string::npos);
  ASSERT_TRUE(WriteFileAtomically(PosixEnv(), directory_ + "/big", Bytes(11)).ok());
  EXPECT_EQ(ReadFile(PosixEnv(), directory_ + "/big", 10).status().code(), ErrorCode::kLimit);
  auto file = PosixEnv().OpenRead(directory_ + "/big");
  ASSERT_TRUE(file.ok());
  Bytes out(4);
  EXPECT_EQ((*file)->Read(9, out).code(), ErrorCode::kTruncated);
}

TEST_F(FileTest, APipeIsRefusedWithoutWaitingForAWriter) {
  const std::string path = directory_ + "/pipe";
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  EXPECT_EQ(PosixEnv().OpenRead(path).status().code(), ErrorCode::kBadInput);
  EXPECT_EQ(PosixEnv().Map(path).status().code(), ErrorCode::kBadInput);
}

TEST_F(FileTest, OutputsThatCannotBeFilesAreRefused) {
  EXPECT_EQ(AtomicFile::Create(PosixEnv(), directory_ + "/a").status().code(), ErrorCode::kAccess) << "a folder";
  EXPECT_EQ(AtomicFile::Create(PosixEnv(), "/dev/null").status().code(), ErrorCode::kAccess) << "a device";
  EXPECT_EQ(AtomicFile::Create(PosixEnv(), directory_ + "/none/x").status().code(), ErrorCode::kAccess) << "no folder";
  EXPECT_EQ(PosixEnv().OpenRead(directory_ + "/a").status().code(), ErrorCode::kBadInput) << "a folder as input";
}

TEST_F(FileTest, MapSeesTheBytes) {
  ASSERT_TRUE(WriteFileAtomically(PosixEnv(), directory_ + "/m", AsBytes("mapped")).ok());
  auto mapped = PosixEnv().Map(directory_ + "/m");
  ASSERT_TRUE(mapped.ok());
  EXPECT_EQ(AsText((*mapped)->bytes()), "mapped");
  (*mapped)->Release(0, 6);
  EXPECT_EQ(AsText((*mapped)->bytes()), "mapped");
}

TEST(PathTest, BaseName) {
  EXPECT_EQ(BaseName("a"), "a");
  EXPECT_EQ(BaseName("/b/a.json"), "a.json");
  EXPECT_EQ(BaseName("b/"), "");
}

TEST(PathTest, DirectoryOf) {
  EXPECT_EQ(DirectoryOf("a"), ".");
  EXPECT_EQ(DirectoryOf("a/b"), "a");
  EXPECT_EQ(DirectoryOf("a/b/"), "a");
  EXPECT_EQ(DirectoryOf("/a"), "/");
  EXPECT_EQ(JoinPath("a/", "b"), "a/b");
}

TEST(ParseTokensTest, IdsAndRefusals) {
  EXPECT_EQ(cli::ParseTokens("7").value(), std::vector<int32_t>{7});
  EXPECT_EQ(cli::ParseTokens("1,2147483647,0").value(), (std::vector<int32_t>{1, 2147483647, 0}));
  for (const char* bad : {"", ",", "1,", ",1", "1,,2", " 1", "1, 2", "+1", "-1", "1x", "2147483648", "1;2"})
    EXPECT_EQ(cli::ParseTokens(bad).status().code(), ErrorCode::kUsage) << bad;
}

TEST(ParseSizeTest, UnitsAndRefusals) {
  EXPECT_EQ(ParseSize("4096").value(), 4096u);
  EXPECT_EQ(ParseSize("8MiB").value(), 8u << 20);
  EXPECT_EQ(ParseSize("250MB").value(), 250000000u);
  EXPECT_EQ(ParseSize("1.5GiB").value(), 3ull << 29);
  for (const char* bad : {"", "MB", "-5", "8 MiB", "1.2.3MB", "8mib", "1e9", "99999999999999TB"}) {
    EXPECT_EQ(ParseSize(bad).status().code(), ErrorCode::kUsage) << bad;
  }
}

TEST(CommandTest, UnknownOptionAndMissingArgument) {
  const char* unknown[] = {"x", "--codex", "1"};
  cli::Command command({"moepack x", "Does x.", "FILE", {"moepack x file"}});
  command.Positional("FILE");
  const Status status = command.Parse(3, const_cast<char**>(unknown));
  EXPECT_EQ(status.code(), ErrorCode::kUsage);
  EXPECT_NE(status.message().find("codex"), std::string::npos);
  EXPECT_EQ(command.Require("FILE").code(), ErrorCode::kUsage);
}

TEST(CommandTest, NegativeCountsAreRefused) {
  namespace po = boost::program_options;
  for (const char* text : {"-1", "--count=-7"}) {
    cli::Command command({"moepack x", "Does x.", "", {}});
    command.options().add_options()("count,n", po::value<uint64_t>(), "a count")("shift", po::value<int>(), "any number");
    const bool whole = text[1] == '-';
    const char* arguments[] = {"x", whole ? text : "-n", whole ? "--shift" : text, whole ? "-2" : "--shift=-2"};
    const Status status = command.Parse(4, const_cast<char**>(arguments));
    EXPECT_EQ(status.code(), ErrorCode::kUsage) << text;
    EXPECT_NE(status.message().find("count"), std::string::npos) << status.message();
  }
  cli::Command command({"moepack x", "Does x.", "", {}});
  command.options().add_options()("count,n", po::value<uint64_t>(), "a count")("shift", po::value<int>(), "any number");
  const char* arguments[] = {"x", "-n", "3", "--shift=-2"};
  EXPECT_TRUE(command.Parse(4, const_cast<char**>(arguments)).ok());
}

TEST(MainTest, JsonHoldsBytesThatAreNotUtf8) {
  ::testing::internal::CaptureStdout();
  cli::PrintJson({{"path", "a\xff"}});
  EXPECT_EQ(nlohmann::json::parse(::testing::internal::GetCapturedStdout())["path"], "a\xEF\xBF\xBD");
}

TEST(MainDeathTest, StandardOutputThatIsFullFails) {
  const auto print = [] {
    std::printf("a result");
    return Status::Ok();
  };
  EXPECT_EXIT(std::exit(std::freopen("/dev/full", "w", stdout) == nullptr ? 99 : cli::Main("t", print)),
              ::testing::ExitedWithCode(7), "cannot write");
}

TEST(MainDeathTest, NoMemoryOnAWorkerThreadIsAnExitStatus) {
  const auto exhaust = [] {
    std::thread([] { throw std::bad_alloc(); }).join();
    return Status::Ok();
  };
  EXPECT_EXIT(std::exit(cli::Main("t", exhaust)), ::testing::ExitedWithCode(7), "out of memory");
}

TEST(MainTest, ExceptionsBecomeExitStatuses) {
  EXPECT_EQ(cli::Main("t", [] { return Status(ErrorCode::kDigest, "x"); }), 4);
  EXPECT_EQ(cli::Main("t", []() -> Status { throw std::bad_alloc(); }), 7);
  EXPECT_EQ(cli::Main("t", []() -> Status { throw std::runtime_error("x"); }), 1);
}

}  // namespace
}  // namespace moepack
