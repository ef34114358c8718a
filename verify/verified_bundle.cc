#include <algorithm>

#include "base/checked.h"
#include "base/digest/sha256.h"
#include "format/manifest/program_wire.h"
#include "verify/envelope_reader.h"
#include "verify/verify.h"

namespace moepack::verify {
namespace {

unsigned long long Ull(uint64_t v) { return v; }

// How many distinct trusted keys signed. ReadSignedManifest has checked every signature, trusted or not, so that no byte of
// an envelope can change unnoticed; the envelope's keys strictly increase, so none is counted twice.
Result<uint32_t> CountTrustedSignatures(const std::string& path, const Envelope& envelope, const TrustPolicy& policy) {
  uint32_t trusted = 0;
  for (const EnvelopeSignature& s : envelope.signatures) {
    trusted += static_cast<uint32_t>(std::count(policy.release_keys.begin(), policy.release_keys.end(), s.public_key));
  }
  if (trusted < policy.threshold) {
    return Status(ErrorCode::kUntrusted, StrFormat("%s: signed by %u trusted keys, %u required (%zu signatures in all)",
                                                   path.c_str(), trusted, policy.threshold, envelope.signatures.size()));
  }
  return trusted;
}

Status CheckPolicy(const std::string& path, const Manifest& manifest, const TrustPolicy& policy) {
  if (manifest.product != policy.product) {
    return Status(ErrorCode::kPolicy,
                  path + ": is for product '" + manifest.product + "', this device takes '" + policy.product + "'");
  }
  if (manifest.key_epoch < policy.key_epoch) {
    return Status(ErrorCode::kRollback, StrFormat("%s: key epoch %llu is below the floor of %llu", path.c_str(),
                                                  Ull(manifest.key_epoch), Ull(policy.key_epoch)));
  }
  if (manifest.key_epoch == policy.key_epoch && manifest.security_counter < policy.minimum_security_counter) {
    return Status(ErrorCode::kRollback, StrFormat("%s: security counter %llu is below the floor of %llu", path.c_str(),
                                                  Ull(manifest.security_counter), Ull(policy.minimum_security_counter)));
  }
  if (!manifest.required_features.empty()) {
    return Status(ErrorCode::kPolicy, StrFormat("%s: requires feature %u, which this build does not have; update moepack",
                                                path.c_str(), manifest.required_features[0]));
  }
  return Status::Ok();
}

// ParseManifest has checked that there are blobs, that they follow each other, their sizes and that they end inside the
// file. Here: that the first follows the manifest. Returns the end of the last.
Result<uint64_t> CheckBlobPlaces(const Manifest& manifest, uint64_t manifest_bytes) {
  const BlobRef &first = manifest.blobs.front(), &last = manifest.blobs.back();
  uint64_t expected = 0;
  if (!CheckedAlign(kEnvelopeBytes + manifest_bytes, kBundleAlignment, &expected) || first.offset != expected) {
    return Status(ErrorCode::kMalformed,
                  StrFormat("the first blob starts at %llu, expected %llu", Ull(first.offset), Ull(expected)));
  }
  return last.offset + last.bytes;
}

Result<Bytes> ReadDigested(const RandomAccessFile& file, uint64_t offset, uint64_t size, const DigestBytes& digest,
                           const char* what) {
  static constexpr uint64_t kPiece = 256 * 1024;  // stays in the second-level cache between read and hash
  Bytes bytes(size);
  Sha256Stream stream;
  for (uint64_t at = 0; at < size; at += kPiece) {
    const std::span<uint8_t> piece = std::span(bytes).subspan(at, std::min(kPiece, size - at));
    MOEPACK_RETURN_IF_ERROR(file.Read(offset + at, piece));
    stream.Update(piece);
  }
  if (stream.Finish() != digest) {
    return Status(ErrorCode::kDigest,
                  StrFormat("%s: the %s at offset %llu (%llu bytes) does not match its signed digest; fetch the "
                            "bundle again",
                            file.path().c_str(), what, Ull(offset), Ull(size)));
  }
  return bytes;
}

struct Contents {
  Program program;
  DenseTable dense;
  std::vector<ExpertTable> experts;
  HotList hot_list;
  Bytes tokenizer, provenance;
  GoldenPrompts golden;
};

// Parses one blob whose digest was right into its place.
Status TakeBlob(const BlobRef& blob, Bytes bytes, Contents* out) {
  switch (blob.kind) {
    case BlobKind::kProgram: {
      MOEPACK_ASSIGN_OR_RETURN(out->program, ParseProgram(bytes));
      return Status::Ok();
    }
    case BlobKind::kTokenizer:
      out->tokenizer = std::move(bytes);
      return Status::Ok();
    case BlobKind::kDenseTable: {
      MOEPACK_ASSIGN_OR_RETURN(out->dense, ParseDenseTable(bytes));
      return Status::Ok();
    }
    case BlobKind::kExpertTable: {
      MOEPACK_ASSIGN_OR_RETURN(ExpertTable table, ParseExpertTable(bytes));
      if (table.table != blob.index || blob.index != out->experts.size()) {
        return Status(ErrorCode::kMalformed,
                      StrFormat("expert table %u stands in the place of table %zu", table.table, out->experts.size()));
      }
      out->experts.push_back(std::move(table));
      return Status::Ok();
    }
    case BlobKind::kHotList: {
      MOEPACK_ASSIGN_OR_RETURN(out->hot_list, ParseHotList(bytes));
      return Status::Ok();
    }
    case BlobKind::kProvenance:
      out->provenance = std::move(bytes);
      return Status::Ok();
    case BlobKind::kGolden: {
      MOEPACK_ASSIGN_OR_RETURN(out->golden, ParseGoldenPrompts(bytes));
      return Status::Ok();
    }
  }
  return Status(ErrorCode::kMalformed, "blob of an unknown kind");
}

Result<Contents> ReadContents(const RandomAccessFile& file, const Manifest& manifest) {
  Contents out;
  for (const BlobRef& blob : manifest.blobs) {
    MOEPACK_ASSIGN_OR_RETURN(Bytes bytes, ReadDigested(file, blob.offset, blob.bytes, blob.digest, "blob"));
    const Status status = TakeBlob(blob, std::move(bytes), &out);
    if (!status.ok()) return status.With(StrFormat("%s: blob at offset %llu", file.path().c_str(), Ull(blob.offset)));
  }
  return out;
}

}  // namespace

Result<std::unique_ptr<VerifiedBundle>> VerifiedBundle::Open(std::unique_ptr<RandomAccessFile> file,
                                                             const TrustPolicy& policy) {
  MOEPACK_RETURN_IF_ERROR(ValidateTrustPolicy(policy));
  const std::string path = file->path();
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t size, file->Size());
  MOEPACK_ASSIGN_OR_RETURN(const SignedManifest head, ReadSignedManifest(*file, size));
  std::unique_ptr<VerifiedBundle> bundle(new VerifiedBundle());
  MOEPACK_ASSIGN_OR_RETURN(bundle->valid_signatures_, CountTrustedSignatures(path, head.envelope, policy));

  // Signed from here on: parsers may run.
  Result<Manifest> manifest = ParseManifest(head.manifest);
  if (!manifest.ok()) return manifest.status().With(path + ": manifest");
  bundle->manifest_ = std::move(*manifest);
  bundle->manifest_digest_ = Sha256(head.manifest);
  MOEPACK_RETURN_IF_ERROR(CheckPolicy(path, bundle->manifest_, policy));
  if (bundle->manifest_.file_bytes != size) {
    return Status(ErrorCode::kTruncated, StrFormat("%s: %llu bytes, the signed length is %llu; fetch the bundle again",
                                                   path.c_str(), Ull(size), Ull(bundle->manifest_.file_bytes)));
  }
  Result<uint64_t> blobs_end = CheckBlobPlaces(bundle->manifest_, head.manifest.size());
  if (!blobs_end.ok()) return blobs_end.status().With(path);
  bundle->signed_end_ = kEnvelopeBytes + head.manifest.size();
  MOEPACK_ASSIGN_OR_RETURN(Contents contents, ReadContents(*file, bundle->manifest_));
  const Status layout =
      ValidateLayout(bundle->manifest_, contents.program, contents.dense, contents.experts, contents.hot_list, *blobs_end);
  if (!layout.ok()) return layout.With(path);
  if (const Status golden = ValidateGoldenPrompts(contents.golden, contents.program); !golden.ok()) return golden.With(path);
  bundle->program_ = std::move(contents.program);
  bundle->dense_ = std::move(contents.dense);
  bundle->experts_ = std::move(contents.experts);
  bundle->hot_list_ = std::move(contents.hot_list);
  bundle->tokenizer_ = std::move(contents.tokenizer);
  bundle->provenance_ = std::move(contents.provenance);
  bundle->golden_ = std::move(contents.golden);
  bundle->file_ = std::move(file);
  return bundle;
}

Result<VerifiedBytes> VerifiedBundle::ReadChunk(const ChunkRef& chunk) const {
  if (chunk.stored_bytes > kMaxChunkPlainBytes) {
    return Status(ErrorCode::kLimit,
                  StrFormat("%s: chunk at offset %llu claims %llu stored bytes, at most %llu are accepted",
                            file_->path().c_str(), Ull(chunk.offset), Ull(chunk.stored_bytes), Ull(kMaxChunkPlainBytes)));
  }
  MOEPACK_ASSIGN_OR_RETURN(Bytes bytes,
                           ReadDigested(*file_, chunk.offset, chunk.stored_bytes, chunk.stored_digest, "chunk"));
  return VerifiedBytes(std::move(bytes));
}

}  // namespace moepack::verify
