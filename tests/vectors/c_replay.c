/* What the C interface says about bundles, for the vectors. Each line of standard input is
 * "PATH PRODUCT THRESHOLD EPOCH COUNTER KEYS", KEYS being the release keys in hexadecimal, one after another; each answer
 * "OPEN VERIFY" with error codes. After a failed opening the second repeats the first. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "verify/moepack_verify_c.h"

enum { kMaxKeys = 16, kLine = 8192 };

static uint32_t parse_keys(const char* text, uint8_t* keys) {
  uint32_t bytes = 0;
  unsigned value = 0;
  while (bytes < kMaxKeys * MOEPACK_PUBLIC_KEY_BYTES && sscanf(text + 2 * bytes, "%2x", &value) == 1) {
    keys[bytes++] = (uint8_t)value;
  }
  return bytes / MOEPACK_PUBLIC_KEY_BYTES;
}

int main(void) {
  static char line[kLine], path[kLine], product[kLine], hex[kLine];
  static uint8_t keys[kMaxKeys * MOEPACK_PUBLIC_KEY_BYTES];
  while (fgets(line, sizeof line, stdin) != NULL) {
    unsigned long long epoch = 0, counter = 0;
    unsigned threshold = 0;
    moepack_trust trust;
    moepack_bundle* bundle = NULL;
    char message[256];
    int open_code, verify_code;
    if (sscanf(line, "%s %s %u %llu %llu %s", path, product, &threshold, &epoch, &counter, hex) != 6) return 2;
    memset(&trust, 0, sizeof trust);
    trust.struct_bytes = sizeof trust;
    trust.threshold = threshold;
    trust.product = product;
    trust.release_keys = keys;
    trust.release_key_count = parse_keys(hex, keys);
    trust.key_epoch = epoch;
    trust.minimum_security_counter = counter;
    open_code = moepack_bundle_open(path, &trust, &bundle, message, sizeof message);
    verify_code = open_code == MOEPACK_OK ? moepack_bundle_verify(bundle, 1, message, sizeof message) : open_code;
    moepack_bundle_close(bundle);
    printf("%d %d\n", open_code, verify_code);
    fflush(stdout);
  }
  return 0;
}
