// The number of what the modules offer to the package's Python files, which compare it with theirs
// (lgf_kernels/core/native.py): a module from before a change would be called with arguments that it does not have.
//
// Raise both numbers when a function of a binding is added, removed, or takes other arguments.
#pragma once

namespace lgf {

constexpr int kInterface = 3;

}  // namespace lgf
