/* The C interface used from C11: that the header is C, and that a whole session works. moepack_runtime_c_test.cc calls it.
 */
#include <string.h>

#include "runtime-min/moepack_runtime_c.h"

#define MOST_TOKENS 64
#define MOST_TEXT 256

/* What a generation gave out. */
struct seen {
  int32_t tokens[MOST_TOKENS];
  size_t count;
  char text[MOST_TEXT];
  size_t text_bytes;
};

static int on_token(void* user, int32_t token, const char* text, size_t text_bytes) {
  struct seen* seen = (struct seen*)user;
  if (strlen(text) != text_bytes || seen->text_bytes + text_bytes > MOST_TEXT || seen->count == MOST_TOKENS) return 1;
  memcpy(seen->text + seen->text_bytes, text, text_bytes);
  seen->text_bytes += text_bytes;
  if (token >= 0) seen->tokens[seen->count++] = token;
  return 0;
}

/* Generates by hand, with evaluate and sample, and by moepack_runtime_generate. Returns 0, or the line that went wrong. */
#define REQUIRE(condition) \
  if (!(condition)) return __LINE__

int moepack_runtime_c_check(const char* bundle, const moepack_runtime_trust* trust, const char* prompt, uint64_t max_tokens);

int moepack_runtime_c_check(const char* bundle, const moepack_runtime_trust* trust, const char* prompt,
                            uint64_t max_tokens) {
  moepack_runtime* runtime = NULL;
  moepack_runtime_options options = {0};
  int32_t tokens[MOST_TOKENS], token = 0;
  struct seen seen = {0};
  char text[MOST_TEXT], message[MOST_TEXT];
  size_t count = 0, text_bytes = 0, i = 0;
  int stopped = -1;

  options.struct_bytes = sizeof options;
  options.threads = 2;
  REQUIRE(moepack_runtime_open(bundle, trust, &options, &runtime, message, sizeof message) == MOEPACK_OK);
  REQUIRE(moepack_runtime_tokenize(runtime, prompt, strlen(prompt), 1, tokens, MOST_TOKENS, &count) == MOEPACK_OK);
  REQUIRE(moepack_runtime_generate(runtime, 0, tokens, count, max_tokens, on_token, &seen, &stopped) == MOEPACK_OK);
  REQUIRE(stopped == MOEPACK_STOPPED_LENGTH && seen.count == max_tokens);
  REQUIRE(moepack_runtime_detokenize(runtime, seen.tokens, seen.count, text, sizeof text, &text_bytes) == MOEPACK_OK);
  REQUIRE(text_bytes == seen.text_bytes && memcmp(text, seen.text, text_bytes) == 0 && text[text_bytes] == '\0');

  REQUIRE(moepack_runtime_reset(runtime, 0) == MOEPACK_OK);
  REQUIRE(moepack_runtime_evaluate(runtime, 0, tokens, count) == MOEPACK_OK);
  for (i = 0; i < seen.count; ++i) {
    REQUIRE(moepack_runtime_sample(runtime, 0, 0, &token) == MOEPACK_OK);
    REQUIRE(token == seen.tokens[i]);
    REQUIRE(moepack_runtime_evaluate(runtime, 0, &token, 1) == MOEPACK_OK);
  }
  moepack_runtime_close(runtime);
  return 0;
}
