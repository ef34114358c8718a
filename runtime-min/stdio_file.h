// A file of the C library that closes itself.
#pragma once

#include <cstdio>
#include <memory>

namespace moepack::runtime {

struct CloseFile {
  void operator()(std::FILE* f) const { std::fclose(f); }
};
using StdioFile = std::unique_ptr<std::FILE, CloseFile>;

}  // namespace moepack::runtime
