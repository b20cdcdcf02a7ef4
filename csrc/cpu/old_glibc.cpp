// Names that a new glibc or its headers ask for, so that the module loads with an older one: LGF_OLD_GLIBC in CMake.
//
// All are hidden: they serve this module alone. For a wheel that is built on a distribution newer than the oldest that it is
// for; with an old toolchain nothing asks for them, and they are left out by the linker.
#include <unistd.h>

#if defined(__x86_64__)
#define LGF_FIRST_GLIBC "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define LGF_FIRST_GLIBC "GLIBC_2.17"
#else
#error "LGF_OLD_GLIBC is for x86-64 and AArch64"
#endif
#define LGF_HIDDEN __attribute__((visibility("hidden")))

__asm__(".symver lgf_first_exp, exp@" LGF_FIRST_GLIBC);
__asm__(".symver lgf_first_log, log@" LGF_FIRST_GLIBC);

extern "C" {

double lgf_first_exp(double);
double lgf_first_log(double);

// Of 2.29 without them, which differ in errno only.
LGF_HIDDEN double exp(double x) { return lgf_first_exp(x); }
LGF_HIDDEN double log(double x) { return lgf_first_log(x); }

// Of 2.32. False: reference counts are atomic, always.
LGF_HIDDEN extern char __libc_single_threaded;
char __libc_single_threaded = 0;

// Of 2.36, for std::random_device, which is linked in and not used.
LGF_HIDDEN unsigned arc4random() {
  unsigned value = 0;
  if (getentropy(&value, sizeof value) != 0) __builtin_trap();
  return value;
}
}
