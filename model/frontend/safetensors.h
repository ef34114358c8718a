// safetensors files, validated as if an attacker wrote them, and a deterministic writer.
//
// A file is: u64 header length, JSON header, data. The header maps tensor names to {dtype, shape, data_offsets}; the
// tensors must cover the data exactly, without holes or overlaps. Each rule below has one error that names the file, the
// tensor and what was expected, and one test.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/env.h"
#include "base/status.h"
#include "format/codec/codec.h"

namespace moepack {

// Longest JSON header accepted, as in the reference implementation.
inline constexpr uint64_t kMaxSafetensorsHeader = 100'000'000;
inline constexpr size_t kMaxSafetensorsRank = 8;

// Closed list of element types.
enum class Dtype : uint8_t { kF64, kF32, kF16, kBf16, kI64, kI32, kI16, kI8, kU64, kU32, kU16, kU8, kBool, kF8E4M3 };
const char* DtypeName(Dtype dtype);
uint64_t DtypeBytes(Dtype dtype);
// `count` elements of F32, F16, BF16 or F8_E4M3 (OCP 8-bit floating point 1.0) as float32.
void WidenElements(Dtype dtype, const uint8_t* data, uint64_t count, float* out);
// Index of the first value that is NaN or infinite; values.size() when there is none.
uint64_t FirstNotFinite(std::span<const float> values);
// The codec of a float element type that weights may have: F32, F16, BF16. False for every other type.
bool DtypeCodec(Dtype dtype, Codec* codec);

struct SafetensorsEntry {
  std::string name;
  Dtype dtype = Dtype::kF32;
  std::vector<uint64_t> shape;
  uint64_t begin = 0, end = 0;  // in the data section
  uint64_t elements() const { return (end - begin) / DtypeBytes(dtype); }
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  // sorted by name
  std::map<std::string, std::string> metadata;
  uint64_t data_offset = 0;  // of the data section in the file
};

// Parses and checks the header of a whole file in memory. kBadInput, kLimit or kUnsupported (element type); messages begin
// with `label`.
Result<SafetensorsHeader> ParseSafetensors(ByteSpan file, const std::string& label);

// A memory-mapped file. Thread-safe.
class SafetensorsFile {
 public:
  static Result<std::unique_ptr<SafetensorsFile>> Open(Env& env, const std::string& path);
  const std::string& path() const { return path_; }
  const std::vector<SafetensorsEntry>& entries() const { return header_.entries; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }
  const SafetensorsEntry* Find(const std::string& name) const;  // null when absent
  // Bytes of a tensor; valid as long as this object.
  ByteSpan data(const SafetensorsEntry& entry) const;
  // The tensor as float32 (F32, F16 and BF16 only: kUnsupported), every value finite (kNotFinite). Its pages are released.
  Result<std::vector<float>> LoadFloats(const SafetensorsEntry& entry) const;
  // Hint that a tensor's pages, or `bytes` of them from `begin` on, need not count as ours.
  void Release(const SafetensorsEntry& entry) const;
  void Release(const SafetensorsEntry& entry, uint64_t begin, uint64_t bytes) const;

 private:
  SafetensorsFile(std::string path, std::unique_ptr<MappedFile> map, SafetensorsHeader header)
      : path_(std::move(path)), map_(std::move(map)), header_(std::move(header)) {}
  std::string path_;
  std::unique_ptr<MappedFile> map_;
  SafetensorsHeader header_;
};

// The tensors of a checkpoint folder: model.safetensors, or the shards that model.safetensors.index.json names. Thread-safe.
class SafetensorsSet {
 public:
  struct Location {
    const SafetensorsFile* file = nullptr;
    const SafetensorsEntry* entry = nullptr;
  };
  // kNotFound: neither file, or a shard that is missing; kBadInput: index and shards contradict each other (a tensor twice,
  // a tensor the index does not name); kMissingTensor: a shard lacks a tensor; kUnsafePath: a shard name with a path in it.
  static Result<std::unique_ptr<SafetensorsSet>> Open(Env& env, const std::string& directory);
  const std::map<std::string, Location>& tensors() const { return tensors_; }
  const std::vector<std::string>& file_names() const { return file_names_; }  // index first, without folder

 private:
  SafetensorsSet() = default;
  Status AddFile(Env& env, const std::string& directory, const std::string& name,
                 const std::map<std::string, std::string>* weight_map);
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Location> tensors_;
  std::vector<std::string> file_names_;
};

// A tensor to be written. `data` is not owned and has exactly the bytes of its type and shape.
struct SafetensorsOutput {
  std::string name;
  Dtype dtype = Dtype::kF32;
  std::vector<uint64_t> shape;
  ByteSpan data;
};

// Writes the tensors in the order given, metadata sorted by key; the same input gives the same bytes. Atomic. kInternal when
// a name stands twice or `data` does not fit its shape.
Status WriteSafetensors(Env& env, const std::string& path, const std::vector<SafetensorsOutput>& tensors,
                        const std::map<std::string, std::string>& metadata);
// What stands before the data of such a file; the tensors' `data` does not count, so that it can follow piece by piece.
Result<Bytes> SafetensorsHead(const std::vector<SafetensorsOutput>& tensors,
                              const std::map<std::string, std::string>& metadata);
// The same bytes into a file that gets its name later.
Status AppendSafetensors(AtomicFile& file, const std::vector<SafetensorsOutput>& tensors,
                         const std::map<std::string, std::string>& metadata);

}  // namespace moepack
