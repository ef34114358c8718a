#include "compressor/plan/plan.h"

#include <nlohmann/json.hpp>

#include "base/checked.h"

namespace moepack {

std::string SerializePlan(const Plan& plan) {
  using nlohmann::json;
  // Written by hand around the escaped names: one line a tensor, so that two plans can be read side by side in a diff.
  std::string out = "{\n";
  out += "\"version\": 1,\n";
  out += StrFormat("\"target_bytes\": %llu,\n", static_cast<unsigned long long>(plan.target_bytes));
  out += StrFormat("\"target_resident_bytes\": %llu,\n", static_cast<unsigned long long>(plan.target_resident_bytes));
  out += StrFormat("\"bundle_bytes\": %llu,\n", static_cast<unsigned long long>(plan.bundle_bytes));
  out += StrFormat("\"plain_bytes\": %llu,\n", static_cast<unsigned long long>(plan.plain_bytes));
  out += StrFormat("\"resident_bytes\": %llu,\n", static_cast<unsigned long long>(plan.resident_bytes));
  out += StrFormat("\"measured_by\": %s,\n", json(plan.measured_by).dump().c_str());
  out += StrFormat("\"predicted_kld\": %.6g,\n", plan.predicted_kld);
  out += StrFormat("\"gap\": %.3g,\n", plan.gap);
  out += "\"tensors\": {\n";
  for (size_t i = 0; i < plan.tensors.size(); ++i) {
    const PlanTensor& t = plan.tensors[i];
    out += StrFormat("%s: {\"codec\": \"%s\", \"bytes\": %llu, \"kld\": %.4g}%s\n", json(t.name).dump().c_str(),
                     t.codec.Name().c_str(), static_cast<unsigned long long>(t.bytes), t.kld,
                     i + 1 < plan.tensors.size() ? "," : "");
  }
  return out + "}\n}\n";
}

Result<std::vector<PlanTensor>> ParsePlanTensors(ByteSpan bytes, const std::string& file_name) {
  const auto refuse = [&](const std::string& what) { return Status(ErrorCode::kBadInput, file_name + ": " + what); };
  const nlohmann::json root = nlohmann::json::parse(AsText(bytes), nullptr, false);
  if (!root.is_object()) return refuse("not a plan.json (JSON object expected)");
  const auto version = root.find("version");
  if (version == root.end() || *version != 1) return refuse("'version' must be 1");
  const auto tensors = root.find("tensors");
  if (tensors == root.end() || !tensors->is_object()) return refuse("'tensors' must be an object");
  std::vector<PlanTensor> out;
  for (const auto& [name, entry] : tensors->items()) {
    if (!entry.is_object() || !entry.contains("codec") || !entry["codec"].is_string())
      return refuse("tensor '" + name + "' has no 'codec'");
    auto codec = ParseRatedCodec(entry["codec"].get_ref<const std::string&>());
    if (!codec.ok()) return refuse("tensor '" + name + "': " + codec.status().message());
    out.push_back({name, *codec, 0, 0});
  }
  return out;
}

Status FillSizes(std::span<const TensorRef> tensors, Plan* plan) {
  CheckedU64 plain = 0, resident = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const RatedCodec& codec = plan->tensors[i].codec;
    auto bytes = PlainBytes(codec, tensors[i].shape);
    if (!bytes.ok()) return bytes.status().With(tensors[i].name + " as " + codec.Name());
    auto stored = StoredBytes(codec, tensors[i].shape);
    if (!stored.ok()) return stored.status().With(tensors[i].name + " as " + codec.Name());
    auto loaded = ResidentBytes(codec, tensors[i].shape);
    if (!loaded.ok()) return loaded.status().With(tensors[i].name + " as " + codec.Name());
    plan->tensors[i].bytes = *stored;
    plain = plain + *bytes;
    resident = resident + *loaded;
  }
  if (!plain.valid() || !resident.valid()) return Status(ErrorCode::kLimit, "the model's size exceeds 64 bits");
  plan->plain_bytes = plain.value();
  plan->resident_bytes = resident.value();
  return Status::Ok();
}

}  // namespace moepack
