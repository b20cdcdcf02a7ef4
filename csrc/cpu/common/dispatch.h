// The boundary of every family's kernels: tensors, scratch memory, one table of entry points per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../../common/dtype.h"

// Expands X(isa) for the instruction sets that kernels are compiled for, best first; baseline runs on every CPU.
#ifdef LGF_HAVE_AVX512
#define LGF_AVX512(X) X(avx512)
#else
#define LGF_AVX512(X)
#endif
#ifdef LGF_HAVE_AVX2
#define LGF_AVX2(X) X(avx2)
#else
#define LGF_AVX2(X)
#endif
#define LGF_EACH_ISA(X) LGF_AVX512(X) LGF_AVX2(X) X(baseline)

namespace lgf {

// What every feature tensor of one call shares: (batch, frames, rows, cols, ...).
struct Grid {
  std::int64_t batch, frames, rows, cols;
};

// A (B, T, H, W, C) tensor whose last dimension is contiguous; strides in elements.
struct Tensor {
  const void* data;
  DType dtype;
  std::int64_t channels;
  std::int64_t stride[4];
};

// Instruction sets that this module has kernels for and this CPU runs, best first. Returns their number.
int available_isas(const char* const** names);

// The instruction set in use, by its place in LGF_EACH_ISA; by default the best that this CPU runs.
int selected_isa();
const char* selected_isa_name();

// Returns false for a name that is not available.
bool select_isa(const char* name);

// Cache-line aligned memory, released on destruction. Throws std::bad_alloc.
class Scratch {
 public:
  explicit Scratch(std::size_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  char* data() const { return data_; }

 private:
  char* data_;
};

}  // namespace lgf
