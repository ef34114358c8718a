#include "runtime-min/unit_source.h"

namespace moepack::runtime {

Result<PlainUnit> BundleSource::Read(const Unit& unit) {
  std::unique_ptr<ChunkDecoder> decoder;
  {
    std::lock_guard lock(mutex_);
    if (!idle_decoders_.empty()) {
      decoder = std::move(idle_decoders_.back());
      idle_decoders_.pop_back();
    }
  }
  if (decoder == nullptr) decoder = std::make_unique<ChunkDecoder>();
  Result<PlainUnit> plain = decoder->Decode(*bundle_, unit);
  std::lock_guard lock(mutex_);
  idle_decoders_.push_back(std::move(decoder));
  return plain;
}

}  // namespace moepack::runtime
