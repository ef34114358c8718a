#include "packager/draft_bundle.h"

#include <algorithm>

#include "packager/bundle_writer.h"
#include "verify/envelope_reader.h"

namespace moepack {
namespace {

class DraftFile final : public RandomAccessFile {
 public:
  DraftFile(std::shared_ptr<const Bytes> head, std::unique_ptr<RandomAccessFile> chunks, uint64_t chunk_bytes)
      : head_(std::move(head)), chunks_(std::move(chunks)), chunk_bytes_(chunk_bytes) {}

  Result<uint64_t> Size() const override { return head_->size() + chunk_bytes_; }
  Status Read(uint64_t offset, std::span<uint8_t> out) const override {
    if (offset < head_->size()) {
      const size_t count = std::min<uint64_t>(out.size(), head_->size() - offset);
      std::copy_n(head_->begin() + static_cast<ptrdiff_t>(offset), count, out.begin());
      offset += count;
      out = out.subspan(count);
    }
    return out.empty() ? Status::Ok() : chunks_->Read(offset - head_->size(), out);
  }
  const std::string& path() const override { return chunks_->path(); }

 private:
  const std::shared_ptr<const Bytes> head_;
  const std::unique_ptr<RandomAccessFile> chunks_;
  const uint64_t chunk_bytes_;
};

}  // namespace

Result<DraftBundle> DraftBundle::Make(const PlacedBundle& placed, const ChunkSpool& spool) {
  MOEPACK_ASSIGN_OR_RETURN(const SecretKey key, SecretKey::Generate());
  Envelope envelope;
  envelope.manifest_bytes = placed.manifest.size();
  MOEPACK_RETURN_IF_ERROR(SignInto(key, placed.manifest, &envelope));
  return DraftBundle(std::make_shared<const Bytes>(SerializeHead(envelope, placed)), spool);
}

Result<std::unique_ptr<verify::VerifiedBundle>> DraftBundle::Open() const {
  MOEPACK_ASSIGN_OR_RETURN(auto chunks, spool_->Open());
  auto file = std::make_unique<DraftFile>(head_, std::move(chunks), spool_->size_bytes());
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t size, file->Size());
  MOEPACK_ASSIGN_OR_RETURN(const verify::SignedManifest head, verify::ReadSignedManifest(*file, size));
  MOEPACK_ASSIGN_OR_RETURN(const verify::TrustPolicy policy, verify::TrustItsSigners(head));
  return verify::VerifiedBundle::Open(std::move(file), policy);
}

}  // namespace moepack
