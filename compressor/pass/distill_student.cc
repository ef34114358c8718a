#include "compressor/pass/distill_student.h"

#include "compressor/pass/rated.h"

namespace moepack {

Student::Student(const Program& program, const Plan& plan, const ModelFolderWriter& encoded)
    : program_(program), encoded_(encoded), tensors_(ListTensors(program)), plan_(plan) {}

Status Student::Learn(const std::map<std::string, Learns>& names) {
  for (int32_t block = 0; block < program_.blocks(); ++block) {
    MOEPACK_RETURN_IF_ERROR(Open(block));
    for (const TensorRef& t : tensors_) {
      const auto learns = names.find(t.name);
      if (t.block != block || learns == names.end()) continue;
      MOEPACK_ASSIGN_OR_RETURN(const QuantizedMatrix encoded, Encoded(t));
      learners_.emplace(t.name, Learner(encoded, learns->second));
      if (first_lesson_ < 0) first_lesson_ = block;
    }
  }
  return Status::Ok();
}

Status Student::Open(int32_t block) {
  MOEPACK_ASSIGN_OR_RETURN(units_, encoded_.ReadBlock(block));
  dense_.clear();
  experts_.clear();
  std::map<UnitKey, size_t> unit_of;
  std::vector<std::map<uint32_t, TensorBytes>> parts(units_.size());
  for (size_t u = 0; u < units_.size(); ++u) {
    unit_of[units_[u].key] = u;
    MOEPACK_ASSIGN_OR_RETURN(const std::vector<TensorBytes> tensors, BytesOfTensors(units_[u]));
    for (const TensorBytes& tensor : tensors) parts[u][tensor.info->tensor] = tensor;
  }
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const TensorRef& t = tensors_[i];
    if (t.block != block) continue;
    const size_t u = unit_of.at(t.unit);
    const TensorBytes& part = parts[u].at(t.is_expert() ? static_cast<uint32_t>(t.matrix) : t.dense);
    const Place place{&t, plan_.tensors[i].codec, u, part.offset, part.bytes};
    (t.is_expert() ? experts_[{t.table, t.expert, t.matrix}] : dense_[t.dense]) = place;
  }
  for (const Node& node : program_.nodes) {
    const TensorId id = node.linear.weight;
    if (node.block <= block || node.kind != NodeKind::kLinear || !dense_.contains(id) || shared_.contains(id)) continue;
    MOEPACK_ASSIGN_OR_RETURN(shared_[id], Values(dense_.at(id)));
  }
  return Status::Ok();
}

Result<QuantizedMatrix> Student::At(const Place& place) const {
  return FromPlain(place.codec.codec, place.tensor->shape,
                   ByteSpan(units_[place.unit].plain).subspan(place.offset, place.bytes));
}

Result<QuantizedMatrix> Student::Encoded(const TensorRef& tensor) const {
  const Place& place =
      tensor.is_expert() ? experts_.at({tensor.table, tensor.expert, tensor.matrix}) : dense_.at(tensor.dense);
  MOEPACK_ASSIGN_OR_RETURN(QuantizedMatrix encoded, At(place));
  const auto learner = learners_.find(tensor.name);
  if (learner != learners_.end()) learner->second.Apply(&encoded);
  return encoded;
}

Result<std::vector<float>> Student::Values(const Place& place) const {
  MOEPACK_ASSIGN_OR_RETURN(const QuantizedMatrix encoded, Encoded(*place.tensor));
  std::vector<float> out(encoded.shape.rows * encoded.shape.cols);
  Dequantize(encoded, out);
  return out;
}

Result<std::vector<float>> Student::Load(TensorId tensor) const {
  const auto here = dense_.find(tensor);
  if (here != dense_.end()) return Values(here->second);
  return shared_.at(tensor);
}

Result<std::vector<float>> Student::LoadExpert(uint32_t table, uint32_t expert, ExpertMatrix matrix) const {
  return Values(experts_.at({table, expert, matrix}));
}

Codec Student::StoredCodec(TensorId tensor) const { return dense_.at(tensor).codec; }

Codec Student::StoredExpertCodec(uint32_t table, uint32_t expert, ExpertMatrix matrix) const {
  return experts_.at({table, expert, matrix}).codec;
}

std::vector<Student::Lesson> Student::Lessons() {
  std::vector<Lesson> out;
  const auto add = [&](const Place& place) {
    const auto learner = learners_.find(place.tensor->name);
    if (learner != learners_.end()) out.push_back({place.tensor, &learner->second});
  };
  for (const auto& [id, place] : dense_) add(place);
  for (const auto& [key, place] : experts_) add(place);
  return out;
}

Result<std::vector<FolderUnit>> Student::Units(bool learnt) const {
  std::vector<FolderUnit> units = units_;
  const auto take_over = [&](const Place& place) {
    if (!learners_.contains(place.tensor->name)) return Status::Ok();
    MOEPACK_ASSIGN_OR_RETURN(const QuantizedMatrix encoded, Encoded(*place.tensor));
    MOEPACK_ASSIGN_OR_RETURN(const bool fits, KeepsRate(place.codec, encoded));
    if (!fits) return Status::Ok();
    MOEPACK_ASSIGN_OR_RETURN(const Bytes plain, ToPlain(encoded));
    std::copy(plain.begin(), plain.end(), units[place.unit].plain.begin() + static_cast<ptrdiff_t>(place.offset));
    return Status::Ok();
  };
  if (!learnt) return units;
  for (const auto& [id, place] : dense_) MOEPACK_RETURN_IF_ERROR(take_over(place));
  for (const auto& [key, place] : experts_) MOEPACK_RETURN_IF_ERROR(take_over(place));
  return units;
}

}  // namespace moepack
