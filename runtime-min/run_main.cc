// moepack run VERB: verified tokens on a device.
#include <cstdio>
#include <cstring>

#include "runtime-min/run/session.h"

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace moepack::run {
namespace {

struct Verb {
  const char* name;
  const char* summary;
  Status (*function)(int argc, char** argv);
};
constexpr Verb kVerbs[] = {
    {"generate", "text from a prompt", &Generate},
    {"logits", "logits of a token list or of a text", &Logits},
    {"bench", "prefill and decoding speed, cache and memory", &Bench},
    {"eval", "perplexity and divergence from the full model", &Eval},
    {"classify", "classes of rows of numbers", &Classify},
};

std::string Usage() {
  std::string text =
      "Runs a verified bundle: every byte is checked against the signed manifest before it is used.\n\nUsage: moepack run "
      "VERB "
      "(BUNDLE --trust T.json | --device ROOT) ...\n\n";
  for (const Verb& verb : kVerbs) text += StrFormat("  %-10s %s\n", verb.name, verb.summary);
  return text +
         "\nmoepack run VERB --help tells more. Example:\n  moepack run generate wren.moeb --trust trust.json --prompt 'In "
         "the beginning'\n";
}

Status Dispatch(int argc, char** argv) {
  if (argc < 2)
    return Status(ErrorCode::kUsage, "expected generate, logits, bench, eval or classify (see moepack run --help)");
  if (std::strcmp(argv[1], "--help") == 0 || std::strcmp(argv[1], "-h") == 0) {
    std::fputs(Usage().c_str(), stdout);
    return Status::Ok();
  }
  for (const Verb& verb : kVerbs) {
    if (std::strcmp(argv[1], verb.name) == 0) return verb.function(argc - 1, argv + 1);
  }
  return Status(ErrorCode::kUsage,
                std::string("unknown verb '") + argv[1] + "'; expected generate, logits, bench, eval or classify");
}

}  // namespace
}  // namespace moepack::run

int main(int argc, char** argv) {
#if defined(__GLIBC__)
  // Large buffers go back to the system when they are freed. Left alone, glibc keeps all that are no larger than one freed
  // before: 11 MB beside a model of 650.
  mallopt(M_MMAP_THRESHOLD, 1 << 20);
#endif
  return moepack::cli::Main("moepack run", [&] { return moepack::run::Dispatch(argc, argv); });
}
