/* C interface of moepack's device runtime (C99). Link libmoepack-runtime (pkg-config moepack-runtime, or CMake's
 * find_package(moepack) and moepack::runtime). examples/c has a whole program.
 *
 *   moepack_runtime_trust trust = {0};
 *   trust.struct_bytes = sizeof trust;
 *   trust.path = "trust.json";
 *   moepack_runtime* runtime = NULL;
 *   char message[256];
 *   int code = moepack_runtime_open("B.moeb", &trust, NULL, &runtime, message, sizeof message);
 *   int32_t prompt[64];
 *   size_t count = 0;
 *   if (code == MOEPACK_OK) code = moepack_runtime_tokenize(runtime, "In the", 6, 1, prompt, 64, &count);
 *   if (code == MOEPACK_OK) code = moepack_runtime_generate(runtime, 0, prompt, count, 32, on_token, NULL, NULL);
 *   if (code != MOEPACK_OK) puts(runtime != NULL ? moepack_runtime_last_error(runtime) : message);
 *   moepack_runtime_close(runtime);
 *
 * Return values: MOEPACK_OK, or an error code of docs/errors.md (code / 100 is the exit status of the programs: 2 usage, 3
 * bad input, 4 signature, digest or trust, 5 rollback or policy, 7 memory or access). The sentence for people that belongs
 * to the last call's error is moepack_runtime_last_error; moepack_runtime_open writes it to `message` instead, cut to
 * message_bytes and always ended by a zero byte; message may be NULL when message_bytes is 0. After an error what a function
 * gives back through pointers is not set, but for the sizes that it says so of.
 *
 * Nothing unverified is used: the bundle's signatures are checked before anything is parsed, and every byte of a weight
 * before it reaches a kernel. Nothing here writes to standard output, opens a socket, exits or throws. A null pointer where
 * something is needed is Usage (200).
 *
 * Memory: buffers that the system does not give are NoMemory (701). So is a small allocation that fails where the
 * calling thread is the only one (threads 1, MOEPACK_NO_PREFETCH): the runtime then answers 701 to everything and can
 * only be closed, and what it held is not given back. The same goes for any other exception of the C++ library, with
 * Internal (100). With more threads such a failure ends the process, for others may be at work in what would be unwound.
 *
 * Threads: one thread at a time for each moepack_runtime; a call while another one runs, also out of a callback, is
 * refused with Usage and leaves the sentence of the last error as it is. moepack_runtime_last_error and
 * moepack_runtime_close are not refused and must not run beside another call. Different runtimes may be used on
 * different threads at the same time; each has worker threads of its own. The functions without a runtime may be called
 * at any time.
 *
 * ABI: functions and structs keep their meaning while moepack_runtime_abi_version() stays the same; the library's soname
 * ends in it. struct_bytes lets a later version add fields at the end, for which 0 means what was before; a library accepts
 * the sizes it knows and refuses others. Set whole structs to zero first.
 */
#ifndef MOEPACK_RUNTIME_C_H
#define MOEPACK_RUNTIME_C_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MOEPACK_RUNTIME_ABI_VERSION 1
#define MOEPACK_OK 0
#define MOEPACK_PUBLIC_KEY_BYTES 32

/* What the device believes. Exactly one of product, path and file is set, and of the fields that belong to another one none
 * (Usage): nothing is left out of what the caller trusts. All memory is the caller's and read during moepack_runtime_open
 * only. */
typedef struct moepack_runtime_trust {
  uint32_t struct_bytes;       /* sizeof(moepack_runtime_trust) */
  uint32_t threshold;          /* with product: distinct release keys that must have signed, 1..release_key_count */
  const char* product;         /* [a-z0-9._-]{1,64}, ended by a zero byte */
  const uint8_t* release_keys; /* with product: release_key_count Ed25519 public keys, one after another */
  uint32_t release_key_count;
  uint32_t reserved;   /* 0 */
  const char* path;    /* trust file (T.json) or trust anchor */
  const uint8_t* file; /* contents of one */
  uint64_t file_bytes; /* with file */
  /* The rollback state of the device, beside what path or file say; the higher counts. A bundle of a lower epoch, or of a
   * lower counter at the same epoch, is refused with Rollback (500). */
  uint64_t key_epoch;
  uint64_t minimum_security_counter;
} moepack_runtime_trust;

#define MOEPACK_AUTO_EXPERT_RAM UINT64_MAX
#define MOEPACK_NO_PREFETCH UINT32_MAX

/* What stands in for an expert that is not resident when the router has decided. All but LOAD change results. */
#define MOEPACK_ON_MISS_LOAD 0  /* nothing: it is loaded */
#define MOEPACK_ON_MISS_LOWER 1 /* its lower precision where the expert matters less; Usage for a bundle without any */
#define MOEPACK_ON_MISS_SKIP 2  /* the same, and nothing where it matters least */

/* 0 in any field is its default. */
typedef struct moepack_runtime_options {
  uint32_t struct_bytes; /* sizeof(moepack_runtime_options) */
  uint32_t threads;      /* the calling one included, 1..1024; default: one for each core */
  uint32_t context;      /* longest sequence in tokens; default: what the model allows */
  uint32_t tile_tokens;  /* tokens computed at once in a prompt, 1..4096; default 256; fewer take less memory */
  uint32_t sequences;    /* most that are open at once, 1..tile_tokens; default 1 */
  /* MoE layers ahead for which experts are foretold and loaded, 1..4; default: the runtime's choice where not all experts
   * fit. */
  uint32_t prefetch;
  uint32_t prefetch_lanes; /* threads of their own that load them; default: none, the others do it when they would wait */
  uint32_t kv_bits;        /* of keys and values: 32 (default), or 8, which takes a quarter of the memory */
  /* Most bytes of resident experts; default: all experts. MOEPACK_AUTO_EXPERT_RAM: what memory is free, growing to it. */
  uint64_t expert_ram_bytes;
  /* What they may take at first, where that is less: it grows when experts have to be loaded too often. */
  uint64_t expert_ram_start_bytes;
  /* Most tokens of all sequences together whose state is kept; default: sequences x context. */
  uint64_t state_tokens;
  const char* cache_policy; /* which expert makes room, in the words of --cache-policy; default: the bundle's */
  uint32_t on_miss;         /* MOEPACK_ON_MISS_ */
  /* Of what goes into routers that the bundle keeps as integers: 15 (default), or 8, which changes results; Usage for 8
   * where the bundle has no such router. */
  uint32_t router_input_bits;
  /* With LOWER and SKIP, both 0 or 0 <= first <= second <= 1: shares of a token's gate weight, before an expert in order of
   * weight, above which it is lowered and skipped. Default: 0.6 and 0.9. */
  double miss_lower_above, miss_skip_above;
} moepack_runtime_options;

/* What was opened. */
typedef struct moepack_runtime_info {
  uint32_t struct_bytes; /* in: sizeof(moepack_runtime_info) */
  uint32_t has_tokenizer;
  uint64_t vocabulary; /* logits of a token */
  uint32_t context;
  uint32_t tile_tokens;
  uint32_t sequences;
  uint32_t threads;
  uint64_t dense_bytes;  /* resident weights outside of experts */
  uint64_t expert_bytes; /* resident experts now */
  uint64_t state_bytes;  /* what sequences remember, at most */
  uint64_t key_epoch;
  uint64_t security_counter;
  uint8_t manifest_digest[32]; /* SHA-256 */
} moepack_runtime_info;

/* How a token is chosen. All zero but top_p = 1: the most likely token. */
typedef struct moepack_runtime_sampling {
  uint32_t struct_bytes; /* sizeof(moepack_runtime_sampling) */
  float temperature;     /* 0: the most likely token (ties to the lower id), nothing is random */
  uint32_t top_k;        /* among the k most likely tokens; 0: all */
  float top_p;           /* among the most likely tokens of this total probability, in (0, 1]; 0 means 1: all */
  uint64_t seed;         /* the same logits, options and seed give the same tokens everywhere */
} moepack_runtime_sampling;

/* What an evaluation appends to one sequence. */
typedef struct moepack_runtime_batch {
  uint32_t struct_bytes; /* sizeof(moepack_runtime_batch) */
  uint32_t sequence;
  const int32_t* tokens; /* token_count of them, at least one */
  uint64_t token_count;
} moepack_runtime_batch;

#define MOEPACK_ROLE_SYSTEM 0
#define MOEPACK_ROLE_USER 1
#define MOEPACK_ROLE_ASSISTANT 2

/* A message of a conversation. */
typedef struct moepack_runtime_message {
  uint32_t struct_bytes; /* sizeof(moepack_runtime_message) */
  uint32_t role;         /* MOEPACK_ROLE_ */
  const char* content;
  uint64_t content_bytes;
} moepack_runtime_message;

/* A verified bundle with its sequences. Sequence 0 is always open. */
typedef struct moepack_runtime moepack_runtime;

/* MOEPACK_RUNTIME_ABI_VERSION of the library. */
uint32_t moepack_runtime_abi_version(void);
/* "0.1.0"; static storage. */
const char* moepack_runtime_version(void);
/* "Digest" for 401; "Unknown" for a value that is no code. Static storage. */
const char* moepack_runtime_error_name(int code);

/* Opens, verifies and loads what is resident from the start. options may be NULL: all defaults. On success *runtime is owned
 * by the caller, on an error it is NULL. */
int moepack_runtime_open(const char* bundle_path, const moepack_runtime_trust* trust, const moepack_runtime_options* options,
                         moepack_runtime** runtime, char* message, size_t message_bytes);
/* Frees it; NULL is fine. Must be the last call on it, and not come out of a callback. */
void moepack_runtime_close(moepack_runtime* runtime);
/* Of the last call on it; "" when that was right. Ended by a zero byte, valid until the next call. */
const char* moepack_runtime_last_error(const moepack_runtime* runtime);
/* Fills *info. */
int moepack_runtime_get_info(moepack_runtime* runtime, moepack_runtime_info* info);

/* Tokens of text_bytes bytes of text. add_beginning: not 0 puts before them the tokens that a sequence of this model begins
 * with. *count is how many there are, set also when they are more than `capacity`: nothing is written then, and the error is
 * Limit (310); tokens may be NULL when capacity is 0. Tokenizer (309) when the bundle has none. */
int moepack_runtime_tokenize(moepack_runtime* runtime, const char* text, size_t text_bytes, int add_beginning,
                             int32_t* tokens, size_t capacity, size_t* count);
/* Tokens of a conversation by the bundle's chat template, up to where the answer begins: the prompt of a sequence without
 * tokens, nothing goes before it. First a system message or none, as the template has it, then user and assistant in turn,
 * a user's message last. tokens, capacity and *count as above. Usage (200) when the bundle has no template, for another
 * order of roles, and for a content that the template treats in a way of its own: never another prompt than the model
 * knows. */
int moepack_runtime_tokenize_chat(moepack_runtime* runtime, const moepack_runtime_message* messages, size_t message_count,
                                  int32_t* tokens, size_t capacity, size_t* count);
/* Bytes of the tokens, special tokens left out. One token may end inside a UTF-8 character. *text_bytes is how many bytes
 * there are, as `count` above; a zero byte follows them when there is room. */
int moepack_runtime_detokenize(moepack_runtime* runtime, const int32_t* tokens, size_t count, char* text, size_t capacity,
                               size_t* text_bytes);
/* *ends: 1 when the token ends a text, else 0. */
int moepack_runtime_is_end_of_text(moepack_runtime* runtime, int32_t token, int* ends);

/* Appends tokens to a sequence, any number that its context has room for, and computes the logits of the last one. BadInput
 * (300) for a token that the model does not have and Limit (310) when the context is too short, both before anything is
 * computed; Limit also when the memory of all sequences is full; Digest (401) for a damaged expert. After another error of
 * more than tile_tokens tokens a part of them may have been appended; otherwise none was. */
int moepack_runtime_evaluate(moepack_runtime* runtime, uint32_t sequence, const int32_t* tokens, size_t count);
/* The same for several sequences at once, each named at most once, together at most tile_tokens tokens: weights are read
 * once for all of them. Logits have a row for each entry, in their order. After an error every sequence is as before. */
int moepack_runtime_evaluate_batch(moepack_runtime* runtime, const moepack_runtime_batch* batch, size_t batch_count);
/* *logits: `vocabulary` floats, of row `row` of the last evaluation (0 but for batches). Owned by the runtime, valid until
 * the next evaluation or generation. Usage when nothing was evaluated yet or the last evaluation failed. */
int moepack_runtime_logits(moepack_runtime* runtime, uint32_t row, const float** logits);

/* How tokens of a sequence are chosen from now on; starts the random numbers of its seed. NULL: the most likely token, which
 * is what a sequence begins with. */
int moepack_runtime_set_sampling(moepack_runtime* runtime, uint32_t sequence, const moepack_runtime_sampling* sampling);
/* *token: the next token of a sequence, chosen from logits row `row`. It is not appended. */
int moepack_runtime_sample(moepack_runtime* runtime, uint32_t sequence, uint32_t row, int32_t* token);

/* A token as it is chosen, with the whole UTF-8 characters that end with it (text_bytes bytes, also ended by a zero byte,
 * valid during the call). token is -1 in one more call at the end when bytes of a character were left that never became
 * whole. Not 0 ends the generation, and no call follows. Must not call functions of the same runtime, nor throw. */
typedef int (*moepack_runtime_on_token)(void* user, int32_t token, const char* text, size_t text_bytes);

/* Why a generation ended. */
#define MOEPACK_STOPPED_LENGTH 0      /* max_tokens */
#define MOEPACK_STOPPED_END_OF_TEXT 1 /* the model's token for that, which on_token does not get */
#define MOEPACK_STOPPED_CONTEXT 2     /* no room for another token */
#define MOEPACK_STOPPED_CALLER 3      /* on_token */

/* Appends the prompt (at least one token) to a sequence and chooses up to max_tokens tokens (at least one) as its
 * sampling says, on_token getting each as it comes. The last one has not been appended: begin the next prompt with it to
 * go on. Errors of the prompt as of moepack_runtime_evaluate: on_token has got nothing then. After a later one the
 * prompt and the tokens that on_token got are appended, but for the last one. stopped may be NULL. */
int moepack_runtime_generate(moepack_runtime* runtime, uint32_t sequence, const int32_t* prompt, size_t count,
                             uint64_t max_tokens, moepack_runtime_on_token on_token, void* user, int* stopped);

/* Tokens of a sequence. */
int moepack_runtime_position(moepack_runtime* runtime, uint32_t sequence, uint32_t* tokens);
/* Takes all tokens off a sequence. Experts stay resident, and its sampling goes on. */
int moepack_runtime_reset(moepack_runtime* runtime, uint32_t sequence);
/* A new sequence without tokens. Limit (310) when as many are open as options said. */
int moepack_runtime_open_sequence(moepack_runtime* runtime, uint32_t* sequence);
/* A new sequence that begins with the first `tokens` tokens of `from`: nothing is computed again, and memory is shared until
 * one of them goes on. Usage when `from` has fewer, or has more and the model has convolutions. */
int moepack_runtime_fork_sequence(moepack_runtime* runtime, uint32_t from, uint32_t tokens, uint32_t* sequence);
/* Any but 0. Its number may come again. */
int moepack_runtime_release_sequence(moepack_runtime* runtime, uint32_t sequence);

/* Writes a sequence to a file (complete or not at all), with up to MOEPACK_MOST_NEXT_TOKENS tokens that come next and
 * are not appended yet, such as the last one of a generation: BadInput (300) for one that the model does not have, Usage
 * for more of them. The file shows whether it was damaged, not who wrote it. */
#define MOEPACK_MOST_NEXT_TOKENS 64
int moepack_runtime_save_sequence(moepack_runtime* runtime, uint32_t sequence, const int32_t* next, size_t count,
                                  const char* path);
/* Fills a sequence without tokens with one that was saved with the same bundle and kv_bits: tokens that are appended
 * then get the logits that they would have got, bit for bit, with the same instruction set. `next` gets the tokens that
 * come next, *count of them. Limit (310) when they are more than `capacity`, with their number in *count, or when the
 * sequence is longer than the context or the memory of all sequences, with 0 there. The file may be hostile: BadInput
 * (300) when it is of another bundle or no saved sequence, Version (311) of a version that the library does not read,
 * Usage of other options or into a sequence that has tokens, Truncated (402), Digest (401); NotFound (313) without a
 * file. After an error the sequence is as before. */
int moepack_runtime_restore_sequence(moepack_runtime* runtime, uint32_t sequence, const char* path, int32_t* next,
                                     size_t capacity, size_t* count);

#define MOEPACK_METRICS_JSON 0       /* one object on one line: the keys of docs/json.md */
#define MOEPACK_METRICS_PROMETHEUS 1 /* text exposition format */

/* What was measured since the runtime was opened or its metrics were reset; an evaluation of one token, or of one each of
 * several sequences, counts as decoding. *text_bytes as in detokenize. */
int moepack_runtime_metrics(moepack_runtime* runtime, int format, char* text, size_t capacity, size_t* text_bytes);
int moepack_runtime_reset_metrics(moepack_runtime* runtime);

#ifdef __cplusplus
}
#endif

#endif
