#include "compressor/plan/allocate.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/checked.h"

namespace moepack {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// Cells that the exact table may visit: a second or so.
constexpr double kMaxExactWork = 1e9;
// Cells of two bytes that the exact table may keep: 128 MiB.
constexpr double kMaxExactCells = 1 << 26;

using Units = std::span<const std::vector<Option>>;

// Pages of an option.
uint64_t Pages(const Option& option, uint64_t granularity) { return CeilDiv(option.cost, granularity); }

Allocation Sum(Units units, std::vector<size_t> chosen, uint64_t granularity) {
  Allocation out;
  out.chosen = std::move(chosen);
  for (size_t u = 0; u < units.size(); ++u) {
    out.cost += Pages(units[u][out.chosen[u]], granularity) * granularity;
    out.loss += units[u][out.chosen[u]].loss;
  }
  return out;
}

// best[b]: least loss of the units so far with at most b pages above the cheapest choice.
Allocation Exact(Units units, const std::vector<uint64_t>& cheapest, uint64_t slack, uint64_t granularity) {
  std::vector<double> best(slack + 1, 0.0), next(slack + 1);
  std::vector<std::vector<uint16_t>> choice(units.size(), std::vector<uint16_t>(slack + 1));
  for (size_t u = 0; u < units.size(); ++u) {
    std::fill(next.begin(), next.end(), kInfinity);
    for (size_t o = 0; o < units[u].size(); ++o) {
      const uint64_t extra = Pages(units[u][o], granularity) - cheapest[u];
      for (uint64_t b = extra; b <= slack; ++b) {
        const double loss = best[b - extra] + units[u][o].loss;
        if (loss < next[b]) {
          next[b] = loss;
          choice[u][b] = static_cast<uint16_t>(o);
        }
      }
    }
    std::swap(best, next);
  }
  uint64_t at = slack;
  while (at > 0 && best[at - 1] <= best[at]) --at;
  std::vector<size_t> chosen(units.size());
  for (size_t u = units.size(); u-- > 0;) {
    chosen[u] = choice[u][at];
    at -= Pages(units[u][chosen[u]], granularity) - cheapest[u];
  }
  Allocation out = Sum(units, std::move(chosen), granularity);
  out.bound = out.loss;
  return out;
}

std::vector<size_t> BestAt(Units units, double price, uint64_t granularity) {
  std::vector<size_t> chosen(units.size(), 0);
  for (size_t u = 0; u < units.size(); ++u) {
    double best = kInfinity;
    for (size_t o = 0; o < units[u].size(); ++o) {
      const double value = units[u][o].loss + price * static_cast<double>(Pages(units[u][o], granularity));
      if (value < best) {
        best = value;
        chosen[u] = o;
      }
    }
  }
  return chosen;
}

// Spends what is left of the budget on the changes that lower the loss most a page.
void Fill(Units units, uint64_t pages, uint64_t granularity, Allocation* allocation) {
  struct Move {
    double rate;
    size_t unit, option;
  };
  std::vector<Move> moves;
  for (size_t u = 0; u < units.size(); ++u) {
    const Option& now = units[u][allocation->chosen[u]];
    for (size_t o = 0; o < units[u].size(); ++o) {
      const double gain = now.loss - units[u][o].loss;
      const auto more = static_cast<double>(Pages(units[u][o], granularity)) - static_cast<double>(Pages(now, granularity));
      if (gain > 0) moves.push_back({gain / std::max(more, 1e-9), u, o});
    }
  }
  std::stable_sort(moves.begin(), moves.end(), [](const Move& a, const Move& b) { return a.rate > b.rate; });
  std::vector<size_t> chosen = allocation->chosen;
  uint64_t used = allocation->cost / granularity;
  for (const Move& move : moves) {
    const Option& now = units[move.unit][chosen[move.unit]];
    const Option& then = units[move.unit][move.option];
    const uint64_t after = used - Pages(now, granularity) + Pages(then, granularity);
    if (then.loss >= now.loss || after > pages) continue;
    chosen[move.unit] = move.option;
    used = after;
  }
  *allocation = Sum(units, std::move(chosen), granularity);
}

struct Priced {
  double price = 0;  // of a page: the lowest found at which the best choice fits
  double bound = 0;
};

// Bisection of the price; every price tried gives a bound (the dual function).
Priced FindPrice(Units units, uint64_t pages, uint64_t granularity) {
  Priced out;
  double low = 0, high = 1e-12;
  const auto try_price = [&](double price) {
    const Allocation at = Sum(units, BestAt(units, price, granularity), granularity);
    const uint64_t used_pages = at.cost / granularity;
    const auto used = static_cast<double>(used_pages);
    out.bound = std::max(out.bound, at.loss + price * (used - static_cast<double>(pages)));
    return used <= static_cast<double>(pages);
  };
  if (try_price(0)) return out;
  while (high < 1e300 && !try_price(high)) {
    low = high;
    high *= 16;
  }
  static constexpr int kSteps = 60;
  for (int i = 0; i < kSteps; ++i) {
    const double middle = 0.5 * (low + high);
    (try_price(middle) ? high : low) = middle;
  }
  out.price = high;
  return out;
}

Allocation Relaxed(Units units, uint64_t pages, uint64_t granularity) {
  const Priced priced = FindPrice(units, pages, granularity);
  Allocation out = Sum(units, BestAt(units, priced.price, granularity), granularity);
  Fill(units, pages, granularity, &out);
  out.bound = std::min(priced.bound, out.loss);
  return out;
}

}  // namespace

Result<Allocation> Allocate(Units units, uint64_t budget, uint64_t granularity) {
  const uint64_t pages = budget / granularity;
  std::vector<uint64_t> cheapest;
  uint64_t least = 0, most = 0, options = 0;
  for (const std::vector<Option>& unit : units) {
    uint64_t low = std::numeric_limits<uint64_t>::max(), high = 0;
    for (const Option& option : unit) {
      low = std::min(low, Pages(option, granularity));
      high = std::max(high, Pages(option, granularity));
    }
    cheapest.push_back(low);
    least += low;
    most += high;
    options += unit.size();
  }
  if (least > pages) {
    const unsigned long long bytes = least * granularity;
    return Status(ErrorCode::kGate, StrFormat("the smallest choice takes %llu bytes", bytes));
  }
  const uint64_t slack = std::min(pages, most) - least;
  const bool small = std::all_of(units.begin(), units.end(), [](const auto& u) { return u.size() < 65536; });
  const auto columns = static_cast<double>(slack + 1);
  if (small && static_cast<double>(options) * columns <= kMaxExactWork &&
      static_cast<double>(units.size()) * columns <= kMaxExactCells)
    return Exact(units, cheapest, slack, granularity);
  return Relaxed(units, pages, granularity);
}

double DualBound(Units units, uint64_t budget) { return FindPrice(units, budget, 1).bound; }

namespace {

struct Point {
  Option option;
  size_t left = 0, right = 0;  // indices of the two points it is the sum of
};

// Undominated points by increasing cost.
void KeepFront(std::vector<Point>* points) {
  std::stable_sort(points->begin(), points->end(), [](const Point& a, const Point& b) {
    return a.option.cost != b.option.cost ? a.option.cost < b.option.cost : a.option.loss < b.option.loss;
  });
  std::vector<Point> front;
  for (const Point& p : *points) {
    if (front.empty() || p.option.loss < front.back().option.loss) front.push_back(p);
  }
  *points = std::move(front);
}

// Drops points off the convex hull, evenly, until kMaxFront remain.
bool Thin(std::vector<Point>* front) {
  if (front->size() <= kMaxFront) return false;
  std::vector<bool> keep(front->size(), false);
  std::vector<size_t> hull;
  const auto at = [&](size_t i) -> const Option& { return (*front)[i].option; };
  const auto slope = [&](size_t a, size_t b) {
    return (at(a).loss - at(b).loss) / static_cast<double>(at(b).cost - at(a).cost);
  };
  for (size_t i = 0; i < front->size(); ++i) {
    while (hull.size() >= 2 && slope(hull[hull.size() - 2], hull.back()) <= slope(hull.back(), i)) hull.pop_back();
    hull.push_back(i);
  }
  for (size_t i : hull) keep[i] = true;
  const size_t step = CeilDiv(front->size(), kMaxFront);
  for (size_t i = 0; i < front->size(); i += step) keep[i] = true;
  std::vector<Point> thinned;
  for (size_t i = 0; i < front->size(); ++i) {
    if (keep[i]) thinned.push_back((*front)[i]);
  }
  *front = std::move(thinned);
  return true;
}

}  // namespace

Combined Combine(std::span<const std::vector<Option>> tensors) {
  Combined out;
  out.options = {{0, 0}};
  out.picks = {{}};
  for (const std::vector<Option>& tensor : tensors) {
    std::vector<Point> points;
    points.reserve(out.options.size() * tensor.size());
    for (size_t i = 0; i < out.options.size(); ++i) {
      for (size_t o = 0; o < tensor.size(); ++o) {
        points.push_back({{out.options[i].cost + tensor[o].cost, out.options[i].loss + tensor[o].loss}, i, o});
      }
    }
    KeepFront(&points);
    Combined next;
    next.thinned = Thin(&points) || out.thinned;
    for (const Point& p : points) {
      next.options.push_back(p.option);
      next.picks.push_back(out.picks[p.left]);
      next.picks.back().push_back(static_cast<uint8_t>(p.right));
    }
    out = std::move(next);
  }
  return out;
}

}  // namespace moepack
