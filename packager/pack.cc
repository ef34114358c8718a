#include <algorithm>
#include <cstring>
#include <set>

#include "base/digest/sha256.h"
#include "format/envelope.h"
#include "format/manifest/expert_parts.h"
#include "format/manifest/model_folder.h"
#include "format/manifest/names.h"
#include "format/manifest/program_wire.h"
#include "format/provenance/provenance.h"
#include "packager/bundle_layout.h"
#include "packager/bundle_writer.h"
#include "packager/chunk_encoder.h"
#include "packager/chunk_spool.h"
#include "packager/draft_bundle.h"
#include "packager/packager.h"

namespace moepack {
namespace {

constexpr uint64_t kBatchPlainBytes = 16 << 20;

// One chunk on its way from a unit to the spool.
struct PendingChunk {
  size_t unit = 0;  // index into ModelFolder::units()
  ByteSpan plain;   // into PendingBatch::units
  std::vector<RansRun> runs;
  uint32_t halvings = 0;
  std::vector<EncodedChunk> encoded;  // itself, or its parts
  Status status;
};

// Consecutive units, encoded together so that all threads have work. Which units share a batch changes no byte.
struct PendingBatch {
  std::vector<Bytes> units;
  std::vector<PendingChunk> chunks;
};

// Reads units from `*next` on until the batch is full.
Result<PendingBatch> ReadBatch(const ModelFolder& folder, size_t* next) {
  PendingBatch batch;
  uint64_t plain_bytes = 0;
  while (*next < folder.units().size() && plain_bytes < kBatchPlainBytes) {
    MOEPACK_ASSIGN_OR_RETURN(Bytes unit, folder.ReadUnit(*next));
    plain_bytes += unit.size();
    batch.units.push_back(std::move(unit));
    std::vector<RansRun> runs;
    for (const UnitTensor& tensor : folder.units()[*next].tensors) {
      MOEPACK_RETURN_IF_ERROR(AppendRansRuns(tensor.codec, tensor.shape, &runs));
    }
    const uint32_t halvings = folder.units()[*next].key.expert ? HalvingsOfExpert(batch.units.back().size()) : 0;
    const ByteSpan bytes = batch.units.back();  // moving a vector's buffer along with the outer one keeps its address
    for (uint64_t at = 0; at < bytes.size(); at += kMaxChunkPlainBytes) {
      const uint64_t end = std::min<uint64_t>(at + kMaxChunkPlainBytes, bytes.size());
      batch.chunks.push_back({*next, bytes.subspan(at, end - at), CutRansRuns(runs, at, end), halvings, {}, {}});
    }
    ++*next;
  }
  return batch;
}

Status Encode(int level, PendingChunk* chunk) {
  MOEPACK_ASSIGN_OR_RETURN(EncodedChunk whole, EncodeChunk(chunk->plain, chunk->runs, level));
  MOEPACK_ASSIGN_OR_RETURN(chunk->encoded, CutChunk(std::move(whole), chunk->plain, chunk->runs, chunk->halvings));
  return Status::Ok();
}

// Encodes a batch on all threads and appends it to the spool in order.
Status SpoolBatch(PendingBatch& batch, int level, ThreadPool& pool, ChunkSpool& spool,
                  std::vector<std::vector<ChunkRef>>* chunks) {
  pool.ParallelFor(batch.chunks.size(), 1, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      PendingChunk& chunk = batch.chunks[i];
      chunk.status = Encode(level, &chunk);
    }
  });
  for (PendingChunk& chunk : batch.chunks) {
    MOEPACK_RETURN_IF_ERROR(chunk.status);
    for (EncodedChunk& part : chunk.encoded) {
      const ByteSpan plain = chunk.plain.first(part.ref.plain_bytes);
      chunk.plain = chunk.plain.subspan(plain.size());
      const bool raw = part.ref.encoding == Encoding::kRaw;
      MOEPACK_ASSIGN_OR_RETURN(part.ref.offset, spool.Append(raw ? plain : ByteSpan(part.stored)));
      (*chunks)[chunk.unit].push_back(part.ref);
    }
  }
  return Status::Ok();
}

// All units of the folder in the spool; the result has the chunks of each unit, offsets counted from the spool's start.
Result<std::vector<std::vector<ChunkRef>>> SpoolUnits(const ModelFolder& folder, int level, ThreadPool& pool,
                                                      ChunkSpool& spool, Progress& progress) {
  uint64_t total = 0;
  for (const ModelFolder::UnitInfo& unit : folder.units()) total += unit.plain_bytes;
  std::vector<std::vector<ChunkRef>> chunks(folder.units().size());
  progress.Begin("pack", total, "bytes");
  Status status;
  for (size_t next = 0; next < folder.units().size() && status.ok();) {
    Result<PendingBatch> batch = ReadBatch(folder, &next);
    status = batch.ok() ? SpoolBatch(*batch, level, pool, spool, &chunks) : batch.status();
    if (!status.ok()) break;
    for (const Bytes& unit : batch->units) progress.Advance(unit.size());
  }
  progress.End();
  if (!status.ok()) return status;
  return chunks;
}

// The blob about how the bundle was made; empty when the folder does not say.
Result<Bytes> MakeProvenanceBlob(const ModelFolder& folder, const PackOptions& options) {
  MOEPACK_ASSIGN_OR_RETURN(const Bytes text, folder.ReadNamedFile("provenance.json"));
  if (text.empty()) return Bytes();
  MOEPACK_ASSIGN_OR_RETURN(const BuildRecord record, ParseBuildRecord(text));
  MOEPACK_ASSIGN_OR_RETURN(const BuildResult result, ResultOfFolder(folder));
  const PackParameters parameters = {options.product,           options.version,    options.key_epoch,
                                     options.security_counter,  options.zstd_level, options.tool_version,
                                     options.source_date_epoch, options.unavailable};
  const std::string blob = MakeProvenance(record, parameters, result);
  return Bytes(blob.begin(), blob.end());
}

Result<BundleParts> MakeParts(const ModelFolder& folder, std::vector<std::vector<ChunkRef>> chunks,
                              const PackOptions& options) {
  BundleParts parts;
  parts.program = SerializeProgram(folder.program());
  parts.tokenizer.assign(folder.tokenizer_blob().begin(), folder.tokenizer_blob().end());
  parts.hot_list = folder.hot_list();
  MOEPACK_ASSIGN_OR_RETURN(parts.provenance, MakeProvenanceBlob(folder, options));
  for (size_t t = 0; t < folder.experts().size(); ++t) {
    parts.experts.push_back({static_cast<uint32_t>(t), folder.experts()[t], {}});
  }
  for (size_t i = 0; i < folder.units().size(); ++i) {
    const ModelFolder::UnitInfo& info = folder.units()[i];
    Unit unit{info.tensors, std::move(chunks[i])};
    if (!info.key.expert) {
      parts.dense.units.push_back(std::move(unit));
      continue;
    }
    if (info.key.table >= parts.experts.size() || info.key.physical != parts.experts[info.key.table].units.size()) {
      return Status(ErrorCode::kBadInput, StrFormat("model folder: unit %zu is expert %u of table %u, which is out of order",
                                                    i, info.key.physical, info.key.table));
    }
    parts.experts[info.key.table].units.push_back(std::move(unit));
  }
  return parts;
}

void CountChunks(const std::vector<std::vector<ChunkRef>>& chunks, PackReport* report) {
  for (const std::vector<ChunkRef>& unit : chunks) {
    for (const ChunkRef& chunk : unit) {
      report->chunk_plain_bytes += chunk.plain_bytes;
      report->chunk_stored_bytes += chunk.stored_bytes;
      uint64_t* const counts[] = {&report->raw_chunks, &report->zstd_chunks, &report->rans_chunks};
      *counts[static_cast<size_t>(chunk.encoding)] += 1;
    }
  }
}

Status CheckOptions(const PackOptions& options) {
  if (!IsProductName(options.product)) {
    return Status(ErrorCode::kUsage, "product '" + options.product + "': expected 1 to 64 of a-z, 0-9, '.', '_', '-'");
  }
  if (!IsVersionName(options.version)) {
    return Status(ErrorCode::kUsage,
                  "version '" + options.version + "': expected 1 to 64 of A-Z, a-z, 0-9, '.', '_', '+', '-'");
  }
  if (options.zstd_level < 0 || options.zstd_level > 22) return Status(ErrorCode::kUsage, "zstd level: expected 0 to 22");
  return Status::Ok();
}

// A step that no expert of the folder can take is a mistake of whoever asks for it.
Status CheckStandIns(const ModelFolder& folder, const std::vector<Unavailable>& steps) {
  std::set<VariantKind> there;
  for (const std::vector<ExpertEntry>& experts : folder.experts()) {
    for (const std::vector<VariantKind>& kinds : VariantKinds(experts)) there.insert(kinds.begin(), kinds.end());
  }
  for (const Unavailable step : steps) {
    if (step == Unavailable::kLower && !there.contains(VariantKind::kLower))
      return Status(ErrorCode::kUsage, "unavailable: no expert has a lower precision; compress with second_precision");
    if (step == Unavailable::kTwin && !there.contains(VariantKind::kTwin))
      return Status(ErrorCode::kUsage, "unavailable: no expert has a twin; compress with twins: true");
    if (step == Unavailable::kDense && !there.contains(VariantKind::kDense))
      return Status(ErrorCode::kUsage, "unavailable: no layer has a dense stand-in; compress with dense_fallback");
  }
  return Status::Ok();
}

// The blob of golden prompts, from a bundle that lacks only it.
Result<Bytes> RecordGolden(const Manifest& manifest, const BundleParts& parts, const ChunkSpool& spool,
                           const RecordGoldenFunction& record, PackReport* report) {
  MOEPACK_ASSIGN_OR_RETURN(const PlacedBundle placed, PlaceBundle(manifest, parts));
  MOEPACK_ASSIGN_OR_RETURN(const DraftBundle draft, DraftBundle::Make(placed, spool));
  MOEPACK_ASSIGN_OR_RETURN(const GoldenPrompts golden, record([&] { return draft.Open(); }));
  report->golden_prompts = golden.prompts.size();
  report->golden_steps = golden.steps();
  return SerializeGoldenPrompts(golden);
}

// A bundle but for signatures: its chunks in the spool, everything else placed.
struct Assembled {
  std::unique_ptr<ChunkSpool> spool;
  BundleParts parts;
  PlacedBundle placed;
  PackReport report;
};

Result<Assembled> Assemble(Env& env, const std::string& directory, const PackOptions& options, const std::string& scratch,
                           ThreadPool& pool, Progress& progress) {
  MOEPACK_RETURN_IF_ERROR(CheckOptions(options));
  MOEPACK_ASSIGN_OR_RETURN(const auto folder, ModelFolder::Open(env, directory));
  MOEPACK_RETURN_IF_ERROR(CheckStandIns(*folder, options.unavailable));
  Assembled out;
  MOEPACK_ASSIGN_OR_RETURN(out.spool, ChunkSpool::Create(env, scratch));
  MOEPACK_ASSIGN_OR_RETURN(auto chunks, SpoolUnits(*folder, options.zstd_level, pool, *out.spool, progress));
  MOEPACK_RETURN_IF_ERROR(out.spool->Finish());
  CountChunks(chunks, &out.report);
  MOEPACK_ASSIGN_OR_RETURN(out.parts, MakeParts(*folder, std::move(chunks), options));
  out.parts.chunk_area_bytes = out.spool->size_bytes();
  Manifest manifest;
  manifest.product = options.product;
  manifest.version = options.version;
  manifest.key_epoch = options.key_epoch;
  manifest.security_counter = options.security_counter;
  manifest.unavailable = options.unavailable;
  if (options.record_golden) {
    MOEPACK_ASSIGN_OR_RETURN(out.parts.golden,
                             RecordGolden(manifest, out.parts, *out.spool, options.record_golden, &out.report));
  }
  MOEPACK_ASSIGN_OR_RETURN(out.placed, PlaceBundle(manifest, out.parts));
  out.report.file_bytes = out.placed.file_bytes;
  out.report.table_bytes = out.placed.chunks_begin;
  out.report.manifest_digest = Sha256(out.placed.manifest);
  return out;
}

}  // namespace

Result<PackReport> Pack(Env& env, const std::string& directory, const PackOptions& options,
                        const std::vector<const SecretKey*>& keys, const std::string& output, ThreadPool& pool,
                        Progress& progress) {
  if (keys.empty() || keys.size() > kMaxSignatures) {
    return Status(ErrorCode::kUsage, StrFormat("%zu signing keys, expected 1 to %u", keys.size(), kMaxSignatures));
  }
  MOEPACK_ASSIGN_OR_RETURN(Assembled bundle, Assemble(env, directory, options, output, pool, progress));
  Envelope envelope;
  envelope.manifest_bytes = bundle.placed.manifest.size();
  for (const SecretKey* key : keys) MOEPACK_RETURN_IF_ERROR(SignInto(*key, bundle.placed.manifest, &envelope));

  MOEPACK_ASSIGN_OR_RETURN(const auto file, AtomicFile::Create(env, output));
  MOEPACK_RETURN_IF_ERROR(file->Append(SerializeHead(envelope, bundle.placed)));
  MOEPACK_RETURN_IF_ERROR(bundle.spool->CopyTo(*file));
  MOEPACK_RETURN_IF_ERROR(CheckWritten(*file, pool, progress));
  MOEPACK_RETURN_IF_ERROR(file->Commit());
  bundle.report.signatures = static_cast<uint32_t>(envelope.signatures.size());
  return bundle.report;
}

Result<UnsignedBundle> PackUnsigned(Env& env, const std::string& directory, const PackOptions& options,
                                    const std::string& scratch, ThreadPool& pool, Progress& progress) {
  MOEPACK_ASSIGN_OR_RETURN(Assembled bundle, Assemble(env, directory, options, scratch, pool, progress));
  return UnsignedBundle{std::move(bundle.placed.manifest), std::move(bundle.parts)};
}

}  // namespace moepack
