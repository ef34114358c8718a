// moepack export: a model in a format that other engines read.
#include "base/cli/cli.h"
#include "model/export/gguf.h"
#include "model/export/onnx.h"
#include "model/model.h"

namespace moepack {
namespace {

Result<GgufType> ParseType(const std::string& text) {
  if (text == "f32") return GgufType::kF32;
  if (text == "f16") return GgufType::kF16;
  return Status(ErrorCode::kUsage, "--type " + text + ": expected f32 or f16");
}

Status CheckOptions(const cli::Command& command) {
  MOEPACK_RETURN_IF_ERROR(command.Require("model"));
  MOEPACK_RETURN_IF_ERROR(command.Require("output"));
  if (command.Has("onnx") == command.Has("gguf")) return Status(ErrorCode::kUsage, "give either --onnx or --gguf");
  if (command.Has("onnx") && command.Has("type"))
    return Status(ErrorCode::kUsage, "--type is for --gguf; ONNX is written in f32");
  return Status::Ok();
}

Result<uint64_t> FileBytes(const std::string& path) {
  MOEPACK_ASSIGN_OR_RETURN(const auto file, PosixEnv().OpenRead(path));
  return file->Size();
}

Status Run(int argc, char** argv) {
  namespace po = boost::program_options;
  cli::Command command({"moepack export",
                        "Writes a model, or a compressed folder dequantized, for ONNX Runtime or llama.cpp.",
                        "MODEL|DIR (--onnx | --gguf [--type f32|f16]) -o OUT",
                        {"moepack export examples/wren/model --gguf --type f16 -o wren.gguf",
                         "moepack export examples/wren/model --onnx -o wren.onnx"}});
  command.options().add_options()("onnx", "ONNX with com.microsoft operators, weights beside it in OUT.data")(
      "gguf", "GGUF version 3 for llama.cpp")("type", po::value<std::string>(), "GGUF matrices: f32 (default) or f16")(
      "output,o", po::value<std::string>(), "file to write");
  command.Positional("model");
  MOEPACK_RETURN_IF_ERROR(command.Parse(argc, argv));
  if (command.help_shown()) return Status::Ok();
  MOEPACK_RETURN_IF_ERROR(CheckOptions(command));
  MOEPACK_ASSIGN_OR_RETURN(const GgufType type, ParseType(command.GetOr<std::string>("type", "f32")));
  const std::string output = command.Get<std::string>("output");
  MOEPACK_ASSIGN_OR_RETURN(const Model model, OpenModel(PosixEnv(), command.Get<std::string>("model")));
  if (command.Has("gguf")) {
    MOEPACK_RETURN_IF_ERROR(ExportGguf(PosixEnv(), model, output, type, command.progress()));
  } else {
    MOEPACK_RETURN_IF_ERROR(ExportOnnx(PosixEnv(), model, output));
  }
  if (!command.json()) return Status::Ok();
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t bytes, FileBytes(output));
  cli::PrintJson({{"format", command.Has("gguf") ? "gguf" : "onnx"},
                  {"file_bytes", bytes},
                  {"parameters", CountParameters(model.program)}});
  return Status::Ok();
}

}  // namespace
}  // namespace moepack

int main(int argc, char** argv) {
  return moepack::cli::Main("moepack export", [&] { return moepack::Run(argc, argv); });
}
