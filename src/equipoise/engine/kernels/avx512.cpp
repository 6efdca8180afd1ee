#define EQ_ISA 512
#define EQ_TABLE eq_kernels_avx512
#include "instructions.inl"
