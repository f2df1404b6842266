/* See pool.h. */
#include "base/pool.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdalign.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/error.h"

/* About 20 microseconds of spinning (a pause takes 40 to 140 cycles): longer than the imbalance inside a layer, short enough that
 * a neighbour who needs the processor gets it. */
enum { SPIN_ROUNDS = 500 };

typedef struct pool_worker {
    pool *owner;
    pthread_t handle;
    int index;
} pool_worker;

struct pool {
    int n_threads, n_started;
    pool_fn fn;
    void *arg;
    bool stopping;
    /* Each word that threads wait on has a cache line of its own. */
    alignas(64) atomic_uint generation; /* +1 for each run */
    alignas(64) atomic_uint n_arrived;  /* at the current barrier */
    alignas(64) atomic_uint phase;      /* +1 for each completed barrier */
    alignas(64) atomic_uint n_sleeping;
    pool_worker workers[];
};

static inline void cpu_relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* Returns once *word differs from `seen`. */
static void wait_change(pool *p, atomic_uint *word, unsigned seen) {
    for (int i = 0; i < SPIN_ROUNDS; i++) {
        if (atomic_load_explicit(word, memory_order_acquire) != seen) return;
        cpu_relax();
    }
    /* n_sleeping rises before the word is checked again (in the kernel), and wake_all reads it after changing the word, both
     * sequentially consistent: either the sleeper sees the change or the waker sees the sleeper. */
    atomic_fetch_add(&p->n_sleeping, 1);
    while (atomic_load(word) == seen) syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    atomic_fetch_sub(&p->n_sleeping, 1);
}

static void advance(pool *p, atomic_uint *word) {
    atomic_fetch_add(word, 1);
    if (atomic_load(&p->n_sleeping)) syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

void pool_barrier(pool *p) {
    if (p->n_threads == 1) return;
    unsigned phase = atomic_load_explicit(&p->phase, memory_order_relaxed); /* own arrival below keeps it from advancing */
    if (atomic_fetch_add(&p->n_arrived, 1) + 1 == (unsigned)p->n_threads) {
        atomic_store_explicit(&p->n_arrived, 0, memory_order_relaxed); /* published by the change of phase */
        advance(p, &p->phase);
    } else {
        wait_change(p, &p->phase, phase);
    }
}

static void *worker_main(void *arg) {
    pool_worker *w = arg;
    pool *p = w->owner;
    for (unsigned seen = 0;; seen++) {
        wait_change(p, &p->generation, seen);
        if (p->stopping) return NULL;
        p->fn(p->arg, w->index);
        pool_barrier(p);
    }
}

int pool_open(pool **out, int n_threads, weir_error *err) {
    *out = NULL;
    FAIL_IF(n_threads < 1 || n_threads > 4096, err, WEIR_E_INVALID, "threads", "%d threads asked for; 1 to 4096 are possible", n_threads);
    size_t n_bytes = (sizeof(pool) + (size_t)n_threads * sizeof(pool_worker) + 63) & ~(size_t)63;
    pool *p = aligned_alloc(64, n_bytes);
    FAIL_IF(p == NULL, err, WEIR_E_NOMEM, "threads", "no memory for a pool of %d threads", n_threads);
    *p = (pool){.n_threads = n_threads, .n_started = 1};
    for (int i = 1; i < n_threads; i++) {
        p->workers[i] = (pool_worker){.owner = p, .index = i};
        int rc = pthread_create(&p->workers[i].handle, NULL, worker_main, &p->workers[i]);
        if (rc != 0) {
            error_set(err, WEIR_E_INTERNAL, "threads", "thread %d of %d could not be started (error %d)", i + 1, n_threads, rc);
            pool_close(&p);
            return WEIR_E_INTERNAL;
        }
        p->n_started++;
    }
    *out = p;
    return 0;
}

void pool_close(pool **pp) {
    pool *p = *pp;
    if (p == NULL) return;
    p->stopping = true;
    advance(p, &p->generation);
    for (int i = 1; i < p->n_started; i++) pthread_join(p->workers[i].handle, NULL);
    free(p);
    *pp = NULL;
}

int pool_n_threads(const pool *p) { return p->n_threads; }

void pool_run(pool *p, pool_fn fn, void *arg) {
    p->fn = fn;
    p->arg = arg;
    if (p->n_threads > 1) advance(p, &p->generation);
    fn(arg, 0);
    pool_barrier(p);
}
