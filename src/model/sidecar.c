/* Loading packed weights from a sidecar, with all threads: every byte is read and its checksum compared, which costs about as
 * much as computing one token, and of every tensor one panel is packed anew and compared, which shows a model whose weights
 * have changed although its size and time have not. */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/cpu.h"
#include "base/error.h"
#include "model/sidecar.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* Linux 5.14 */
#endif

enum {
    PIECE = 2 << 20,       /* bytes read and then summed while they are in the cache */
    READ_AHEAD = 32 << 20, /* bytes asked of the disk before they are read */
    PROBE = 32 << 20,      /* bytes mapped to see whether the mapping gets huge pages */
};

typedef enum read_problem { PROBLEM_NONE, PROBLEM_READ, PROBLEM_SUM, PROBLEM_STALE } read_problem;

typedef struct reading {
    loader *l;
    const weir_model_options *options;
    int fd;
    bool mapped;
    unsigned char *data;       /* [data_bytes], the mapping or memory to read into */
    const sidecar_start *head; /* of the file */
    size_t scratch_bytes;
    atomic_int_fast64_t next, bytes_done;
    atomic_bool stop, no_memory;
    atomic_int problem, error_number; /* of the entry at problem_entry; the first thread to find one tells */
    size_t problem_entry;
} reading;

/* Makes data[at, at + n) readable. Faults on a mapping whose file cannot be read would end the process: populating tells
 * instead. */
static int get_piece(reading *r, uint64_t at, size_t n) {
    (void)posix_fadvise(r->fd, (off_t)(r->head->data_offset + at + READ_AHEAD), (off_t)n, POSIX_FADV_WILLNEED);
    if (!r->mapped) {
        for (size_t done = 0; done < n;) {
            ssize_t got = pread(r->fd, r->data + at + done, n - done, (off_t)(r->head->data_offset + at + done));
            if (got < 0 && errno == EINTR) continue;
            if (got <= 0) return got < 0 ? errno : EIO;
            done += (size_t)got;
        }
        return 0;
    }
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)(r->data + at) / page * page;
    const size_t bytes = (uintptr_t)(r->data + at) + n - begin;
    if (madvise((void *)begin, bytes, MADV_POPULATE_READ) == 0 || errno == EINVAL) return 0; /* EINVAL: an older kernel */
    return errno == EFAULT ? EIO : errno;
}

/* One panel of each tensor (of the first expert), or all values of a vector, made anew from the model: are they the same? */
static bool sample_matches(reading *r, size_t i, unsigned char *scratch, float *floats) {
    const binding *bindings = r->l->bindings, *b = &bindings[i];
    const unsigned char *kept = r->data + b->offset;
    if (b->vector) {
        const size_t n_bytes = b->make ? b->n_bytes : (size_t)b->n_values * sizeof(float);
        return packing_vector(r->l, b, scratch) && memcmp(scratch, kept, n_bytes) == 0;
    }
    if (i > 0 && bindings[i - 1].tensor == b->tensor) return true;
    if (b->transposed)
        return packing_transposed(b, scratch, floats) && memcmp(scratch, kept, kern_matrix_bytes(b->matrix)) == 0;
    const int panel = (int)(XXH3_64bits(b->tensor->name.text, b->tensor->name.n_bytes) % (uint64_t)b->matrix->n_panels);
    const int first = panel * KERN_PANEL, left = b->matrix->n_rows - first;
    kern_matrix one = *b->matrix;
    one.n_rows = left < KERN_PANEL ? left : KERN_PANEL;
    one.n_panels = 1;
    one.data = scratch;
    const size_t row_bytes = quant_row_bytes(b->tensor->format, (size_t)one.n_cols);
    kern_pack(&one, b->tensor->format->type, packing_rows(b) + (size_t)first * row_bytes, 0, 1, floats);
    return memcmp(scratch, kept + (size_t)panel * one.panel_bytes, one.panel_bytes) == 0;
}

static void tell_problem(reading *r, read_problem problem, size_t entry, int error_number) {
    int none = PROBLEM_NONE;
    if (atomic_compare_exchange_strong(&r->problem, &none,
                                       problem)) { /* one thread gets here; pool_run orders what it writes */
        r->problem_entry = entry;
        atomic_store(&r->error_number, error_number);
    }
    atomic_store(&r->stop, true);
}

/* Reads the bytes of one entry and compares their sum. */
static void read_entry(reading *r, size_t i, XXH3_state_t *state, int thread) {
    const sidecar_entry *e = &sidecar_entries(r->head)[i];
    XXH3_128bits_reset(state);
    for (uint64_t at = e->offset, end = e->offset + e->n_bytes; at < end && !atomic_load(&r->stop);) {
        const size_t n = end - at < PIECE ? (size_t)(end - at) : PIECE;
        const int failed = get_piece(r, at, n);
        if (failed) {
            tell_problem(r, PROBLEM_READ, i, failed);
            return;
        }
        XXH3_128bits_update(state, r->data + at, n);
        at += n;
        const uint64_t done = (uint64_t)atomic_fetch_add(&r->bytes_done, (int64_t)n) + n;
        if (thread == 0 && r->options->progress && !r->options->progress(r->options->progress_user, done, r->head->data_bytes))
            atomic_store(&r->stop, true);
    }
    XXH128_canonical_t sum;
    XXH128_canonicalFromHash(&sum, XXH3_128bits_digest(state));
    if (!atomic_load(&r->stop) && memcmp(&sum, e->checksum, sizeof e->checksum) != 0) tell_problem(r, PROBLEM_SUM, i, 0);
}

static void read_thread(void *arg, int thread) {
    reading *r = arg;
    XXH3_state_t *state = XXH3_createState();
    unsigned char *scratch = aligned_alloc(KERN_ALIGN, r->scratch_bytes);
    float *floats = malloc(r->l->largest_row * KERN_PANEL * sizeof(float) + 1);
    if (state == NULL || scratch == NULL || floats == NULL) {
        atomic_store(&r->no_memory, true);
        atomic_store(&r->stop, true);
    }
    const int64_t n = (int64_t)r->head->n_entries;
    for (int64_t i; (i = pool_take(&r->next, 1, n)) < n && !atomic_load(&r->stop);) {
        read_entry(r, (size_t)i, state, thread);
        if (!atomic_load(&r->stop) && !sample_matches(r, (size_t)i, scratch, floats))
            tell_problem(r, PROBLEM_STALE, (size_t)i, 0);
    }
    free(floats);
    free(scratch);
    XXH3_freeState(state);
}

static size_t scratch_needed(const loader *l) {
    size_t most = 0;
    for (size_t i = 0; i < l->n_bindings; i++) {
        const binding *b = &l->bindings[i];
        const size_t n = b->matrix && !b->transposed ? b->matrix->panel_bytes : b->n_bytes;
        if (n > most) most = n;
    }
    return (most + KERN_ALIGN - 1) / KERN_ALIGN * KERN_ALIGN;
}

/* ---- mapping or reading ----------------------------------------------------------------------------------------------- */

/* Bytes of files that this process has mapped in huge pages (proc(5), "smaps_rollup"). */
static uint64_t huge_file_bytes(void) {
    char line[256];
    unsigned long long kib = 0, value;
    FILE *f = fopen("/proc/self/smaps_rollup", "re");
    if (f == NULL) return 0;
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "FilePmdMapped: %llu kB", &value) == 1) kib = value;
    fclose(f);
    return kib * 1024;
}

/* Maps the data, unless it is to be read into memory, and says in *huge whether its pages are huge ones. */
static unsigned char *map_data(int fd, const sidecar_start *head, bool *huge) {
    const size_t probe = head->data_bytes < PROBE ? head->data_bytes : PROBE;
    void *data = mmap(NULL, head->data_bytes, PROT_READ, MAP_SHARED, fd, (off_t)head->data_offset);
    if (data == MAP_FAILED) return NULL;
    (void)madvise(data, head->data_bytes, MADV_HUGEPAGE);
    const uint64_t before = huge_file_bytes();
    *huge = madvise(data, probe, MADV_POPULATE_READ) == 0 && huge_file_bytes() - before >= probe / 2 && probe == PROBE;
    return data;
}

static int get_memory(reading *r) {
    const weir_weights_mode mode = r->options->weights_mode;
    const size_t n_bytes = r->head->data_bytes;
    bool huge = false;
    r->data = mode == WEIR_WEIGHTS_READ ? NULL : map_data(r->fd, r->head, &huge);
    r->mapped = r->data != NULL;
    if (r->mapped && (huge || mode == WEIR_WEIGHTS_MAP)) return 0;
    if (r->mapped) munmap(r->data, n_bytes);
    r->mapped = false;
    r->data = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    FAIL_IF(r->data == MAP_FAILED, r->l->err, WEIR_E_NOMEM, gguf_path(r->l->m->file), "the weights need %.1f MB of memory: %s",
            (double)n_bytes / 1e6, strerror(errno));
    (void)madvise(r->data, n_bytes, MADV_HUGEPAGE);
    return 0;
}

/* What stood in the way, as the reason why the file is not used. */
static int describe(const reading *r, const char *path, weir_error *why) {
    const sidecar_entry *e = &sidecar_entries(r->head)[r->problem_entry];
    const int n = (int)sizeof e->tensor;
    switch (atomic_load(&r->problem)) {
    case PROBLEM_READ:
        FAIL(why, WEIR_E_IO, path, "tensor %.*s cannot be read: %s", n, e->tensor, strerror(atomic_load(&r->error_number)));
    case PROBLEM_SUM:
        FAIL(why, WEIR_E_FORMAT, path, "is damaged: the checksum of tensor %.*s is wrong", n, e->tensor);
    default:
        FAIL(why, WEIR_E_FORMAT, path, "tensor %.*s is not the one of the model", n, e->tensor);
    }
}

/* Takes the data of an open file whose head is right. 1, 0 (why tells), or an error that ends loading. */
static int take_data(loader *l, const weir_model_options *options, int fd, const char *path, const sidecar_start *head,
                     weir_error *why) {
    reading r = {.l = l, .options = options, .fd = fd, .head = head, .scratch_bytes = scratch_needed(l)};
    TRY(get_memory(&r));
    pool *threads = NULL;
    int rc = pool_open(&threads, options->n_threads > 0 ? options->n_threads : cpu_count_available(), l->err);
    if (rc == 0) pool_run(threads, read_thread, &r);
    pool_close(&threads);
    if (rc == 0 && atomic_load(&r.no_memory))
        rc = error_set(l->err, WEIR_E_NOMEM, path, "no memory to compare tensors");
    else if (rc == 0 && atomic_load(&r.problem))
        describe(&r, path, why);
    else if (rc == 0 && atomic_load(&r.stop))
        rc = error_set(l->err, WEIR_E_CANCELLED, NULL, "loading was stopped");
    else if (rc == 0)
        rc = 1;
    if (rc != 1) {
        munmap(r.data, head->data_bytes);
        return rc;
    }
    l->m->weights = r.data;
    l->m->weights_bytes = head->data_bytes;
    return 1;
}

static int load_from(loader *l, const weir_model_options *options, const char *path, weir_error *why) {
    const char *model_path = gguf_path(l->m->file);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* non-blocking: a named pipe must not hold us up */
    if (fd < 0) {
        if (errno != ENOENT && errno != ENOTDIR) error_set(why, WEIR_E_IO, path, "cannot be opened: %s", strerror(errno));
        return 0;
    }
    sidecar_start *head = NULL;
    int rc = sidecar_check(l->m->sidecar, fd, path, model_path, &head, why);
    rc = rc < 0 ? 0 : take_data(l, options, fd, path, head, why);
    free(head);
    close(fd);
    return rc;
}

int sidecar_load(loader *l, const weir_model_options *options) {
    struct sidecar *s = l->m->sidecar;
    for (int i = 0; s && i < 2 && s->paths[i]; i++) {
        weir_error why = {0};
        const int rc = load_from(l, options, s->paths[i], &why);
        if (rc < 0) return rc;
        if (rc == 1) {
            s->loaded = true;
            s->path = s->paths[i];
            s->rejected.code = 0;
            packing_bind(l);
            return 1;
        }
        if (why.code && !s->rejected.code) s->rejected = why;
    }
    return 0;
}
