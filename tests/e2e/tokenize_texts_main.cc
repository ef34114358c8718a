// tokenize_texts TOKENIZER.json TEXTS.json: prints a JSON list with the ids of every text. For tokenizer_check.py.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/env.h"
#include "model/frontend/tokenizer_json.h"
#include "tokenizer/tokenizer.h"

namespace moepack {
namespace {

Result<nlohmann::json> Tokenize(const char* tokenizer_path, const char* texts_path) {
  MOEPACK_ASSIGN_OR_RETURN(const Bytes file, ReadFile(PosixEnv(), tokenizer_path, 256 << 20));
  MOEPACK_ASSIGN_OR_RETURN(const Bytes blob, CompileTokenizerJson(file, {}, {}, 1 << 20));
  MOEPACK_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Parse(blob));
  MOEPACK_ASSIGN_OR_RETURN(const Bytes texts, ReadFile(PosixEnv(), texts_path, 256 << 20));
  nlohmann::json out = nlohmann::json::array();
  for (const auto& text : nlohmann::json::parse(texts.begin(), texts.end())) {
    out.push_back(tokenizer->Encode(text.get<std::string>()));
  }
  return out;
}

}  // namespace
}  // namespace moepack

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const auto ids = moepack::Tokenize(argv[1], argv[2]);
  if (!ids.ok()) {
    std::fprintf(stderr, "%s\n", ids.status().message().c_str());
    return 3;
  }
  std::puts(ids->dump().c_str());
  return 0;
}
