// Where the engine gets a model from: a verified bundle, or a fake in tests. Internal to runtime-min.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "base/status.h"
#include "format/manifest/manifest.h"
#include "format/verified.h"
#include "runtime-min/chunk_decoder.h"
#include "verify/verify.h"

namespace moepack::runtime {

// Tables agree with the program (ValidateLayout). Methods are thread-safe; references live as long as the source.
class UnitSource {
 public:
  virtual ~UnitSource() = default;
  virtual const Program& program() const = 0;
  virtual const DenseTable& dense() const = 0;
  virtual const std::vector<ExpertTable>& experts() const = 0;
  virtual const HotList& hot_list() const = 0;
  virtual const DigestBytes& manifest_digest() const = 0;  // which model this is: no two have the same
  // What may stand in for an expert that cannot be read.
  virtual const std::vector<Unavailable>& unavailable() const = 0;
  // Plain bytes of dense().units[unit] and of experts()[table].units[physical].
  virtual Result<PlainUnit> ReadDense(size_t unit) = 0;
  virtual Result<PlainUnit> ReadExpert(uint32_t table, uint32_t physical) = 0;
  // The same by several threads: every chunk of experts()[table].units[physical] once, in any order, into `parts`, which
  // began with that unit; then, when all were read, what they give.
  virtual Status ReadExpertChunk(uint32_t table, uint32_t physical, size_t chunk, UnitParts* parts) = 0;
  virtual Result<PlainUnit> JoinExpert(uint32_t table, uint32_t physical, UnitParts* parts) = 0;
};

class BundleSource : public UnitSource {
 public:
  explicit BundleSource(std::unique_ptr<verify::VerifiedBundle> bundle) : bundle_(std::move(bundle)) {}
  const Program& program() const override { return bundle_->program(); }
  const DenseTable& dense() const override { return bundle_->dense(); }
  const std::vector<ExpertTable>& experts() const override { return bundle_->experts(); }
  const HotList& hot_list() const override { return bundle_->hot_list(); }
  const DigestBytes& manifest_digest() const override { return bundle_->manifest_digest(); }
  const std::vector<Unavailable>& unavailable() const override { return bundle_->manifest().unavailable; }
  Result<PlainUnit> ReadDense(size_t unit) override { return Read(dense().units[unit]); }
  Result<PlainUnit> ReadExpert(uint32_t table, uint32_t physical) override { return Read(experts()[table].units[physical]); }
  Status ReadExpertChunk(uint32_t table, uint32_t physical, size_t chunk, UnitParts* parts) override;
  Result<PlainUnit> JoinExpert(uint32_t, uint32_t, UnitParts* parts) override { return ChunkDecoder::Join(parts); }

 private:
  std::unique_ptr<ChunkDecoder> TakeDecoder();
  void GiveBack(std::unique_ptr<ChunkDecoder> decoder);
  Result<PlainUnit> Read(const Unit& unit);

  std::unique_ptr<verify::VerifiedBundle> bundle_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<ChunkDecoder>> idle_decoders_;  // guarded by mutex_; as many as threads that read at once
};

}  // namespace moepack::runtime
