// The part of ValidateProgram that walks the nodes. Internal to format/.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "base/status.h"
#include "format/program.h"

namespace moepack {

inline bool NotNegative(float v) { return std::isfinite(v) && v >= 0; }

// Checks nodes one by one, in order, and remembers what they produced and used. The program's declarations must have been
// checked before: widths and shapes are taken as sane. Keeps a reference to the program.
class NodeChecker {
 public:
  explicit NodeChecker(const Program& program);
  Status CheckInputs();
  // Node `index`; call for 0, 1, 2 ... until one fails.
  Status CheckNode(size_t index);
  // After the last node: everything declared was produced and used.
  Status CheckCompleteness() const;

 private:
  Status CheckBlock(const Node& node) const;
  Status CheckEdges(const Node& node) const;
  Status CheckUnusedFields(const Node& node) const;
  Status CheckKind(const Node& node);
  Status CheckEmbedding(const Node& node);
  Status CheckLinear(const Node& node);
  Status CheckNorm(const Node& node);
  Status CheckRotary(const Node& node) const;
  Status CheckLongRotary(const RotaryNode& rotary) const;
  Status CheckAttention(const Node& node);
  Status CheckMoe(const Node& node);
  Status CheckActivation(const ActivationRecord& activation, const ExpertTableDecl& table) const;
  Status CheckExpertBiases(const MoeNode& moe, const ExpertTableDecl& table);
  Status CheckGroups(const RoutingRecord& routing, const ExpertTableDecl& table) const;
  Status CheckRouting(const MoeNode& moe, const ExpertTableDecl& table) const;
  Status CheckElementwise(const Node& node) const;
  Status CheckSlice(const Node& node) const;
  Status CheckConcat(const Node& node) const;
  Status CheckConvolution(const Node& node);

  // An error at the node being checked.
  Status Bad(const std::string& rule) const;
  Status OverLimit(const std::string& rule) const;
  Status Arity(const Node& node, size_t inputs) const;
  Status Width(const char* what, uint64_t have, uint64_t want) const;
  Status UseTensor(const char* what, TensorId id, uint64_t rows, uint64_t cols);
  Status UseSlot(uint32_t slot);
  Status UseVector(const char* what, TensorId id, uint64_t cols);  // kNone: absent, fine
  uint64_t InputWidth(const Node& node, size_t i) const { return program_.values[node.inputs[i]].width; }
  uint64_t OutputWidth(const Node& node) const { return program_.values[node.output].width; }

  struct TensorUse {
    int32_t block = -1;         // of its first use
    bool by_embedding = false;  // its first use is as an embedding table
  };

  const Program& program_;
  size_t index_ = 0;
  std::vector<bool> produced_, slot_used_, table_used_;
  std::vector<TensorUse> uses_;
};

}  // namespace moepack
