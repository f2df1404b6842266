/* Choosing the instruction-set level at run time. */
#include <stdlib.h>
#include <string.h>

#include "kern/kern.h"

static bool always(void) { return true; }

#if defined(__x86_64__)
static bool has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
           __builtin_cpu_supports("avx");
}

static bool has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}
#endif

/* Best first. F16C came to CPUs before AVX2 did, and GCC 12 cannot ask for it. */
static const struct {
    const kern_ops *ops;
    bool (*runs_here)(void);
} levels[] = {
#if defined(__x86_64__)
    {&kern_ops_avx512, has_avx512},
    {&kern_ops_avx2, has_avx2},
#endif
    {&kern_ops_reference, always},
};

#define N_LEVELS (sizeof levels / sizeof levels[0])

const kern_ops *kern_level(const char *name) {
    for (size_t i = 0; i < N_LEVELS; i++)
        if (strcmp(levels[i].ops->name, name) == 0) return levels[i].runs_here() ? levels[i].ops : NULL;
    return NULL;
}

const kern_ops *kern_select(void) {
    const char *limit = getenv("WEIR_CPU_LEVEL");
    bool allowed = true;
    if (limit && *limit) {
        bool known = false;
        for (size_t i = 0; i < N_LEVELS; i++) known = known || strcmp(levels[i].ops->name, limit) == 0;
        allowed = !known;
    }
    for (size_t i = 0; i < N_LEVELS; i++) {
        if (limit && strcmp(levels[i].ops->name, limit) == 0) allowed = true;
        if (allowed && levels[i].runs_here()) return levels[i].ops;
    }
    return &kern_ops_reference;
}
