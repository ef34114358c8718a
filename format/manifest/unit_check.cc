#include "format/manifest/unit_check.h"

#include <algorithm>

#include "base/checked.h"

namespace moepack {
namespace {

unsigned long long Wide(uint64_t v) { return v; }

Status WrongShape(const std::string& name, const MatrixShape& have, const MatrixShape& want) {
  return Status(ErrorCode::kShape,
                StrFormat("tensor '%s' is stored as [%llu, %llu], the program says [%llu, %llu]", name.c_str(),
                          Wide(have.rows), Wide(have.cols), Wide(want.rows), Wide(want.cols)));
}

MatrixShape ExpertShape(const ExpertTableDecl& table, uint32_t expert, ExpertMatrix m) {
  const uint64_t width = table.intermediate[expert];
  return m == ExpertMatrix::kDown ? MatrixShape{table.hidden, width} : MatrixShape{width, table.hidden};
}

// `stored` holds the matrices of `expert` in load order.
Status CheckExpertUnit(const ExpertTableDecl& table, uint32_t expert, const std::vector<UnitTensor>& stored) {
  size_t i = 0;
  for (int matrix = table.gated ? 0 : 1; matrix < kExpertMatrices; ++matrix, ++i) {
    const auto m = static_cast<ExpertMatrix>(matrix);
    const std::string name = ExpertTensorName(table, expert, m);
    if (i >= stored.size() || stored[i].tensor != static_cast<uint32_t>(matrix)) {
      return Status(ErrorCode::kMissingTensor,
                    StrFormat("tensor '%s' is not stored at its place in its unit", name.c_str()));
    }
    const MatrixShape want = ExpertShape(table, expert, m);
    if (stored[i].shape != want) return WrongShape(name, stored[i].shape, want);
  }
  if (stored.size() == i) return Status::Ok();
  return Status(ErrorCode::kMalformed, StrFormat("unit of 'layers.%d.experts.%u' holds %zu tensors, must be %zu",
                                                 table.layer, table.original[expert], stored.size(), i));
}

}  // namespace

Result<uint64_t> UnitPlainBytes(const std::vector<UnitTensor>& tensors) {
  uint64_t total = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Result<uint64_t> bytes = PlainBytes(tensors[i].codec, tensors[i].shape);
    if (!bytes.ok()) return bytes.status().With(StrFormat("tensor %zu of the unit", i));
    if (!CheckedAdd(total, *bytes, &total)) return Status(ErrorCode::kLimit, "unit is larger than 2^64 bytes");
  }
  if (total <= kMaxUnitPlainBytes) return total;
  return Status(ErrorCode::kLimit, StrFormat("unit of %llu plain bytes, at most %llu are loaded together; give its tensors "
                                             "fewer bits a weight",
                                             Wide(total), Wide(kMaxUnitPlainBytes)));
}

Status CheckDenseUnit(const Program& program, const std::vector<TensorId>& wanted, const std::vector<UnitTensor>& stored) {
  for (size_t i = 0; i < wanted.size(); ++i) {
    const TensorDecl& tensor = program.tensors[wanted[i]];
    if (i >= stored.size() || stored[i].tensor != wanted[i]) {
      return Status(ErrorCode::kMissingTensor,
                    StrFormat("tensor '%s' is not stored at its place in the unit of its block", tensor.name.c_str()));
    }
    const MatrixShape want = {tensor.rows, tensor.cols};
    if (stored[i].shape != want) return WrongShape(tensor.name, stored[i].shape, want);
  }
  if (stored.size() == wanted.size()) return Status::Ok();
  return Status(ErrorCode::kMalformed,
                StrFormat("a dense unit holds %zu tensors, its block has %zu", stored.size(), wanted.size()));
}

Status CheckExpertUnits(const Program& program, uint32_t index, const std::vector<ExpertEntry>& experts,
                        const std::vector<const std::vector<UnitTensor>*>& units) {
  const ExpertTableDecl& table = program.expert_tables[index];
  if (experts.size() != table.experts()) {
    return Status(ErrorCode::kMalformed,
                  StrFormat("expert table %u has %zu entries, the program says %u", index, experts.size(), table.experts()));
  }
  std::vector<bool> used(units.size(), false);
  for (uint32_t e = 0; e < experts.size(); ++e) {
    const std::vector<ExpertEntry::Variant>& variants = experts[e].variants;
    const std::string name = StrFormat("layers.%d.experts.%u", table.layer, table.original[e]);
    if (variants.empty()) return Status(ErrorCode::kMissingTensor, "expert '" + name + "' has no variant");
    for (size_t v = 0; v < variants.size(); ++v) {
      const uint32_t physical = variants[v].physical;
      if (physical >= units.size()) {
        return Status(ErrorCode::kMissingTensor, StrFormat("expert '%s': unit %u is not stored", name.c_str(), physical));
      }
      if (std::find(variants.begin(), variants.begin() + static_cast<ptrdiff_t>(v), variants[v]) !=
          variants.begin() + static_cast<ptrdiff_t>(v)) {
        return Status(ErrorCode::kMalformed, StrFormat("expert '%s' names unit %u twice", name.c_str(), physical));
      }
      MOEPACK_RETURN_IF_ERROR(CheckExpertUnit(table, e, *units[physical]));
      used[physical] = true;
    }
  }
  const auto unused = std::find(used.begin(), used.end(), false);
  if (unused == used.end()) return Status::Ok();
  return Status(ErrorCode::kMalformed, StrFormat("expert table %u: no expert uses unit %td", index, unused - used.begin()));
}

}  // namespace moepack
