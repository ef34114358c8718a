#include "base/digest/sha256.h"
#include "format/envelope.h"
#include "packager/bundle_writer.h"
#include "packager/chunk_spool.h"
#include "packager/packager.h"
#include "verify/envelope_reader.h"

namespace moepack {

Result<PackReport> AddSignature(Env& env, const std::string& bundle, const SecretKey& key, const std::string& output,
                                ThreadPool& pool, Progress& progress) {
  MOEPACK_ASSIGN_OR_RETURN(const auto in, env.OpenRead(bundle));
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t size, in->Size());
  MOEPACK_ASSIGN_OR_RETURN(const verify::SignedManifest head, verify::ReadSignedManifest(*in, size));
  Envelope envelope = head.envelope;
  if (const Status status = SignInto(key, head.manifest, &envelope); !status.ok()) return status.With(bundle);

  MOEPACK_ASSIGN_OR_RETURN(const auto file, AtomicFile::Create(env, output));
  MOEPACK_RETURN_IF_ERROR(file->Append(SerializeEnvelope(envelope)));
  MOEPACK_RETURN_IF_ERROR(CopyRange(*in, kEnvelopeBytes, size, *file));
  MOEPACK_RETURN_IF_ERROR(CheckWritten(*file, pool, progress));
  MOEPACK_RETURN_IF_ERROR(file->Commit());
  PackReport report;
  report.file_bytes = size;
  report.signatures = static_cast<uint32_t>(envelope.signatures.size());
  report.manifest_digest = Sha256(head.manifest);
  return report;
}

}  // namespace moepack
