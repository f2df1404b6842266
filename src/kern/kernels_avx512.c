/* x86-64 with AVX-512 F, BW, DQ, VL and VNNI. */
#define KERN_AVX512 1
#define KERN_TABLE_NAME kern_ops_avx512
#define KERN_LEVEL_NAME "avx512"
#include "kern/kernels.inc"
