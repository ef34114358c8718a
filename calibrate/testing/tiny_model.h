// For tests: a golden checkpoint with a byte tokenizer, which those do not have.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "calibrate/calibrate.h"
#include "tokenizer/tokenizer.h"

namespace moepack::testing {

// One token a byte, up to 256, then special ones.
inline Bytes ByteTokenizer(uint32_t vocabulary) {
  TokenizerData data;
  for (uint32_t id = 0; id < vocabulary; ++id) {
    data.tokens.push_back(id < 256 ? std::string(1, static_cast<char>(id)) : "<extra" + std::to_string(id) + ">");
    if (id >= 256) data.special.push_back(id);
  }
  return SerializeTokenizer(data);
}

inline Model GoldenModel(const std::string& name) {
  auto model = OpenModel(PosixEnv(), std::string(MOEPACK_SOURCE_DIR) + "/tests/golden/" + name);
  EXPECT_TRUE(model.ok()) << model.status().message();
  Model out = std::move(*model);
  out.tokenizer = ByteTokenizer(320);
  return out;
}

// Some text that is the same every time; the seed chooses which letters are frequent.
inline std::string ToyText(size_t bytes, uint64_t seed) {
  std::string text;
  uint64_t state = seed;
  while (text.size() < bytes) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    const uint64_t r = state >> 40;
    text += r % 5 == 0 ? ' ' : static_cast<char>('a' + (r / 5 % 13 + seed * 6) % 26);
  }
  return text;
}

// Keeps what was noted.
class NotingProgress final : public Progress {
 public:
  std::vector<std::string> notes;
  void Begin(const std::string&, uint64_t, const std::string&) override {}
  void Advance(uint64_t) override {}
  void End() override {}
  void Note(const std::string& line) override { notes.push_back(line); }
};

}  // namespace moepack::testing
