// What the libraries say about files, for the vectors. Each line of standard input is "bundle<TAB>PATH<TAB>TRUST.json",
// "folder<TAB>PATH", or of trust records "anchor", "next" or "head", each with PATH, the path of the current anchor, and
// what the device has seen: channel, now, head version, key epoch, security counter. Each answer is
// "OPEN<TAB>VERIFY<TAB>USE<TAB>MESSAGE" with error codes (0: fine) of opening, of checking the whole file, and of decoding
// the tokenizer and every unit as the runtime does. After a failed opening the other two repeat its code. MESSAGE is that of
// the first error.
#include <cstdio>
#include <iostream>
#include <sstream>
#include <string>

#include "format/manifest/model_folder.h"
#include "runtime-min/chunk_decoder.h"
#include "runtime-min/tensor_packer.h"
#include "tokenizer/tokenizer.h"
#include "verify/trust_anchor.h"
#include "verify/trust_json.h"

namespace moepack {
namespace {

struct Answer {
  Status open, verify, use;
};

Status UseUnit(const verify::VerifiedBundle& bundle, const Unit& unit, runtime::ChunkDecoder* decoder) {
  MOEPACK_ASSIGN_OR_RETURN(const PlainUnit plain, decoder->Decode(bundle, unit));
  runtime::WeightMemory memory;
  uint64_t offset = 0;
  for (const UnitTensor& tensor : unit.tensors) {
    MOEPACK_RETURN_IF_ERROR(runtime::TensorPacker::Pack(tensor, plain, &offset, &memory).status());
  }
  return Status::Ok();
}

Status Use(const verify::VerifiedBundle& bundle) {
  if (!bundle.tokenizer_blob().empty()) MOEPACK_RETURN_IF_ERROR(Tokenizer::Parse(bundle.tokenizer_blob()).status());
  runtime::ChunkDecoder decoder;
  for (const Unit& unit : bundle.dense().units) MOEPACK_RETURN_IF_ERROR(UseUnit(bundle, unit, &decoder));
  for (const ExpertTable& table : bundle.experts()) {
    for (const Unit& unit : table.units) MOEPACK_RETURN_IF_ERROR(UseUnit(bundle, unit, &decoder));
  }
  return Status::Ok();
}

Result<std::unique_ptr<verify::VerifiedBundle>> Open(const std::string& path, const std::string& trust) {
  MOEPACK_ASSIGN_OR_RETURN(const verify::TrustPolicy policy, verify::ReadTrustJson(PosixEnv(), trust));
  MOEPACK_ASSIGN_OR_RETURN(auto file, PosixEnv().OpenRead(path));
  return verify::VerifiedBundle::Open(std::move(file), policy);
}

Answer JudgeBundle(const std::string& path, const std::string& trust, ThreadPool& pool) {
  const auto bundle = Open(path, trust);
  if (!bundle.ok()) return {bundle.status(), bundle.status(), bundle.status()};
  return {Status::Ok(), (*bundle)->VerifyAll(pool, NoProgress()), Use(**bundle)};
}

// What packing a folder reads.
Status ReadFolder(const std::string& path) {
  MOEPACK_ASSIGN_OR_RETURN(const auto folder, ModelFolder::Open(PosixEnv(), path));
  MOEPACK_RETURN_IF_ERROR(folder->ReadNamedFile("provenance.json").status());
  for (size_t i = 0; i < folder->units().size(); ++i) MOEPACK_RETURN_IF_ERROR(folder->ReadUnit(i).status());
  return Status::Ok();
}

Result<Bytes> ReadRecord(const std::string& path) {
  return ReadFile(PosixEnv(), path, kMaxTrustRecordBytes + 1);
}

// `fields` holds what is behind the two paths.
Status OpenRecord(const std::string& kind, const std::string& path, const std::string& current, std::istringstream* fields) {
  MOEPACK_ASSIGN_OR_RETURN(const Bytes record, ReadRecord(path));
  if (kind == "anchor") return verify::OpenAnchor(record).status();
  MOEPACK_ASSIGN_OR_RETURN(const Bytes current_record, ReadRecord(current));
  MOEPACK_ASSIGN_OR_RETURN(const TrustAnchor anchor, ParseTrustAnchor(ByteSpan(current_record).subspan(kEnvelopeBytes)));
  if (kind == "next") return verify::RotateAnchor(anchor, record).status();
  verify::ChannelView view;
  verify::RollbackState state;
  *fields >> view.channel >> view.now >> state.head_version >> state.key_epoch >> state.security_counter;
  return verify::OpenChannelHead(anchor, state, view, record).status();
}

Answer Judge(const std::string& line, ThreadPool& pool) {
  std::istringstream fields(line);
  std::string kind, path, trust;
  std::getline(fields, kind, '\t');
  std::getline(fields, path, '\t');
  std::getline(fields, trust, '\t');
  if (kind == "bundle") return JudgeBundle(path, trust, pool);
  const Status status = kind == "folder" ? ReadFolder(path) : OpenRecord(kind, path, trust, &fields);
  return {status, status, status};
}

}  // namespace
}  // namespace moepack

int main() {
  moepack::ThreadPool pool(1);
  for (std::string line; std::getline(std::cin, line);) {
    const moepack::Answer answer = moepack::Judge(line, pool);
    const moepack::Status& first = !answer.open.ok() ? answer.open : !answer.verify.ok() ? answer.verify : answer.use;
    std::printf("%d\t%d\t%d\t%s\n", static_cast<int>(answer.open.code()), static_cast<int>(answer.verify.code()),
                static_cast<int>(answer.use.code()), first.message().c_str());
    std::fflush(stdout);
  }
  return 0;
}
