// What tests of model/ share: folders that vanish, hand-made safetensors bytes, checkpoints to break.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "base/env.h"
#include "model/frontend/safetensors.h"

namespace moepack {

inline std::string SourcePath(const std::string& path) { return JoinPath(MOEPACK_SOURCE_DIR, path); }

// An empty folder, removed with everything in it at the end.
class TempFolder {
 public:
  TempFolder() {
    std::string pattern = JoinPath(::testing::TempDir(), "moepack-XXXXXX");
    path_ = ::mkdtemp(pattern.data());
  }
  ~TempFolder() { (void)PosixEnv().RemoveTree(path_); }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  const std::string& path() const { return path_; }
  std::string At(const std::string& name) const { return JoinPath(path_, name); }
  void Write(const std::string& name, ByteSpan bytes) const {
    ASSERT_TRUE(WriteFileAtomically(PosixEnv(), At(name), bytes).ok());
  }
  void Write(const std::string& name, const std::string& text) const { Write(name, AsBytes(text)); }

 private:
  std::string path_;
};

inline Bytes ReadAll(const std::string& path) {
  Result<Bytes> bytes = ReadFile(PosixEnv(), path, 1ull << 30);
  EXPECT_TRUE(bytes.ok()) << bytes.status().message();
  return bytes.ok() ? *bytes : Bytes();
}

// A safetensors file from a header text and data, right or wrong.
inline Bytes RawSafetensors(const std::string& header, const Bytes& data) {
  ByteWriter out;
  out.U64(header.size());
  out.Append(AsBytes(header));
  out.Append(data);
  return out.Release();
}

// A checkpoint in memory that a test changes before it is written.
struct Checkpoint {
  nlohmann::json config;
  struct Tensor {
    Dtype dtype = Dtype::kF32;
    std::vector<uint64_t> shape;
    Bytes data;
  };
  std::map<std::string, Tensor> tensors;

  // `folder` below the source tree.
  static Checkpoint Read(const std::string& folder) {
    Checkpoint out;
    const Bytes text = ReadAll(JoinPath(SourcePath(folder), "config.json"));
    out.config = nlohmann::json::parse(text.begin(), text.end());
    auto file = SafetensorsFile::Open(PosixEnv(), JoinPath(SourcePath(folder), "model.safetensors"));
    EXPECT_TRUE(file.ok()) << file.status().message();
    for (const SafetensorsEntry& entry : (*file)->entries()) {
      const ByteSpan data = (*file)->data(entry);
      out.tensors[entry.name] = {entry.dtype, entry.shape, Bytes(data.begin(), data.end())};
    }
    return out;
  }

  void WriteTo(const TempFolder& folder) const {
    folder.Write("config.json", config.dump());
    WriteShard(folder, "model.safetensors", tensors);
  }
  static void WriteShard(const TempFolder& folder, const std::string& name, const std::map<std::string, Tensor>& tensors) {
    std::vector<SafetensorsOutput> outputs;
    for (const auto& [tensor_name, tensor] : tensors)
      outputs.push_back({tensor_name, tensor.dtype, tensor.shape, tensor.data});
    ASSERT_TRUE(WriteSafetensors(PosixEnv(), folder.At(name), outputs, {{"format", "pt"}}).ok());
  }
};

}  // namespace moepack
