/* Text from a signed bundle through moepack's C interface.
 *
 *   generate BUNDLE TRUST PROMPT [TOKENS [EXPERT_RAM_BYTES]]
 *
 * Writes the text to standard output as it comes, then token ids and metrics to standard error. The exit status is that of
 * the programs of moepack (docs/errors.md). */
#include <moepack/moepack_runtime_c.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int on_token(void* user, int32_t token, const char* text, size_t text_bytes) {
  if (token >= 0) fprintf(stderr, *(int*)user ? "tokens: %d" : ",%d", (int)token);
  *(int*)user = 0;
  fwrite(text, 1, text_bytes, stdout);
  fflush(stdout);
  return ferror(stdout); /* nobody reads any more: stop */
}

/* Prompt tokens in memory that the caller frees. */
static int tokenize(moepack_runtime* runtime, const char* prompt, int32_t** tokens, size_t* count) {
  int code = moepack_runtime_tokenize(runtime, prompt, strlen(prompt), 1, NULL, 0, count);
  if (code != MOEPACK_OK && *count == 0) return code;
  *tokens = malloc(*count * sizeof **tokens);
  if (*tokens == NULL) return 701;
  return moepack_runtime_tokenize(runtime, prompt, strlen(prompt), 1, *tokens, *count, count);
}

static void print_metrics(moepack_runtime* runtime) {
  char text[4096];
  size_t text_bytes = 0;
  if (moepack_runtime_metrics(runtime, MOEPACK_METRICS_JSON, text, sizeof text, &text_bytes) == MOEPACK_OK) {
    fprintf(stderr, "%.*s\n", (int)text_bytes, text);
  }
}

static int generate(moepack_runtime* runtime, const char* prompt, uint64_t most) {
  int32_t* tokens = NULL;
  size_t count = 0;
  int first = 1;
  int code = tokenize(runtime, prompt, &tokens, &count);
  if (code == MOEPACK_OK) code = moepack_runtime_generate(runtime, 0, tokens, count, most, on_token, &first, NULL);
  free(tokens);
  printf("\n");
  fprintf(stderr, "\n");
  return code;
}

int main(int argc, char** argv) {
  moepack_runtime_trust trust = {0};
  moepack_runtime_options options = {0};
  moepack_runtime* runtime = NULL;
  char message[512];
  int code;

  if (argc < 4) {
    fprintf(stderr, "usage: generate BUNDLE TRUST PROMPT [TOKENS [EXPERT_RAM_BYTES]]\n");
    return 2;
  }
  if (moepack_runtime_abi_version() != MOEPACK_RUNTIME_ABI_VERSION) return 1;
  trust.struct_bytes = sizeof trust;
  trust.path = argv[2];
  options.struct_bytes = sizeof options;
  options.expert_ram_bytes = argc > 5 ? strtoull(argv[5], NULL, 10) : 0;
  code = moepack_runtime_open(argv[1], &trust, &options, &runtime, message, sizeof message);
  if (code != MOEPACK_OK) {
    fprintf(stderr, "%s: %s\n", moepack_runtime_error_name(code), message);
    return code / 100;
  }
  code = generate(runtime, argv[3], argc > 4 ? strtoull(argv[4], NULL, 10) : 32);
  if (code != MOEPACK_OK) {
    fprintf(stderr, "%s: %s\n", moepack_runtime_error_name(code), moepack_runtime_last_error(runtime));
  } else {
    print_metrics(runtime);
  }
  moepack_runtime_close(runtime);
  return code / 100;
}
