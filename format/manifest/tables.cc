// Expert tables, the dense table and the hot list as bytes.
#include <set>

#include "format/manifest/manifest.h"
#include "format/manifest/tables_schema.h"
#include "format/manifest/unit_wire.h"
#include "format/manifest/wire_io.h"

namespace moepack {
namespace {

constexpr uint32_t kTableVersion = 1;

void WriteUnit(const Unit& in, wire::Unit* out) {
  WriteUnitTensors(in.tensors, out->mutable_tensors());
  for (const ChunkRef& chunk : in.chunks) {
    wire::Chunk* message = out->add_chunks();
    message->set_offset(chunk.offset);
    message->set_stored_bytes(chunk.stored_bytes);
    message->set_plain_bytes(chunk.plain_bytes);
    message->set_encoding(static_cast<uint32_t>(chunk.encoding));
    message->set_stored_digest(WriteDigest(chunk.stored_digest));
    message->set_plain_digest(WriteDigest(chunk.plain_digest));
  }
}

Status CheckChunk(const ChunkRef& chunk) {
  if (chunk.plain_bytes == 0 || chunk.plain_bytes > kMaxChunkPlainBytes) {
    return Status(ErrorCode::kLimit,
                  StrFormat("%llu plain bytes, must be 1 to %llu", static_cast<unsigned long long>(chunk.plain_bytes),
                            static_cast<unsigned long long>(kMaxChunkPlainBytes)));
  }
  if (chunk.offset % kBundleAlignment != 0) return Status(ErrorCode::kMalformed, "offset is not a multiple of 4096");
  switch (chunk.encoding) {
    case Encoding::kRaw:
      if (chunk.stored_bytes == chunk.plain_bytes && chunk.stored_digest == chunk.plain_digest) return Status::Ok();
      return Status(ErrorCode::kMalformed, "a raw chunk must be stored as its plain bytes");
    case Encoding::kZstd:
    case Encoding::kRans:
      if (chunk.stored_bytes != 0 && chunk.stored_bytes < chunk.plain_bytes) return Status::Ok();
      return Status(ErrorCode::kMalformed, "a compressed chunk must be smaller than its plain bytes and not empty");
  }
  return Status(ErrorCode::kMalformed, "unknown encoding");
}

Result<Unit> ReadUnit(const wire::Unit& in) {
  Unit out;
  if (in.tensors().empty() || in.chunks().empty()) return Status(ErrorCode::kMalformed, "has no tensors or no chunks");
  MOEPACK_ASSIGN_OR_RETURN(out.tensors, ReadUnitTensors(in.tensors()));
  out.chunks.reserve(static_cast<size_t>(in.chunks_size()));
  for (const wire::Chunk& message : in.chunks()) {
    const ChunkRef chunk = {message.offset(),
                            message.stored_bytes(),
                            message.plain_bytes(),
                            static_cast<Encoding>(message.encoding()),
                            ReadDigest(message.stored_digest()),
                            ReadDigest(message.plain_digest())};
    if (Status status = CheckChunk(chunk); !status.ok()) return status.With(StrFormat("chunk %zu", out.chunks.size()));
    out.chunks.push_back(chunk);
  }
  return out;
}

Result<std::vector<Unit>> ReadUnits(const char* what, const google::protobuf::RepeatedPtrField<wire::Unit>& in) {
  std::vector<Unit> out;
  out.reserve(static_cast<size_t>(in.size()));
  for (const wire::Unit& message : in) {
    Result<Unit> unit = ReadUnit(message);
    if (!unit.ok()) return unit.status().With(StrFormat("%s: unit %zu", what, out.size()));
    out.push_back(std::move(*unit));
  }
  return out;
}

}  // namespace

Bytes SerializeExpertTable(const ExpertTable& table) {
  wire::ExpertTable message;
  message.set_version(kTableVersion);
  message.set_table(table.table);
  WriteExpertEntries(table.experts, message.mutable_experts());
  for (const Unit& unit : table.units) WriteUnit(unit, message.add_units());
  return SerializeMessage(message);
}

Result<ExpertTable> ParseExpertTable(ByteSpan bytes) {
  wire::ExpertTable message;
  MOEPACK_RETURN_IF_ERROR(ParseMessage(wire_check::kExpertTable, kTableVersion, bytes, &message));
  ExpertTable out;
  out.table = message.table();
  out.experts = ReadExpertEntries(message.experts());
  MOEPACK_ASSIGN_OR_RETURN(out.units, ReadUnits("expert table", message.units()));
  return out;
}

Bytes SerializeDenseTable(const DenseTable& table) {
  wire::DenseTable message;
  message.set_version(kTableVersion);
  for (const Unit& unit : table.units) WriteUnit(unit, message.add_units());
  return SerializeMessage(message);
}

Result<DenseTable> ParseDenseTable(ByteSpan bytes) {
  wire::DenseTable message;
  MOEPACK_RETURN_IF_ERROR(ParseMessage(wire_check::kDenseTable, kTableVersion, bytes, &message));
  DenseTable out;
  MOEPACK_ASSIGN_OR_RETURN(out.units, ReadUnits("dense table", message.units()));
  return out;
}

Bytes SerializeHotList(const HotList& list) {
  wire::HotList message;
  message.set_version(kTableVersion);
  for (const auto& [table, expert] : list.experts) {
    wire::HotExpert* out = message.add_experts();
    out->set_table(table);
    out->set_expert(expert);
  }
  message.set_cache_policy(static_cast<uint32_t>(list.cache.kind));
  message.set_half_life(list.cache.half_life);
  message.set_recency(list.cache.recency);
  message.set_frequency(list.cache.frequency);
  message.set_nearness(list.cache.nearness);
  message.set_pinned_percent(list.cache.pinned_percent);
  return SerializeMessage(message);
}

Result<HotList> ParseHotList(ByteSpan bytes) {
  wire::HotList message;
  MOEPACK_RETURN_IF_ERROR(ParseMessage(wire_check::kHotList, kTableVersion, bytes, &message));
  HotList out;
  std::set<std::pair<uint32_t, uint32_t>> seen;
  for (const wire::HotExpert& expert : message.experts()) {
    const std::pair<uint32_t, uint32_t> entry(expert.table(), expert.expert());
    if (!seen.insert(entry).second) {
      return Status(ErrorCode::kMalformed,
                    StrFormat("hot list: expert %u of table %u is listed twice", entry.second, entry.first));
    }
    out.experts.push_back(entry);
  }
  out.cache = {static_cast<CachePolicyKind>(message.cache_policy()),
               message.half_life(),
               message.recency(),
               message.frequency(),
               message.nearness(),
               message.pinned_percent()};
  if (Status status = CheckCachePolicy(out.cache); !status.ok()) return status.With("hot list");
  return out;
}

}  // namespace moepack
