// moepack export: a model in a format that other engines read.
#include "base/cli/accept_keys.h"
#include "base/outputs.h"
#include "model/bundle/bundle_model.h"
#include "model/export/gguf.h"
#include "model/export/onnx.h"
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

Status CheckOptions(const cli::Command& command) {
  MOEPACK_RETURN_IF_ERROR(command.Require("model"));
  MOEPACK_RETURN_IF_ERROR(command.Require("output"));
  if (command.Has("onnx") == command.Has("gguf")) return Status(ErrorCode::kUsage, "give either --onnx or --gguf");
  if (command.Has("onnx") && command.Has("type"))
    return Status(ErrorCode::kUsage, "--type is for --gguf; ONNX is written in f32");
  return Status::Ok();
}

Result<Model> Open(const cli::Command& command, const std::string& path) {
  MOEPACK_ASSIGN_OR_RETURN(const bool bundle, verify::IsBundlePath(PosixEnv(), path));
  if (bundle != command.Has("trust")) {
    return Status(ErrorCode::kUsage, bundle ? path + ": a bundle is read with --trust T.json only"
                                            : path + ": --trust is for bundles, and this is none");
  }
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<std::string> accept_keys, cli::AcceptKeys(command));
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

Status Run(int argc, char** argv) {
  namespace po = boost::program_options;
  cli::Command command({"moepack export",
                        "Writes a model, or a compressed folder or bundle dequantized, for ONNX Runtime or llama.cpp.",
                        "MODEL|DIR|BUNDLE (--onnx | --gguf [--type f32|f16|stored]) -o OUT [--trust T.json]",
                        {"moepack export examples/wren/model --gguf --type f16 -o wren.gguf",
                         "moepack export examples/wren/model --onnx -o onnx/wren.onnx",
                         "moepack export wren.moeb --trust trust.json --gguf --type stored -o wren.gguf"}});
  cli::AddAcceptKeyOption(&command);
  command.options().add_options()(
      "onnx", "ONNX with com.microsoft operators, weights beside it in OUT.data, the checkpoint's tokenizer.json too")(
      "gguf", "GGUF version 3 for llama.cpp")("type", po::value<std::string>(),
                                              "GGUF matrices: f32 (default), f16, or stored: a compressed model's codes "
                                              "unchanged, in Q4_0, Q4_1, Q5_0, Q5_1 or Q8_0")(
      "trust", po::value<std::string>(), "trust file (T.json); a bundle is verified whole before it is read")(
      "output,o", po::value<std::string>(), "file to write");
  command.Positional("model");
  MOEPACK_RETURN_IF_ERROR(command.Parse(argc, argv));
  if (command.help_shown()) return Status::Ok();
  MOEPACK_RETURN_IF_ERROR(CheckOptions(command));
  MOEPACK_ASSIGN_OR_RETURN(const GgufType type, ParseType(command.GetOr<std::string>("type", "f32")));
  const std::string path = command.Get<std::string>("model"), output = command.Get<std::string>("output");
  MOEPACK_RETURN_IF_ERROR(CheckFileOutput(PosixEnv(), output));
  MOEPACK_ASSIGN_OR_RETURN(const Model model, Open(command, path));
  const bool gguf = command.Has("gguf");
  MOEPACK_ASSIGN_OR_RETURN(const Exported exported,
                           gguf ? WriteGguf(command, model, output, type) : WriteOnnx(command, model, path, output));
  if (!command.json()) return Status::Ok();
  cli::PrintJson({{"format", gguf ? "gguf" : "onnx"},
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
