// Provenance: what a bundle was made from and how. compress writes a BuildRecord into the model folder; pack turns it and
// what it packed into the blob of kind 6: two lines of JSON, an in-toto statement (in-toto Statement v1 with the predicate
// of SLSA provenance v1) and a CycloneDX 1.6 bill of materials. format/SPEC.md, section 15, says what each field holds.
//
// Nothing of the machine goes in: no path, host, user or time unless SOURCE_DATE_EPOCH was given, so the same input gives
// the same bytes. Functions are pure and thread-safe.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"
#include "format/manifest/model_folder.h"

namespace moepack {

struct NamedDigest {
  std::string name;
  std::string sha256;  // hexadecimal, lower case
  bool operator==(const NamedDigest&) const = default;
};

// provenance.json of a model folder: what compress was asked for and what it read.
struct BuildRecord {
  std::string tool_version;   // of moepack compress
  std::string family;         // as Model::family
  std::string recipe;         // JSON object that compress takes as its recipe: everything that was chosen, the budget too
  std::string accepted_keys;  // of config.json, taken as without effect on the user's word: KeyList; empty: none
  std::vector<NamedDigest> inputs;       // files of the checkpoint, without folders
  std::string profile;                   // SHA-256 of the profile in hexadecimal; empty: none
  std::vector<NamedDigest> calibration;  // domain -> its text
  std::string like;                      // SHA-256 of the plan of --like; empty: none
  std::string plan;                      // SHA-256 of plan.json
  bool operator==(const BuildRecord&) const = default;
};

// How BuildRecord::accepted_keys holds keys, commas between, and the keys it holds. A key has no comma.
std::string KeyList(const std::vector<std::string>& keys);
std::vector<std::string> KeysOf(std::string_view list);

std::string SerializeBuildRecord(const BuildRecord& record);
// kBadInput naming the field that is missing or wrong.
Result<BuildRecord> ParseBuildRecord(ByteSpan json);

// What pack was asked for; with a BuildRecord all that is needed to make a bundle again.
struct PackParameters {
  std::string product, version;
  uint64_t key_epoch = 0, security_counter = 0;
  int zstd_level = 0;
  std::string tool_version;                   // of moepack pack
  std::optional<uint64_t> source_date_epoch;  // seconds since 1970, at most kMaxSourceDate: the only time that goes in
  std::vector<Unavailable> unavailable;       // what may stand in for experts that cannot be read
  bool operator==(const PackParameters&) const = default;
};
inline constexpr uint64_t kMaxSourceDate = 253402300799;  // the last second of the year 9999

// What is in a bundle, as the two documents tell it.
struct BuildResult {
  std::vector<NamedDigest> subjects;  // names as SubjectNames has them
  uint64_t original_parameters = 0, parameters = 0;
  std::vector<std::string> codecs;           // names in use, sorted
  std::string errors;                        // SHA-256 of errors.json; empty: none
  std::optional<double> kld;                 // mean on held-back calibration text
  std::map<std::string, double> domain_kld;  // the same by domain
};

// program, tokenizer when there is one, dense-table, expert-table/0 ..., hot-list.
std::vector<std::string> SubjectNames(const Program& program, bool tokenizer);
// What a finished model folder says: digests, codecs and, from errors.json, the quality. kBadInput for an errors.json that
// is none, and what ModelFolder says.
Result<BuildResult> ResultOfFolder(const ModelFolder& folder);

// The blob. Its length does not depend on what a digest or a KLD is.
std::string MakeProvenance(const BuildRecord& record, const PackParameters& pack, const BuildResult& result);
// Bytes that the blob has at most, known before anything is encoded: whatever the digests, the values of KLD and what pack
// is asked for, when it is of the version that compressed.
uint64_t MostProvenanceBytes(const BuildRecord& record, const BuildResult& result);

// The two documents of a blob, each with its newline: views of `blob`. kBadInput when it is not two lines.
struct ProvenanceDocuments {
  std::string_view statement, bom;
};
Result<ProvenanceDocuments> SplitProvenance(ByteSpan blob);

// What a blob says, for whoever wants to make the bundle again. kBadInput naming the document and the field; the
// statement's digest of the bill of materials must be right.
struct RecordedBuild {
  BuildRecord record;
  PackParameters pack;
  std::vector<NamedDigest> subjects;
};
Result<RecordedBuild> ParseProvenance(ByteSpan blob);

}  // namespace moepack
