#include "model/export/gguf.h"

#include <cmath>

#include "model/export/gguf_architecture.h"
#include "model/export/gguf_tokenizer.h"
#include "model/export/gguf_writer.h"

namespace moepack {
namespace {

// One tensor of the file and where its values come from: a dense tensor, or one matrix of all experts of a table.
struct Output {
  GgufTensorInfo info;
  TensorId dense = kNone;
  uint32_t table = 0;
  ExpertMatrix matrix = ExpertMatrix::kGate;
  uint32_t reorder_heads = 0;  // > 0: rows of each of so many heads go from halves to pairs
};

// Name below "blk.N." for a tensor's name below "layers.N.".
struct NameRow {
  const char* ours;
  const char* theirs;
};
constexpr NameRow kLayerNames[] = {
    {"input_layernorm", "attn_norm.weight"},
    {"q_proj", "attn_q.weight"},
    {"q_proj.bias", "attn_q.bias"},
    {"k_proj", "attn_k.weight"},
    {"k_proj.bias", "attn_k.bias"},
    {"v_proj", "attn_v.weight"},
    {"v_proj.bias", "attn_v.bias"},
    {"o_proj", "attn_output.weight"},
    {"q_norm", "attn_q_norm.weight"},
    {"k_norm", "attn_k_norm.weight"},
    {"post_attention_layernorm", "ffn_norm.weight"},
    {"router", "ffn_gate_inp.weight"},
    {"shared_expert.gate_proj", "ffn_gate_shexp.weight"},
    {"shared_expert.up_proj", "ffn_up_shexp.weight"},
    {"shared_expert.down_proj", "ffn_down_shexp.weight"},
    {"shared_expert_gate", "ffn_gate_inp_shexp.weight"},
};

// Empty when the tensor has no place in a GGUF file.
std::string GgufName(const TensorDecl& tensor) {
  if (tensor.name == "embed_tokens") return "token_embd.weight";
  if (tensor.name == "norm") return "output_norm.weight";
  if (tensor.name == "lm_head") return "output.weight";
  const std::string prefix = StrFormat("layers.%d.", tensor.layer);
  for (const NameRow& row : kLayerNames) {
    if (tensor.name == prefix + row.ours) return StrFormat("blk.%d.%s", tensor.layer, row.theirs);
  }
  return "";
}

Result<std::vector<Output>> PlanDense(const Program& program, const GgufArchitecture& architecture, bool half) {
  std::vector<Output> out;
  for (TensorId id = 0; id < program.tensors.size(); ++id) {
    const TensorDecl& tensor = program.tensors[id];
    Output output;
    output.dense = id;
    output.info.name = GgufName(tensor);
    if (output.info.name.empty())
      return Status(ErrorCode::kUnsupported, "GGUF: tensor " + tensor.name + " has no place in the format");
    output.info.dims =
        tensor.rows == 1 ? std::vector<uint64_t>{tensor.cols} : std::vector<uint64_t>{tensor.cols, tensor.rows};
    output.info.half = half && tensor.rows > 1 && tensor.role != TensorRole::kRouter;
    if (architecture.interleaved_rotary && output.info.name.ends_with("attn_q.weight"))
      output.reorder_heads = architecture.decoder.heads;
    if (architecture.interleaved_rotary && output.info.name.ends_with("attn_k.weight"))
      output.reorder_heads = architecture.decoder.kv_heads;
    out.push_back(std::move(output));
    if (architecture.decoder.tied_head && tensor.role == TensorRole::kEmbedding) {
      // Not every architecture takes a missing head for a tied one.
      out.push_back(out.back());
      out.back().info.name = "output.weight";
    }
  }
  return out;
}

void PlanExperts(const Program& program, bool half, std::vector<Output>* out) {
  for (uint32_t t = 0; t < program.expert_tables.size(); ++t) {
    const ExpertTableDecl& table = program.expert_tables[t];
    const uint64_t hidden = table.hidden, width = table.intermediate[0], experts = table.experts();
    constexpr const char* kNames[kExpertMatrices] = {"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"};
    for (int m = 0; m < kExpertMatrices; ++m) {
      Output output;
      output.table = t;
      output.matrix = static_cast<ExpertMatrix>(m);
      output.info.name = StrFormat("blk.%d.%s.weight", table.layer, kNames[m]);
      const bool down = output.matrix == ExpertMatrix::kDown;
      output.info.dims = {down ? width : hidden, down ? hidden : width, experts};
      output.info.half = half;
      out->push_back(std::move(output));
    }
  }
}

GgufHeader Metadata(const Model& model, const GgufArchitecture& architecture, GgufType type) {
  const DecoderSpec& d = architecture.decoder;
  const std::string prefix = architecture.name + ".";
  const auto count = [](uint64_t value) { return static_cast<uint32_t>(value); };
  GgufHeader header;
  header.Text("general.architecture", architecture.name);
  header.Text("general.type", "model");
  header.Text("general.name", model.family);
  header.U32("general.file_type", type == GgufType::kF16 ? 1 : 0);
  header.U32("general.alignment", static_cast<uint32_t>(kGgufAlignment));
  header.U32(prefix + "vocab_size", count(d.vocab));
  header.U32(prefix + "context_length", d.max_positions);
  header.U32(prefix + "embedding_length", count(d.hidden));
  header.U32(prefix + "block_count", count(d.layers));
  header.U32(prefix + "feed_forward_length", count(d.moe.intermediate));
  header.U32(prefix + "attention.head_count", d.heads);
  header.U32(prefix + "attention.head_count_kv", d.kv_heads);
  header.U32(prefix + "attention.key_length", d.head_dim);
  header.U32(prefix + "attention.value_length", d.head_dim);
  header.F32(prefix + "attention.layer_norm_rms_epsilon", d.norm_eps);
  header.U32(prefix + "rope.dimension_count", d.head_dim);
  header.F32(prefix + "rope.freq_base", static_cast<float>(architecture.rope_base));
  if (architecture.rope_factor != 1.0) {
    header.Text(prefix + "rope.scaling.type", "linear");
    header.F32(prefix + "rope.scaling.factor", static_cast<float>(architecture.rope_factor));
  }
  header.U32(prefix + "expert_count", count(d.moe.experts));
  header.U32(prefix + "expert_used_count", d.moe.routing.k);
  header.U32(prefix + "expert_feed_forward_length", count(d.moe.intermediate));
  if (d.moe.shared_intermediate != 0)
    header.U32(prefix + "expert_shared_feed_forward_length", count(d.moe.shared_intermediate));
  return header;
}

// Rows of each head from (first half, second half) to neighbouring pairs: row 2i + j of a head was row j * half + i.
std::vector<float> ReorderHeads(const std::vector<float>& from, uint32_t heads, uint64_t cols) {
  std::vector<float> to(from.size());
  const uint64_t rows = from.size() / cols / heads, half = rows / 2;
  for (uint64_t row = 0; row < heads * rows; ++row) {
    const uint64_t head = row / rows, i = row % rows / 2, j = row % 2;
    const auto source = from.begin() + static_cast<std::ptrdiff_t>((head * rows + j * half + i) * cols);
    std::copy_n(source, cols, to.begin() + static_cast<std::ptrdiff_t>(row * cols));
  }
  return to;
}

Status AppendValues(const std::vector<float>& values, const GgufTensorInfo& info, AtomicFile* file) {
  ByteWriter out;
  for (size_t i = 0; i < values.size(); ++i) {
    if (!info.half) {
      uint32_t bits;
      std::memcpy(&bits, &values[i], sizeof(bits));
      out.U32(bits);
      continue;
    }
    const uint16_t bits = F32ToF16(values[i]);
    if (!std::isfinite(F16ToF32(bits))) {
      return Status(ErrorCode::kUnsupported, StrFormat("GGUF: value %zu of %s is %g, beyond f16; use --type f32", i,
                                                       info.name.c_str(), static_cast<double>(values[i])));
    }
    out.U16(bits);
  }
  return file->Append(out.bytes());
}

Status WriteTensor(const Model& model, const Output& output, AtomicFile* file) {
  if (output.dense != kNone) {
    MOEPACK_ASSIGN_OR_RETURN(std::vector<float> values, model.tensors->Load(output.dense));
    if (output.reorder_heads != 0) values = ReorderHeads(values, output.reorder_heads, output.info.dims[0]);
    MOEPACK_RETURN_IF_ERROR(AppendValues(values, output.info, file));
  } else {
    for (uint32_t e = 0; e < model.program.expert_tables[output.table].experts(); ++e) {
      MOEPACK_ASSIGN_OR_RETURN(const std::vector<float> values, model.tensors->LoadExpert(output.table, e, output.matrix));
      MOEPACK_RETURN_IF_ERROR(AppendValues(values, output.info, file));
    }
  }
  return file->Append(Bytes(GgufPadding(output.info.bytes())));
}

}  // namespace

Status ExportGguf(Env& env, const Model& model, const std::string& path, GgufType type, Progress& progress) {
  if (model.tensors == nullptr) return Status(ErrorCode::kBadInput, "GGUF: a configuration alone has no weights to export");
  MOEPACK_ASSIGN_OR_RETURN(const GgufArchitecture architecture, FindGgufArchitecture(model.program));
  MOEPACK_ASSIGN_OR_RETURN(std::vector<Output> outputs, PlanDense(model.program, architecture, type == GgufType::kF16));
  PlanExperts(model.program, type == GgufType::kF16, &outputs);
  GgufHeader header = Metadata(model, architecture, type);
  MOEPACK_RETURN_IF_ERROR(AddGgufTokenizer(model.tokenizer, architecture.decoder.vocab, &header));
  std::vector<GgufTensorInfo> infos;
  uint64_t total = 0;
  for (const Output& output : outputs) {
    infos.push_back(output.info);
    total += output.info.bytes();
  }
  MOEPACK_ASSIGN_OR_RETURN(auto file, AtomicFile::Create(env, path));
  MOEPACK_RETURN_IF_ERROR(file->Append(header.Finish(infos)));
  progress.Begin("export", total, "B");
  for (const Output& output : outputs) {
    MOEPACK_RETURN_IF_ERROR(WriteTensor(model, output, file.get()));
    progress.Advance(output.info.bytes());
  }
  progress.End();
  return file->Commit();
}

}  // namespace moepack
