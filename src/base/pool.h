/* A fork-join pool: one function runs on all threads at once (the caller is thread 0), which meet at barriers inside it.
 * Waiting is a short spin, then sleep: an idle pool uses no CPU. Owned by one thread, which makes all pool_run calls. */
#ifndef WEIR_BASE_POOL_H
#define WEIR_BASE_POOL_H

#include <stdatomic.h>
#include <stdint.h>

#include "weir/weir_error.h"

typedef struct pool pool;

typedef void (*pool_fn)(void *arg, int thread);

/* `n_threads` >= 1, the caller included. WEIR_E_NOMEM, WEIR_E_INTERNAL (threads cannot be started). */
int pool_open(pool **out, int n_threads, weir_error *err);
void pool_close(pool **p);
int pool_n_threads(const pool *p);
/* Runs fn(arg, thread) for thread 0..n_threads-1 and returns when all have returned. */
void pool_run(pool *p, pool_fn fn, void *arg);
/* Called by all threads inside a pool_run: returns when all have come. What a thread wrote before is visible after. */
void pool_barrier(pool *p);

/* Shares of work taken dynamically: each call takes the next `chunk` items of [0, n) and returns the first, or n when none are
 * left. Reset `next` to 0 (by one thread, before a barrier) between uses. */
static inline int64_t pool_take(atomic_int_fast64_t *next, int64_t chunk, int64_t n) {
    /* Relaxed: the counter only hands out disjoint ranges; the barrier orders the data. */
    int64_t first = atomic_fetch_add_explicit(next, chunk, memory_order_relaxed);
    return first < n ? first : n;
}

#endif
