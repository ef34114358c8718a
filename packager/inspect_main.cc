// moepack inspect: what is in a model, a compressed folder or a bundle.
#include <algorithm>
#include <cstdio>

#include "base/cli/accept_keys.h"
#include "format/manifest/model_folder.h"
#include "format/manifest/unavailable.h"
#include "model/frontend/huggingface.h"
#include "model/frontend/onnx.h"
#include "model/frontend/tokenizer_files.h"
#include "model/model.h"
#include "packager/inspect/chat_view.h"
#include "packager/inspect/inspection.h"
#include "packager/inspect/provenance_view.h"
#include "verify/envelope_reader.h"
#include "verify/trust_json.h"

namespace moepack {
namespace {

namespace po = boost::program_options;
using Json = nlohmann::json;

// JSON text that came with an artefact; null when there is none or it is not JSON.
Json ParsedOrNull(ByteSpan bytes) {
  Json out = Json::parse(bytes.begin(), bytes.end(), nullptr, /*allow_exceptions=*/false);
  return out.is_discarded() ? Json() : out;
}

// "family" of a folder's provenance record; null when it names none.
Json FamilyOf(const Json& provenance) {
  return provenance.is_object() && provenance.contains("family") ? provenance["family"] : Json();
}

// The same from a bundle's bill of materials.
Json FamilyOfBom(const Json& provenance) {
  const Json::json_pointer place("/bom/metadata/component/modelCard/modelParameters/modelArchitecture");
  return provenance.contains(place) ? provenance[place] : Json();
}

// A checkpoint: Hugging Face folder, ONNX file or config.json

const char* SourceName(ModelSource source) {
  switch (source) {
    case ModelSource::kHuggingFace:
      return "huggingface";
    case ModelSource::kOnnx:
      return "onnx";
    case ModelSource::kCompressed:
      return "compressed";
    case ModelSource::kConfigOnly:
      return "config";
  }
  return "unknown";
}

Status AddWeights(const Model& model, Inspection* inspection) {
  const Program& program = model.program;
  for (TensorId id = 0; id < program.tensors.size(); ++id) {
    const TensorDecl& tensor = program.tensors[id];
    MOEPACK_RETURN_IF_ERROR(inspection->AddTensor(tensor.role, model.tensors->StoredCodec(id), {tensor.rows, tensor.cols}));
  }
  for (uint32_t t = 0; t < program.expert_tables.size(); ++t) {
    const ExpertTableDecl& table = program.expert_tables[t];
    for (uint32_t e = 0; e < table.experts(); ++e) {
      for (int m = 0; m < kExpertMatrices; ++m) {
        const auto matrix = static_cast<ExpertMatrix>(m);
        if (matrix == ExpertMatrix::kGate && !table.gated) continue;
        const bool down = matrix == ExpertMatrix::kDown;
        const MatrixShape shape =
            down ? MatrixShape{table.hidden, table.intermediate[e]} : MatrixShape{table.intermediate[e], table.hidden};
        MOEPACK_RETURN_IF_ERROR(inspection->AddExpertMatrix(model.tensors->StoredExpertCodec(t, e, matrix), shape));
      }
    }
  }
  return Status::Ok();
}

// Bytes of the files that hold a checkpoint's weights.
Result<uint64_t> WeightFileBytes(const Model& model, const std::string& path) {
  std::string folder = path;
  std::vector<std::string> names;
  if (model.source == ModelSource::kOnnx) {
    MOEPACK_ASSIGN_OR_RETURN(const std::string graph, OnnxPath(PosixEnv(), path));
    MOEPACK_ASSIGN_OR_RETURN(names, OnnxWeightFiles(PosixEnv(), graph));
    folder = DirectoryOf(graph);
  } else {
    MOEPACK_ASSIGN_OR_RETURN(names, HuggingFaceWeightFiles(PosixEnv(), path));
  }
  uint64_t total = 0;
  for (const std::string& name : names) {
    MOEPACK_ASSIGN_OR_RETURN(const auto file, PosixEnv().OpenRead(JoinPath(folder, name)));
    MOEPACK_ASSIGN_OR_RETURN(const uint64_t bytes, file->Size());
    total += bytes;
  }
  return total;
}

Result<Inspection> InspectModel(const cli::Command& command, const std::string& path) {
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<std::string> accept_keys, cli::AcceptKeys(command));
  MOEPACK_ASSIGN_OR_RETURN(const Model model, OpenModel(PosixEnv(), path, {.accept_keys = accept_keys}));
  Inspection out("model", model.program);
  out.extra()["source"] = SourceName(model.source);
  out.extra()["family"] = model.family;
  out.extra()["has_tokenizer"] = !model.tokenizer.empty();
  out.extra()["chat_template"] = ChatJson(model.tokenizer);
  MOEPACK_ASSIGN_OR_RETURN(const std::string chat_note, ChatTemplateNote(PosixEnv(), path));
  out.SetNotes(ChatText(model.tokenizer) + (chat_note.empty() ? "" : chat_note + "\n"));
  if (model.tensors == nullptr) {
    out.SetWithoutWeights();
    return out;
  }
  MOEPACK_RETURN_IF_ERROR(AddWeights(model, &out));
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t file_bytes, WeightFileBytes(model, path));
  out.SetStoredBytes(file_bytes);
  return out;
}

// A compressed folder

Result<Inspection> InspectFolder(const std::string& path) {
  MOEPACK_ASSIGN_OR_RETURN(const auto folder, ModelFolder::Open(PosixEnv(), path));
  Inspection out("folder", folder->program());
  std::vector<std::vector<const std::vector<UnitTensor>*>> experts(folder->experts().size());
  for (const ModelFolder::UnitInfo& unit : folder->units()) {
    if (unit.key.expert) {
      experts[unit.key.table].push_back(&unit.tensors);
    } else {
      MOEPACK_RETURN_IF_ERROR(out.AddUnit(folder->program(), false, unit.tensors));
    }
  }
  for (size_t t = 0; t < experts.size(); ++t)
    MOEPACK_RETURN_IF_ERROR(out.AddExpertUnits(folder->program(), folder->experts()[t], experts[t]));
  MOEPACK_ASSIGN_OR_RETURN(const Bytes provenance, folder->ReadNamedFile("provenance.json"));
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t file_bytes, folder->FileBytes());
  out.SetStoredBytes(file_bytes);
  out.extra()["source"] = "compressed";
  out.extra()["has_tokenizer"] = !folder->tokenizer_blob().empty();
  out.extra()["chat_template"] = ChatJson(folder->tokenizer_blob());
  out.SetNotes(ChatText(folder->tokenizer_blob()));
  out.extra()["provenance"] = ParsedOrNull(provenance);
  out.extra()["family"] = FamilyOf(out.extra()["provenance"]);
  return out;
}

// A bundle

const char* BlobName(BlobKind kind) {
  switch (kind) {
    case BlobKind::kProgram:
      return "program";
    case BlobKind::kTokenizer:
      return "tokenizer";
    case BlobKind::kDenseTable:
      return "dense_table";
    case BlobKind::kExpertTable:
      return "expert_table";
    case BlobKind::kHotList:
      return "hot_list";
    case BlobKind::kProvenance:
      return "provenance";
    case BlobKind::kGolden:
      return "golden_prompts";
  }
  return "unknown";
}

Json BlobsJson(const Manifest& manifest) {
  Json out = Json::array();
  for (const BlobRef& blob : manifest.blobs) {
    out.push_back({{"kind", BlobName(blob.kind)},
                   {"index", blob.index},
                   {"offset", blob.offset},
                   {"bytes", blob.bytes},
                   {"sha256", ToHex(ByteSpan(blob.digest))}});
  }
  return out;
}

// Chunks of all tables: how many by encoding and what the encoding gained.
struct ChunkSums {
  uint64_t begin = UINT64_MAX, raw = 0, zstd = 0, rans = 0, plain_bytes = 0, stored_bytes = 0;

  void Add(const std::vector<Unit>& units) {
    for (const Unit& unit : units) {
      for (const ChunkRef& chunk : unit.chunks) {
        begin = std::min(begin, chunk.offset);
        uint64_t* const counts[] = {&raw, &zstd, &rans};
        *counts[static_cast<size_t>(chunk.encoding)] += 1;
        plain_bytes += chunk.plain_bytes;
        stored_bytes += chunk.stored_bytes;
      }
    }
  }
  Json ToJson() const {
    const double gain = plain_bytes == 0 ? 0 : 1 - static_cast<double>(stored_bytes) / static_cast<double>(plain_bytes);
    return {{"count", raw + zstd + rans},   {"raw", raw},  {"zstd", zstd}, {"rans", rans}, {"plain_bytes", plain_bytes},
            {"stored_bytes", stored_bytes}, {"gain", gain}};
  }
};

Json SignaturesJson(const Envelope& envelope, const verify::TrustPolicy* trust) {
  Json out = Json::array();
  for (const EnvelopeSignature& s : envelope.signatures) {
    const bool trusted = trust && std::count(trust->release_keys.begin(), trust->release_keys.end(), s.public_key) > 0;
    out.push_back({{"public_key", ToHex(ByteSpan(s.public_key))}, {"trusted", trust ? Json(trusted) : Json()}});
  }
  return out;
}

// What a device on trial will ask; null when the bundle has no golden prompts.
Json GoldenJson(const GoldenPrompts& golden) {
  if (golden.prompts.empty()) return nullptr;
  return {{"prompts", golden.prompts.size()},
          {"steps", golden.steps()},
          {"steps_allowed_to_differ", golden.allowed},
          {"tolerance", golden.tolerance}};
}

Status DescribeBundle(const verify::VerifiedBundle& bundle, Inspection* out) {
  const Manifest& manifest = bundle.manifest();
  ChunkSums chunks;
  chunks.Add(bundle.dense().units);
  for (const Unit& unit : bundle.dense().units) MOEPACK_RETURN_IF_ERROR(out->AddUnit(bundle.program(), false, unit.tensors));
  for (const ExpertTable& table : bundle.experts()) {
    chunks.Add(table.units);
    std::vector<const std::vector<UnitTensor>*> units;
    for (const Unit& unit : table.units) units.push_back(&unit.tensors);
    MOEPACK_RETURN_IF_ERROR(out->AddExpertUnits(bundle.program(), table.experts, units));
  }
  out->SetStoredBytes(manifest.file_bytes);
  Json& extra = out->extra();
  extra["product"] = manifest.product;
  extra["version"] = manifest.version;
  extra["key_epoch"] = manifest.key_epoch;
  extra["security_counter"] = manifest.security_counter;
  extra["required_features"] = manifest.required_features;
  extra["unavailable"] = DescribeUnavailable(manifest.unavailable);
  extra["manifest_sha256"] = ToHex(ByteSpan(bundle.manifest_digest()));
  extra["has_tokenizer"] = !bundle.tokenizer_blob().empty();
  extra["chat_template"] = ChatJson(bundle.tokenizer_blob());
  extra["hot_experts"] = bundle.hot_list().experts.size();
  extra["cache_policy"] = DescribeCachePolicy(bundle.hot_list().cache);
  extra["chunks_begin"] = chunks.begin == UINT64_MAX ? manifest.file_bytes : chunks.begin;
  extra["chunks"] = chunks.ToJson();
  extra["blobs"] = BlobsJson(manifest);
  extra["golden"] = GoldenJson(bundle.golden());
  extra["provenance"] = ProvenanceJson(bundle.provenance_blob());
  extra["family"] = FamilyOfBom(extra["provenance"]);
  out->SetNotes(ChatText(bundle.tokenizer_blob()) + ProvenanceText(bundle.provenance_blob()));
  return Status::Ok();
}

// Without a trust file the envelope's own keys stand in: digests are still checked, but nobody has vouched for the keys.
Result<Inspection> InspectBundle(const cli::Command& command, const std::string& path) {
  const std::string trust_path = command.GetOr<std::string>("trust", "");
  MOEPACK_ASSIGN_OR_RETURN(auto file, PosixEnv().OpenRead(path));
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t size, file->Size());
  MOEPACK_ASSIGN_OR_RETURN(const verify::SignedManifest head, verify::ReadSignedManifest(*file, size));
  const bool verified = !trust_path.empty();
  if (!verified)
    command.progress().Note("inspect: " + path + " is shown unverified; give --trust T.json to check who signed it");
  const Result<verify::TrustPolicy> policy =
      verified ? verify::ReadTrust(PosixEnv(), trust_path) : verify::TrustItsSigners(head);
  if (!policy.ok()) return verified ? policy.status() : policy.status().With(path);
  MOEPACK_ASSIGN_OR_RETURN(const auto bundle, verify::VerifiedBundle::Open(std::move(file), *policy));
  Inspection out("bundle", bundle->program());
  out.extra()["source"] = "bundle";
  out.extra()["verified"] = verified;
  out.extra()["signatures"] = SignaturesJson(head.envelope, verified ? &*policy : nullptr);
  MOEPACK_RETURN_IF_ERROR(DescribeBundle(*bundle, &out));
  if (command.Has("statement") || command.Has("bom")) {
    MOEPACK_RETURN_IF_ERROR(ExtractProvenance(PosixEnv(), bundle->provenance_blob(),
                                              command.GetOr<std::string>("statement", ""),
                                              command.GetOr<std::string>("bom", "")));
  }
  return out;
}

// What is at `path`: a folder with the mark of ModelFolderWriter, a file that begins like a bundle, or a checkpoint.
enum class PathKind : uint8_t { kModel, kFolder, kBundle };

Result<PathKind> KindOf(const std::string& path) {
  Env& env = PosixEnv();
  MOEPACK_ASSIGN_OR_RETURN(const bool bundle, verify::IsBundlePath(env, path));
  if (bundle) return PathKind::kBundle;
  MOEPACK_ASSIGN_OR_RETURN(const bool complete, env.Exists(JoinPath(path, "complete")));
  MOEPACK_ASSIGN_OR_RETURN(const bool program, env.Exists(JoinPath(path, "program.pb")));
  return complete || program ? PathKind::kFolder : PathKind::kModel;
}

Result<Inspection> Inspect(const cli::Command& command) {
  MOEPACK_RETURN_IF_ERROR(command.Require("PATH"));
  const std::string path = command.Get<std::string>("PATH");
  MOEPACK_ASSIGN_OR_RETURN(const PathKind kind, KindOf(path));
  if (kind != PathKind::kModel && command.Has("accept-key"))
    return Status(ErrorCode::kUsage, path + ": --accept-key is for checkpoints, and this is none");
  if (kind == PathKind::kBundle) return InspectBundle(command, path);
  for (const char* option : {"trust", "statement", "bom"}) {
    if (!command.Has(option)) continue;
    return Status(ErrorCode::kUsage, path + ": --" + option + " is for bundles, and this is none");
  }
  return kind == PathKind::kFolder ? InspectFolder(path) : InspectModel(command, path);
}

Status Run(int argc, char** argv) {
  cli::Command command({"moepack inspect",
                        "Shows what is in a checkpoint, a compressed folder or a bundle.\n"
                        "A bundle is shown with \"verified\": false unless --trust says whose signature counts.",
                        "MODEL|DIR|BUNDLE [--trust T.json] [--statement FILE] [--bom FILE] [--json]",
                        {"moepack inspect examples/wren/model", "moepack inspect wren.moeb --trust trust.json --json",
                         "moepack inspect wren.moeb --trust trust.json --bom wren.cdx.json"}});
  command.Positional("PATH");
  cli::AddAcceptKeyOption(&command);
  command.options().add_options()("trust", po::value<std::string>(), "trust file (T.json) or anchor for a bundle")(
      "statement", po::value<std::string>(), "write the bundle's in-toto statement to this file")(
      "bom", po::value<std::string>(), "write the bundle's CycloneDX bill of materials to this file");
  MOEPACK_RETURN_IF_ERROR(command.Parse(argc, argv));
  if (command.help_shown()) return Status::Ok();
  MOEPACK_ASSIGN_OR_RETURN(const Inspection inspection, Inspect(command));
  if (command.json()) {
    cli::PrintJson(inspection.ToJson());
  } else {
    std::fputs(inspection.ToText().c_str(), stdout);
  }
  return Status::Ok();
}

}  // namespace
}  // namespace moepack

int main(int argc, char** argv) {
  return moepack::cli::Main("moepack inspect", [&] { return moepack::Run(argc, argv); });
}
