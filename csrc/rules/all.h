// Every rule there is; the order numbers them. A rule's header has the name of its struct, in small letters: the build
// reads the list, and compiles the kernels of each rule by themselves.
#pragma once

#include "rules/adadelta.h"
#include "rules/adagrad.h"
#include "rules/adam.h"
#include "rules/adamax.h"
#include "rules/adamwschedulefree.h"
#include "rules/adan.h"
#include "rules/ademamix.h"
#include "rules/asgd.h"
#include "rules/lion.h"
#include "rules/nadam.h"
#include "rules/radam.h"
#include "rules/rmsprop.h"
#include "rules/rprop.h"
#include "rules/sgd.h"
#include "rules/sgdschedulefree.h"

namespace fusedoptim {

template <template <class> class... Rules>
struct RuleList {};

using AllRules = RuleList<Sgd, Adam, Adadelta, Adagrad, Adamax, AdamWScheduleFree, Adan, AdEMAMix, Asgd, Lion, Nadam,
                          Radam, Rmsprop, Rprop, SGDScheduleFree>;

}  // namespace fusedoptim
