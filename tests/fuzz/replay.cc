// Runs a fuzz target over every file of the folders named on the command line, then over each file cut short and with
// single bytes changed, so that a build without libFuzzer still exercises the corpus.
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

size_t Mutants(std::vector<uint8_t> bytes) {
  static constexpr size_t kMutants = 64;
  size_t runs = 0;
  for (size_t i = 0; i < kMutants && !bytes.empty(); ++i, runs += 2) {
    const size_t at = i * 2654435761u % bytes.size();
    LLVMFuzzerTestOneInput(bytes.data(), at);
    bytes[at] ^= static_cast<uint8_t>(1u << (i % 8));
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    bytes[at] ^= static_cast<uint8_t>(1u << (i % 8));
  }
  return runs;
}

}  // namespace

int main(int argc, char** argv) {
  size_t files = 0, runs = 0;
  for (int i = 1; i < argc; ++i) {
    for (const auto& entry : std::filesystem::directory_iterator(argv[i])) {
      std::ifstream in(entry.path(), std::ios::binary);
      std::vector<uint8_t> bytes(entry.file_size());
      if (!in.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()))) return 1;
      LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
      runs += 1 + Mutants(bytes);
      ++files;
    }
  }
  std::printf("%zu corpus files, %zu runs\n", files, runs);
  return files == 0;
}
