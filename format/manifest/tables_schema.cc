#include "format/manifest/tables_schema.h"

#include "format/manifest/golden.h"
#include "format/program.h"

namespace moepack::wire_check {
namespace {

constexpr Field kCodecFields[] = {
    Number(1, "element", Type::kUint32, 4),      Number(2, "sparsity", Type::kUint32, 2),
    Number(3, "bits", Type::kUint32, 8),         Number(4, "has_min", Type::kBool),
    Number(5, "group_size", Type::kUint32, 256), Number(6, "kept_per_row", Type::kUint32),
    Number(7, "n", Type::kUint32, 15),           Number(8, "m", Type::kUint32, 16),
};
constexpr Message kCodec = {"Codec", kCodecFields};

constexpr Field kUnitTensorFields[] = {
    Number(1, "tensor", Type::kUint32),
    One(2, "codec", &kCodec, true),
    Number(3, "rows", Type::kUint64),
    Number(4, "cols", Type::kUint64),
};
constexpr Message kUnitTensor = {"UnitTensor", kUnitTensorFields};

constexpr Field kChunkFields[] = {
    Number(1, "offset", Type::kUint64),      Number(2, "stored_bytes", Type::kUint64),
    Number(3, "plain_bytes", Type::kUint64), Number(4, "encoding", Type::kUint32, 2),
    Sha256Field(5, "stored_digest"),         Sha256Field(6, "plain_digest"),
};
constexpr Message kChunk = {"Chunk", kChunkFields};

constexpr Field kUnitFields[] = {
    Many(1, "tensors", &kUnitTensor, kMaxTensors),
    Many(2, "chunks", &kChunk, kMaxChunksPerUnit),
};
constexpr Message kUnit = {"Unit", kUnitFields};

constexpr Field kVariantFields[] = {Number(1, "physical", Type::kUint32)};
constexpr Message kVariant = {"Variant", kVariantFields};

constexpr Field kExpertEntryFields[] = {Many(1, "variants", &kVariant, kMaxVariants)};
constexpr Message kExpertEntry = {"ExpertEntry", kExpertEntryFields};

constexpr Field kExpertTableFields[] = {
    Number(1, "version", Type::kUint32),
    Number(2, "table", Type::kUint32),
    Many(3, "experts", &kExpertEntry, kMaxExperts),
    Many(4, "units", &kUnit, kMaxUnits),
};

constexpr Field kDenseTableFields[] = {Number(1, "version", Type::kUint32), Many(2, "units", &kUnit, kMaxUnits)};

constexpr Field kHotExpertFields[] = {Number(1, "table", Type::kUint32), Number(2, "expert", Type::kUint32)};
constexpr Message kHotExpert = {"HotExpert", kHotExpertFields};

constexpr Field kHotListFields[] = {
    Number(1, "version", Type::kUint32),         Many(2, "experts", &kHotExpert, kMaxHotExperts),
    Number(3, "cache_policy", Type::kUint32, 2), Number(4, "half_life", Type::kUint32),
    Number(5, "recency", Type::kUint32),         Number(6, "frequency", Type::kUint32),
    Number(7, "nearness", Type::kUint32),        Number(8, "pinned_percent", Type::kUint32),
};

constexpr Field kBlobFields[] = {
    Number(1, "kind", Type::kUint32, 7), Number(2, "index", Type::kUint32), Number(3, "offset", Type::kUint64),
    Number(4, "bytes", Type::kUint64),   Sha256Field(5, "digest"),
};
constexpr Message kBlob = {"Blob", kBlobFields};

constexpr Field kManifestFields[] = {
    Number(1, "schema", Type::kUint32),
    Text(2, "product", 64),
    Text(3, "version", 64),
    Number(4, "key_epoch", Type::kUint64),
    Number(5, "security_counter", Type::kUint64),
    Packed(6, "required_features", Type::kUint32, kMaxFeatures),
    Packed(7, "unavailable", Type::kUint32, kMaxUnavailableSteps),
    Number(8, "file_bytes", Type::kUint64),
    Number(9, "chunk_count", Type::kUint64),
    Many(10, "blobs", &kBlob, kMaxBlobs),
};

constexpr Field kGoldenStepFields[] = {Packed(1, "tokens", Type::kUint32, kMaxGoldenLogits),
                                       Packed(2, "logits", Type::kFloat, kMaxGoldenLogits)};
constexpr Message kGoldenStep = {"GoldenStep", kGoldenStepFields};

constexpr Field kGoldenPromptFields[] = {Packed(1, "tokens", Type::kUint32, kMaxGoldenTokens),
                                         Many(2, "steps", &kGoldenStep, kMaxGoldenSteps)};
constexpr Message kGoldenPrompt = {"GoldenPrompt", kGoldenPromptFields};

constexpr Field kGoldenPromptsFields[] = {Number(1, "version", Type::kUint32), Number(2, "tolerance", Type::kFloat),
                                          Number(3, "allowed", Type::kUint32),
                                          Many(4, "prompts", &kGoldenPrompt, kMaxGoldenPrompts)};

constexpr Field kFolderUnitFields[] = {
    Number(1, "expert", Type::kBool),        Number(2, "table", Type::kUint32),
    Number(3, "physical", Type::kUint32),    Many(4, "tensors", &kUnitTensor, kMaxTensors),
    Number(5, "plain_bytes", Type::kUint64), Sha256Field(6, "plain_digest"),
};
constexpr Message kFolderUnit = {"FolderUnit", kFolderUnitFields};

constexpr Field kBlockIndexFields[] = {
    Number(1, "version", Type::kUint32),
    Number(2, "block", Type::kUint32, kMaxNodes),
    Many(3, "units", &kFolderUnit, kMaxUnits),
};

constexpr Field kFolderExpertTableFields[] = {Many(1, "experts", &kExpertEntry, kMaxExperts)};
constexpr Message kFolderExpertTable = {"FolderExpertTable", kFolderExpertTableFields};

constexpr Field kFolderExpertsFields[] = {Number(1, "version", Type::kUint32),
                                          Many(2, "tables", &kFolderExpertTable, kMaxExpertTables)};

constexpr Field kFolderFileFields[] = {Text(1, "name", 64), Number(2, "bytes", Type::kUint64), Sha256Field(3, "digest")};
constexpr Message kFolderFile = {"FolderFile", kFolderFileFields};

constexpr Field kFolderCompleteFields[] = {Number(1, "version", Type::kUint32),
                                           Many(2, "files", &kFolderFile, kMaxNodes + 16)};

}  // namespace

const Message kExpertTable = {"ExpertTable", kExpertTableFields};
const Message kDenseTable = {"DenseTable", kDenseTableFields};
const Message kHotList = {"HotList", kHotListFields};
const Message kManifest = {"Manifest", kManifestFields};
const Message kGoldenPrompts = {"GoldenPrompts", kGoldenPromptsFields};
const Message kBlockIndex = {"BlockIndex", kBlockIndexFields};
const Message kFolderExperts = {"FolderExperts", kFolderExpertsFields};
const Message kFolderComplete = {"FolderComplete", kFolderCompleteFields};

}  // namespace moepack::wire_check
