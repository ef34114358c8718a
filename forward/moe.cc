#include <algorithm>

#include "forward/nodes.h"

namespace moepack {
namespace {

// Which rows of the tile go to which expert. Rows of all experts are numbered through: expert by expert, each in token
// order, so that outputs fit one matrix [tokens * k, hidden].
struct Dispatch {
  std::vector<uint32_t> ids;     // [tokens, k]
  std::vector<float> weights;    // [tokens, k]
  std::vector<uint32_t> routed;  // [tokens, k]: row of (token, slot) in that order
  std::vector<uint32_t> token;   // [tokens * k]: its inverse, token only
  std::vector<float> gate;       // [tokens * k]
  std::vector<uint32_t> first;   // [experts + 1]
};

Dispatch RouteTile(const RoutingRecord& routing, const RoutingTables& tables, const Matrix& logits, ThreadPool& pool) {
  const size_t tokens = logits.rows(), k = routing.k, experts = logits.cols();
  Dispatch d;
  d.ids.resize(tokens * k);
  d.weights.resize(tokens * k);
  pool.ParallelFor(tokens, kRowBlock, [&](size_t begin, size_t end) {
    for (size_t t = begin; t < end; ++t) {
      Route(routing, tables, {logits.row(t).data(), experts}, {&d.ids[t * k], k}, {&d.weights[t * k], k});
    }
  });
  d.first.assign(experts + 1, 0);
  for (uint32_t id : d.ids) ++d.first[id + 1];
  for (size_t e = 0; e < experts; ++e) d.first[e + 1] += d.first[e];
  std::vector<uint32_t> next(d.first.begin(), d.first.end() - 1);
  d.routed.resize(tokens * k);
  d.token.resize(tokens * k);
  d.gate.resize(tokens * k);
  for (size_t i = 0; i < d.ids.size(); ++i) {
    const uint32_t row = next[d.ids[i]]++;
    d.routed[i] = row;
    d.token[row] = static_cast<uint32_t>(i / k);
    d.gate[row] = d.weights[i];
  }
  return d;
}

// Rows [begin, end) in Dispatch order, all of one expert.
struct Task {
  uint32_t expert = 0, begin = 0, end = 0;
};

std::vector<Task> CutIntoTasks(const Dispatch& d, const std::function<bool(uint32_t)>& wants) {
  std::vector<Task> tasks;
  for (uint32_t e = 0; e + 1 < d.first.size(); ++e) {
    if (wants != nullptr && !wants(e)) continue;
    const uint32_t rows = d.first[e + 1] - d.first[e];
    const uint32_t blocks = (rows + kRowBlock - 1) / kRowBlock;  // of nearly equal size: a block of one row is slow
    for (uint32_t b = 0; b < blocks; ++b) {
      tasks.push_back({e, d.first[e] + rows * b / blocks, d.first[e] + rows * (b + 1) / blocks});
    }
  }
  return tasks;
}

struct ExpertRun {
  const MoeNode& node;
  const BlockWeights& weights;
  const Matrix& in;
  const Dispatch& dispatch;
  std::vector<ExpertCapture>* captures;     // null, or
  const std::vector<uint32_t>& capture_of;  // by expert
  Matrix* outputs;                          // null: captures have none either

  void operator()(const Task& task) const {
    const uint32_t table = node.table, rows = task.end - task.begin;
    Matrix x(rows, in.cols());
    for (uint32_t i = 0; i < rows; ++i) {
      x.row(i) = in.row(dispatch.token[task.begin + i]);
      if (node.routing.weight_on_input) x.row(i) *= dispatch.gate[task.begin + i];
    }
    const Matrix& up = weights.expert(table, task.expert, ExpertMatrix::kUp);
    Matrix h(rows, up.rows());
    h.noalias() = x * up.transpose();
    AddBias(node.up_bias, task.expert, &h);
    if (node.activation.gated) {
      Matrix g(rows, up.rows());
      g.noalias() = x * weights.expert(table, task.expert, ExpertMatrix::kGate).transpose();
      AddBias(node.gate_bias, task.expert, &g);
      ActivateExpert(node.activation, &g, &h);
    } else {
      ActivateExpert(node.activation, nullptr, &h);
    }
    const uint32_t at = task.begin - dispatch.first[task.expert];
    ExpertCapture* capture = captures == nullptr ? nullptr : &(*captures)[capture_of[task.expert]];
    if (outputs != nullptr) {
      auto y = outputs->middleRows(task.begin, rows);
      y.noalias() = h * weights.expert(table, task.expert, ExpertMatrix::kDown).transpose();
      if (node.down_bias != kNone) y.rowwise() += weights.dense(node.down_bias).row(task.expert);
      if (capture != nullptr) capture->output.middleRows(at, rows) = y;
    }
    if (capture == nullptr) return;
    capture->input.middleRows(at, rows) = x;
    capture->down_input.middleRows(at, rows) = h;
  }

  void AddBias(TensorId bias, uint32_t expert, Matrix* values) const {
    if (bias == kNone) return;
    values->rowwise() += weights.dense(bias).row(expert).head(values->cols());
  }
};

// Captures with their matrices allocated; capture_of[e] is the place of expert e, if it got rows.
std::vector<ExpertCapture> AllocateCaptures(const ExpertTableDecl& table, const Dispatch& d, bool on_input, bool outputs,
                                            const std::function<bool(uint32_t)>& wants, std::vector<uint32_t>* capture_of) {
  std::vector<ExpertCapture> captures;
  capture_of->assign(table.experts(), kNone);
  for (uint32_t e = 0; e < table.experts(); ++e) {
    const uint32_t begin = d.first[e], end = d.first[e + 1];
    if (begin == end || (wants != nullptr && !wants(e))) continue;
    (*capture_of)[e] = static_cast<uint32_t>(captures.size());
    ExpertCapture& c = captures.emplace_back();
    c.expert = e;
    c.rows.assign(d.token.begin() + begin, d.token.begin() + end);
    if (on_input) {
      c.gates.assign(end - begin, 1.0f);
    } else {
      c.gates.assign(d.gate.begin() + begin, d.gate.begin() + end);
    }
    c.input.resize(end - begin, table.hidden);
    c.down_input.resize(end - begin, table.intermediate[e]);
    if (outputs) c.output.resize(end - begin, table.hidden);
  }
  return captures;
}

}  // namespace

void ActivateExpert(const ActivationRecord& record, Matrix* gate, Matrix* up) {
  if (!record.gated) {
    Activate(record.function, *up);
    return;
  }
  if (record.limit > 0) {
    gate->array() = gate->array().min(record.limit);
    up->array() = up->array().max(-record.limit).min(record.limit);
  }
  if (record.sigmoid_scale > 0) {
    gate->array() = gate->array() / (1 + (-record.sigmoid_scale * gate->array()).exp());
  } else {
    Activate(record.function, *gate);
  }
  if (record.up_offset != 0) up->array() += record.up_offset;
  up->array() *= gate->array();
}

void RunMoe(const Node& node, const ExpertTableDecl& table, const BlockWeights& weights, const Matrix& in,
            const Matrix& logits, ThreadPool& pool, const std::function<bool(uint32_t)>& wants, MoeCapture* capture,
            Matrix* out) {
  const size_t k = node.moe.routing.k;
  const Matrix* bias = node.moe.selection_bias == kNone ? nullptr : &weights.dense(node.moe.selection_bias);
  RoutingTables tables;
  if (bias != nullptr) tables.selection_bias = {bias->data(), static_cast<size_t>(bias->size())};
  tables.original = table.original;
  Dispatch d = RouteTile(node.moe.routing, tables, logits, pool);
  // From here on weights are those of outputs; inputs took theirs from `gate`.
  if (node.moe.routing.weight_on_input) std::fill(d.weights.begin(), d.weights.end(), 1.0f);
  std::vector<uint32_t> capture_of;
  if (capture != nullptr) {
    capture->experts = AllocateCaptures(table, d, node.moe.routing.weight_on_input, out != nullptr, wants, &capture_of);
  }
  Matrix outputs(out != nullptr ? d.ids.size() : 0, in.cols());
  const std::vector<Task> tasks = CutIntoTasks(d, wants);
  const ExpertRun run{
      node.moe, weights, in, d, capture ? &capture->experts : nullptr, capture_of, out != nullptr ? &outputs : nullptr};
  pool.ParallelFor(tasks.size(), 1, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) run(tasks[i]);
  });
  if (out != nullptr) {
    out->resize(in.rows(), in.cols());
    pool.ParallelFor(in.rows(), kRowBlock, [&](size_t begin, size_t end) {
      for (size_t t = begin; t < end; ++t) {
        out->row(t) = d.weights[t * k] * outputs.row(d.routed[t * k]);
        for (size_t s = 1; s < k; ++s) out->row(t) += d.weights[t * k + s] * outputs.row(d.routed[t * k + s]);
      }
    });
  }
  if (capture == nullptr) return;
  capture->node = &node;
  capture->input = &in;
  capture->logits = &logits;
  capture->ids = std::move(d.ids);
  capture->weights = std::move(d.weights);
}

}  // namespace moepack
