// Reference float32 forward of a program, block by block: all calibration tokens go through one block while only that
// block's weights are in memory. Used by calibrate (observers), by compressor (replay with compressed weights) and by
// `moepack logits`. It is the oracle of runtime-min, so it favours clarity; matrix products are Eigen's.
//
// Results do not depend on the number of threads: tokens are cut into fixed tiles, each computed by one thread.
#pragma once

#include <Eigen/Dense>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "base/divergence.h"
#include "base/progress.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "format/program.h"
#include "model/model.h"

namespace moepack {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// Fixes the cache sizes by which Eigen cuts matrix products, so that sums run in the same order on every processor. Forward
// calls it; call it before other use of Eigen whose results must be reproducible. Thread-safe.
void PinMatrixBlocking();

// Weights of one program block in float32. Weights may be replaced between runs (compressor).
class BlockWeights {
 public:
  // Loads every tensor that nodes of `block` use and, for a MoE node, all its experts.
  static Result<BlockWeights> Load(const Program& program, const TensorSource& source, int32_t block, ThreadPool& pool);
  // [rows, cols]; ids that do not belong to the block are a fault of the caller (asserted).
  const Matrix& dense(TensorId id) const { return dense_.at(id); }
  Matrix& dense(TensorId id) { return dense_.at(id); }
  const Matrix& expert(uint32_t table, uint32_t e, ExpertMatrix m) const {
    return experts_.at({table, e, static_cast<uint8_t>(m)});
  }
  Matrix& expert(uint32_t table, uint32_t e, ExpertMatrix m) { return experts_.at({table, e, static_cast<uint8_t>(m)}); }
  const std::map<TensorId, Matrix>& all_dense() const { return dense_; }

 private:
  std::map<TensorId, Matrix> dense_;
  std::map<std::tuple<uint32_t, uint32_t, uint8_t>, Matrix> experts_;
};

// Token sequences to run. Positions restart at each sequence. For a program whose input is of floats: rows, each a sequence
// of its own, and no tokens.
struct TokenBatch {
  std::vector<int32_t> tokens;
  std::vector<uint64_t> sequence_start;  // strictly increasing, first 0
  Matrix rows = {};                      // [size(), input_width]
  uint64_t size() const { return rows.size() > 0 ? static_cast<uint64_t>(rows.rows()) : tokens.size(); }
  uint64_t sequences() const { return sequence_start.size(); }
  uint64_t begin(uint64_t s) const { return sequence_start[s]; }
  uint64_t end(uint64_t s) const { return s + 1 < sequence_start.size() ? sequence_start[s + 1] : size(); }
};

// `values`: [rows, columns].
TokenBatch RowBatch(std::span<const float> values, uint64_t columns);
// All rows of a .npy file for a program that takes such rows. kUsage when it takes tokens, kShape, errors of NpyFile.
Result<TokenBatch> ReadRows(Env& env, const std::string& path, const Program& program);
// kUsage, naming --inputs, when the program takes rows of floats.
Status CheckTakesTokens(const Program& program);

// The first tokens of a text cut into sequences of chunks.ctx tokens each, to be scored: kTokenizer when the program has no
// logit for one of them.
Result<TokenBatch> ChunkBatch(const Program& program, std::span<const int32_t> tokens, const EvalChunks& chunks);

// Values that live between blocks (the residual stream, mostly), over all tokens of a batch. [tokens, width]
struct Stream {
  std::map<ValueId, Matrix> values;
};
// As it is before the first block: what goes in, where that is rows of floats.
Stream InputStream(const Program& program, const TokenBatch& batch);

// What one expert saw in one tile: rows of the tile that were routed to it, in order.
struct ExpertCapture {
  uint32_t expert = 0;
  std::vector<uint32_t> rows;  // row in the tile
  std::vector<float> gates;    // routing weight g of each row; 1 where the record puts weights on inputs
  Matrix input;                // [n, hidden], times the weight where the record puts weights on inputs
  Matrix down_input;           // [n, intermediate]: act(gate) * up
  Matrix output;               // [n, hidden], not yet times g
};

struct MoeCapture {
  const Node* node = nullptr;
  uint64_t first_token = 0;            // of the tile, in the batch
  const Matrix* input = nullptr;       // [tile, hidden]
  const Matrix* logits = nullptr;      // [tile, experts]
  std::vector<uint32_t> ids;           // [tile, k] chosen experts, largest weight first
  std::vector<float> weights;          // [tile, k], 1 where the record puts weights on inputs
  std::vector<ExpertCapture> experts;  // those that got at least one row, by index
};

// Sees what happens inside a block, tile by tile in token order, always on the thread that called Forward, which may use
// the pool.
class Observer {
 public:
  virtual ~Observer() = default;
  // A linear node's input [tile, in] and output, with the first token of the tile.
  virtual void OnLinear(const Node& node, uint64_t first_token, const Matrix& input, const Matrix& output) {
    (void)node, (void)first_token, (void)input, (void)output;
  }
  virtual void OnMoe(const MoeCapture& capture) { (void)capture; }
  // Any value that a node of the block produced.
  virtual void OnValue(const Node& node, uint64_t first_token, const Matrix& value) {
    (void)node, (void)first_token, (void)value;
  }
  // Which of the above are wanted (captures cost memory and copies).
  virtual bool wants_linear() const { return false; }
  virtual bool wants_moe() const { return false; }
  virtual bool wants_values() const { return false; }
  // In Forward::Observe, which of the nodes and experts: what no other one needs is not computed.
  virtual bool wants_node(const Node& node) const {
    return node.kind == NodeKind::kLinear ? wants_linear() : node.kind == NodeKind::kMoe && wants_moe();
  }
  virtual bool wants_expert(uint32_t table, uint32_t expert) const {
    (void)table, (void)expert;
    return true;
  }
};

class Forward {
 public:
  // `program` and `pool` must outlive it.
  Forward(const Program& program, ThreadPool& pool);

  // Runs the nodes of one block over the whole batch. `stream` holds the live values before and, on return, after it
  // (values that no later block reads are dropped). Sequences are grouped into tiles of about 2,048 tokens (whole
  // sequences), so temporaries stay bounded.
  Status RunBlock(int32_t block, const BlockWeights& weights, const TokenBatch& batch, Stream* stream,
                  Observer* observer = nullptr);

  // Runs of a block (`stream` holds the values before it) what the observer needs to see the inputs of the nodes it wants:
  // OnLinear gets an empty output and OnMoe the wanted experts alone, without outputs, where nothing needs the whole node.
  // OnValue is not called. What it sees is bit for bit what RunBlock would show.
  Status Observe(int32_t block, const BlockWeights& weights, const TokenBatch& batch, const Stream& stream,
                 Observer* observer);

  // All blocks, weights loaded one block at a time; `sink` gets logits rows in token order: (first_token, [n, vocab]).
  // The last block is run tile by tile, so logits of all tokens are never held.
  using LogitsSink = std::function<Status(uint64_t first_token, const Matrix& logits)>;
  Status Run(const TensorSource& source, const TokenBatch& batch, const LogitsSink& sink, Progress& progress,
             Observer* observer = nullptr);
  // Last block only, from `stream`, tile by tile (stream is read, not changed).
  Status RunLastBlock(const BlockWeights& weights, const TokenBatch& batch, const Stream& stream, const LogitsSink& sink,
                      Observer* observer = nullptr);

 private:
  const Program& program_;
  ThreadPool& pool_;
  std::vector<int32_t> last_use_;  // by value: last block that reads it
};

// From the products of an expert's input with gate and up to the input of down, in *up: act(gate) * (up + offset), with the
// record's limits; act(up) for experts without gates, where `gate` is not used. Same shapes; *gate is overwritten.
void ActivateExpert(const ActivationRecord& record, Matrix* gate, Matrix* up);

// What routing needs beside the record and the logits.
struct RoutingTables {
  std::span<const float> selection_bias;  // [experts], or empty
  std::span<const uint32_t> original;     // [experts] index in the checkpoint; only read for groups
};
// Routing of one row by the record: chosen experts (largest selection score first, ties to the lower index) and their
// weights. ids and weights have routing.k entries.
void Route(const RoutingRecord& routing, const RoutingTables& tables, std::span<const float> logits, std::span<uint32_t> ids,
           std::span<float> weights);

}  // namespace moepack
