// Choice of the instruction set: every one with kernels is probed once, the best is the default.
#include "dispatch.h"

#include <cstring>
#include <new>

namespace lgf {
namespace {

#define LGF_NAME(isa) #isa,
constexpr const char* kCompiled[] = {LGF_EACH_ISA(LGF_NAME)};
constexpr int kCount = sizeof(kCompiled) / sizeof(kCompiled[0]);

// Whether this CPU runs the code that CMakeLists.txt compiles under a name.
bool runs(const char* isa) {
#if defined(LGF_HAVE_AVX2) || defined(LGF_HAVE_AVX512)
  __builtin_cpu_init();
  if (std::strcmp(isa, "avx512") == 0)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (std::strcmp(isa, "avx2") == 0) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return std::strcmp(isa, "baseline") == 0;
}

struct Available {
  const char* names[kCount];
  int places[kCount];  // in kCompiled
  int count = 0;

  Available() {
    for (int i = 0; i < kCount; ++i) {
      if (!runs(kCompiled[i])) continue;
      names[count] = kCompiled[i];
      places[count++] = i;
    }
  }
};

const Available& available() {
  static const Available instance;
  return instance;
}

int& selected() {
  static int place = available().places[0];
  return place;
}

constexpr std::size_t kCacheLine = 64;

}  // namespace

int available_isas(const char* const** names) {
  *names = available().names;
  return available().count;
}

int selected_isa() { return selected(); }

const char* selected_isa_name() { return kCompiled[selected()]; }

bool select_isa(const char* name) {
  for (int i = 0; i < available().count; ++i) {
    if (std::strcmp(available().names[i], name) != 0) continue;
    selected() = available().places[i];
    return true;
  }
  return false;
}

Scratch::Scratch(std::size_t bytes)
    : data_(static_cast<char*>(::operator new(bytes ? bytes : 1, std::align_val_t{kCacheLine}))) {}

Scratch::~Scratch() { ::operator delete(data_, std::align_val_t{kCacheLine}); }

}  // namespace lgf
