// Which kernels run: everything compiled in is probed once, the best is the default.
#include <cstring>
#include <new>

#include "../gram_flow/calls.h"

namespace lgf {

namespace baseline { extern const Kernels kernels; }
#ifdef LGF_HAVE_AVX2
namespace avx2 { extern const Kernels kernels; }
#endif
#ifdef LGF_HAVE_AVX512
namespace avx512 { extern const Kernels kernels; }
#endif

namespace {

struct Available {
  const Kernels* list[3];
  int count = 0;

  Available() {
#if defined(LGF_HAVE_AVX2) || defined(LGF_HAVE_AVX512)
    __builtin_cpu_init();
#endif
#ifdef LGF_HAVE_AVX512
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      list[count++] = &avx512::kernels;
#endif
#ifdef LGF_HAVE_AVX2
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) list[count++] = &avx2::kernels;
#endif
    list[count++] = &baseline::kernels;
  }
};

const Available& available() {
  static const Available instance;
  return instance;
}

const Kernels* find(const char* isa) {
  const Available& all = available();
  for (int i = 0; i < all.count; ++i)
    if (std::strcmp(all.list[i]->isa, isa) == 0) return all.list[i];
  return nullptr;
}

const Kernels*& selected() {
  static const Kernels* choice = available().list[0];
  return choice;
}

constexpr std::size_t kCacheLine = 64;

}  // namespace

int available_kernels(const Kernels* const** list) {
  *list = available().list;
  return available().count;
}

const Kernels& selected_kernels() { return *selected(); }

bool select_kernels(const char* isa) {
  const Kernels* found = find(isa);
  if (found) selected() = found;
  return found != nullptr;
}

Scratch::Scratch(std::size_t bytes)
    : data_(static_cast<char*>(::operator new(bytes ? bytes : 1, std::align_val_t{kCacheLine}))) {}

Scratch::~Scratch() { ::operator delete(data_, std::align_val_t{kCacheLine}); }

}  // namespace lgf
