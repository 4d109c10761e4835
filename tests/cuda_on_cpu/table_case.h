// Which tasks share a launch where operands are stored in different ways, and what the tables say of them.
#pragma once

namespace cuda_on_cpu {

// Throws Mismatch; returns how many pairs of tasks were tried.
int check_tables();

}  // namespace cuda_on_cpu
