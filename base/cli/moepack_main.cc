// moepack VERB ...: runs moepack-VERB, which stands beside this program, as git does.
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

namespace {

struct Verb {
  const char* name;
  const char* summary;
};
constexpr Verb kVerbs[] = {
    {"inspect", "what is in a model, a compressed folder or a bundle"},
    {"calibrate", "profile a model on text"},
    {"logits", "logits of the full model, or of a compressed folder"},
    {"compress", "profile and recipe into a compressed model folder"},
    {"pack", "sign a compressed folder into a bundle; pack keygen, sign, anchor, head"},
    {"rebuild", "make a bundle again from its recorded inputs and compare"},
    {"verify", "check a bundle against a trust record"},
    {"device", "install, confirm, roll back bundles on a device"},
    {"run", "run generate, logits, bench or eval on a verified bundle"},
    {"export", "write a model as ONNX or GGUF"},
};

void Usage(std::FILE* out) {
  std::fprintf(
      out, "moepack makes Mixture-of-Experts models small, signed and runnable at the edge.\n\nUsage: moepack VERB ...\n\n");
  for (const Verb& verb : kVerbs) std::fprintf(out, "  %-10s %s\n", verb.name, verb.summary);
  std::fprintf(out, "\nmoepack VERB --help tells more. Example:\n  moepack inspect examples/wren/model\n");
}

// Empty when the system does not tell. A guess would run whatever stands in the current folder.
std::string OwnFolder() {
  char path[PATH_MAX];
  const ssize_t n = ::readlink("/proc/self/exe", path, sizeof(path) - 1);
  if (n <= 0) return "";
  path[n] = '\0';
  char* slash = std::strrchr(path, '/');
  return slash ? std::string(path, slash) : "";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || !std::strcmp(argv[1], "--help") || !std::strcmp(argv[1], "-h") || !std::strcmp(argv[1], "help")) {
    Usage(argc < 2 ? stderr : stdout);
    return argc < 2 ? 2 : 0;
  }
  if (!std::strcmp(argv[1], "--version")) {
    std::printf("moepack %s\n", MOEPACK_VERSION);
    return 0;
  }
  for (const Verb& verb : kVerbs) {
    if (std::strcmp(argv[1], verb.name) != 0) continue;
    const std::string folder = OwnFolder();
    if (folder.empty()) {
      std::fprintf(stderr, "moepack: cannot read /proc/self/exe to find moepack-%s; run that program itself\n", verb.name);
      return 7;
    }
    const std::string program = folder + "/moepack-" + verb.name;
    std::vector<char*> arguments(argv + 1, argv + argc);
    arguments[0] = const_cast<char*>(program.c_str());
    arguments.push_back(nullptr);
    ::execv(program.c_str(), arguments.data());
    std::fprintf(stderr, "moepack: cannot start %s: %s\n", program.c_str(), std::strerror(errno));
    return 7;
  }
  std::fprintf(stderr, "moepack: unknown verb '%s' (see moepack --help)\n", argv[1]);
  return 2;
}
