// moepack export: a model in a format that other engines read.
#include "base/cli/accept_keys.h"
#include "base/outputs.h"
#include "model/bundle/bundle_model.h"
#include "model/export/gguf.h"
#include "model/export/onnx.h"
#include "model/export/safetensors_folder.h"
#include "model/frontend/onnx.h"
#include "model/frontend/tokenizer_files.h"
#include "model/model.h"
#include "verify/envelope_reader.h"

namespace moepack {
namespace {

Result<GgufType> ParseType(const std::string& text) {
  if (text == "f32") return GgufType::kF32;
  if (text == "f16") return GgufType::kF16;
  if (text == "stored") return GgufType::kStored;
  return Status(ErrorCode::kUsage, "--type " + text + ": expected f32, f16 or stored");
}

Result<bool> ParseBf16(const std::string& text) {
  if (text == "f32" || text == "bf16") return text == "bf16";
  return Status(ErrorCode::kUsage, "--type " + text + ": expected f32 or bf16");
}

Status CheckOptions(const cli::Command& command) {
  MOEPACK_RETURN_IF_ERROR(command.Require("model"));
  MOEPACK_RETURN_IF_ERROR(command.Require("output"));
  if (command.Has("onnx") + command.Has("gguf") + command.Has("safetensors") != 1)
    return Status(ErrorCode::kUsage, "give one of --onnx, --gguf and --safetensors");
  if (command.Has("onnx") && command.Has("type"))
    return Status(ErrorCode::kUsage, "--type is for --gguf and --safetensors; ONNX is written in f32");
  if (command.Has("like") && !command.Has("safetensors")) return Status(ErrorCode::kUsage, "--like is for --safetensors");
  return Status::Ok();
}

Result<Model> Open(const cli::Command& command, const std::string& path) {
  MOEPACK_ASSIGN_OR_RETURN(const bool bundle, verify::IsBundlePath(PosixEnv(), path));
  if (bundle != command.Has("trust")) {
    return Status(ErrorCode::kUsage, bundle ? path + ": a bundle is read with --trust T.json only"
                                            : path + ": --trust is for bundles, and this is none");
  }
  MOEPACK_ASSIGN_OR_RETURN(std::vector<std::string> accept_keys, cli::AcceptKeys(command));
  if (command.Has("like")) accept_keys.clear();  // they are for that checkpoint's config.json
  if (!bundle) return OpenModel(PosixEnv(), path, {.accept_keys = accept_keys});
  ThreadPool pool(command.threads());
  MOEPACK_RETURN_IF_ERROR(pool.status());
  return OpenBundle(PosixEnv(), path, command.Get<std::string>("trust"), pool, command.progress());
}

// The tokenizer files of a checkpoint. A compressed folder and a bundle hold the compiled tokenizer only.
Result<std::vector<TokenizerFile>> TokenizerBeside(const Model& model, const std::string& path) {
  if (model.source == ModelSource::kHuggingFace) return ReadTokenizerFiles(PosixEnv(), path);
  if (model.source != ModelSource::kOnnx) return std::vector<TokenizerFile>();
  MOEPACK_ASSIGN_OR_RETURN(const std::string graph, OnnxPath(PosixEnv(), path));
  return ReadTokenizerFiles(PosixEnv(), DirectoryOf(graph));
}

Result<uint64_t> FileBytes(const std::string& path) {
  MOEPACK_ASSIGN_OR_RETURN(const auto file, PosixEnv().OpenRead(path));
  return file->Size();
}

struct Exported {
  uint64_t file_bytes = 0;  // of the graph or GGUF file and of its weights
  bool tokenizer = false;   // in the file or beside it
};

Result<Exported> WriteOnnx(const cli::Command& command, const Model& model, const std::string& path,
                           const std::string& output) {
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<TokenizerFile> tokenizer, TokenizerBeside(model, path));
  MOEPACK_RETURN_IF_ERROR(ExportOnnx(PosixEnv(), model, output, tokenizer));
  if (tokenizer.empty() && !model.tokenizer.empty()) {
    command.progress().Note("export: " + path +
                            " holds the compiled tokenizer only, so no tokenizer.json was written beside " + output +
                            "; copy that of the original checkpoint there for programs that need one");
  }
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t graph, FileBytes(output));
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t data, FileBytes(output + ".data"));
  return Exported{graph + data, !tokenizer.empty()};
}

Result<Exported> WriteGguf(const cli::Command& command, const Model& model, const std::string& output, GgufType type) {
  MOEPACK_RETURN_IF_ERROR(ExportGguf(PosixEnv(), model, output, type, command.progress()));
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t bytes, FileBytes(output));
  return Exported{bytes, !model.tokenizer.empty()};
}

Result<Exported> WriteSafetensorsFolder(const cli::Command& command, const Model& model, const std::string& path,
                                        const std::string& output, bool bf16) {
  SafetensorsExport options;
  options.checkpoint = command.GetOr<std::string>("like", path);
  if (model.source != ModelSource::kHuggingFace && !command.Has("like")) {
    return Status(ErrorCode::kUsage, path +
                                         ": --safetensors needs --like CHECKPOINT, the folder that it was made from, for "
                                         "names and layout of the tensors");
  }
  MOEPACK_ASSIGN_OR_RETURN(options.accept_keys, cli::AcceptKeys(command));
  options.bf16 = bf16;
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t bytes, ExportSafetensors(PosixEnv(), model, options, output, command.progress()));
  MOEPACK_ASSIGN_OR_RETURN(const bool tokenizer, PosixEnv().Exists(JoinPath(output, "tokenizer.json")));
  return Exported{bytes, tokenizer};
}

Result<Exported> Write(const cli::Command& command, const Model& model, const std::string& path, const std::string& output) {
  const std::string type = command.GetOr<std::string>("type", "f32");
  if (command.Has("onnx")) return WriteOnnx(command, model, path, output);
  if (command.Has("safetensors")) {
    MOEPACK_ASSIGN_OR_RETURN(const bool bf16, ParseBf16(type));
    return WriteSafetensorsFolder(command, model, path, output, bf16);
  }
  MOEPACK_ASSIGN_OR_RETURN(const GgufType gguf, ParseType(type));
  return WriteGguf(command, model, output, gguf);
}

// What a long job asks before it starts.
Status CheckOutput(const cli::Command& command, const std::string& output) {
  const std::string type = command.GetOr<std::string>("type", "f32");
  if (!command.Has("safetensors")) {
    MOEPACK_RETURN_IF_ERROR(ParseType(type).status());
    return CheckFileOutput(PosixEnv(), output);
  }
  return ParseBf16(type).status();
}

Status Run(int argc, char** argv) {
  namespace po = boost::program_options;
  cli::Command command(
      {"moepack export",
       "Writes a model, or a compressed folder or bundle dequantized, for ONNX Runtime, llama.cpp or Hugging Face's "
       "libraries.",
       "MODEL|DIR|BUNDLE (--onnx | --gguf [--type f32|f16|stored] | --safetensors --like CHECKPOINT [--type "
       "f32|bf16]) -o OUT [--trust T.json]",
       {"moepack export examples/wren/model --gguf --type f16 -o wren.gguf",
        "moepack export examples/wren/model --onnx -o onnx/wren.onnx",
        "moepack export wren.moeb --trust trust.json --gguf --type stored -o wren.gguf",
        "moepack export wren.moeb --trust trust.json --safetensors --like examples/wren/model -o wren-hf"}});
  cli::AddAcceptKeyOption(&command);
  command.options().add_options()(
      "onnx", "ONNX with com.microsoft operators, weights beside it in OUT.data, the checkpoint's tokenizer.json too")(
      "gguf", "GGUF version 3 for llama.cpp")("safetensors",
                                              "a Hugging Face folder: config.json, safetensors and the tokenizer's files")(
      "like", po::value<std::string>(),
      "checkpoint that the model was made from, for names and layout of --safetensors; its weights are not read")(
      "type", po::value<std::string>(),
      "GGUF matrices: f32 (default), f16, or stored: a compressed model's codes unchanged, in Q4_0, Q4_1, Q5_0, Q5_1 or "
      "Q8_0; "
      "safetensors: f32 (default) or bf16")("trust", po::value<std::string>(),
                                            "trust file (T.json); a bundle is verified whole before it is read")(
      "output,o", po::value<std::string>(), "file to write; a new folder with --safetensors");
  command.Positional("model");
  MOEPACK_RETURN_IF_ERROR(command.Parse(argc, argv));
  if (command.help_shown()) return Status::Ok();
  MOEPACK_RETURN_IF_ERROR(CheckOptions(command));
  const std::string path = command.Get<std::string>("model"), output = command.Get<std::string>("output");
  MOEPACK_RETURN_IF_ERROR(CheckOutput(command, output));
  MOEPACK_ASSIGN_OR_RETURN(const Model model, Open(command, path));
  MOEPACK_ASSIGN_OR_RETURN(const Exported exported, Write(command, model, path, output));
  if (!command.json()) return Status::Ok();
  cli::PrintJson({{"format", command.Has("gguf")   ? "gguf"
                             : command.Has("onnx") ? "onnx"
                                                   : "safetensors"},
                  {"file_bytes", exported.file_bytes},
                  {"tokenizer", exported.tokenizer},
                  {"parameters", CountParameters(model.program)}});
  return Status::Ok();
}

}  // namespace
}  // namespace moepack

int main(int argc, char** argv) {
  return moepack::cli::Main("moepack export", [&] { return moepack::Run(argc, argv); });
}
