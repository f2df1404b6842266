/* Types of keys and values in a KV cache. */
#include "kern/kern.h"

const char *kern_kv_type_name(kern_kv_type type) {
    static const char *const names[KERN_N_KV_TYPES] = {[KERN_KV_F16] = "f16", [KERN_KV_BF16] = "bf16", [KERN_KV_Q8_0] = "q8_0",
                                                       [KERN_KV_Q4_0] = "q4_0", [KERN_KV_F32] = "f32"};
    return names[type];
}

bool kern_kv_type_fits(kern_kv_type type, int32_t n) { return (type != KERN_KV_Q8_0 && type != KERN_KV_Q4_0) || n % KERN_BLOCK == 0; }
