// Secret Ed25519 keys: the only code of moepack that touches one. The key lives inside OpenSSL's EVP_PKEY, which wipes it
// when freed; nothing here hands out its bytes except as a PEM file of mode 0600.
#pragma once

#include <openssl/types.h>

#include <array>
#include <memory>
#include <string>

#include "base/bytes.h"
#include "base/env.h"
#include "base/status.h"
#include "packager/sign/private_file.h"

namespace moepack {

// A passphrase that is wiped when it goes away. Movable, not copyable.
class Passphrase {
 public:
  Passphrase() = default;
  explicit Passphrase(std::string&& text);  // wipes `text`: a move would leave a short one behind
  Passphrase(Passphrase&& other) noexcept;
  Passphrase& operator=(Passphrase&& other) noexcept;
  ~Passphrase();
  bool empty() const { return text_.empty(); }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

// First line of `path`; without a path the environment's MOEPACK_PASSPHRASE; without either empty, which means none.
// kUsage when the file or variable is there but empty.
Result<Passphrase> ReadPassphrase(Env& env, const std::string& path);

class SecretKey {
 public:
  // From the operating system's random numbers.
  static Result<SecretKey> Generate();
  // PKCS#8 PEM, plain or encrypted. kNotFound, kAccess (cannot be read, wrong passphrase), kUsage (a passphrase is needed),
  // kBadInput (not a PEM key), kUnsupported (a key of another kind).
  static Result<SecretKey> Load(Env& env, const std::string& path, const Passphrase& passphrase);
  SecretKey(SecretKey&&) = default;
  SecretKey& operator=(SecretKey&&) = default;

  // PKCS#8 PEM, encrypted (PBES2: PBKDF2-HMAC-SHA-256, AES-256-CBC) unless the passphrase is empty, ready to get its name.
  Result<std::unique_ptr<PrivateFile>> Write(const std::string& path, const Passphrase& passphrase) const;
  // Write and Commit. An existing file is replaced only with `replace`, otherwise kUsage.
  Status Save(const std::string& path, const Passphrase& passphrase, bool replace) const;

  const std::array<uint8_t, 32>& public_key() const { return public_key_; }
  // Ed25519 (RFC 8032), deterministic. Thread-safe.
  Result<std::array<uint8_t, 64>> Sign(ByteSpan message) const;

 private:
  struct Free {
    void operator()(EVP_PKEY* key) const;
  };
  using KeyPointer = std::unique_ptr<EVP_PKEY, Free>;
  explicit SecretKey(KeyPointer key) : key_(std::move(key)) {}
  static Result<SecretKey> FromKey(KeyPointer key, const std::string& name);

  KeyPointer key_;
  std::array<uint8_t, 32> public_key_{};
};

}  // namespace moepack
