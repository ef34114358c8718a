#include "format/cache_policy.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <string_view>
#include <system_error>

namespace moepack {

const char* CachePolicyName(CachePolicyKind kind) {
  switch (kind) {
    case CachePolicyKind::kLru:
      return "lru";
    case CachePolicyKind::kLfu:
      return "lfu";
    case CachePolicyKind::kHobbit:
      return "hobbit";
  }
  return "unknown";
}

std::string DescribeCachePolicy(const CachePolicy& policy) {
  std::string text = CachePolicyName(policy.kind);
  if (policy.kind == CachePolicyKind::kHobbit) {
    text += StrFormat(" recency %u frequency %u nearness %u", policy.recency, policy.frequency, policy.nearness);
  }
  if (policy.kind != CachePolicyKind::kLru) text += StrFormat(" half-life %u", policy.half_life);
  if (policy.pinned_percent > 0) text += StrFormat(" pinned %u", policy.pinned_percent);
  return text;
}

namespace {

// Takes the next word, between spaces, off `text`; empty when there is none.
std::string_view NextWord(std::string_view* text) {
  const size_t begin = std::min(text->find_first_not_of(' '), text->size());
  const size_t end = std::min(text->find(' ', begin), text->size());
  const std::string_view word = text->substr(begin, end - begin);
  text->remove_prefix(end);
  return word;
}

bool ReadNumber(std::string_view digits, uint32_t* value) {
  const char* const end = digits.data() + digits.size();
  const auto read = std::from_chars(digits.data(), end, *value);
  return read.ec == std::errc() && read.ptr == end;
}

uint32_t* ValueOf(std::string_view name, CachePolicy* policy) {
  if (name == "recency") return &policy->recency;
  if (name == "frequency") return &policy->frequency;
  if (name == "nearness") return &policy->nearness;
  if (name == "half-life") return &policy->half_life;
  if (name == "pinned") return &policy->pinned_percent;
  return nullptr;
}

}  // namespace

Result<CachePolicy> ParseCachePolicy(const std::string& text) {
  std::string_view rest = text;
  CachePolicy policy;
  const std::string_view kind = NextWord(&rest);
  if (kind == "lfu") {
    policy = {CachePolicyKind::kLfu, 64};
  } else if (kind == "hobbit") {
    policy = {CachePolicyKind::kHobbit, 64, 10, 80, 10};
  } else if (kind != "lru") {
    return Status(ErrorCode::kUsage, "cache policy '" + text + "': expected lru, lfu or hobbit");
  }
  for (std::string_view name = NextWord(&rest); !name.empty(); name = NextWord(&rest)) {
    uint32_t* const value = ValueOf(name, &policy);
    const std::string_view digits = NextWord(&rest);
    if (value == nullptr || !ReadNumber(digits, value)) {
      return Status(
          ErrorCode::kUsage,
          "cache policy '" + text + "': expected recency, frequency, nearness, half-life or pinned, and a number each");
    }
  }
  if (const Status status = CheckCachePolicy(policy); !status.ok()) return Status(ErrorCode::kUsage, status.message());
  return policy;
}

Status CheckCachePolicy(const CachePolicy& policy) {
  const uint64_t weights = uint64_t{policy.recency} + policy.frequency + policy.nearness;
  const uint64_t wanted = policy.kind == CachePolicyKind::kHobbit ? 100 : 0;
  if (weights != wanted) {
    return Status(ErrorCode::kMalformed,
                  StrFormat("cache policy %s: weights add up to %llu, expected %llu", CachePolicyName(policy.kind),
                            static_cast<unsigned long long>(weights), static_cast<unsigned long long>(wanted)));
  }
  const uint32_t longest = policy.kind == CachePolicyKind::kLru ? 0 : kMaxCacheHalfLife;
  if (policy.half_life > longest) {
    return Status(ErrorCode::kMalformed, StrFormat("cache policy %s: half-life of %u tokens, at most %u",
                                                   CachePolicyName(policy.kind), policy.half_life, longest));
  }
  if (policy.pinned_percent > kMaxPinnedPercent) {
    return Status(ErrorCode::kMalformed,
                  StrFormat("cache policy: %u percent pinned, at most %u", policy.pinned_percent, kMaxPinnedPercent));
  }
  return Status::Ok();
}

CacheClock::CacheClock(const CachePolicy& policy, uint32_t tables) : policy_(policy), tables_(std::max(tables, 1u)) {
  if (policy.half_life == 0) return;
  step_decay_ = -1.0 / (static_cast<double>(policy.half_life) * tables_);
  per_token_ = 1 - std::exp2(-1.0 / policy.half_life);
}

void CacheClock::Advance(uint32_t table, uint64_t tokens) {
  step_ += tokens;
  table_ = table;
}

double CacheClock::Aged(uint64_t since) const { return std::exp2(static_cast<double>(step_ - since) * step_decay_); }

void CacheClock::Use(uint64_t tokens, ExpertUse* use) const {
  use->uses = use->uses * Aged(use->last) + static_cast<double>(tokens);
  use->last = step_;
}

double CacheClock::Score(const ExpertUse& use, uint32_t table) const {
  if (policy_.kind == CachePolicyKind::kLru) return static_cast<double>(use.last);
  const double aged = Aged(use.last);
  if (policy_.kind == CachePolicyKind::kLfu) return use.uses * aged;
  const double steps = static_cast<double>(std::max<uint64_t>(step_, 1));
  double recency = static_cast<double>(use.last) / steps, frequency = use.uses * tables_ / steps;
  if (policy_.half_life > 0) {
    recency = use.last == 0 ? 0 : aged;
    frequency = use.uses * aged * per_token_;
  }
  // Tables until this one is routed again: the one that runs now comes last.
  const uint32_t ahead = table > table_ ? table - table_ : table + tables_ - table_;
  const double nearness = 1 - static_cast<double>(ahead) / tables_;
  return policy_.recency * recency + policy_.frequency * frequency + policy_.nearness * nearness;
}

}  // namespace moepack
