#include "python/rules.h"

#include <cmath>
#include <iterator>
#include <new>
#include <type_traits>

#include "core/nan.h"
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
  static bool make_constants(const Options& o, double step, DType dtype, Constants& out) {
    step = canonicalize_nan(step);
    if (dtype == DType::f64) {
      new (out.bytes) Rule<double>(as_options(o), step);
      return true;
    }
    static_assert(sizeof(Rule<NotedFloat>) == sizeof(Rule<float>) && std::is_standard_layout<Rule<NotedFloat>>::value,
                  "the kernels read it as one over float");
    NotedFloat::overflowed = false;
    new (out.bytes) Rule<NotedFloat>(as_options(o), step);
    return !NotedFloat::overflowed;
  }
  static RuleEntry entry(int index) {
    using R = Rule<float>;
    return {index,   R::kName,  R::kStates,    int(std::size(R::kStates)), R::kNonNegative, R::kCountsSteps, read,
            variant, states_of, make_constants};
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
