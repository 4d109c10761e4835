#include "python/storage.h"

#include <algorithm>

namespace fusedoptim::python {

const char* check_dtypes(const DType* dtypes, const Owned& owned) {
  const DType param = dtypes[0];
  const int operands = 2 + owned.tensors;
  for (int k = 1; k < operands; ++k) {
    const bool is_companion = owned.companion != Companion::none && k == operands - 1;
    const bool is_rules = k >= 2 && k < 2 + owned.states;
    if (is_companion) {
      const DType wanted = owned.companion == Companion::master      ? DType::f32
                           : owned.companion == Companion::remainder ? DType::i16
                                                                     : param;
      if (dtypes[k] != wanted) return "its master_param or kahan_comp has another dtype than its group asks for";
      if (owned.companion == Companion::remainder && param != DType::bf16)
        return "only bfloat16 parameters have remainders";
      continue;
    }
    if (k == 1 && !is_number(dtypes[k])) return "its gradient has a dtype of integers";
    if (!is_number(dtypes[k]) && !(is_rules && dtypes[k] == DType::u8)) return "its state has a dtype of integers";
    if ((dtypes[k] == DType::f64) != (param == DType::f64))
      return k == 1 ? "its gradient has another dtype, and float64 is not mixed with others"
                    : "its state has another dtype, and float64 is not mixed with others";
  }
  return nullptr;
}

bool describe_storage(Task& task, const Owned& owned, const StorageSettings& settings, const RuleEntry& rule) {
  const int operands = 2 + owned.tensors;
  const auto differs = [&](DType dtype) { return dtype != task.dtype; };
  task.mixed = owned.companion != Companion::none || std::any_of(task.dtypes, task.dtypes + operands, differs) ||
               (task.dtype == DType::bf16 && (settings.stochastic || settings.stochastic_states != 0));
  if (!task.mixed) return false;
  task.companion = owned.companion;
  task.seed = settings.seed;
  std::fill(task.scales, task.scales + kMaxOperands, nullptr);
  bool is_numbered = false;
  for (int k = 0; k < operands; ++k) {
    const int state = k - 2;
    Coding& coding = task.codings[k] = Coding::nearest;
    if (k == 0 && settings.stochastic && task.dtype == DType::bf16 && owned.companion == Companion::none)
      coding = Coding::stochastic;
    if (state < 0 || state >= owned.states) {
      is_numbered = is_numbered || coding != Coding::nearest;
      continue;
    }
    const unsigned bit = 1u << owned.state(state);
    const bool rounds = (settings.stochastic && task.dtype == DType::bf16) || (settings.stochastic_states & bit) != 0;
    if (task.dtypes[k] == DType::bf16 && rounds && (rule.non_negative & bit) != 0) coding = Coding::stochastic;
    if (task.dtypes[k] == DType::u8) coding = (rule.non_negative & bit) != 0 ? Coding::magnitude : Coding::sign;
    is_numbered = is_numbered || coding != Coding::nearest;
  }
  return is_numbered;
}

Blocks blocks_of(int ndim, const int64_t* sizes, int64_t count) {
  return {ndim >= 2 && sizes[0] > 0 ? count / sizes[0] : count};
}

}  // namespace fusedoptim::python
