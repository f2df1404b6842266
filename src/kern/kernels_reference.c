/* The reference level: plain C, any CPU. It specifies what the other levels must compute, to the bit. */
#define KERN_TABLE_NAME kern_ops_reference
#define KERN_LEVEL_NAME "reference"
#include "kern/kernels.inc"
