#include "runtime-min/engine.h"

#include <algorithm>

#include "base/checked.h"
#include "runtime-min/dense_weights.h"
#include "runtime-min/executor.h"
#include "runtime-min/metrics.h"
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
  options->tile_tokens = std::min(options->tile_tokens, options->context);
  options->logit_rows = std::min(options->logit_rows, options->tile_tokens);
  return Status::Ok();
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
    return Status(ErrorCode::kUsage, "the system does not tell how much memory is free; give --expert-ram a size");
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
  MOEPACK_RETURN_IF_ERROR(CheckCachePolicy(out.policy));
  if (options.expert_ram_bytes != kAutoExperts) return out;
  MOEPACK_ASSIGN_OR_RETURN(out.limit_bytes, AutomaticExpertBytes(source.dense()));
  return out;
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
  MOEPACK_ASSIGN_OR_RETURN(DenseWeights weights, DenseWeights::Load(*engine->source_, pool));
  engine->weights_ = std::make_unique<DenseWeights>(std::move(weights));
  ExecutorOptions execution;
  execution.isa = options.isa;
  execution.context = engine->options_.context;
  execution.tile_tokens = engine->options_.tile_tokens;
  execution.logit_rows = engine->options_.logit_rows;
  MOEPACK_ASSIGN_OR_RETURN(engine->executor_,
                           Executor::Create(program, *engine->weights_, *engine->cache_, pool, execution));
  MOEPACK_RETURN_IF_ERROR(engine->cache_->Preload());
  return engine;
}

Status Engine::Run(std::span<const int32_t> tokens, uint32_t logit_rows) {
  if (tokens.empty() || tokens.size() > options_.tile_tokens) {
    return Status(ErrorCode::kUsage,
                  StrFormat("%zu tokens in one run: expected 1 to %u", tokens.size(), options_.tile_tokens));
  }
  if (logit_rows > options_.logit_rows || logit_rows > tokens.size()) {
    return Status(ErrorCode::kUsage, StrFormat("logits of %u tokens of %zu: at most %u were planned for", logit_rows,
                                               tokens.size(), options_.logit_rows));
  }
  if (tokens.size() > options_.context - position_) {
    return Status(ErrorCode::kLimit,
                  StrFormat("the context of %u tokens is full; raise --ctx or shorten the prompt", options_.context));
  }
  for (int32_t token : tokens) {
    if (token < 0 || static_cast<uint64_t>(token) >= token_limit_) {
      return Status(ErrorCode::kBadInput, StrFormat("token %d: the model has tokens 0 to %llu", token,
                                                    static_cast<unsigned long long>(token_limit_ - 1)));
    }
  }
  MOEPACK_RETURN_IF_ERROR(executor_->Run(tokens, position_, logit_rows));
  position_ += static_cast<uint32_t>(tokens.size());
  return Status::Ok();
}

Status Engine::Prefill(std::span<const int32_t> tokens) {
  while (!tokens.empty()) {
    const size_t count = std::min<size_t>(tokens.size(), options_.tile_tokens);
    MOEPACK_RETURN_IF_ERROR(Run(tokens.first(count), count == tokens.size() ? 1 : 0));
    tokens = tokens.subspan(count);
  }
  return Status::Ok();
}

std::span<const float> Engine::logits() const { return executor_->logits(); }
uint64_t Engine::vocab_size() const { return source_->program().values[source_->program().output].width; }
uint64_t Engine::dense_bytes() const { return weights_->resident_bytes(); }
uint64_t Engine::state_bytes() const { return executor_->state_bytes(); }

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
