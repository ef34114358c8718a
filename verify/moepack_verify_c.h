/* C interface of moepack's verifier (C99). Link libmoepack-verify (pkg-config moepack-verify, or CMake's
 * find_package(moepack) and moepack::verify).
 *
 *   moepack_trust trust = {0};
 *   trust.struct_bytes = sizeof trust;
 *   trust.product = "wren";
 *   trust.release_keys = keys;  trust.release_key_count = 1;  trust.threshold = 1;
 *   moepack_bundle* bundle = NULL;
 *   char message[256];
 *   int code = moepack_bundle_open("B.moeb", &trust, &bundle, message, sizeof message);
 *   if (code == MOEPACK_OK) code = moepack_bundle_verify(bundle, 0, message, sizeof message);
 *   moepack_bundle_close(bundle);
 *
 * Return values: MOEPACK_OK, or an error code of docs/errors.md (code / 100 is the exit status of the programs: 3 bad input,
 * 4 signature, digest or trust, 5 rollback or policy, 7 memory or access). On an error a sentence for people is written to
 * `message`, cut to message_bytes and always ended by a zero byte; message may be NULL when message_bytes is 0.
 *
 * Threads: any function may be called from any thread. Functions that take a const moepack_bundle* may run at the same time
 * on one bundle; moepack_bundle_close must be the last call on it.
 *
 * ABI: functions and structs keep their meaning while moepack_verify_abi_version() stays the same. struct_bytes lets a later
 * version add fields at the end; a library accepts the sizes it knows and refuses others. Nothing here writes to standard
 * output, exits or throws.
 */
#ifndef MOEPACK_VERIFY_C_H
#define MOEPACK_VERIFY_C_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MOEPACK_VERIFY_ABI_VERSION 1
#define MOEPACK_OK 0
#define MOEPACK_PUBLIC_KEY_BYTES 32

/* What the device believes. The caller owns all memory; it is read during moepack_bundle_open only. */
typedef struct moepack_trust {
  uint32_t struct_bytes;       /* sizeof(moepack_trust) */
  uint32_t threshold;          /* distinct release keys that must have signed, 1..release_key_count */
  const char* product;         /* [a-z0-9._-]{1,64}, ended by a zero byte */
  const uint8_t* release_keys; /* release_key_count Ed25519 public keys, one after another */
  uint32_t release_key_count;
  uint32_t reserved;                 /* 0 */
  uint64_t key_epoch;                /* bundles of a lower epoch are refused */
  uint64_t minimum_security_counter; /* at the same epoch, bundles of a lower counter are refused */
} moepack_trust;

/* What a verified manifest says. */
typedef struct moepack_bundle_info {
  uint32_t struct_bytes;     /* in: sizeof(moepack_bundle_info) */
  uint32_t valid_signatures; /* by distinct keys of the trust struct */
  uint64_t key_epoch;
  uint64_t security_counter;
  uint64_t file_bytes;
  uint64_t chunk_count;
  uint8_t manifest_digest[32]; /* SHA-256 */
} moepack_bundle_info;

/* A bundle whose signatures, policy, tables and layout have been checked. */
typedef struct moepack_bundle moepack_bundle;

/* MOEPACK_VERIFY_ABI_VERSION of the library. */
uint32_t moepack_verify_abi_version(void);
/* "0.1.0"; static storage. */
const char* moepack_verify_version(void);
/* "Digest" for 401; "Unknown" for a value that is no code. Static storage. */
const char* moepack_error_name(int code);

/* Opens and checks everything but the chunks. On success *bundle is owned by the caller, on an error it is NULL. */
int moepack_bundle_open(const char* path, const moepack_trust* trust, moepack_bundle** bundle, char* message,
                        size_t message_bytes);
/* Fills *info. */
int moepack_bundle_get_info(const moepack_bundle* bundle, moepack_bundle_info* info, char* message, size_t message_bytes);
/* Checks every byte of the file in constant memory. threads: 0 means all cores. */
int moepack_bundle_verify(const moepack_bundle* bundle, int threads, char* message, size_t message_bytes);
/* Checks all chunks of one logical expert of one expert table. */
int moepack_bundle_verify_expert(const moepack_bundle* bundle, uint32_t table, uint32_t expert, char* message,
                                 size_t message_bytes);
/* Frees it; NULL is fine. */
void moepack_bundle_close(moepack_bundle* bundle);

#ifdef __cplusplus
}
#endif

#endif
