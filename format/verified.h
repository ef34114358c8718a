// Verified data as a chain of types. Only verify mints VerifiedBytes (digest checked against a signed table) and only the
// runtime mints PlainUnit (decompressed, exact size) and ResidentTensor (packed for a kernel). Kernels take views of the
// last, so unverified bytes cannot reach them: the other way does not compile (tests/compile_fail).
#pragma once

#include <cstdlib>
#include <memory>
#include <utility>

#include "base/bytes.h"
#include "format/codec/codec.h"

namespace moepack {

namespace verify {
class VerifiedBundle;
}
namespace runtime {
class ChunkDecoder;
class TensorPacker;
}  // namespace runtime
namespace testing {
class VerifiedPeer;  // defined by tests only
}

// Bytes whose digest equals the one in a signed table. Owns them. Movable, not copyable.
class VerifiedBytes {
 public:
  VerifiedBytes(VerifiedBytes&&) = default;
  VerifiedBytes& operator=(VerifiedBytes&&) = default;
  VerifiedBytes(const VerifiedBytes&) = delete;
  VerifiedBytes& operator=(const VerifiedBytes&) = delete;
  ByteSpan bytes() const { return bytes_; }

 private:
  friend class verify::VerifiedBundle;
  friend class testing::VerifiedPeer;
  explicit VerifiedBytes(Bytes bytes) : bytes_(std::move(bytes)) {}
  Bytes bytes_;
};

// Plain bytes of one whole unit, made from verified stored chunks only.
class PlainUnit {
 public:
  PlainUnit(PlainUnit&&) = default;
  PlainUnit& operator=(PlainUnit&&) = default;
  PlainUnit(const PlainUnit&) = delete;
  PlainUnit& operator=(const PlainUnit&) = delete;
  ByteSpan bytes() const { return bytes_; }

 private:
  friend class runtime::ChunkDecoder;
  friend class testing::VerifiedPeer;
  explicit PlainUnit(Bytes bytes) : bytes_(std::move(bytes)) {}
  Bytes bytes_;
};

// Gives memory of weights back to its owner; without one, to malloc.
struct ReleaseWeights {
  void (*release)(void* owner, uint8_t* p) = nullptr;
  void* owner = nullptr;
  void operator()(uint8_t* p) const { release != nullptr ? release(owner, p) : ::free(p); }
};

// A weight matrix packed for kernels, 64-byte aligned, immutable. Cheap to move; its memory goes back to where it came from.
class ResidentTensor {
 public:
  ResidentTensor() = default;
  ResidentTensor(ResidentTensor&&) = default;
  ResidentTensor& operator=(ResidentTensor&&) = default;
  ResidentTensor(const ResidentTensor&) = delete;
  ResidentTensor& operator=(const ResidentTensor&) = delete;
  const Codec& codec() const { return codec_; }
  const MatrixShape& shape() const { return shape_; }
  const uint8_t* data() const { return data_.get(); }
  uint64_t size_bytes() const { return size_bytes_; }

 private:
  friend class runtime::TensorPacker;
  friend class testing::VerifiedPeer;
  Codec codec_;
  MatrixShape shape_;
  std::unique_ptr<uint8_t[], ReleaseWeights> data_;
  uint64_t size_bytes_ = 0;
};

}  // namespace moepack
