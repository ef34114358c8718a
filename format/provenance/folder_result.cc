#include <set>

#include "base/digest/sha256.h"
#include "format/manifest/program_wire.h"
#include "format/provenance/json_fields.h"
#include "format/provenance/provenance.h"

namespace moepack {
namespace {

using provenance::Fields;
using provenance::Json;

// The unit as it would stand in a table if it were one raw chunk at offset 0.
Unit AsOneChunk(const ModelFolder::UnitInfo& info) {
  ChunkRef chunk;
  chunk.stored_bytes = chunk.plain_bytes = info.plain_bytes;
  chunk.stored_digest = chunk.plain_digest = info.plain_digest;
  return {info.tensors, {chunk}};
}

std::vector<NamedDigest> FolderSubjects(const ModelFolder& folder) {
  DenseTable dense;
  std::vector<ExpertTable> experts;
  for (size_t t = 0; t < folder.experts().size(); ++t) {
    experts.push_back({static_cast<uint32_t>(t), folder.experts()[t], {}});
  }
  for (const ModelFolder::UnitInfo& info : folder.units()) {
    (info.key.expert ? experts[info.key.table].units : dense.units).push_back(AsOneChunk(info));
  }
  std::vector<Bytes> parts = {SerializeProgram(folder.program())};
  const ByteSpan tokenizer = folder.tokenizer_blob();
  if (!tokenizer.empty()) parts.emplace_back(tokenizer.begin(), tokenizer.end());
  parts.push_back(SerializeDenseTable(dense));
  for (const ExpertTable& table : experts) parts.push_back(SerializeExpertTable(table));
  parts.push_back(SerializeHotList(folder.hot_list()));
  const std::vector<std::string> names = SubjectNames(folder.program(), !tokenizer.empty());
  std::vector<NamedDigest> out;
  for (size_t i = 0; i < parts.size(); ++i) out.push_back({names[i], ToHex(Sha256(parts[i]))});
  return out;
}

std::vector<std::string> CodecNames(const ModelFolder& folder) {
  std::set<std::string> names;
  for (const ModelFolder::UnitInfo& unit : folder.units()) {
    for (const UnitTensor& tensor : unit.tensors) names.insert(tensor.codec.Name());
  }
  return {names.begin(), names.end()};
}

Status ReadQuality(ByteSpan errors, BuildResult* out) {
  MOEPACK_ASSIGN_OR_RETURN(const Fields root, Fields::Parse(AsText(errors), "errors.json"));
  if (const auto kld = root.json().find("kld"); kld != root.json().end()) {
    if (!kld->is_number()) return root.Wrong("'kld' must be a number");
    out->kld = kld->get<double>();
  }
  if (!root.Has("kld_by_domain")) return Status::Ok();
  MOEPACK_ASSIGN_OR_RETURN(const Fields domains, root.Object("kld_by_domain"));
  for (const auto& [domain, kld] : domains.json().items()) {
    if (!kld.is_number()) return domains.Wrong("'" + domain + "' must be a number");
    out->domain_kld[domain] = kld.get<double>();
  }
  return Status::Ok();
}

}  // namespace

std::vector<std::string> SubjectNames(const Program& program, bool tokenizer) {
  std::vector<std::string> out = {"program"};
  if (tokenizer) out.emplace_back("tokenizer");
  out.emplace_back("dense-table");
  for (size_t t = 0; t < program.expert_tables.size(); ++t) out.push_back(StrFormat("expert-table/%zu", t));
  out.emplace_back("hot-list");
  return out;
}

Result<BuildResult> ResultOfFolder(const ModelFolder& folder) {
  BuildResult out;
  out.subjects = FolderSubjects(folder);
  out.original_parameters = folder.program().original_parameters;
  out.parameters = CountParameters(folder.program());
  out.codecs = CodecNames(folder);
  MOEPACK_ASSIGN_OR_RETURN(const Bytes errors, folder.ReadNamedFile("errors.json"));
  if (errors.empty()) return out;
  out.errors = ToHex(Sha256(errors));
  MOEPACK_RETURN_IF_ERROR(ReadQuality(errors, &out));
  return out;
}

}  // namespace moepack
