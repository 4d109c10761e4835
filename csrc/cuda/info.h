// What the CUDA part of this build is, and whether it can run here. In every build; without CUDA it says so.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace fusedoptim::cuda {

std::vector<std::string> architectures();  // such as 8.0, 9.0 and 9.0+PTX; none in a build without CUDA
std::optional<std::string> compiler();
std::optional<std::string> runtime();
// Why CUDA cannot be used here, if it cannot. Starts the driver, as counting the devices does, but no context.
std::optional<std::string> error();

}  // namespace fusedoptim::cuda
