// The encoded model while it learns: tensors are read from the folder they were encoded into, a block at a time, and stand
// for what their learners make of them.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "compressor/pass/distill_learner.h"
#include "compressor/plan/plan.h"
#include "compressor/tensors.h"
#include "format/manifest/model_folder.h"
#include "model/model.h"

namespace moepack {

class Student : public TensorSource {
 public:
  // plan: one codec a tensor of `program`; `encoded` has every block. All arguments must outlive it.
  Student(const Program& program, const Plan& plan, const ModelFolderWriter& encoded);

  // A learner for each tensor of the names; must come before the first Open.
  Status Learn(const std::map<std::string, Learns>& names);

  // Reads a block. Load then gives its tensors and, of earlier blocks, those that several blocks read.
  Status Open(int32_t block);
  Result<std::vector<float>> Load(TensorId tensor) const override;
  Result<std::vector<float>> LoadExpert(uint32_t table, uint32_t expert, ExpertMatrix matrix) const override;
  Codec StoredCodec(TensorId tensor) const override;
  Codec StoredExpertCodec(uint32_t table, uint32_t expert, ExpertMatrix matrix) const override;

  // Of the open block: what learns, and its encoded form as it is now.
  struct Lesson {
    const TensorRef* tensor;
    Learner* learner;
  };
  std::vector<Lesson> Lessons();
  Result<QuantizedMatrix> Encoded(const TensorRef& tensor) const;
  std::map<std::string, Learner>& learners() { return learners_; }
  // The earliest block in which something learns, -1 when nothing does.
  int32_t first_lesson() const { return first_lesson_; }
  // Units of the open block, with what was learnt when `learnt`. A tensor whose codes have a rate takes no more bytes than
  // the plan gives it: what was learnt of its scales is left out where it would.
  Result<std::vector<FolderUnit>> Units(bool learnt) const;

 private:
  struct Place {
    const TensorRef* tensor = nullptr;
    RatedCodec codec;
    size_t unit = 0;
    uint64_t offset = 0, bytes = 0;
  };
  Result<QuantizedMatrix> At(const Place& place) const;
  Result<std::vector<float>> Values(const Place& place) const;

  const Program& program_;
  const ModelFolderWriter& encoded_;
  const std::vector<TensorRef> tensors_;
  const Plan& plan_;
  std::map<std::string, Learner> learners_;
  int32_t first_lesson_ = -1;
  std::vector<FolderUnit> units_;  // of the open block
  std::map<TensorId, Place> dense_;
  std::map<std::tuple<uint32_t, uint32_t, ExpertMatrix>, Place> experts_;
  std::map<TensorId, std::vector<float>> shared_;  // of earlier blocks, read by later ones
};

}  // namespace moepack
