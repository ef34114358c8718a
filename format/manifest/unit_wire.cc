#include "format/manifest/unit_wire.h"

#include <algorithm>

namespace moepack {
namespace {

void WriteCodec(const Codec& in, wire::Codec* out) {
  out->set_element(static_cast<uint32_t>(in.element));
  out->set_sparsity(static_cast<uint32_t>(in.sparsity));
  out->set_bits(in.bits);
  out->set_has_min(in.has_min);
  out->set_group_size(in.group_size);
  out->set_kept_per_row(in.kept_per_row);
  out->set_n(in.n);
  out->set_m(in.m);
}

Codec ReadCodec(const wire::Codec& in) {
  Codec out;
  out.element = static_cast<Element>(in.element());
  out.sparsity = static_cast<Sparsity>(in.sparsity());
  out.bits = static_cast<uint8_t>(in.bits());
  out.has_min = in.has_min();
  out.group_size = static_cast<uint16_t>(in.group_size());
  out.kept_per_row = in.kept_per_row();
  out.n = static_cast<uint8_t>(in.n());
  out.m = static_cast<uint8_t>(in.m());
  return out;
}

}  // namespace

void WriteUnitTensors(const std::vector<UnitTensor>& in, google::protobuf::RepeatedPtrField<wire::UnitTensor>* out) {
  for (const UnitTensor& tensor : in) {
    wire::UnitTensor* message = out->Add();
    message->set_tensor(tensor.tensor);
    WriteCodec(tensor.codec, message->mutable_codec());
    message->set_rows(tensor.shape.rows);
    message->set_cols(tensor.shape.cols);
  }
}

Result<std::vector<UnitTensor>> ReadUnitTensors(const google::protobuf::RepeatedPtrField<wire::UnitTensor>& in) {
  std::vector<UnitTensor> out;
  out.reserve(static_cast<size_t>(in.size()));
  for (const wire::UnitTensor& message : in) {
    UnitTensor tensor;
    tensor.tensor = message.tensor();
    tensor.codec = ReadCodec(message.codec());
    tensor.shape = {message.rows(), message.cols()};
    if (Status status = ValidateCodec(tensor.codec); !status.ok()) return status.With(StrFormat("tensor %zu", out.size()));
    out.push_back(tensor);
  }
  return out;
}

void WriteExpertEntries(const std::vector<ExpertEntry>& in, google::protobuf::RepeatedPtrField<wire::ExpertEntry>* out) {
  for (const ExpertEntry& entry : in) {
    wire::ExpertEntry* message = out->Add();
    for (const ExpertEntry::Variant& variant : entry.variants) message->add_variants()->set_physical(variant.physical);
  }
}

std::vector<ExpertEntry> ReadExpertEntries(const google::protobuf::RepeatedPtrField<wire::ExpertEntry>& in) {
  std::vector<ExpertEntry> out;
  out.reserve(static_cast<size_t>(in.size()));
  for (const wire::ExpertEntry& message : in) {
    ExpertEntry& entry = out.emplace_back();
    for (const wire::Variant& variant : message.variants()) entry.variants.push_back({variant.physical()});
  }
  return out;
}

DigestBytes ReadDigest(const std::string& in) {
  DigestBytes out{};
  std::copy_n(in.begin(), std::min(in.size(), out.size()), out.begin());
  return out;
}

}  // namespace moepack
