#include "runtime-min/engine.h"

#include <algorithm>

#include "base/checked.h"
#include "format/program_input.h"
#include "runtime-min/dense_weights.h"
#include "runtime-min/executor.h"
#include "runtime-min/metrics.h"
#include "runtime-min/saved_sequence.h"
#include "runtime-min/sequence_state.h"
#include "runtime-min/unit_source.h"

namespace moepack::runtime {
namespace {

constexpr uint32_t kMaxTileTokens = 4096;

// What the program allows without rotating by the frequencies of long sequences, which shorter ones were not trained with.
uint32_t DefaultContext(const Program& program) {
  uint32_t context = program.max_positions;
  for (const Node& node : program.nodes) {
    if (node.kind == NodeKind::kRotary && node.rotary.long_from > 0) context = std::min(context, node.rotary.long_from);
  }
  return context;
}

// Tiles, rows of logits and state of as many sequences as are asked for. Rows of floats are sequences without state.
Status CheckSequences(const Program& program, EngineOptions* options) {
  if (InputWidth(program) > 0) {
    options->sequences = 1;
    options->state_tokens = UINT64_MAX;
    options->logit_rows = options->tile_tokens;
    return Status::Ok();
  }
  if (options->sequences < 1 || options->sequences > options->tile_tokens) {
    return Status(ErrorCode::kUsage, StrFormat("%u sequences: expected 1 to the tokens of a tile, %u", options->sequences,
                                               options->tile_tokens));
  }
  const uint64_t all_tokens = uint64_t{options->sequences} * options->context;
  options->tile_tokens = static_cast<uint32_t>(std::min<uint64_t>(options->tile_tokens, all_tokens));
  options->logit_rows = std::min(std::max(options->logit_rows, options->sequences), options->tile_tokens);
  if (options->state_tokens == 0) options->state_tokens = UINT64_MAX;
  return Status::Ok();
}

Status CheckOptions(const Program& program, EngineOptions* options) {
  const std::vector<kernels::Isa> isas = kernels::SupportedIsas();
  if (std::find(isas.begin(), isas.end(), options->isa) == isas.end()) {
    return Status(ErrorCode::kUsage, StrFormat("this processor cannot run %s kernels", kernels::IsaName(options->isa)));
  }
  if (options->tile_tokens < 1 || options->tile_tokens > kMaxTileTokens) {
    return Status(ErrorCode::kUsage, StrFormat("tile of %u tokens: expected 1 to %u", options->tile_tokens, kMaxTileTokens));
  }
  if (options->context == 0) {
    const uint32_t expected = std::min(options->expected_tokens, program.max_positions);
    options->context = expected > 0 ? expected : DefaultContext(program);
  }
  if (options->context > program.max_positions) {
    return Status(ErrorCode::kUsage, StrFormat("a context of %u tokens is too long: the model takes at most %u",
                                               options->context, program.max_positions));
  }
  if (options->prefetch.value_or(0) > kMaxPrefetchDepth) {
    return Status(ErrorCode::kUsage,
                  StrFormat("prefetch %u layers ahead: expected 0 to %u", *options->prefetch, kMaxPrefetchDepth));
  }
  if (options->prefetch_lanes > kMaxPrefetchLanes) {
    return Status(ErrorCode::kUsage,
                  StrFormat("%u prefetch lanes: expected at most %u", options->prefetch_lanes, kMaxPrefetchLanes));
  }
  if (options->prefetch_lanes > 0 && options->prefetch == 0u) {
    return Status(ErrorCode::kUsage, StrFormat("%u prefetch lanes: there is nothing to load for them with prefetch off",
                                               options->prefetch_lanes));
  }
  if (options->router_input_bits != 15 && options->router_input_bits != 8) {
    return Status(ErrorCode::kUsage,
                  StrFormat("inputs of routers in %u bits: expected 15 or 8", options->router_input_bits));
  }
  return CheckSequences(program, options);
}

// Experts that one token needs, by expert table.
std::vector<uint32_t> TopKByTable(const Program& program) {
  std::vector<uint32_t> top_k(program.expert_tables.size(), 0);
  for (const Node& node : program.nodes) {
    if (node.kind == NodeKind::kMoe) top_k[node.moe.table] = std::max(top_k[node.moe.table], node.moe.routing.k);
  }
  return top_k;
}

// Resident bytes of all dense tensors.
Result<uint64_t> DenseBytes(const DenseTable& table) {
  CheckedU64 all(0);
  for (const Unit& unit : table.units) {
    for (const UnitTensor& tensor : unit.tensors) {
      MOEPACK_ASSIGN_OR_RETURN(const uint64_t bytes, ResidentBytes(tensor.codec, tensor.shape));
      all = all + bytes;
    }
  }
  if (!all.valid()) return Status(ErrorCode::kLimit, "dense table: sizes overflow");
  return all.value();
}

// The budget of kAutoExperts: the rest is for activations, the state of sequences and other programs.
Result<uint64_t> AutomaticExpertBytes(const DenseTable& dense) {
  const std::optional<uint64_t> available = AvailableMemoryBytes();
  if (!available) {
    return Status(ErrorCode::kUsage, "the system does not tell how much memory is free: give expert RAM a size");
  }
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t dense_bytes, DenseBytes(dense));
  return *available > dense_bytes ? (*available - dense_bytes) / 4 * 3 : 0;
}

Result<ExpertCacheOptions> CacheOptionsOf(const UnitSource& source, const EngineOptions& options) {
  ExpertCacheOptions out;
  out.limit_bytes = options.expert_ram_bytes;
  out.start_bytes = options.expert_ram_start_bytes;
  out.grow_below = options.grow_below;
  out.policy = options.cache_policy.value_or(source.hot_list().cache);
  const std::vector<Unavailable>& steps = source.unavailable();
  out.preload_must_succeed = !options.bridge_unavailable || steps.empty();
  out.keep_dense = options.bridge_unavailable && std::count(steps.begin(), steps.end(), Unavailable::kDense) > 0;
  MOEPACK_RETURN_IF_ERROR(CheckCachePolicy(out.policy));
  if (options.expert_ram_bytes != kAutoExperts) return out;
  out.raise_limit = true;
  MOEPACK_ASSIGN_OR_RETURN(out.limit_bytes, AutomaticExpertBytes(source.dense()));
  return out;
}

// kUsage where the bundle has nothing to lower to.
Result<StandInOptions> StandInsOf(const UnitSource& source, const EngineOptions& options) {
  MOEPACK_RETURN_IF_ERROR(options.misses.Check());
  if (options.misses.on_miss == OnMiss::kLower && !StandIns(source.experts()).any_lower()) {
    return Status(ErrorCode::kUsage, "the bundle has no lower precision of any expert; compress with second_precision");
  }
  StandInOptions out;
  out.misses = options.misses;
  if (options.bridge_unavailable) out.unavailable = source.unavailable();
  out.notice = options.notice;
  return out;
}

// kUsage where no router is of integers: then their inputs are not rounded at all.
Status CheckRouters(const UnitSource& source) {
  for (const Unit& unit : source.dense().units) {
    for (const UnitTensor& tensor : unit.tensors) {
      if (source.program().tensors[tensor.tensor].role == TensorRole::kRouter && tensor.codec.coded()) return Status::Ok();
    }
  }
  return Status(ErrorCode::kUsage,
                "inputs of routers in 8 bits: the bundle's routers are floats; compress with a rule that gives them i8r");
}

uint64_t SmallestEmbedding(const Program& program) {
  uint64_t rows = INT32_MAX;
  for (const Node& node : program.nodes) {
    if (node.kind == NodeKind::kEmbedding) rows = std::min(rows, program.tensors[node.embedding.table].rows);
  }
  return rows;
}

}  // namespace

Engine::Engine(std::unique_ptr<UnitSource> source, const EngineOptions& options)
    : source_(std::move(source)), options_(options) {}
Engine::~Engine() = default;

Result<std::unique_ptr<Engine>> Engine::Create(std::unique_ptr<verify::VerifiedBundle> bundle, ThreadPool& pool,
                                               const EngineOptions& options) {
  std::unique_ptr<UnitSource> source = std::make_unique<BundleSource>(std::move(bundle));
  return Create(std::move(source), pool, options);
}

Result<std::unique_ptr<Engine>> Engine::Create(std::unique_ptr<UnitSource> source, ThreadPool& pool,
                                               const EngineOptions& options) {
  std::unique_ptr<Engine> engine(new Engine(std::move(source), options));
  const Program& program = engine->source_->program();
  MOEPACK_RETURN_IF_ERROR(CheckOptions(program, &engine->options_));
  engine->token_limit_ = SmallestEmbedding(program);
  MOEPACK_ASSIGN_OR_RETURN(const ExpertCacheOptions caching, CacheOptionsOf(*engine->source_, options));
  MOEPACK_ASSIGN_OR_RETURN(ExpertCache cache, ExpertCache::Create(*engine->source_, pool, TopKByTable(program), caching));
  engine->cache_ = std::make_unique<ExpertCache>(std::move(cache));
  const bool all_fit = engine->cache_->limit_bytes() == engine->cache_->all_bytes();
  const bool somebody_waits = options.prefetch_lanes > 0 || engine->cache_->ThreadsMayWait();
  engine->prefetch_ = options.prefetch.value_or(all_fit || !somebody_waits ? 0 : kDefaultPrefetch);
  if (engine->prefetch_ > 0) {
    MOEPACK_RETURN_IF_ERROR(engine->cache_->StartPrefetch(options.prefetch_lanes));
  }
  MOEPACK_ASSIGN_OR_RETURN(DenseWeights weights, DenseWeights::Load(*engine->source_, pool));
  engine->weights_ = std::make_unique<DenseWeights>(std::move(weights));
  MOEPACK_RETURN_IF_ERROR(engine->CreateState());
  ExecutorOptions execution;
  execution.isa = options.isa;
  execution.context = engine->options_.context;
  execution.tile_tokens = engine->options_.tile_tokens;
  execution.logit_rows = engine->options_.logit_rows;
  execution.prefetch = engine->prefetch_;
  execution.coarse_routers = options.router_input_bits == 8;
  if (execution.coarse_routers) MOEPACK_RETURN_IF_ERROR(CheckRouters(*engine->source_));
  MOEPACK_ASSIGN_OR_RETURN(execution.stand_ins, StandInsOf(*engine->source_, options));
  MOEPACK_ASSIGN_OR_RETURN(engine->executor_,
                           Executor::Create(program, *engine->weights_, *engine->state_, *engine->cache_, pool, execution));
  MOEPACK_RETURN_IF_ERROR(engine->cache_->Preload());
  for (const Status& reason : engine->cache_->MissingDense()) {
    if (options.notice) options.notice(reason.message() + ": experts of the layer that are lost may fail");
  }
  return engine;
}

Status Engine::CreateState() {
  SequenceStateOptions options;
  options.sequences = options_.sequences;
  options.context = options_.context;
  options.positions = options_.state_tokens;
  options.kv = options_.kv;
  MOEPACK_ASSIGN_OR_RETURN(state_, SequenceState::Create(source_->program(), options));
  MOEPACK_ASSIGN_OR_RETURN([[maybe_unused]] const SequenceId first, state_->Open());
  tile_.reserve(options_.tile_tokens);
  in_batch_.resize(options_.sequences);
  return Status::Ok();
}

Status Engine::CheckOpen(SequenceId id) const {
  if (state_->sequences().is_open(id)) return Status::Ok();
  return Status(ErrorCode::kUsage, StrFormat("sequence %u is not open", id));
}

// Whether the sequence could take the tokens, in however many runs.
Status Engine::CheckTokens(SequenceId id, std::span<const int32_t> tokens) const {
  MOEPACK_RETURN_IF_ERROR(CheckOpen(id));
  if (tokens.size() > options_.context - position(id)) {
    return Status(ErrorCode::kLimit, StrFormat("%zu tokens after %u: the context holds %u; shorten the prompt, or open with "
                                               "a longer context",
                                               tokens.size(), position(id), options_.context));
  }
  for (int32_t token : tokens) {
    if (token < 0 || static_cast<uint64_t>(token) >= token_limit_) {
      return Status(ErrorCode::kBadInput, StrFormat("token %d: the model has tokens 0 to %llu", token,
                                                    static_cast<unsigned long long>(token_limit_ - 1)));
    }
  }
  return Status::Ok();
}

Status Engine::CheckTakesTokens() const {
  if (input_width() == 0) return Status::Ok();
  return Status(ErrorCode::kUsage, StrFormat("the model takes rows of %llu numbers, not tokens",
                                             static_cast<unsigned long long>(input_width())));
}

// One sequence of a batch.
Status Engine::CheckPart(const SequenceTokens& part) const {
  if (part.tokens.empty() || part.tokens.size() > options_.tile_tokens) {
    return Status(ErrorCode::kUsage,
                  StrFormat("%zu tokens in one run: expected 1 to %u", part.tokens.size(), options_.tile_tokens));
  }
  if (part.logit_rows > part.tokens.size()) {
    return Status(ErrorCode::kUsage, StrFormat("logits of %u tokens of %zu", part.logit_rows, part.tokens.size()));
  }
  return CheckTokens(part.sequence, part.tokens);
}

Status Engine::CheckBatch(std::span<const SequenceTokens> batch) {
  MOEPACK_RETURN_IF_ERROR(CheckTakesTokens());
  uint64_t tokens = 0, logit_rows = 0;
  std::fill(in_batch_.begin(), in_batch_.end(), false);
  for (const SequenceTokens& part : batch) {
    MOEPACK_RETURN_IF_ERROR(CheckPart(part));
    if (in_batch_[part.sequence]) {
      return Status(ErrorCode::kUsage, StrFormat("sequence %u stands twice in one run", part.sequence));
    }
    in_batch_[part.sequence] = true;
    tokens += part.tokens.size();
    logit_rows += part.logit_rows;
  }
  if (tokens == 0 || tokens > options_.tile_tokens) {
    return Status(ErrorCode::kUsage, StrFormat("%llu tokens in one run: expected 1 to %u",
                                               static_cast<unsigned long long>(tokens), options_.tile_tokens));
  }
  if (logit_rows <= options_.logit_rows) return Status::Ok();
  return Status(ErrorCode::kUsage, StrFormat("logits of %llu tokens: at most %u were planned for",
                                             static_cast<unsigned long long>(logit_rows), options_.logit_rows));
}

// The executor computes logits of the last tokens of a tile: those of all sequences stand there, in the order of the batch.
void Engine::LayOut(std::span<const SequenceTokens> batch) {
  tile_.clear();
  for (const bool wanted : {false, true}) {
    for (const SequenceTokens& part : batch) {
      const size_t unwanted = part.tokens.size() - part.logit_rows;
      const size_t end = wanted ? part.tokens.size() : unwanted;
      for (size_t i = wanted ? unwanted : 0; i < end; ++i) {
        tile_.push_back({part.tokens[i], part.sequence, position(part.sequence) + static_cast<uint32_t>(i)});
      }
    }
  }
}

Status Engine::ExtendAndRun(std::span<const SequenceTokens> batch) {
  uint32_t logit_rows = 0;
  for (const SequenceTokens& part : batch) {
    MOEPACK_RETURN_IF_ERROR(state_->Extend(part.sequence, static_cast<uint32_t>(part.tokens.size())));
    logit_rows += part.logit_rows;
  }
  return executor_->Run(tile_, logit_rows);
}

Status Engine::RunBatch(std::span<const SequenceTokens> batch) {
  executor_->ForgetLogits();
  MOEPACK_RETURN_IF_ERROR(CheckBatch(batch));
  LayOut(batch);
  const Status status = ExtendAndRun(batch);
  for (const SequenceTokens& part : batch) {
    if (status.ok()) state_->Advance(part.sequence, static_cast<uint32_t>(part.tokens.size()));
    state_->Trim(part.sequence);
  }
  return status;
}

Status Engine::Run(std::span<const int32_t> tokens, uint32_t logit_rows, SequenceId id) {
  const SequenceTokens part{id, tokens, logit_rows};
  return RunBatch({&part, 1});
}

Status Engine::RunRows(std::span<const float> rows) {
  executor_->ForgetLogits();
  if (input_width() == 0) return Status(ErrorCode::kUsage, "the model takes tokens, not rows of numbers");
  const uint64_t count = rows.size() / input_width();
  if (count < 1 || count > options_.tile_tokens || rows.size() % input_width() != 0) {
    return Status(ErrorCode::kUsage, StrFormat("%zu numbers in one run: expected 1 to %u rows of %llu", rows.size(),
                                               options_.tile_tokens, static_cast<unsigned long long>(input_width())));
  }
  tile_.assign(count, {0, kFirstSequence, 0});
  return executor_->Run(tile_, static_cast<uint32_t>(count), rows);
}

Status Engine::Prefill(std::span<const int32_t> tokens, SequenceId id) {
  executor_->ForgetLogits();
  MOEPACK_RETURN_IF_ERROR(CheckTakesTokens());
  if (tokens.empty()) return Status(ErrorCode::kUsage, "expected at least one token");
  MOEPACK_RETURN_IF_ERROR(CheckTokens(id, tokens));
  while (!tokens.empty()) {
    const size_t count = std::min<size_t>(tokens.size(), options_.tile_tokens);
    MOEPACK_RETURN_IF_ERROR(Run(tokens.first(count), count == tokens.size() ? 1 : 0, id));
    tokens = tokens.subspan(count);
  }
  return Status::Ok();
}

Result<SequenceId> Engine::OpenSequence() { return state_->Open(); }

Result<SequenceId> Engine::ForkSequence(SequenceId from, uint32_t tokens) {
  MOEPACK_RETURN_IF_ERROR(CheckOpen(from));
  return state_->Fork(from, tokens);
}

Status Engine::ReleaseSequence(SequenceId id) {
  MOEPACK_RETURN_IF_ERROR(CheckOpen(id));
  if (id == kFirstSequence) return Status(ErrorCode::kUsage, "the first sequence stays open; empty it instead");
  state_->Close(id);
  return Status::Ok();
}

SavedSequenceModel Engine::ModelOfState() const {
  SavedSequenceModel model{.manifest = source_->manifest_digest(), .kv = options_.kv, .context = options_.context};
  for (const Node& node : source_->program().nodes) {
    const bool turns_longer = node.kind == NodeKind::kRotary && node.rotary.long_from > 0;
    if (turns_longer && options_.context > node.rotary.long_from) ++model.long_rotaries;
  }
  model.token_limit = token_limit_;
  return model;
}

Status Engine::SaveSequence(SequenceId id, std::span<const int32_t> next,
                            const std::function<Status(ByteSpan)>& sink) const {
  MOEPACK_RETURN_IF_ERROR(CheckOpen(id));
  return WriteSequence(*state_, id, ModelOfState(), next, sink);
}

Result<std::vector<int32_t>> Engine::RestoreSequence(SequenceId id, const RandomAccessFile& file) {
  MOEPACK_RETURN_IF_ERROR(CheckOpen(id));
  return ReadSequence(*state_, id, ModelOfState(), file);
}

void Engine::Reset() { state_->Empty(kFirstSequence); }

Status Engine::ResetSequence(SequenceId id) {
  MOEPACK_RETURN_IF_ERROR(CheckOpen(id));
  state_->Empty(id);
  return Status::Ok();
}

uint32_t Engine::position(SequenceId id) const {
  return state_->sequences().is_open(id) ? state_->sequences().position(id) : 0;
}

std::span<const float> Engine::logits() const { return executor_->logits(); }
uint64_t Engine::vocab_size() const { return source_->program().values[source_->program().output].width; }
uint64_t Engine::input_width() const { return InputWidth(source_->program()); }
uint64_t Engine::dense_bytes() const { return weights_->resident_bytes(); }
const StandInStats& Engine::stand_ins() const { return executor_->stand_ins(); }

void Engine::ResetStats() {
  cache_->ResetStats();
  executor_->ResetStats();
}

uint64_t Engine::state_bytes() const { return state_->size_bytes(); }
uint64_t Engine::used_state_bytes() const { return state_->used_bytes(); }

uint64_t Engine::weight_bytes_per_token() const {
  const Program& program = source_->program();
  uint64_t bytes = 0;
  for (const Node& node : program.nodes) {
    if (node.kind == NodeKind::kLinear) bytes += weights_->matrix(node.linear.weight).size_bytes();
    if (node.kind == NodeKind::kMoe) bytes += cache_->mean_bytes(node.moe.table) * node.moe.routing.k;
  }
  return bytes;
}

}  // namespace moepack::runtime
