#include "packager/testing/tiny_folder.h"

#include "format/manifest/model_folder.h"
#include "format/provenance/provenance.h"
#include "verify/testing/tiny_bundle.h"

namespace moepack::testing {
namespace {

// Bytes that no coder can shorten, or that every coder can.
Bytes MakePlain(const std::vector<UnitTensor>& tensors, bool noise, uint32_t seed) {
  uint64_t size = 0;
  for (const UnitTensor& tensor : tensors) size += PlainBytes(tensor.codec, tensor.shape).value();
  Bytes out(size);
  for (uint64_t i = 0; i < size; ++i) {
    seed = seed * 1664525u + 1013904223u;
    out[i] = static_cast<uint8_t>(noise ? seed >> 24 : seed >> 29);
  }
  return out;
}

Result<std::vector<FolderUnit>> UnitsOfBlock(const Program& program, int32_t block) {
  std::vector<FolderUnit> units;
  FolderUnit dense;
  for (const TensorId id : TensorsOfBlock(program, block)) {
    dense.tensors.push_back({id, Codec(), {program.tensors[id].rows, program.tensors[id].cols}});
  }
  dense.plain = MakePlain(dense.tensors, false, static_cast<uint32_t>(block));
  units.push_back(std::move(dense));
  if (BlockOfTable(program, 0) != block) return units;
  MOEPACK_ASSIGN_OR_RETURN(const Codec codec, ParseCodec("i4g16"));
  const ExpertTableDecl& table = program.expert_tables[0];
  for (uint32_t physical = 0; physical < 3; ++physical) {
    const MatrixShape wide = {table.intermediate[0], table.hidden}, tall = {table.hidden, table.intermediate[0]};
    FolderUnit unit{{true, 0, physical}, {{0, codec, wide}, {1, codec, wide}, {2, codec, tall}}, {}};
    unit.plain = MakePlain(unit.tensors, true, 100 + physical);
    units.push_back(std::move(unit));
  }
  return units;
}

}  // namespace

Program TinyFolderProgram() {
  static constexpr uint64_t kVocabulary = 10'000;
  Program program = TinyProgram();
  program.values[6].width = kVocabulary;
  program.tensors[0].rows = program.tensors[3].rows = kVocabulary;
  program.original_parameters = CountParameters(program);
  return program;
}

BuildRecord TinyBuildRecord() {
  BuildRecord out;
  out.tool_version = "0.1.0";
  out.family = "tiny";
  out.recipe = R"({"version":1})";
  out.inputs = {{"config.json", std::string(64, 'a')}, {"model.safetensors", std::string(64, 'b')}};
  out.profile = std::string(64, 'c');
  out.calibration = {{"novel", std::string(64, 'd')}};
  out.plan = std::string(64, 'e');
  return out;
}

Status WriteTinyFolder(Env& env, const std::string& directory, bool provenance) {
  const Program program = TinyFolderProgram();
  MOEPACK_ASSIGN_OR_RETURN(const auto writer, ModelFolderWriter::Create(env, directory, false));
  for (int32_t block = 0; block < program.blocks(); ++block) {
    MOEPACK_ASSIGN_OR_RETURN(const std::vector<FolderUnit> units, UnitsOfBlock(program, block));
    MOEPACK_RETURN_IF_ERROR(writer->WriteBlock(block, units));
  }
  MOEPACK_RETURN_IF_ERROR(writer->WriteFile("tokenizer.bin", Bytes{1, 2, 3}));
  if (provenance)
    MOEPACK_RETURN_IF_ERROR(writer->WriteFile("provenance.json", AsBytes(SerializeBuildRecord(TinyBuildRecord()))));
  MOEPACK_RETURN_IF_ERROR(writer->WriteFile("hot.pb", SerializeHotList({{{0, 3}, {0, 0}}})));
  writer->SetExperts({{{{{0}}}, {{{0}}}, {{{1}}}, {{{2}}}}});
  return writer->Finish(program);
}

}  // namespace moepack::testing
