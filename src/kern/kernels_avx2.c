/* x86-64 with AVX2, FMA and F16C. */
#define KERN_AVX2 1
#define KERN_TABLE_NAME kern_ops_avx2
#define KERN_LEVEL_NAME "avx2"
#include "kern/kernels.inc"
