/* See limits.h. */
#include "cli/limits.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/memory.h"
#include "base/pool.h"

enum {
    N_RUNS = 7,           /* the best counts: a neighbour can only slow a run down */
    RUN_US = 40000,       /* least length of a computing run */
    READ_CHUNK = 1 << 20, /* bytes that a thread takes at once */
};
static const size_t MIN_BUFFER = (size_t)256 << 20, MAX_BUFFER = (size_t)1 << 30;

int limits_buffer_open(limits_buffer *b, weir_error *err) {
    const long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    b->cache_bytes = cache > 0 ? (size_t)cache : 0;
    b->n_bytes = 4 * b->cache_bytes;
    if (b->n_bytes < MIN_BUFFER) b->n_bytes = MIN_BUFFER;
    if (b->n_bytes > MAX_BUFFER) b->n_bytes = MAX_BUFFER;
    b->n_bytes &= ~(size_t)(READ_CHUNK - 1);
    const uint64_t available = memory_available();
    FAIL_IF(b->n_bytes > available / 2, err, WEIR_E_NOMEM, "limits", "reading takes %.0f MB of memory, %.0f MB are available",
            (double)b->n_bytes / 1e6, (double)available / 1e6);
    void *memory = mmap(NULL, b->n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    FAIL_IF(memory == MAP_FAILED, err, WEIR_E_NOMEM, "limits", "no memory for a buffer of %.0f MB", (double)b->n_bytes / 1e6);
    madvise(memory, b->n_bytes, MADV_HUGEPAGE); /* as the packed weights */
    memset(memory, 1, b->n_bytes);
    b->data = memory;
    return 0;
}

void limits_buffer_close(limits_buffer *b) {
    if (b->data) munmap(b->data, b->n_bytes);
    b->data = NULL;
}

/* A run: each thread adds what it has done. */
typedef struct run {
    const kern_ops *ops;
    const limits_buffer *buffer;
    pool *threads;
    int64_t n_rounds;
    double (*compute)(int64_t n_rounds); /* NULL: read */
    atomic_int_fast64_t next;
    int64_t begin_ns, end_ns; /* thread 0's, between barriers */
} run;

static void run_thread(void *arg, int thread) {
    run *r = arg;
    pool_barrier(r->threads);
    if (thread == 0) r->begin_ns = clock_now_ns();
    if (r->compute) {
        r->compute(r->n_rounds);
    } else {
        const int64_t n = (int64_t)r->buffer->n_bytes;
        for (int64_t at; (at = pool_take(&r->next, READ_CHUNK, n)) < n;) r->ops->peak_read(r->buffer->data + at, READ_CHUNK);
    }
    pool_barrier(r->threads);
    if (thread == 0) r->end_ns = clock_now_ns();
}

static double best_compute(run *r, double (*compute)(int64_t n_rounds), double n_threads) {
    double work = 0, best = 0;
    int64_t n_rounds = 512, passed = 0;
    while (passed < RUN_US * INT64_C(1000)) { /* finds how many rounds take long enough on one thread */
        n_rounds *= 2;
        passed = -clock_now_ns();
        work = compute(n_rounds) * n_threads;
        passed += clock_now_ns();
    }
    r->n_rounds = n_rounds;
    r->compute = compute;
    for (int i = 0; i < N_RUNS; i++) {
        pool_run(r->threads, run_thread, r);
        const double speed = work / (double)(r->end_ns - r->begin_ns) * 1e9;
        if (speed > best) best = speed;
    }
    return best;
}

static double best_read(run *r) {
    double best = 0;
    r->compute = NULL;
    for (int i = 0; i < N_RUNS; i++) {
        atomic_store(&r->next, 0);
        pool_run(r->threads, run_thread, r);
        const double speed = (double)r->buffer->n_bytes / (double)(r->end_ns - r->begin_ns) * 1e9;
        if (speed > best) best = speed;
    }
    return best;
}

int limits_measure(const kern_ops *ops, const limits_buffer *b, int32_t n_threads, limits *out, weir_error *err) {
    run r = {.ops = ops, .buffer = b};
    TRY(pool_open(&r.threads, n_threads, err));
    out->n_threads = n_threads;
    out->int8_macs = best_compute(&r, ops->peak_int8, n_threads);
    out->f32_macs = best_compute(&r, ops->peak_f32, n_threads);
    out->read_bytes = best_read(&r);
    pool_close(&r.threads);
    return 0;
}

double limits_seconds(const limits *l, double int8_macs, double f32_macs, double n_bytes) {
    const double computing = int8_macs / l->int8_macs + f32_macs / l->f32_macs, reading = n_bytes / l->read_bytes;
    return computing > reading ? computing : reading;
}
