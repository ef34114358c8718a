// moepack run logits: raw logits as little-endian float32, to compare with other engines.
#include <algorithm>
#include <bit>

#include "runtime-min/run/session.h"

namespace moepack::run {
namespace {

namespace po = boost::program_options;

static_assert(std::endian::native == std::endian::little, "logits are written as they lie in memory");

Status AppendLogits(const Session& session, AtomicFile* out) {
  const std::span<const float> logits = session.engine->logits();
  return out->Append({reinterpret_cast<const uint8_t*>(logits.data()), logits.size_bytes()});
}

// Every row of one sequence.
Status WriteSequence(const std::vector<int32_t>& tokens, Session& session, AtomicFile* out, uint64_t* rows) {
  MOEPACK_RETURN_IF_ERROR(CheckLength(session, "--tokens", tokens.size()));
  const size_t tile = session.engine->tile_tokens();
  for (size_t at = 0; at < tokens.size(); at += tile) {
    const auto part = std::span(tokens).subspan(at, std::min(tile, tokens.size() - at));
    MOEPACK_RETURN_IF_ERROR(session.engine->Run(part, static_cast<uint32_t>(part.size())));
    MOEPACK_RETURN_IF_ERROR(AppendLogits(session, out));
  }
  *rows = tokens.size();
  return Status::Ok();
}

// The scored rows of every chunk.
Status WriteScored(const cli::Command& command, Session& session, AtomicFile* out, uint64_t* rows) {
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, TokenizeFile(session, command.Get<std::string>("data")));
  MOEPACK_ASSIGN_OR_RETURN(const EvalChunks chunks, ChunksOf(command, tokens.size()));
  const auto append_tile = [&](uint64_t, uint64_t count) {
    command.progress().Advance(count);
    return AppendLogits(session, out);
  };
  command.progress().Begin("logits", chunks.total_rows(), "rows");
  for (uint64_t c = 0; c < chunks.chunks; ++c) {
    MOEPACK_RETURN_IF_ERROR(ForEachScoredTile(session, tokens, chunks, c, append_tile));
  }
  command.progress().End();
  *rows = chunks.total_rows();
  return Status::Ok();
}

}  // namespace

Status Logits(int argc, char** argv) {
  cli::Command command(
      {"moepack run logits",
       "Writes logits of a verified bundle as little-endian float32 rows.",
       "(BUNDLE --trust T.json | --device ROOT) (--tokens 1,2,3 | --data FILE --ctx N [--chunks C]) -o L.f32",
       {"moepack run logits wren.moeb --trust trust.json --tokens 785,264,2997 -o logits.f32",
        "moepack run logits wren.moeb --trust trust.json --data mixed.eval.txt --ctx 256 -o logits.f32"}});
  AddSessionOptions(&command);
  command.options().add_options()("tokens", po::value<std::string>(), "ids of one sequence: a row for each")(
      "data", po::value<std::string>(), "text file, cut into chunks; the second half of each chunk is written")(
      "output,o", po::value<std::string>(), "file to write");
  AddChunkOptions(&command);
  MOEPACK_RETURN_IF_ERROR(command.Parse(argc, argv));
  if (command.help_shown()) return Status::Ok();
  MOEPACK_RETURN_IF_ERROR(command.Require("output"));
  if (command.Has("tokens") == command.Has("data")) return Status(ErrorCode::kUsage, "give one of --tokens and --data");
  if (command.Has("data")) MOEPACK_RETURN_IF_ERROR(command.Require("ctx"));
  std::vector<int32_t> sequence;
  if (command.Has("tokens")) {
    MOEPACK_ASSIGN_OR_RETURN(sequence, cli::ParseTokens(command.Get<std::string>("tokens")));
  }
  // A sequence that is known whole is its own context: programs may rotate by its length.
  const uint32_t length = static_cast<uint32_t>(sequence.size());  // an argument list is shorter than 2^32
  MOEPACK_ASSIGN_OR_RETURN(Session session, OpenSession(command, command.GetOr<uint32_t>("ctx", 0), true, length));
  MOEPACK_ASSIGN_OR_RETURN(const auto out, AtomicFile::Create(PosixEnv(), command.Get<std::string>("output")));
  uint64_t rows = 0;
  MOEPACK_RETURN_IF_ERROR(command.Has("tokens") ? WriteSequence(sequence, session, out.get(), &rows)
                                                : WriteScored(command, session, out.get(), &rows));
  MOEPACK_RETURN_IF_ERROR(out->Commit());
  if (command.json()) cli::PrintJson({{"rows", rows}, {"vocabulary", session.engine->vocab_size()}, {"verified", true}});
  return Status::Ok();
}

}  // namespace moepack::run
