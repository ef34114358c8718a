#include "runtime-min/unit_source.h"

namespace moepack::runtime {

std::unique_ptr<ChunkDecoder> BundleSource::TakeDecoder() {
  std::lock_guard lock(mutex_);
  if (idle_decoders_.empty()) return std::make_unique<ChunkDecoder>();
  std::unique_ptr<ChunkDecoder> decoder = std::move(idle_decoders_.back());
  idle_decoders_.pop_back();
  return decoder;
}

void BundleSource::GiveBack(std::unique_ptr<ChunkDecoder> decoder) {
  std::lock_guard lock(mutex_);
  idle_decoders_.push_back(std::move(decoder));
}

Result<PlainUnit> BundleSource::Read(const Unit& unit) {
  std::unique_ptr<ChunkDecoder> decoder = TakeDecoder();
  Result<PlainUnit> plain = decoder->Decode(*bundle_, unit);
  GiveBack(std::move(decoder));
  return plain;
}

Status BundleSource::ReadExpertChunk(uint32_t, uint32_t, size_t chunk, UnitParts* parts) {
  std::unique_ptr<ChunkDecoder> decoder = TakeDecoder();
  Status status = decoder->DecodePart(*bundle_, chunk, parts);
  GiveBack(std::move(decoder));
  return status;
}

}  // namespace moepack::runtime
