#include "verify/testing/tiny_bundle.h"

#include <sodium/crypto_sign_ed25519.h>

#include <algorithm>

#include "base/digest/sha256.h"
#include "format/manifest/program_wire.h"

namespace moepack::testing {
namespace {

constexpr uint64_t kHidden = 32, kIntermediate = 48, kVocabulary = 64, kExperts = 4;

uint64_t Align(uint64_t at) { return (at + kBundleAlignment - 1) / kBundleAlignment * kBundleAlignment; }

Node MakeNode(NodeKind kind, int32_t block, std::vector<ValueId> inputs, ValueId output) {
  Node node;
  node.kind = kind;
  node.block = block;
  node.inputs = std::move(inputs);
  node.output = output;
  return node;
}

std::vector<Node> TinyNodes() {
  std::vector<Node> nodes;
  nodes.push_back(MakeNode(NodeKind::kEmbedding, 0, {0}, 1));
  nodes.back().embedding.table = 0;
  nodes.push_back(MakeNode(NodeKind::kLinear, 1, {1}, 2));
  nodes.back().linear.weight = 1;
  nodes.push_back(MakeNode(NodeKind::kMoe, 1, {1, 2}, 3));
  nodes.back().moe.routing.k = 2;
  nodes.push_back(MakeNode(NodeKind::kElementwise, 1, {1, 3}, 4));
  nodes.push_back(MakeNode(NodeKind::kNorm, 2, {4}, 5));
  nodes.back().norm.weight = 2;
  nodes.back().norm.group = kHidden;
  nodes.back().norm.eps = 1e-5f;
  nodes.push_back(MakeNode(NodeKind::kLinear, 2, {5}, 6));
  nodes.back().linear.weight = 3;
  return nodes;
}

// Pseudo-random bytes appended to the chunk area as one raw chunk a kMaxChunkPlainBytes.
Unit AppendUnit(std::vector<UnitTensor> tensors, Bytes* area) {
  Unit unit;
  uint64_t plain_bytes = 0;
  for (const UnitTensor& tensor : tensors) plain_bytes += PlainBytes(tensor.codec, tensor.shape).value();
  unit.tensors = std::move(tensors);
  area->resize(Align(area->size()), 0);
  ChunkRef chunk;
  chunk.offset = area->size();
  chunk.stored_bytes = chunk.plain_bytes = plain_bytes;
  for (uint64_t i = 0; i < plain_bytes; ++i) area->push_back(static_cast<uint8_t>((chunk.offset + i) * 2654435761u >> 13));
  chunk.stored_digest = chunk.plain_digest = Sha256(ByteSpan(*area).subspan(chunk.offset));
  unit.chunks.push_back(chunk);
  return unit;
}

TinyContents MakeContents() {
  TinyContents c;
  c.program = TinyProgram();
  c.manifest.product = "tiny";
  c.manifest.version = "1.0";
  c.manifest.key_epoch = 3;
  c.manifest.security_counter = 7;
  c.tokenizer = {1, 2, 3};
  c.provenance = {'{', '}'};
  c.hot_list.experts = {{0, 2}, {0, 1}};
  for (int32_t block = 0; block < c.program.blocks(); ++block) {
    std::vector<UnitTensor> tensors;
    for (const TensorId id : TensorsOfBlock(c.program, block)) {
      tensors.push_back({id, Codec(), {c.program.tensors[id].rows, c.program.tensors[id].cols}});
    }
    c.dense.units.push_back(AppendUnit(std::move(tensors), &c.chunk_area));
  }
  ExpertTable table;
  const Codec codec = ParseCodec("i4g16").value();
  for (uint32_t e = 0; e < kExperts; ++e) {
    table.experts.push_back({{{e}}});
    table.units.push_back(AppendUnit(
        {{0, codec, {kIntermediate, kHidden}}, {1, codec, {kIntermediate, kHidden}}, {2, codec, {kHidden, kIntermediate}}},
        &c.chunk_area));
  }
  c.experts.push_back(std::move(table));
  return c;
}

struct TinyBlob {
  BlobKind kind;
  uint32_t index;
  Bytes bytes;
};

std::vector<TinyBlob> Serialize(const TinyContents& c, uint64_t chunks_begin) {
  const auto shift = [&](std::vector<Unit> units) {
    for (Unit& unit : units) {
      for (ChunkRef& chunk : unit.chunks) chunk.offset += chunks_begin;
    }
    return units;
  };
  std::vector<TinyBlob> blobs = {{BlobKind::kProgram, 0, SerializeProgram(c.program)}};
  if (!c.tokenizer.empty()) blobs.push_back({BlobKind::kTokenizer, 0, c.tokenizer});
  blobs.push_back({BlobKind::kDenseTable, 0, SerializeDenseTable({shift(c.dense.units)})});
  for (const ExpertTable& t : c.experts) {
    blobs.push_back({BlobKind::kExpertTable, t.table, SerializeExpertTable({t.table, t.experts, shift(t.units)})});
  }
  blobs.push_back({BlobKind::kHotList, 0, SerializeHotList(c.hot_list)});
  blobs.push_back({BlobKind::kProvenance, 0, c.provenance});
  if (!c.golden.prompts.empty()) blobs.push_back({BlobKind::kGolden, 0, SerializeGoldenPrompts(c.golden)});
  return blobs;
}

// Fills the manifest's places and returns the file from the first blob on, as if the manifest had `manifest_bytes`.
Bytes Place(TinyContents* c, uint64_t manifest_bytes, uint64_t* chunks_begin) {
  const uint64_t first = Align(kEnvelopeBytes + manifest_bytes);
  Bytes file;
  c->manifest.blobs.clear();
  for (const TinyBlob& blob : Serialize(*c, *chunks_begin)) {
    file.resize(Align(file.size()), 0);
    c->manifest.blobs.push_back({blob.kind, blob.index, first + file.size(), blob.bytes.size(), Sha256(blob.bytes)});
    file.insert(file.end(), blob.bytes.begin(), blob.bytes.end());
  }
  file.resize(Align(file.size()), 0);
  *chunks_begin = first + file.size();
  file.insert(file.end(), c->chunk_area.begin(), c->chunk_area.end());
  c->manifest.file_bytes = first + file.size();
  c->manifest.chunk_count = 0;
  for (const Unit& unit : c->dense.units) c->manifest.chunk_count += unit.chunks.size();
  for (const ExpertTable& t : c->experts) {
    for (const Unit& unit : t.units) c->manifest.chunk_count += unit.chunks.size();
  }
  return file;
}

}  // namespace

Program TinyProgram() {
  Program p;
  p.values = {{"tokens", ValueKind::kTokens, 0},         {"x", ValueKind::kFloat, kHidden},
              {"router", ValueKind::kFloat, kExperts},   {"moe", ValueKind::kFloat, kHidden},
              {"sum", ValueKind::kFloat, kHidden},       {"normed", ValueKind::kFloat, kHidden},
              {"logits", ValueKind::kFloat, kVocabulary}};
  p.inputs = {0};
  p.output = 6;
  p.tensors = {{"embed_tokens", kVocabulary, kHidden, TensorRole::kEmbedding, -1},
               {"layers.0.router", kExperts, kHidden, TensorRole::kRouter, 0},
               {"norm", 1, kHidden, TensorRole::kNorm, -1},
               {"lm_head", kVocabulary, kHidden, TensorRole::kHead, -1}};
  p.expert_tables = {{0, kHidden, std::vector<uint64_t>(kExperts, kIntermediate), {0, 1, 2, 3}, true}};
  p.nodes = TinyNodes();
  p.max_positions = 128;
  p.original_parameters = CountParameters(p);
  return p;
}

TestKey MakeTestKey(uint8_t seed) {
  TestKey key;
  std::array<uint8_t, crypto_sign_ed25519_SEEDBYTES> bytes{};
  bytes.fill(seed);
  crypto_sign_ed25519_seed_keypair(key.public_key.data(), key.secret_key.data(), bytes.data());
  return key;
}

EnvelopeSignature SignWith(const TestKey& key, ByteSpan message) {
  EnvelopeSignature out;
  out.public_key = key.public_key;
  crypto_sign_ed25519_detached(out.signature.data(), nullptr, message.data(), message.size(), key.secret_key.data());
  return out;
}

Bytes MakeTinyBundle(const TinyOptions& options) {
  static constexpr int kRounds = 8;
  TinyContents contents = MakeContents();
  if (options.edit) options.edit(contents);
  uint64_t chunks_begin = 0;
  Bytes manifest, rest;
  for (int round = 0; round < kRounds; ++round) {
    rest = Place(&contents, manifest.size(), &chunks_begin);
    manifest = SerializeManifest(contents.manifest);
  }
  if (options.edit_manifest) {
    options.edit_manifest(contents.manifest);
    manifest = SerializeManifest(contents.manifest);
  }
  Envelope envelope;
  envelope.manifest_bytes = manifest.size();
  const Bytes message = options.message ? options.message(manifest) : SignedMessage(KeyRole::kRelease, manifest);
  for (const TestKey& key : options.keys) envelope.signatures.push_back(SignWith(key, message));
  std::sort(envelope.signatures.begin(), envelope.signatures.end(),
            [](const EnvelopeSignature& a, const EnvelopeSignature& b) { return a.public_key < b.public_key; });
  Bytes file = SerializeEnvelope(envelope);
  file.insert(file.end(), manifest.begin(), manifest.end());
  file.resize(Align(file.size()), 0);
  file.insert(file.end(), rest.begin(), rest.end());
  return file;
}

verify::TrustPolicy TinyPolicy() {
  verify::TrustPolicy policy;
  policy.product = "tiny";
  policy.release_keys = {MakeTestKey(1).public_key};
  policy.key_epoch = 3;
  policy.minimum_security_counter = 7;
  return policy;
}

Bytes WithSignatures(ByteSpan bundle, const std::vector<EnvelopeSignature>& signatures) {
  Envelope envelope = ParseEnvelope(bundle.first(kEnvelopeBytes)).value();
  envelope.signatures = signatures;
  Bytes out = SerializeEnvelope(envelope);
  out.insert(out.end(), bundle.begin() + kEnvelopeBytes, bundle.end());
  return out;
}

Status MemoryFile::Read(uint64_t offset, std::span<uint8_t> out) const {
  if (offset > bytes_.size() || out.size() > bytes_.size() - offset)
    return Status(ErrorCode::kTruncated, "read past the end");
  std::copy_n(bytes_.begin() + static_cast<ptrdiff_t>(offset), out.size(), out.begin());
  return Status::Ok();
}

Result<std::unique_ptr<verify::VerifiedBundle>> OpenBytes(Bytes bytes, const verify::TrustPolicy& policy) {
  return verify::VerifiedBundle::Open(std::make_unique<MemoryFile>(std::move(bytes)), policy);
}

}  // namespace moepack::testing
