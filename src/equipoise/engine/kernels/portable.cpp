#define EQ_ISA 0
#define EQ_TABLE eq_kernels_portable
#include "instructions.inl"
