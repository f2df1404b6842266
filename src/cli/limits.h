/* What this machine can do at best: multiply-accumulates and memory bandwidth, measured. They bound what any program can reach:
 * prefill by the first, decode by the second. Main thread. */
#ifndef WEIR_CLI_LIMITS_H
#define WEIR_CLI_LIMITS_H

#include "kern/kern.h"

typedef struct limits {
    int32_t n_threads;
    double int8_macs, f32_macs; /* multiply-accumulates per second of all threads together */
    double read_bytes;          /* bytes per second, read in order */
} limits;

/* The memory that limits_measure reads. */
typedef struct limits_buffer {
    unsigned char *data;
    size_t n_bytes, cache_bytes; /* the last level of cache, as far as the system tells it; 0 = unknown */
} limits_buffer;

/* A buffer far larger than the caches, its pages touched. WEIR_E_NOMEM. The caller closes it. */
int limits_buffer_open(limits_buffer *b, weir_error *err);
void limits_buffer_close(limits_buffer *b);

/* The best of several short runs on n_threads threads, with the kernels of `ops`. WEIR_E_NOMEM, WEIR_E_INTERNAL (threads). */
int limits_measure(const kern_ops *ops, const limits_buffer *b, int32_t n_threads, limits *out, weir_error *err);

/* Seconds that the machine needs at least for so much work: the longer of computing and reading. */
double limits_seconds(const limits *l, double int8_macs, double f32_macs, double n_bytes);

#endif
