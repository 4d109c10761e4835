// Every rule of the product behind one set of functions.
#pragma once

#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "core/task.h"
#include "rules/all.h"

namespace cuda_on_cpu {

struct AnyRule {
  std::string name;
  int variants;
  unsigned (*states_of)(int variant);
  size_t option_bytes;
  int option_doubles;  // with which the options begin
  // Options that begin with these doubles; `flag` is the value of each bool.
  void (*set_options)(void* options, const double* doubles, bool flag);
  int number_count;  // beside the step
  void (*advance)(const void* options, fusedoptim::Numbers& numbers);
  // The constants for a step, for double or for float arithmetic; returns their size.
  size_t (*fold)(const void* options, const fusedoptim::Numbers& numbers, bool in_double, void* constants);
};

// Calls `visit` with each double and each bool of the options; what else a rule says of its options is passed over.
template <class Options, class Visit>
void for_each_option(Options& options, Visit visit) {
  const auto visit_field = [&](auto& field) {
    using Field = std::remove_reference_t<decltype(field)>;
    if constexpr (std::is_same_v<Field, double> || std::is_same_v<Field, bool>) visit(field);
  };
  options.read([&](const char* /*name*/, auto&... fields) { (visit_field(fields), ...); });
}

template <template <class> class Rule>
AnyRule any_rule() {
  using Options = typename Rule<float>::Options;
  AnyRule any;
  any.name = Rule<float>::kName;
  any.variants = Rule<float>::kVariants;
  any.states_of = Rule<float>::states_of;
  any.option_bytes = sizeof(Options);
  any.option_doubles = 0;
  Options options{};
  for_each_option(options, [&](auto& field) { any.option_doubles += sizeof(field) == sizeof(double); });
  any.set_options = [](void* at, const double* doubles, bool flag) {
    Options filled{};
    int next = 0;
    for_each_option(filled, [&](auto& field) {
      if constexpr (sizeof(field) == sizeof(double)) {
        field = doubles[next++];
      } else {
        field = flag;
      }
    });
    std::memcpy(at, &filled, sizeof(filled));
  };
  any.number_count = fusedoptim::NumbersOf<Rule<float>>::kCount;
  any.advance = [](const void* at, fusedoptim::Numbers& numbers) {
    Options options;
    std::memcpy(&options, at, sizeof(options));
    fusedoptim::NumbersOf<Rule<float>>::advance(options, numbers);
  };
  any.fold = [](const void* at, const fusedoptim::Numbers& numbers, bool in_double, void* constants) {
    Options options;
    std::memcpy(&options, at, sizeof(options));
    const auto folded = [&](const auto& rule) {
      std::memcpy(constants, &rule, sizeof(rule));
      return sizeof(rule);
    };
    return in_double ? folded(fusedoptim::NumbersOf<Rule<double>>::make(options, numbers))
                     : folded(fusedoptim::NumbersOf<Rule<float>>::make(options, numbers));
  };
  return any;
}

template <template <class> class... Rules>
std::vector<AnyRule> list_rules(fusedoptim::RuleList<Rules...>) {
  return {any_rule<Rules>()...};
}

inline const std::vector<AnyRule>& all_rules() {
  static const std::vector<AnyRule> rules = list_rules(fusedoptim::AllRules());
  return rules;
}

}  // namespace cuda_on_cpu
