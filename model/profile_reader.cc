#include <set>

#include "model/family/config_reader.h"
#include "model/frontend/json_text.h"
#include "model/profile_layout.h"

namespace moepack {
namespace {

// Fills vectors from the file's tensors, which must have exactly the type and shape that is asked for.
class Filler {
 public:
  explicit Filler(const SafetensorsFile& file) : file_(file) {}

  template <typename T>
  void Array(const std::string& name, const std::vector<uint64_t>& shape, std::vector<T>* values, Presence presence) {
    if (file_.Find(name) == nullptr && presence == Presence::kOptional) return;
    if (const SafetensorsEntry* entry = Find(name, DtypeOf(T()), shape)) Copy(*entry, values);
  }

  void Rows(const std::string& name, const std::vector<uint64_t>& widths, std::vector<std::vector<float>>* rows) {
    uint64_t total = 0;
    for (uint64_t width : widths) total += width;
    const SafetensorsEntry* entry = Find(name, Dtype::kF32, {total});
    if (entry == nullptr) return;
    std::vector<float> flat;
    Copy(*entry, &flat);
    auto from = flat.begin();
    for (uint64_t width : widths) {
      const auto to = from + static_cast<std::ptrdiff_t>(width);
      rows->emplace_back(from, to);
      from = to;
    }
  }

  void Digests(WeightDigests* weights) {
    const SafetensorsEntry* found = file_.Find(kWeightsName);
    const uint64_t count = found == nullptr || found->shape.empty() ? 0 : found->shape[0];
    const SafetensorsEntry* entry = Find(kWeightsName, Dtype::kU8, {count, sizeof(Digest)});
    if (entry != nullptr) Copy(*entry, &weights->digests);
  }

  void Fail(const std::string& name, const std::string& rule) {
    if (status_.ok()) status_ = Status(ErrorCode::kBadInput, file_.path() + ": " + name + ": " + rule);
  }

  // kBadInput when the file has arrays that a profile does not.
  Status Finish() {
    for (const SafetensorsEntry& entry : file_.entries()) {
      if (used_.count(entry.name) == 0) Fail(entry.name, "is not an array of a profile");
    }
    return status_;
  }

 private:
  const SafetensorsEntry* Find(const std::string& name, Dtype dtype, const std::vector<uint64_t>& shape) {
    const SafetensorsEntry* entry = file_.Find(name);
    used_.insert(name);
    if (entry != nullptr && entry->dtype == dtype && entry->shape == shape) return entry;
    Fail(name, entry == nullptr ? "missing" : "has another type or shape than the profile's other fields imply");
    return nullptr;
  }

  template <typename T>
  void Copy(const SafetensorsEntry& entry, std::vector<T>* values) {
    const ByteSpan data = file_.data(entry);
    values->resize(data.size() / sizeof(T));
    if (!data.empty()) std::memcpy(values->data(), data.data(), data.size());
    file_.Release(entry);
  }

  const SafetensorsFile& file_;
  std::set<std::string> used_;
  Status status_;
};

// What the metadata holds: scalars of the profile, and the sizes that array shapes follow from.
struct Sizes {
  std::vector<TableShape> tables;
  uint64_t dense_tensors = 0;
};

void ReadTable(ConfigReader& json, Profile* profile, Sizes* sizes) {
  TableProfile& table = profile->tables.emplace_back();
  TableShape& shape = sizes->tables.emplace_back();
  table.experts = static_cast<uint32_t>(json.Count("experts", 1, kMaxExperts));
  table.k = static_cast<uint32_t>(json.Count("k", 1, table.experts));
  shape.hidden = json.Count("hidden", 1, kMaxCols);
  shape.intermediate = json.Counts("intermediate", kMaxCols);
  if (shape.intermediate.size() != table.experts)
    json.Fail(ErrorCode::kBadInput, "intermediate", "needs one entry an expert");
  table.srp = json.Number("srp");
  table.sch = json.Numbers("sch");
  table.shared_attribution = json.Number("shared_attribution");
}

Status ReadMetadata(const SafetensorsFile& file, Profile* profile, Sizes* sizes) {
  const auto it = file.metadata().find(kProfileKey);
  if (it == file.metadata().end())
    return Status(ErrorCode::kBadInput, file.path() + ": not a profile (no " + kProfileKey + " in its metadata)");
  const std::string label = file.path() + ": " + kProfileKey;
  MOEPACK_ASSIGN_OR_RETURN(nlohmann::json document, ParseJson(AsBytes(it->second), label));
  ConfigReader json(std::move(document), label);
  const uint64_t version = json.Count("version", 0, UINT32_MAX);
  if (json.status().ok() && version != kProfileVersion) {
    return Status(ErrorCode::kVersion,
                  StrFormat("%s: version %llu, this build reads %llu; run `moepack calibrate` again", label.c_str(),
                            static_cast<unsigned long long>(version), static_cast<unsigned long long>(kProfileVersion)));
  }
  profile->model_digest = json.Text("model_digest");
  profile->domains = json.Texts("domains");
  sizes->dense_tensors = json.Count("dense_tensors", 0, kMaxTensors);
  for (ConfigReader& input : json.Objects("inputs")) {
    profile->inputs.emplace_back(input.Text("domain"), input.Text("sha256"));
    json.Adopt(input.Finish({}));
  }
  std::vector<ConfigReader> tables = json.Objects("tables");
  if (tables.size() > kMaxExpertTables) return Status(ErrorCode::kLimit, label + ": too many tables");
  for (ConfigReader& table : tables) {
    ReadTable(table, profile, sizes);
    json.Adopt(table.Finish({}));
  }
  return json.Finish({});
}

// Number of entries of a one-dimensional array; 0 when it is not there.
uint64_t LengthOf(const SafetensorsFile& file, const char* name) {
  const SafetensorsEntry* entry = file.Find(name);
  return entry != nullptr && entry->shape.size() == 1 ? entry->shape[0] : 0;
}

// Tokens, or rows, whose width is set.
uint64_t ReadLength(const SafetensorsFile& file, Profile* profile) {
  const SafetensorsEntry* rows = file.Find("rows");
  if (rows == nullptr || rows->shape.size() != 2) return LengthOf(file, "tokens");
  profile->row_width = rows->shape[1];
  return rows->shape[0];
}

}  // namespace

Result<Profile> ReadProfile(Env& env, const std::string& path) {
  MOEPACK_ASSIGN_OR_RETURN(const auto file, SafetensorsFile::Open(env, path));
  Profile profile;
  Sizes sizes;
  MOEPACK_RETURN_IF_ERROR(ReadMetadata(*file, &profile, &sizes));
  Filler filler(*file);
  const uint64_t tokens = ReadLength(*file, &profile);
  VisitSequences(profile, tokens, LengthOf(*file, "sequence_start"), filler);
  filler.Digests(&profile.weights);
  for (size_t t = 0; t < profile.tables.size(); ++t) {
    VisitTable(profile.tables[t], TablePrefix(t), profile.domains.size(), tokens, sizes.tables[t], filler);
  }
  profile.dense_in_sq.resize(sizes.dense_tensors);
  for (size_t id = 0; id < profile.dense_in_sq.size(); ++id) {
    const SafetensorsEntry* entry = file->Find(DenseName(id));
    if (entry != nullptr) filler.Array(DenseName(id), {entry->elements()}, &profile.dense_in_sq[id], Presence::kRequired);
  }
  MOEPACK_RETURN_IF_ERROR(filler.Finish());
  if (Status status = CheckProfile(profile); !status.ok()) return status.With(path);
  return profile;
}

}  // namespace moepack
