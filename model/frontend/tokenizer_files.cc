#include "model/frontend/tokenizer_files.h"

#include "model/frontend/tokenizer_json.h"
#include "tokenizer/tokenizer_blob.h"

namespace moepack {
namespace {

constexpr uint64_t kMaxTokenizerBytes = 256ull << 20;
constexpr const char* kNames[] = {"tokenizer.json", "tokenizer_config.json", "generation_config.json",
                                  "chat_template.jinja"};

Result<Bytes> Compile(const std::vector<TokenizerFile>& files, const std::string& directory, uint64_t vocabulary,
                      std::string* chat_note) {
  const auto bytes_of = [&](const char* name) -> ByteSpan {
    for (const TokenizerFile& file : files) {
      if (file.name == name) return file.bytes;
    }
    return {};
  };
  Result<Bytes> compiled = CompileTokenizerJson(bytes_of(kNames[0]), bytes_of(kNames[1]), bytes_of(kNames[2]), vocabulary,
                                                bytes_of(kNames[3]), chat_note);
  if (!compiled.ok()) return compiled.status().With(directory);
  return compiled;
}

}  // namespace

Result<std::vector<TokenizerFile>> ReadTokenizerFiles(Env& env, const std::string& directory) {
  std::vector<TokenizerFile> files;
  for (const char* name : kNames) {
    const std::string path = JoinPath(directory, name);
    MOEPACK_ASSIGN_OR_RETURN(const bool exists, env.Exists(path));
    if (!exists && files.empty()) return files;
    if (!exists) continue;
    MOEPACK_ASSIGN_OR_RETURN(Bytes bytes, ReadFile(env, path, kMaxTokenizerBytes));
    files.push_back({name, std::move(bytes)});
  }
  return files;
}

Result<Bytes> CompileTokenizerOf(Env& env, const std::string& directory, uint64_t vocabulary,
                                 std::vector<std::string>* names) {
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<TokenizerFile> files, ReadTokenizerFiles(env, directory));
  if (files.empty()) return Bytes();
  for (const TokenizerFile& file : files) names->push_back(file.name);
  return Compile(files, directory, vocabulary, nullptr);
}

Result<std::string> ChatTemplateNote(Env& env, const std::string& path) {
  MOEPACK_ASSIGN_OR_RETURN(const bool folder, env.IsDirectory(path));
  const std::string directory = folder ? path : DirectoryOf(path);
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<TokenizerFile> files, ReadTokenizerFiles(env, directory));
  std::string note;
  if (!files.empty()) MOEPACK_RETURN_IF_ERROR(Compile(files, directory, kMaxTokens, &note).status());
  return note;
}

}  // namespace moepack
