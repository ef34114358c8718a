// MoeExecutor where an expert is not there: what stands in for it, or how the others do without.
#include <algorithm>

#include "runtime-min/moe.h"

namespace moepack::runtime {
namespace {

const char* StepName(Unavailable step) {
  switch (step) {
    case Unavailable::kRetry:
      return "it is read again";
    case Unavailable::kLower:
      return "a lower precision stands in";
    case Unavailable::kTwin:
      return "its twin stands in";
    case Unavailable::kRenormalise:
      return "it is left out and the others take over its weight";
    case Unavailable::kDense:
      return "the layer's dense stand-in takes its place";
  }
  return "";
}

}  // namespace

// The (token, choice) that has this row of outputs_.
size_t MoeExecutor::ChoiceOf(size_t row, uint32_t k) const {
  size_t choice = size_t{rows_[row]} * k;
  while (place_[choice] != row) ++choice;
  return choice;
}

// What MissPolicy says about experts that are not resident. All tokens of a tile get what the one needs that needs it most.
void MoeExecutor::JudgeMisses(const MoeNode& node, size_t tokens) {
  const uint32_t k = node.routing.k;
  for (size_t t = 0; t < tokens; ++t) WeightsBefore({weights_.data() + t * k, k}, {before_.data() + t * k, k});
  for (Group& group : groups_) {
    if (cache_->IsComing(node.table, group.expert)) continue;
    float least = 1;
    for (size_t row = group.begin; row < group.end; ++row) least = std::min(least, before_[ChoiceOf(row, k)]);
    OnMiss action = ActionFor(options_.misses, double{least});
    if (action == OnMiss::kSkip && weight_on_input_) action = OnMiss::kLower;  // weights are in the inputs of all
    if (action == OnMiss::kLoad) continue;
    group.skipped = action == OnMiss::kSkip;
    stats_.skipped += group.skipped;
    const auto lower = stand_ins_.Next(node.table, group.expert, 0, VariantKind::kLower);
    if (group.skipped || !lower) continue;
    group.variant = *lower;
    group.lowered = true;
    ++stats_.lowered;
  }
}

// Its choices have no row from now on.
void MoeExecutor::LeaveOut(const Group& group, uint32_t k) {
  left_out_ = true;
  for (size_t row = group.begin; row < group.end; ++row) place_[ChoiceOf(row, k)] = kNone;
}

// Leaves the group out for those of its tokens that have another choice left; the rows of the others stay. How many went.
size_t MoeExecutor::LeaveOutBesideOthers(Group* group, uint32_t k) {
  const size_t all = group->rows();
  for (size_t row = group->begin; row < group->end;) {
    const auto choices = std::span(place_).subspan(size_t{rows_[row]} * k, k);
    if (std::count(choices.begin(), choices.end(), kNone) + 1 >= static_cast<ptrdiff_t>(k)) {
      ++row;
      continue;
    }
    const size_t last = --group->end, choice = ChoiceOf(row, k);
    if (row != last) {
      place_[ChoiceOf(last, k)] = static_cast<uint32_t>(row);
      rows_[row] = rows_[last];
      gates_[row] = gates_[last];
    }
    place_[choice] = kNone;
  }
  left_out_ = left_out_ || group->rows() < all;
  return all - group->rows();
}

// Chooses what stands in for groups_[index], of which `failure` tells; the failure itself when the policy has nothing more.
// A group that is left out goes before *done.
Status MoeExecutor::Bridge(const MoeNode& node, const Status& failure, size_t index, size_t* done) {
  if (!IsUnavailable(failure)) return failure;
  Group& group = groups_[index];
  const auto give_up = [&] { cache_->GiveUp(node.table, group.expert, group.variant); };
  const auto use = [&](uint32_t variant, VariantKind kind) {
    give_up();
    group.variant = turn_variants_[index] = variant;
    group.stand_in = kind;
    group.retries = 0;
    return Status::Ok();
  };
  if (group.lowered) {  // lower by choice, not by need
    group.lowered = false;
    --stats_.lowered;
    return use(0, VariantKind::kFirst);
  }
  // The next of that kind; none where a later step has been taken already.
  const auto next = [&](VariantKind kind) {
    return group.stand_in > kind
               ? std::nullopt
               : stand_ins_.Next(node.table, group.expert, group.stand_in == kind ? group.variant : 0, kind);
  };
  bool alone = false;
  for (const Unavailable step : options_.unavailable) {
    std::optional<uint32_t> variant;
    VariantKind kind = VariantKind::kFirst;
    switch (step) {
      case Unavailable::kRetry:
        if (group.retries == kRetries || cache_->IsGivenUp(node.table, group.expert, group.variant)) continue;
        ++group.retries;
        ReportBridge(group, node.table, step, failure);
        return Status::Ok();
      case Unavailable::kLower:
        kind = VariantKind::kLower;
        break;
      case Unavailable::kTwin:
        kind = VariantKind::kTwin;
        break;
      case Unavailable::kRenormalise:
        if (weight_on_input_) continue;  // weights are in the inputs of all
        if (LeaveOutBesideOthers(&group, node.routing.k) > 0) {
          ReportBridge(group, node.table, step, failure);
          ++stats_.renormalised;
        }
        alone = group.rows() > 0;
        if (alone) continue;
        give_up();
        std::swap(groups_[index], groups_[*done]);
        std::swap(turn_experts_[index], turn_experts_[*done]);
        std::swap(turn_variants_[index], turn_variants_[*done]);
        ++*done;
        return Status::Ok();
      case Unavailable::kDense:
        kind = VariantKind::kDense;
        break;
    }
    variant = next(kind);
    if (!variant) continue;
    ReportBridge(group, node.table, step, failure);
    return use(*variant, kind);
  }
  if (group.stand_in != VariantKind::kFirst)
    return failure.With(cache_->NameOf(node.table, group.expert) + " cannot be read, nor what stands in for it");
  return alone ? failure.With("of the experts that a token needs none can be read") : failure;
}

void MoeExecutor::ReportBridge(const Group& group, uint32_t table, Unavailable step, const Status& failure) {
  if (!options_.notice || !reported_.insert({table, group.expert, static_cast<uint32_t>(step)}).second) return;
  options_.notice(failure.message() + ": " + StepName(step) + ", as the bundle allows");
}

void MoeExecutor::CountBridged(std::span<const Group> turn) {
  for (const Group& group : turn) {
    switch (group.stand_in) {
      case VariantKind::kFirst:
        stats_.retried += group.retries > 0;
        break;
      case VariantKind::kLower:
        ++stats_.bridged_lower;
        break;
      case VariantKind::kTwin:
        ++stats_.bridged_twin;
        break;
      case VariantKind::kDense:
        ++stats_.bridged_dense;
        break;
    }
  }
}

// The weights of choices that were left out go to the token's others in proportion to theirs.
void MoeExecutor::Renormalise(size_t tokens, uint32_t k) {
  for (size_t t = 0; t < tokens; ++t) {
    float all = 0, present = 0;
    bool complete = true;
    for (size_t c = t * k; c < (t + 1) * k; ++c) {
      all += weights_[c];
      if (place_[c] == kNone) {
        complete = false;
      } else {
        present += weights_[c];
      }
    }
    if (complete || present == 0) continue;
    for (size_t c = t * k; c < (t + 1) * k; ++c) weights_[c] *= all / present;
  }
}

}  // namespace moepack::runtime
