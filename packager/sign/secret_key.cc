#include "packager/sign/secret_key.h"

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/pkcs12.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace moepack {
namespace {

constexpr uint64_t kMaxPemBytes = 64 * 1024;
constexpr int kPassphraseIterations = 600'000;  // OWASP's floor for PBKDF2-HMAC-SHA-256

struct FreeBio {
  void operator()(BIO* bio) const { BIO_free_all(bio); }  // memory BIOs are wiped when freed
};
using BioPointer = std::unique_ptr<BIO, FreeBio>;

void Wipe(std::string* text) {
  OPENSSL_cleanse(text->data(), text->size());
  text->clear();
}

struct WipeOnExit {
  Bytes& bytes;
  ~WipeOnExit() { OPENSSL_cleanse(bytes.data(), bytes.size()); }
};

// What the callback of PEM_read tells beside the passphrase: whether one was asked for at all.
struct PassphraseRequest {
  const Passphrase* passphrase = nullptr;
  bool asked = false;
};

int GivePassphrase(char* buffer, int size, int, void* context) {
  auto* request = static_cast<PassphraseRequest*>(context);
  request->asked = true;
  const std::string& text = request->passphrase->text();
  if (text.empty() || text.size() > static_cast<size_t>(size)) return -1;
  std::memcpy(buffer, text.data(), text.size());
  return static_cast<int>(text.size());
}

Status Fault(const char* what) { return Status(ErrorCode::kInternal, std::string("OpenSSL could not ") + what); }

bool WriteEncrypted(BIO* bio, EVP_PKEY* key, const std::string& passphrase) {
  const std::unique_ptr<PKCS8_PRIV_KEY_INFO, decltype(&PKCS8_PRIV_KEY_INFO_free)> plain(EVP_PKEY2PKCS8(key),
                                                                                        &PKCS8_PRIV_KEY_INFO_free);
  if (!plain) return false;
  const std::unique_ptr<X509_SIG, decltype(&X509_SIG_free)> sealed(
      PKCS8_encrypt(-1, EVP_aes_256_cbc(), passphrase.data(), static_cast<int>(passphrase.size()), nullptr, 0,
                    kPassphraseIterations, plain.get()),
      &X509_SIG_free);
  return sealed && PEM_write_bio_PKCS8(bio, sealed.get()) == 1;
}

}  // namespace

Passphrase::Passphrase(std::string&& text) : text_(text) { Wipe(&text); }

Passphrase::Passphrase(Passphrase&& other) noexcept : text_(other.text_) { Wipe(&other.text_); }

Passphrase& Passphrase::operator=(Passphrase&& other) noexcept {
  if (this == &other) return *this;
  Wipe(&text_);
  text_ = other.text_;
  Wipe(&other.text_);
  return *this;
}

Passphrase::~Passphrase() { Wipe(&text_); }

Result<Passphrase> ReadPassphrase(Env& env, const std::string& path) {
  static constexpr uint64_t kMaxFileBytes = 4096;
  static constexpr size_t kMaxPassphraseBytes = 1000;  // OpenSSL's buffer for one has 1024
  std::string text;
  const char* source = "MOEPACK_PASSPHRASE";
  if (path.empty()) {
    const char* variable = std::getenv(source);
    if (variable == nullptr) return Passphrase();
    text = variable;
  } else {
    source = path.c_str();
    MOEPACK_ASSIGN_OR_RETURN(Bytes bytes, ReadFile(env, path, kMaxFileBytes));
    const WipeOnExit wipe{bytes};
    const auto end = std::find_if(bytes.begin(), bytes.end(), [](uint8_t c) { return c == '\n' || c == '\r'; });
    text.assign(bytes.begin(), end);
  }
  Passphrase passphrase(std::move(text));
  if (passphrase.empty() || passphrase.text().size() > kMaxPassphraseBytes) {
    return Status(ErrorCode::kUsage, StrFormat("%s: expected a passphrase of 1 to %zu bytes", source, kMaxPassphraseBytes));
  }
  return passphrase;
}

void SecretKey::Free::operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }

Result<SecretKey> SecretKey::FromKey(KeyPointer key, const std::string& name) {
  if (EVP_PKEY_get_base_id(key.get()) != EVP_PKEY_ED25519) {
    return Status(ErrorCode::kUnsupported, name + ": not an Ed25519 key; make one with 'moepack pack keygen'");
  }
  SecretKey out(std::move(key));
  size_t size = out.public_key_.size();
  if (EVP_PKEY_get_raw_public_key(out.key_.get(), out.public_key_.data(), &size) != 1 || size != out.public_key_.size()) {
    return Fault("derive a public key");
  }
  return out;
}

Result<SecretKey> SecretKey::Generate() {
  KeyPointer key(EVP_PKEY_Q_keygen(nullptr, nullptr, "ED25519"));
  if (!key) return Fault("generate an Ed25519 key");
  return FromKey(std::move(key), "new key");
}

Result<SecretKey> SecretKey::Load(Env& env, const std::string& path, const Passphrase& passphrase) {
  Result<Bytes> pem = ReadFile(env, path, kMaxPemBytes);
  if (!pem.ok() && pem.status().code() == ErrorCode::kLimit)
    return Status(ErrorCode::kBadInput, path + ": too long for a PEM key");
  if (!pem.ok()) return pem.status();
  const Status not_a_key(ErrorCode::kBadInput,
                         path + ": not a private key in PEM (PKCS#8); make one with 'moepack pack keygen'");
  if (pem->empty()) return not_a_key;
  const WipeOnExit wipe{*pem};
  const BioPointer bio(BIO_new_mem_buf(pem->data(), static_cast<int>(pem->size())));
  if (!bio) return Fault("read from memory");
  PassphraseRequest request{&passphrase};
  KeyPointer key(PEM_read_bio_PrivateKey(bio.get(), nullptr, &GivePassphrase, &request));
  ERR_clear_error();
  if (key) return FromKey(std::move(key), path);
  if (request.asked && passphrase.empty()) {
    return Status(ErrorCode::kUsage, path + ": is encrypted; give --passphrase-file or set MOEPACK_PASSPHRASE");
  }
  if (request.asked) return Status(ErrorCode::kAccess, path + ": cannot decrypt; the passphrase is wrong");
  return not_a_key;
}

Result<std::unique_ptr<PrivateFile>> SecretKey::Write(const std::string& path, const Passphrase& passphrase) const {
  const BioPointer bio(BIO_new(BIO_s_mem()));
  if (!bio) return Fault("write to memory");
  const bool written = passphrase.empty()
                           ? PEM_write_bio_PKCS8PrivateKey(bio.get(), key_.get(), nullptr, nullptr, 0, nullptr, nullptr) == 1
                           : WriteEncrypted(bio.get(), key_.get(), passphrase.text());
  ERR_clear_error();
  if (!written) return Fault("write a PEM key");
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &data);
  return PrivateFile::Create(path, ByteSpan(reinterpret_cast<const uint8_t*>(data), static_cast<size_t>(size)));
}

Status SecretKey::Save(const std::string& path, const Passphrase& passphrase, bool replace) const {
  MOEPACK_ASSIGN_OR_RETURN(const auto file, Write(path, passphrase));
  return file->Commit(replace);
}

Result<std::array<uint8_t, 64>> SecretKey::Sign(ByteSpan message) const {
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(), &EVP_MD_CTX_free);
  std::array<uint8_t, 64> signature{};
  size_t size = signature.size();
  if (!context || EVP_DigestSignInit(context.get(), nullptr, nullptr, nullptr, key_.get()) != 1 ||
      EVP_DigestSign(context.get(), signature.data(), &size, message.data(), message.size()) != 1 ||
      size != signature.size()) {
    ERR_clear_error();
    return Fault("sign");
  }
  return signature;
}

}  // namespace moepack
