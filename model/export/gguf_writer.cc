#include "model/export/gguf_writer.h"

namespace moepack {
namespace {

// Value types of the format.
constexpr uint32_t kTypeU32 = 4, kTypeI32 = 5, kTypeF32 = 6, kTypeBool = 7, kTypeString = 8, kTypeArray = 9;
constexpr uint32_t kVersion = 3;

void PutString(ByteWriter& out, const std::string& text) {
  out.U64(text.size());
  out.Append(AsBytes(text));
}

}  // namespace

void GgufHeader::Key(const std::string& key, uint32_t type) {
  PutString(values_, key);
  values_.U32(type);
  ++count_;
}

void GgufHeader::Text(const std::string& key, const std::string& value) {
  Key(key, kTypeString);
  PutString(values_, value);
}

void GgufHeader::U32(const std::string& key, uint32_t value) {
  Key(key, kTypeU32);
  values_.U32(value);
}

void GgufHeader::F32(const std::string& key, float value) {
  Key(key, kTypeF32);
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  values_.U32(bits);
}

void GgufHeader::Flag(const std::string& key, bool value) {
  Key(key, kTypeBool);
  values_.U8(value ? 1 : 0);
}

void GgufHeader::Texts(const std::string& key, const std::vector<std::string>& values) {
  Key(key, kTypeArray);
  values_.U32(kTypeString);
  values_.U64(values.size());
  for (const std::string& value : values) PutString(values_, value);
}

void GgufHeader::I32s(const std::string& key, const std::vector<int32_t>& values) {
  Key(key, kTypeArray);
  values_.U32(kTypeI32);
  values_.U64(values.size());
  for (int32_t value : values) values_.U32(static_cast<uint32_t>(value));
}

Bytes GgufHeader::Finish(const std::vector<GgufTensorInfo>& tensors) const {
  ByteWriter out;
  out.Append(AsBytes("GGUF"));
  out.U32(kVersion);
  out.U64(tensors.size());
  out.U64(count_);
  out.Append(values_.bytes());
  uint64_t offset = 0;
  for (const GgufTensorInfo& tensor : tensors) {
    PutString(out, tensor.name);
    out.U32(static_cast<uint32_t>(tensor.dims.size()));
    for (uint64_t d : tensor.dims) out.U64(d);
    out.U32(static_cast<uint32_t>(tensor.element));
    out.U64(offset);
    offset += tensor.bytes() + GgufPadding(tensor.bytes());
  }
  out.Zeros(GgufPadding(out.size()));
  return out.Release();
}

}  // namespace moepack
