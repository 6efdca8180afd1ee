#define EQ_ISA 256
#define EQ_TABLE eq_kernels_avx2
#include "instructions.inl"
