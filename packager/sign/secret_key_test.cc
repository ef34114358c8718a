#include "packager/sign/secret_key.h"

#include <gtest/gtest.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "base/testing/fault_env.h"
#include "verify/verify.h"

namespace moepack {
namespace {

using ::moepack::testing::TempDirectory;

class SecretKeyTest : public ::testing::Test {
 protected:
  void TearDown() override { ::unsetenv("MOEPACK_PASSPHRASE"); }
  Result<SecretKey> LoadText(const std::string& pem) {
    EXPECT_TRUE(WriteFileAtomically(PosixEnv(), path_, AsBytes(pem)).ok());
    return SecretKey::Load(PosixEnv(), path_, Passphrase());
  }
  std::string Text() { return std::string(AsText(ReadFile(PosixEnv(), path_, 1 << 16).value())); }

  TempDirectory directory_{::testing::TempDir()};
  const std::string path_ = directory_.Path("key.pem");
};

// RFC 8410, section 10.3 and 10.1.
TEST_F(SecretKeyTest, ReadsTheKeyOfRfc8410) {
  const auto key = LoadText(
      "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE "
      "KEY-----\n");
  ASSERT_TRUE(key.ok()) << key.status().message();
  EXPECT_EQ(ToHex(ByteSpan(key->public_key())), "19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1");
}

TEST_F(SecretKeyTest, SignaturesVerifyInTheOtherLibrary) {
  const SecretKey key = SecretKey::Generate().value();
  const Bytes message = {1, 2, 3};
  const auto signature = key.Sign(message);
  ASSERT_TRUE(signature.ok());
  EXPECT_TRUE(verify::CheckSignature(key.public_key(), message, *signature));
  EXPECT_FALSE(verify::CheckSignature(key.public_key(), Bytes{1, 2, 4}, *signature));
  EXPECT_EQ(*key.Sign(message), *signature) << "deterministic";
  EXPECT_NE(SecretKey::Generate().value().public_key(), key.public_key());
}

TEST_F(SecretKeyTest, SavesForItsOwnerOnlyAndNeverOverAnother) {
  const SecretKey key = SecretKey::Generate().value();
  ASSERT_TRUE(key.Save(path_, Passphrase(), false).ok());
  struct stat info;
  ASSERT_EQ(::stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777u, 0600u);
  EXPECT_EQ(SecretKey::Load(PosixEnv(), path_, Passphrase()).value().public_key(), key.public_key());
  const std::string before = Text();
  const SecretKey other = SecretKey::Generate().value();
  EXPECT_EQ(other.Save(path_, Passphrase(), false).code(), ErrorCode::kUsage);
  EXPECT_EQ(Text(), before);
  ASSERT_TRUE(other.Save(path_, Passphrase(), true).ok());
  EXPECT_EQ(SecretKey::Load(PosixEnv(), path_, Passphrase()).value().public_key(), other.public_key());
  EXPECT_EQ(other.Save(directory_.Path("no/key.pem"), Passphrase(), false).code(), ErrorCode::kNotFound);
  EXPECT_EQ(PosixEnv().List(directory_.path()).value(), std::vector<std::string>{"key.pem"});
}

TEST_F(SecretKeyTest, AReplacedKeyCanBeBroughtBack) {
  const SecretKey old = SecretKey::Generate().value(), other = SecretKey::Generate().value();
  ASSERT_TRUE(old.Save(path_, Passphrase(), false).ok());
  const std::string before = Text();
  {
    const auto file = other.Write(path_, Passphrase()).value();
    EXPECT_EQ(Text(), before) << "written, but without its name";
    ASSERT_TRUE(file->Commit(true).ok());
    EXPECT_NE(Text(), before);
    ASSERT_TRUE(file->Undo().ok());
  }
  EXPECT_EQ(Text(), before);
  const std::string fresh = directory_.Path("new.pem");
  {
    const auto file = other.Write(fresh, Passphrase()).value();
    ASSERT_TRUE(file->Commit(false).ok());
    ASSERT_TRUE(file->Undo().ok());
  }
  EXPECT_EQ(PosixEnv().List(directory_.path()).value(), std::vector<std::string>{"key.pem"});
}

TEST_F(SecretKeyTest, PassphraseProtects) {
  const SecretKey key = SecretKey::Generate().value();
  ASSERT_TRUE(key.Save(path_, Passphrase("correct horse"), false).ok());
  EXPECT_TRUE(Text().starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"));
  EXPECT_EQ(SecretKey::Load(PosixEnv(), path_, Passphrase("correct horse")).value().public_key(), key.public_key());
  EXPECT_EQ(SecretKey::Load(PosixEnv(), path_, Passphrase("battery staple")).status().code(), ErrorCode::kAccess);
  const Status missing = SecretKey::Load(PosixEnv(), path_, Passphrase()).status();
  EXPECT_EQ(missing.code(), ErrorCode::kUsage);
  EXPECT_NE(missing.message().find("--passphrase-file"), std::string::npos);
}

TEST_F(SecretKeyTest, ReadsPassphraseFromFileOrEnvironment) {
  const std::string file = directory_.Path("phrase");
  EXPECT_TRUE(ReadPassphrase(PosixEnv(), "").value().empty());
  ::setenv("MOEPACK_PASSPHRASE", "from the environment", 1);
  EXPECT_EQ(ReadPassphrase(PosixEnv(), "").value().text(), "from the environment");
  ASSERT_TRUE(WriteFileAtomically(PosixEnv(), file, AsBytes("first line\nsecond\n")).ok());
  EXPECT_EQ(ReadPassphrase(PosixEnv(), file).value().text(), "first line");
  ASSERT_TRUE(WriteFileAtomically(PosixEnv(), file, AsBytes("\n")).ok());
  EXPECT_EQ(ReadPassphrase(PosixEnv(), file).status().code(), ErrorCode::kUsage);
  ::setenv("MOEPACK_PASSPHRASE", "", 1);
  EXPECT_EQ(ReadPassphrase(PosixEnv(), "").status().code(), ErrorCode::kUsage);
  EXPECT_EQ(ReadPassphrase(PosixEnv(), directory_.Path("none")).status().code(), ErrorCode::kNotFound);
}

TEST_F(SecretKeyTest, RefusesWhatIsNoEd25519Key) {
  EXPECT_EQ(LoadText("").status().code(), ErrorCode::kBadInput);
  EXPECT_EQ(LoadText("hello").status().code(), ErrorCode::kBadInput);
  EXPECT_EQ(LoadText("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").status().code(),
            ErrorCode::kBadInput);
  EXPECT_EQ(LoadText(std::string(100'000, 'x')).status().code(), ErrorCode::kBadInput);
  EXPECT_EQ(SecretKey::Load(PosixEnv(), directory_.Path("none"), Passphrase()).status().code(), ErrorCode::kNotFound);
  const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> x25519(EVP_PKEY_Q_keygen(nullptr, nullptr, "X25519"),
                                                                   &EVP_PKEY_free);
  const std::unique_ptr<BIO, decltype(&BIO_free_all)> bio(BIO_new(BIO_s_mem()), &BIO_free_all);
  ASSERT_EQ(PEM_write_bio_PKCS8PrivateKey(bio.get(), x25519.get(), nullptr, nullptr, 0, nullptr, nullptr), 1);
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &data);
  EXPECT_EQ(LoadText(std::string(data, static_cast<size_t>(size))).status().code(), ErrorCode::kUnsupported);
}

}  // namespace
}  // namespace moepack
