// The signed manifest of a bundle and the unit tables it binds, as plain structs. format/SPEC.md is the specification;
// format/proto/*.proto the wire form. Everything here is data: who may believe it is decided by verify/.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"
#include "format/cache_policy.h"
#include "format/codec/codec.h"
#include "format/program.h"

namespace moepack {

using DigestBytes = std::array<uint8_t, 32>;  // SHA-256

// Closed enum of chunk encodings.
enum class Encoding : uint8_t { kRaw = 0, kZstd = 1, kRans = 2 };

inline constexpr uint64_t kMaxChunkPlainBytes = 1 << 20;
// What a device must hold at once to load a unit. Room for a bf16 embedding of 200,000 tokens by 5,000.
inline constexpr uint64_t kMaxUnitPlainBytes = uint64_t{1} << 31;
inline constexpr uint64_t kBundleAlignment = 4096;
inline constexpr uint64_t kMaxBlobBytes = 1 << 26;
inline constexpr uint64_t kMaxManifestTextBytes = 64;  // product, version

// One stored piece. Its identity is plain_digest; stored_digest is checked before a decompressor sees the bytes.
struct ChunkRef {
  uint64_t offset = 0;  // in the file, aligned to kBundleAlignment
  uint64_t stored_bytes = 0;
  uint64_t plain_bytes = 0;  // 1..kMaxChunkPlainBytes
  Encoding encoding = Encoding::kRaw;
  DigestBytes stored_digest{}, plain_digest{};
  bool operator==(const ChunkRef&) const = default;
};

// One tensor inside a unit; its plain bytes follow the previous tensor's without padding.
struct UnitTensor {
  // Dense unit: index into Program::tensors. Expert unit: ExpertMatrix value.
  uint32_t tensor = 0;
  Codec codec;
  MatrixShape shape;
  bool operator==(const UnitTensor&) const = default;
};

// Tensors that are loaded together: the concatenated plain bytes of `tensors`, at most kMaxUnitPlainBytes, cut into chunks
// of at most kMaxChunkPlainBytes.
struct Unit {
  std::vector<UnitTensor> tensors;
  std::vector<ChunkRef> chunks;
  bool operator==(const Unit&) const = default;
};

// Variants of one logical expert, best first.
struct ExpertEntry {
  struct Variant {
    uint32_t physical = 0;  // index into ExpertTable::units; two logical experts may share one (merging)
    bool operator==(const Variant&) const = default;
  };
  std::vector<Variant> variants;
  bool operator==(const ExpertEntry&) const = default;
};

// What a variant is to the expert that names it.
enum class VariantKind : uint8_t {
  kFirst,  // its best
  kLower,  // a further one of its own: a lower precision
  kTwin,   // another expert's best
  kDense,  // nobody's best, named by experts whose best ones differ: it stands in for any of them
};
// By expert and variant. Every expert has a variant.
std::vector<std::vector<VariantKind>> VariantKinds(const std::vector<ExpertEntry>& experts);

// Blob of one MoE node: the indirection (logical expert) -> variants.
struct ExpertTable {
  uint32_t table = 0;  // index into Program::expert_tables
  std::vector<ExpertEntry> experts;
  std::vector<Unit> units;
  bool operator==(const ExpertTable&) const = default;
};

// Blob of all dense tensors, one unit a program block that has any.
struct DenseTable {
  std::vector<Unit> units;
  bool operator==(const DenseTable&) const = default;
};

// Blob: experts to load first, most used first, as (table, logical expert), and which to keep when there is no room for all.
struct HotList {
  std::vector<std::pair<uint32_t, uint32_t>> experts;
  CachePolicy cache = {};
  bool operator==(const HotList&) const = default;
};

enum class BlobKind : uint8_t {
  kProgram = 1,
  kTokenizer = 2,
  kDenseTable = 3,
  kExpertTable = 4,
  kHotList = 5,
  kProvenance = 6,
  kGolden = 7,  // format/manifest/golden.h
};

struct BlobRef {
  BlobKind kind = BlobKind::kProgram;
  uint32_t index = 0;  // kExpertTable: its table; otherwise 0
  uint64_t offset = 0, bytes = 0;
  DigestBytes digest{};
  bool operator==(const BlobRef&) const = default;
};

// What may be tried, in this order, when an expert cannot be read (never when its digest is wrong). When no step helps, or
// none is listed, reading fails.
enum class Unavailable : uint8_t {
  kRetry = 1,        // read it again
  kLower = 2,        // a later variant of the expert's own
  kTwin = 3,         // a later variant that is another expert's first
  kRenormalise = 4,  // leave it out: the other chosen experts' weights take over its weight
  kDense = 5,        // a later variant that stands in for many experts
};

struct Manifest {
  uint32_t schema = 1;
  std::string product;  // [a-z0-9._-]{1,64}
  std::string version;  // for people, [A-Za-z0-9._+-]{1,64}
  uint64_t key_epoch = 0;
  uint64_t security_counter = 0;
  std::vector<uint32_t> required_features;  // strictly increasing; an unknown one is refused with kPolicy
  std::vector<Unavailable> unavailable;     // strictly increasing; empty: fail
  uint64_t file_bytes = 0;                  // exact size of the bundle file
  uint64_t chunk_count = 0;                 // over all tables
  // Strictly increasing by (kind, index), in file order: each starts at the next multiple of kBundleAlignment after the one
  // before it. Program, dense table and hot list must be there; expert tables 0, 1, 2 ... without gaps.
  std::vector<BlobRef> blobs;
  bool operator==(const Manifest&) const = default;
};

// Serialize*: deterministic. Parse*: refuse unknown and duplicate fields, overlong varints, values outside enums and caps,
// and check the rules stated here; kMalformed (kVersion for an unknown schema). Cross checks between blobs, program and
// file layout (contiguous, aligned, complete coverage, plain sizes = f(codec, shape)) are ValidateLayout's.
Bytes SerializeManifest(const Manifest& manifest);
Result<Manifest> ParseManifest(ByteSpan bytes);
Bytes SerializeExpertTable(const ExpertTable& table);
Result<ExpertTable> ParseExpertTable(ByteSpan bytes);
Bytes SerializeDenseTable(const DenseTable& table);
Result<DenseTable> ParseDenseTable(ByteSpan bytes);
Bytes SerializeHotList(const HotList& list);
Result<HotList> ParseHotList(ByteSpan bytes);

// Everything that must hold between the parts of one bundle: every tensor of the program stored exactly once with its
// shape, every expert has a variant, plain sizes equal PlainBytes, chunks sorted, non-overlapping, aligned, without holes
// other than padding, ending exactly at file_bytes; hot list in range. `blobs_end`: first byte after the last blob. Chunks
// start at its next multiple of kBundleAlignment: dense units in block order, then tables in order, units in order, each
// chunk at the next multiple of kBundleAlignment after the one before it; nothing follows the last one.
Status ValidateLayout(const Manifest& manifest, const Program& program, const DenseTable& dense,
                      const std::vector<ExpertTable>& experts, const HotList& hot, uint64_t blobs_end);

}  // namespace moepack
