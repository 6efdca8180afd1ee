// The functions that Python calls: each passes on to the table of the chosen instruction set.
#include "kernels.h"

#include <cstring>

namespace {

const EqKernels* best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) {
    return eq_kernels_avx512();
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return eq_kernels_avx2();
#endif
  return eq_kernels_portable();
}

}  // namespace

// The table for "portable", "avx2", "avx512", or the best for "auto"; null if this processor or
// this build lacks it.
extern "C" const EqKernels* eq_kernels(const char* name) {
  if (std::strcmp(name, "auto") == 0) return best();
  if (std::strcmp(name, "portable") == 0) return eq_kernels_portable();
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (std::strcmp(name, "avx2") == 0 && __builtin_cpu_supports("avx2") &&
      __builtin_cpu_supports("fma")) {
    return eq_kernels_avx2();
  }
  if (std::strcmp(name, "avx512") == 0 && best() == eq_kernels_avx512()) {
    return eq_kernels_avx512();
  }
#endif
  return nullptr;
}

// Which one "auto" stands for.
extern "C" const char* eq_best_instructions() {
#if defined(__x86_64__)
  if (best() == eq_kernels_avx512()) return "avx512";
  if (best() == eq_kernels_avx2()) return "avx2";
#endif
  return "portable";
}

// Of the table, so that a library of another version is noticed and not called.
extern "C" int eq_version() { return 5; }
