#include "python/rules.h"

#include <cmath>
#include <iterator>
#include <new>
#include <type_traits>

#include "python/group_reader.h"
#include "rules/all.h"

namespace fusedoptim::python {

namespace py = pybind11;

namespace {

// A float that notes when it is made of a finite double that is too large for one. A rule over it has the constants of
// the rule over float.
struct NotedFloat {
  float value;
  static thread_local bool overflowed;
  NotedFloat(double x) : value(float(x)) { overflowed = overflowed || (std::isinf(value) && !std::isinf(x)); }
  operator float() const { return value; }
};
thread_local bool NotedFloat::overflowed = false;

template <template <class> class Rule>
struct Erased {
  using O = typename Rule<float>::Options;
  static_assert(sizeof(O) <= kMaxRuleBytes && sizeof(Rule<double>) <= kMaxRuleBytes);

  static const O& as_options(const Options& o) { return *reinterpret_cast<const O*>(o.bytes); }

  static void read(const GroupReader& reader, Options& out) { (new (out.bytes) O)->read(reader); }
  static int variant(const Options& o, DType dtype, bool first) {
    return dtype == DType::f64 ? Rule<double>::variant(as_options(o), first)
                               : Rule<float>::variant(as_options(o), first);
  }
  static unsigned states_of(int variant) { return Rule<float>::states_of(variant); }
  static void advance(const Options& o, Numbers& numbers) { NumbersOf<Rule<float>>::advance(as_options(o), numbers); }
  static bool make_constants(const Options& o, const Numbers& numbers, DType dtype, Constants& out) {
    if (dtype == DType::f64) {
      new (out.bytes) Rule<double>(NumbersOf<Rule<double>>::make(as_options(o), numbers));
      return true;
    }
    static_assert(sizeof(Rule<NotedFloat>) == sizeof(Rule<float>) && std::is_standard_layout<Rule<NotedFloat>>::value,
                  "the kernels read it as one over float");
    NotedFloat::overflowed = false;
    new (out.bytes) Rule<NotedFloat>(NumbersOf<Rule<NotedFloat>>::make(as_options(o), numbers));
    return !NotedFloat::overflowed;
  }
  static void advance_group(const Options& o, double* numbers) {
    GroupNumbersOf<Rule<float>>::advance(as_options(o), numbers);
  }
  static double step_of_group(const Options& o) { return GroupNumbersOf<Rule<float>>::step(as_options(o)); }
  static RuleEntry entry(int index) {
    using R = Rule<float>;
    RuleEntry found{};
    found.index = index;
    found.name = R::kName;
    found.states = R::kStates;
    found.max_states = int(std::size(R::kStates));
    found.non_negative = R::kNonNegative;
    found.counts_steps = R::kCountsSteps;
    found.numbers = NumbersOf<R>::kNames;
    found.number_count = NumbersOf<R>::kCount;
    found.group_numbers = GroupNumbersOf<R>::kNames;
    found.group_number_count = GroupNumbersOf<R>::kCount;
    found.advance_group = advance_group;
    found.step_of_group = step_of_group;
    found.read = read;
    found.variant = variant;
    found.states_of = states_of;
    found.advance = advance;
    found.make_constants = make_constants;
    return found;
  }
};

template <template <class> class... Rules>
const RuleEntry& find(const std::string& name, RuleList<Rules...>) {
  int index = 0;
  static const RuleEntry entries[] = {Erased<Rules>::entry(index++)...};
  std::string known;
  for (const RuleEntry& entry : entries) {
    if (name == entry.name) return entry;
    known += (known.empty() ? "" : ", ") + std::string(entry.name);
  }
  throw py::key_error("no rule named '" + name + "'; there are: " + known);
}

}  // namespace

const RuleEntry& find_rule(const std::string& name) { return find(name, AllRules()); }

}  // namespace fusedoptim::python
