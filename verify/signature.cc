#include <sodium/crypto_sign_ed25519.h>

#include "verify/verify.h"

#ifdef MOEPACK_STATIC_SODIUM
#include <sodium/crypto_hash_sha512.h>

// In libsodium.a the verifier takes this one function from the object file that holds the signer, which would put the
// signing code into every device program. Ours is found first, so the signer stays out; tests/e2e/symbols_test.py looks.
// It starts SHA-512, with RFC 8032's dom2 prefix for the prehashed variant. Weak: a program that does link the signer uses
// that one's.
extern "C" __attribute__((weak, visibility("hidden"))) void _crypto_sign_ed25519_ref10_hinit(crypto_hash_sha512_state* state,
                                                                                             int prehashed);
extern "C" void _crypto_sign_ed25519_ref10_hinit(crypto_hash_sha512_state* state, int prehashed) {
  static constexpr unsigned char kDom2[] = "SigEd25519 no Ed25519 collisions\x01";  // and a zero byte: empty context
  crypto_hash_sha512_init(state);
  if (prehashed) crypto_hash_sha512_update(state, kDom2, sizeof(kDom2));
}
#endif

namespace moepack::verify {

// The Ed25519 function is called directly: it needs no sodium_init, and the generic wrapper would allow another scheme.
// libsodium 1.0.18 refuses S >= L, public keys that are not canonical, and small-order keys and R.
bool CheckSignature(const std::array<uint8_t, 32>& public_key, ByteSpan message, const std::array<uint8_t, 64>& signature) {
  return crypto_sign_ed25519_verify_detached(signature.data(), message.data(), message.size(), public_key.data()) == 0;
}

}  // namespace moepack::verify
