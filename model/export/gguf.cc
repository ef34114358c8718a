#include "model/export/gguf.h"

#include <cmath>

#include "model/export/gguf_architecture.h"
#include "model/export/gguf_tokenizer.h"
#include "model/export/gguf_writer.h"

namespace moepack {
namespace {

constexpr uint32_t kQuantizationVersion = 2;  // of the block layouts

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

GgufElement ElementOf(GgufType type, const ElementChoice& stored) {
  if (type == GgufType::kStored) return stored.element();
  return type == GgufType::kF16 ? GgufElement::kF16 : GgufElement::kF32;
}

Result<std::vector<Output>> PlanDense(const Model& model, const GgufArchitecture& architecture, GgufType type) {
  const Program& program = model.program;
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
    if (tensor.rows > 1 && tensor.role != TensorRole::kRouter) {
      ElementChoice stored;
      stored.Add(model.tensors->StoredCodec(id), tensor.cols);
      output.info.element = ElementOf(type, stored);
    }
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

void PlanExperts(const Model& model, GgufType type, std::vector<Output>* out) {
  const Program& program = model.program;
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
      ElementChoice stored;
      for (uint32_t e = 0; e < experts; ++e)
        stored.Add(model.tensors->StoredExpertCodec(t, e, output.matrix), output.info.dims[0]);
      output.info.element = ElementOf(type, stored);
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
  if (type == GgufType::kStored) {
    header.U32("general.quantization_version", kQuantizationVersion);
  } else {
    header.U32("general.file_type", type == GgufType::kF16 ? 1 : 0);
  }
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
Bytes ReorderHeads(const Bytes& from, uint32_t heads, uint64_t row_bytes) {
  Bytes to(from.size());
  const uint64_t rows = from.size() / row_bytes / heads, half = rows / 2;
  for (uint64_t row = 0; row < heads * rows; ++row) {
    const uint64_t head = row / rows, i = row % rows / 2, j = row % 2;
    const auto source = from.begin() + static_cast<std::ptrdiff_t>((head * rows + j * half + i) * row_bytes);
    std::copy_n(source, row_bytes, to.begin() + static_cast<std::ptrdiff_t>(row * row_bytes));
  }
  return to;
}

Result<Bytes> FloatBytes(const std::vector<float>& values, const GgufTensorInfo& info) {
  ByteWriter out;
  for (size_t i = 0; i < values.size(); ++i) {
    if (info.element == GgufElement::kF32) {
      uint32_t bits;
      std::memcpy(&bits, &values[i], sizeof(bits));
      out.U32(bits);
      continue;
    }
    if (info.element == GgufElement::kBf16) {
      out.U16(F32ToBf16(values[i]));
      continue;
    }
    const uint16_t bits = F32ToF16(values[i]);
    if (!std::isfinite(F16ToF32(bits))) {
      return Status(ErrorCode::kUnsupported, StrFormat("GGUF: value %zu of %s is %g, beyond f16; use --type f32", i,
                                                       info.name.c_str(), static_cast<double>(values[i])));
    }
    out.U16(bits);
  }
  return out.Release();
}

Result<Bytes> StoredBlocks(const QuantizedMatrix& codes, const GgufTensorInfo& info) {
  Result<Bytes> bytes = EncodeBlocks(codes, info.element);
  return bytes.ok() ? std::move(bytes) : bytes.status().With(info.name);
}

Result<Bytes> DenseBytes(const Model& model, const Output& output) {
  Bytes bytes;
  if (IsQuantized(output.info.element)) {
    MOEPACK_ASSIGN_OR_RETURN(const QuantizedMatrix codes, model.tensors->LoadCodes(output.dense));
    MOEPACK_ASSIGN_OR_RETURN(bytes, StoredBlocks(codes, output.info));
  } else {
    MOEPACK_ASSIGN_OR_RETURN(const std::vector<float> values, model.tensors->Load(output.dense));
    MOEPACK_ASSIGN_OR_RETURN(bytes, FloatBytes(values, output.info));
  }
  if (output.reorder_heads == 0) return bytes;
  return ReorderHeads(bytes, output.reorder_heads, GgufBytes(output.info.element, output.info.dims[0]));
}

Result<Bytes> ExpertBytes(const Model& model, const Output& output, uint32_t expert) {
  if (IsQuantized(output.info.element)) {
    MOEPACK_ASSIGN_OR_RETURN(const QuantizedMatrix codes,
                             model.tensors->LoadExpertCodes(output.table, expert, output.matrix));
    return StoredBlocks(codes, output.info);
  }
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<float> values, model.tensors->LoadExpert(output.table, expert, output.matrix));
  return FloatBytes(values, output.info);
}

Status WriteTensor(const Model& model, const Output& output, AtomicFile* file) {
  const uint32_t pieces = output.dense != kNone ? 1 : model.program.expert_tables[output.table].experts();
  for (uint32_t e = 0; e < pieces; ++e) {
    Result<Bytes> bytes = output.dense != kNone ? DenseBytes(model, output) : ExpertBytes(model, output, e);
    if (!bytes.ok()) return bytes.status();
    MOEPACK_RETURN_IF_ERROR(file->Append(*bytes));
  }
  return file->Append(Bytes(GgufPadding(output.info.bytes())));
}

}  // namespace

Status ExportGguf(Env& env, const Model& model, const std::string& path, GgufType type, Progress& progress) {
  if (model.tensors == nullptr) return Status(ErrorCode::kBadInput, "GGUF: a configuration alone has no weights to export");
  MOEPACK_ASSIGN_OR_RETURN(const GgufArchitecture architecture, FindGgufArchitecture(model.program));
  MOEPACK_ASSIGN_OR_RETURN(std::vector<Output> outputs, PlanDense(model, architecture, type));
  PlanExperts(model, type, &outputs);
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
