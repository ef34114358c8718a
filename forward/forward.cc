#include "forward/forward.h"

#include <algorithm>
#include <mutex>

#include "base/checked.h"
#include "base/npy.h"
#include "format/program_input.h"
#include "forward/nodes.h"

namespace moepack {
namespace {

constexpr uint64_t kTileTokens = 2048;
// Values of one matrix of a tile: bounds tiles of blocks with a wide output (64 MiB).
constexpr uint64_t kTileValues = uint64_t{1} << 24;

// Tokens [begin, end) of a batch that go through a block together.
struct Tile {
  uint64_t begin = 0, end = 0;
};

bool MixesTokens(const Program& program, int32_t block) {
  return std::any_of(program.nodes.begin(), program.nodes.end(), [&](const Node& n) {
    return n.block == block && (n.kind == NodeKind::kAttention || n.kind == NodeKind::kConvolution);
  });
}

uint64_t TileTokens(const Program& program, int32_t block) {
  uint64_t widest = 1;
  for (const Node& node : program.nodes) {
    if (node.block == block) widest = std::max(widest, program.values[node.output].width);
  }
  return std::clamp<uint64_t>(kTileValues / widest, 64, kTileTokens);
}

// Whole sequences where the block mixes tokens, otherwise just runs of tokens.
std::vector<Tile> CutIntoTiles(const Program& program, int32_t block, const TokenBatch& batch) {
  std::vector<Tile> tiles;
  const uint64_t most = TileTokens(program, block);
  if (!MixesTokens(program, block)) {
    for (uint64_t t = 0; t < batch.size(); t += most) tiles.push_back({t, std::min(t + most, batch.size())});
    return tiles;
  }
  for (uint64_t s = 0; s < batch.sequences(); ++s) {
    if (!tiles.empty() && batch.end(s) - tiles.back().begin <= most) {
      tiles.back().end = batch.end(s);
    } else {
      tiles.push_back({batch.begin(s), batch.end(s)});
    }
  }
  return tiles;
}

constexpr uint64_t kMaxInputValues = uint64_t{1} << 30;

Status CheckBatch(const Program& program, const TokenBatch& batch) {
  if (static_cast<uint64_t>(batch.rows.cols()) != InputWidth(program))
    return Status(ErrorCode::kInternal, "batch is not of what the program takes");
  if (batch.sequences() == 0 || batch.begin(0) != 0)
    return Status(ErrorCode::kInternal, "batch does not start a sequence at 0");
  for (uint64_t s = 0; s < batch.sequences(); ++s) {
    if (batch.end(s) <= batch.begin(s)) return Status(ErrorCode::kInternal, "batch has a sequence without tokens");
    if (batch.end(s) - batch.begin(s) > program.max_positions) {
      return Status(ErrorCode::kBadInput,
                    StrFormat("a sequence has %llu tokens; the model takes at most %u",
                              static_cast<unsigned long long>(batch.end(s) - batch.begin(s)), program.max_positions));
    }
  }
  return Status::Ok();
}

// Position in its sequence of every token of a tile, and the sequences as rows of the tile.
struct TileLayout {
  std::vector<uint32_t> positions;
  std::vector<TileSequence> sequences;
  TileLayout(const TokenBatch& batch, const Tile& tile) {
    const auto& starts = batch.sequence_start;
    uint64_t s = std::upper_bound(starts.begin(), starts.end(), tile.begin) - starts.begin() - 1;
    positions.reserve(tile.end - tile.begin);
    for (; s < batch.sequences() && batch.begin(s) < tile.end; ++s) {
      const uint64_t begin = std::max(batch.begin(s), tile.begin), end = std::min(batch.end(s), tile.end);
      sequences.push_back({begin - tile.begin, end - tile.begin, batch.end(s) - batch.begin(s)});
      for (uint64_t t = begin; t < end; ++t) positions.push_back(static_cast<uint32_t>(t - batch.begin(s)));
    }
  }
};

// Runs one block on one tile at a time.
class BlockRunner {
 public:
  BlockRunner(const Program& program, int32_t block, const std::vector<int32_t>& last_use, const BlockWeights& weights,
              const TokenBatch& batch, ThreadPool& pool, Observer* observer)
      : program_(program),
        block_(block),
        last_use_(last_use),
        weights_(weights),
        batch_(batch),
        pool_(pool),
        observer_(observer),
        values_(program.values.size()),
        last_reader_(program.values.size(), nullptr) {
    for (const Node& node : program.nodes) {
      if (node.block != block) continue;
      for (ValueId id : node.inputs) last_reader_[id] = &node;
    }
  }

  // Values the block reads from earlier blocks.
  std::vector<ValueId> Imports() const {
    std::vector<bool> made(program_.values.size(), false);
    std::vector<ValueId> imports;
    for (const Node& node : program_.nodes) {
      if (node.block != block_) continue;
      for (ValueId id : node.inputs) {
        if (made[id] || program_.values[id].kind == ValueKind::kTokens) continue;
        made[id] = true;
        imports.push_back(id);
      }
      made[node.output] = true;
    }
    return imports;
  }

  Matrix& value(ValueId id) { return values_[id]; }

  // From now on only what the observer wants and what that needs.
  void OnlyForObserver() {
    std::vector<bool> used(program_.values.size(), false);
    computed_.assign(program_.nodes.size(), false);
    seen_.assign(program_.nodes.size(), false);
    for (size_t n = program_.nodes.size(); n-- > 0;) {
      const Node& node = program_.nodes[n];
      if (node.block != block_) continue;
      computed_[n] = used[node.output];
      seen_[n] = observer_->wants_node(node);
      for (ValueId id : node.inputs) used[id] = used[id] || computed_[n] || seen_[n];
    }
  }

  Status RunTile(const Tile& tile) {
    const TileLayout layout(batch_, tile);
    for (const Node& node : program_.nodes) {
      if (node.block != block_) continue;
      if (Computed(node)) {
        MOEPACK_RETURN_IF_ERROR(RunNode(node, tile, layout));
      } else if (Seen(node)) {
        ShowInputs(node, tile);
      }
      if (computed_.empty() && observer_ != nullptr && observer_->wants_values())
        observer_->OnValue(node, tile.begin, values_[node.output]);
      for (ValueId id : node.inputs) {
        if (last_reader_[id] == &node && last_use_[id] <= block_) values_[id].resize(0, 0);
      }
    }
    return Status::Ok();
  }

 private:
  size_t IndexOf(const Node& node) const { return static_cast<size_t>(&node - program_.nodes.data()); }
  bool Computed(const Node& node) const { return computed_.empty() || computed_[IndexOf(node)]; }
  bool Seen(const Node& node) const { return observer_ != nullptr && (seen_.empty() || seen_[IndexOf(node)]); }

  void ShowInputs(const Node& node, const Tile& tile) {
    if (node.kind == NodeKind::kLinear) return observer_->OnLinear(node, tile.begin, values_[node.inputs[0]], Matrix());
    RunMoeNode(node, tile, values_[node.inputs[0]], values_[node.inputs[1]], nullptr);
  }

  const Matrix* Dense(TensorId id) const { return id == kNone ? nullptr : &weights_.dense(id); }

  Status RunNode(const Node& node, const Tile& tile, const TileLayout& layout) {
    Matrix* out = &values_[node.output];
    const Matrix& in = values_[node.inputs[0]];
    const Matrix* second = node.inputs.size() > 1 ? &values_[node.inputs[1]] : nullptr;
    switch (node.kind) {
      case NodeKind::kEmbedding:
        return RunEmbedding(weights_.dense(node.embedding.table), {&batch_.tokens[tile.begin], tile.end - tile.begin}, out);
      case NodeKind::kLinear:
        RunLinear(in, weights_.dense(node.linear.weight), Dense(node.linear.bias), pool_, out);
        if (Seen(node) && observer_->wants_linear()) observer_->OnLinear(node, tile.begin, in, *out);
        break;
      case NodeKind::kNorm:
        RunNorm(node.norm, in, Dense(node.norm.weight), Dense(node.norm.bias), pool_, out);
        break;
      case NodeKind::kRotary:
        RunRotary(node.rotary, layout.sequences, layout.positions, in, pool_, out);
        break;
      case NodeKind::kAttention:
        RunAttention(node.attention, layout.sequences, {in, *second, values_[node.inputs[2]], Dense(node.attention.sinks)},
                     pool_, out);
        break;
      case NodeKind::kMoe:
        RunMoeNode(node, tile, in, *second, out);
        break;
      case NodeKind::kElementwise:
        RunElementwise(node.elementwise, in, second, pool_, out);
        break;
      case NodeKind::kSlice:
        *out = in.middleCols(node.slice.begin, program_.values[node.output].width);
        break;
      case NodeKind::kConcat:
        RunConcatNode(node, out);
        break;
      case NodeKind::kConvolution:
        RunConvolution(layout.sequences, in, weights_.dense(node.convolution.weight), Dense(node.convolution.bias), pool_,
                       out);
        break;
    }
    return Status::Ok();
  }

  void RunMoeNode(const Node& node, const Tile& tile, const Matrix& in, const Matrix& logits, Matrix* out) {
    const bool wanted = Seen(node) && observer_->wants_moe();
    MoeCapture capture;
    capture.first_token = tile.begin;
    std::function<bool(uint32_t)> wants;
    if (out == nullptr) wants = [&](uint32_t expert) { return observer_->wants_expert(node.moe.table, expert); };
    RunMoe(node, program_.expert_tables[node.moe.table], weights_, in, logits, pool_, wants, wanted ? &capture : nullptr,
           out);
    if (wanted) observer_->OnMoe(capture);
  }

  void RunConcatNode(const Node& node, Matrix* out) {
    std::vector<const Matrix*> inputs;
    for (ValueId id : node.inputs) inputs.push_back(&values_[id]);
    RunConcat(node.concat, inputs, out);
  }

  const Program& program_;
  const int32_t block_;
  const std::vector<int32_t>& last_use_;
  const BlockWeights& weights_;
  const TokenBatch& batch_;
  ThreadPool& pool_;
  Observer* observer_;
  std::vector<bool> computed_, seen_;     // by node; empty: all
  std::vector<Matrix> values_;            // of the tile, by ValueId
  std::vector<const Node*> last_reader_;  // in this block, by ValueId
};

}  // namespace

void PinMatrixBlocking() {
  static std::once_flag once;
  std::call_once(once, [] { Eigen::setCpuCacheSizes(32 << 10, 512 << 10, 4 << 20); });
}

TokenBatch RowBatch(std::span<const float> values, uint64_t columns) {
  TokenBatch batch;
  const auto rows = static_cast<Eigen::Index>(values.size() / columns);
  batch.rows = Eigen::Map<const Matrix>(values.data(), rows, static_cast<Eigen::Index>(columns));
  for (Eigen::Index r = 0; r < rows; ++r) batch.sequence_start.push_back(static_cast<uint64_t>(r));
  return batch;
}

Result<TokenBatch> ReadRows(Env& env, const std::string& path, const Program& program) {
  if (InputWidth(program) == 0) {
    return Status(ErrorCode::kUsage, "the model takes tokens, not rows of numbers: give --data or --tokens, not --inputs");
  }
  MOEPACK_ASSIGN_OR_RETURN(const auto file, NpyFile::Open(env, path));
  MOEPACK_RETURN_IF_ERROR(file->CheckColumns(InputWidth(program)));
  uint64_t count = 0;
  if (!CheckedMul(file->rows(), file->columns(), &count) || count > kMaxInputValues) {
    return Status(ErrorCode::kLimit, StrFormat("%s: more than %llu values; give fewer rows", path.c_str(),
                                               static_cast<unsigned long long>(kMaxInputValues)));
  }
  std::vector<float> values(count);
  MOEPACK_RETURN_IF_ERROR(file->Read(0, file->rows(), values));
  return RowBatch(values, file->columns());
}

Status CheckTakesTokens(const Program& program) {
  if (InputWidth(program) == 0) return Status::Ok();
  return Status(ErrorCode::kUsage,
                StrFormat("the model takes rows of %llu numbers, not text or tokens: give --inputs FILE.npy",
                          static_cast<unsigned long long>(InputWidth(program))));
}

Stream InputStream(const Program& program, const TokenBatch& batch) {
  Stream stream;
  if (batch.rows.size() > 0) stream.values[program.inputs[0]] = batch.rows;
  return stream;
}

Result<TokenBatch> ChunkBatch(const Program& program, std::span<const int32_t> tokens, const EvalChunks& chunks) {
  MOEPACK_RETURN_IF_ERROR(CheckTargets(tokens, program.values[program.output].width));
  TokenBatch batch;
  batch.tokens.assign(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(chunks.chunks * chunks.ctx));
  for (uint64_t c = 0; c < chunks.chunks; ++c) batch.sequence_start.push_back(c * chunks.ctx);
  return batch;
}

Forward::Forward(const Program& program, ThreadPool& pool)
    : program_(program), pool_(pool), last_use_(program.values.size(), -1) {
  PinMatrixBlocking();
  for (const Node& node : program.nodes) {
    for (ValueId id : node.inputs) last_use_[id] = std::max(last_use_[id], node.block);
  }
}

Status Forward::RunBlock(int32_t block, const BlockWeights& weights, const TokenBatch& batch, Stream* stream,
                         Observer* observer) {
  MOEPACK_RETURN_IF_ERROR(CheckBatch(program_, batch));
  BlockRunner runner(program_, block, last_use_, weights, batch, pool_, observer);
  const std::vector<ValueId> imports = runner.Imports();
  // An output takes over the storage of an input of the same width that nobody reads later: a tile is read whole before
  // it is written, so the residual stream is held once.
  std::map<ValueId, ValueId> storage;
  std::vector<ValueId> free;
  for (ValueId id : imports) {
    if (last_use_[id] <= block) free.push_back(id);
  }
  for (const Node& node : program_.nodes) {
    if (node.block != block || last_use_[node.output] <= block) continue;
    const uint64_t width = program_.values[node.output].width;
    const auto taken =
        std::find_if(free.begin(), free.end(), [&](ValueId id) { return program_.values[id].width == width; });
    storage[node.output] = taken != free.end() ? *taken : node.output;
    if (taken != free.end()) {
      free.erase(taken);
    } else {
      stream->values[node.output].resize(batch.size(), width);
    }
  }
  for (const Tile& tile : CutIntoTiles(program_, block, batch)) {
    const uint64_t rows = tile.end - tile.begin;
    for (ValueId id : imports) runner.value(id) = stream->values.at(id).middleRows(tile.begin, rows);
    MOEPACK_RETURN_IF_ERROR(runner.RunTile(tile));
    for (const auto& [id, place] : storage) stream->values.at(place).middleRows(tile.begin, rows) = runner.value(id);
  }
  for (const auto& [id, place] : storage) {
    if (id != place) stream->values[id] = std::move(stream->values.at(place));
  }
  std::erase_if(stream->values, [&](const auto& entry) { return last_use_[entry.first] <= block; });
  return Status::Ok();
}

Status Forward::RunLastBlock(const BlockWeights& weights, const TokenBatch& batch, const Stream& stream,
                             const LogitsSink& sink, Observer* observer) {
  MOEPACK_RETURN_IF_ERROR(CheckBatch(program_, batch));
  const int32_t block = program_.blocks() - 1;
  BlockRunner runner(program_, block, last_use_, weights, batch, pool_, observer);
  const std::vector<ValueId> imports = runner.Imports();
  for (const Tile& tile : CutIntoTiles(program_, block, batch)) {
    for (ValueId id : imports) runner.value(id) = stream.values.at(id).middleRows(tile.begin, tile.end - tile.begin);
    MOEPACK_RETURN_IF_ERROR(runner.RunTile(tile));
    MOEPACK_RETURN_IF_ERROR(sink(tile.begin, runner.value(program_.output)));
  }
  return Status::Ok();
}

Status Forward::Observe(int32_t block, const BlockWeights& weights, const TokenBatch& batch, const Stream& stream,
                        Observer* observer) {
  MOEPACK_RETURN_IF_ERROR(CheckBatch(program_, batch));
  BlockRunner runner(program_, block, last_use_, weights, batch, pool_, observer);
  runner.OnlyForObserver();
  const std::vector<ValueId> imports = runner.Imports();
  for (const Tile& tile : CutIntoTiles(program_, block, batch)) {
    for (ValueId id : imports) runner.value(id) = stream.values.at(id).middleRows(tile.begin, tile.end - tile.begin);
    MOEPACK_RETURN_IF_ERROR(runner.RunTile(tile));
  }
  return Status::Ok();
}

Status Forward::Run(const TensorSource& source, const TokenBatch& batch, const LogitsSink& sink, Progress& progress,
                    Observer* observer) {
  const int32_t blocks = program_.blocks();
  Stream stream = InputStream(program_, batch);
  progress.Begin("forward", batch.size() * static_cast<uint64_t>(blocks), "token-layers");
  for (int32_t block = 0; block < blocks; ++block) {
    auto weights = BlockWeights::Load(program_, source, block, pool_);
    if (!weights.ok()) return weights.status();
    MOEPACK_RETURN_IF_ERROR(block + 1 < blocks ? RunBlock(block, *weights, batch, &stream, observer)
                                               : RunLastBlock(*weights, batch, stream, sink, observer));
    progress.Advance(batch.size());
  }
  progress.End();
  return Status::Ok();
}

}  // namespace moepack
