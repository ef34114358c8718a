#include <nlohmann/json.hpp>
#include <set>

#include "base/checked.h"
#include "model/frontend/safetensors.h"

namespace moepack {
namespace {

// {"__metadata__":{...},"name":{"dtype":..,"shape":..,"data_offsets":..},...}, padded with spaces so that data is aligned
// to 8.
Result<std::string> HeaderText(const std::vector<SafetensorsOutput>& tensors,
                               const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::set<std::string> names = {"__metadata__"};
  uint64_t offset = 0;
  std::string text = header.dump();
  text.pop_back();
  for (const SafetensorsOutput& tensor : tensors) {
    CheckedU64 bytes = DtypeBytes(tensor.dtype);
    for (uint64_t dimension : tensor.shape) bytes = bytes * dimension;
    const CheckedU64 end = bytes + offset;
    if (!end.valid() || !names.insert(tensor.name).second) {
      return Status(ErrorCode::kInternal, "safetensors writer: tensor " + tensor.name + " stands twice or is too large");
    }
    nlohmann::ordered_json entry;
    entry["dtype"] = DtypeName(tensor.dtype);
    entry["shape"] = tensor.shape;
    entry["data_offsets"] = {offset, end.value()};
    if (text.size() > 1) text += ',';
    text += nlohmann::ordered_json(tensor.name).dump() + ":" + entry.dump();
    offset = end.value();
  }
  text += '}';
  text.append((8 - text.size() % 8) % 8, ' ');
  return text;
}

uint64_t BytesOf(const SafetensorsOutput& tensor) {
  uint64_t bytes = DtypeBytes(tensor.dtype);
  for (const uint64_t dimension : tensor.shape) bytes *= dimension;
  return bytes;
}

}  // namespace

Result<Bytes> SafetensorsHead(const std::vector<SafetensorsOutput>& tensors,
                              const std::map<std::string, std::string>& metadata) {
  MOEPACK_ASSIGN_OR_RETURN(const std::string header, HeaderText(tensors, metadata));
  ByteWriter head;
  head.U64(header.size());
  head.Append(AsBytes(header));
  return head.Release();
}

Status AppendSafetensors(AtomicFile& file, const std::vector<SafetensorsOutput>& tensors,
                         const std::map<std::string, std::string>& metadata) {
  MOEPACK_ASSIGN_OR_RETURN(const Bytes head, SafetensorsHead(tensors, metadata));
  MOEPACK_RETURN_IF_ERROR(file.Append(head));
  for (const SafetensorsOutput& tensor : tensors) {
    if (tensor.data.size() != BytesOf(tensor)) {
      return Status(ErrorCode::kInternal,
                    "safetensors writer: the data of tensor " + tensor.name + " does not fit its shape");
    }
    MOEPACK_RETURN_IF_ERROR(file.Append(tensor.data));
  }
  return Status::Ok();
}

Status WriteSafetensors(Env& env, const std::string& path, const std::vector<SafetensorsOutput>& tensors,
                        const std::map<std::string, std::string>& metadata) {
  MOEPACK_ASSIGN_OR_RETURN(const auto file, AtomicFile::Create(env, path));
  MOEPACK_RETURN_IF_ERROR(AppendSafetensors(*file, tensors, metadata));
  return file->Commit();
}

}  // namespace moepack
