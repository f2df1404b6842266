/* Packing all bound tensors into one block of memory with all threads.
 * Source pages are asked for ahead of the packing, and leave the process behind it: what is resident grows with the packed
 * weights alone. */
#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cpu.h"
#include "base/error.h"
#include "base/memory.h"
#include "model/loader.h"

enum {
    PACK_CHUNK = 8,        /* panels a thread takes at once */
    READ_AHEAD = 32 << 20, /* bytes of tensors asked for before they are packed */
};

typedef struct packing {
    loader *l;
    const weir_model_options *options;
    atomic_int_fast64_t next, values_done;
    int64_t *first_chunk; /* [n_bindings + 1] prefix sums of chunks */
    atomic_bool stop, failed;
    atomic_int_fast64_t bad; /* a binding with a value that cannot be quantised; -1 = none */
} packing;

/* Values in a row of the source, and rows of it; a transposed matrix has them the other way round. */
static size_t row_values(const binding *b) {
    return (size_t)(b->transposed ? b->matrix->n_rows : b->matrix->n_cols);
}
static size_t row_bytes(const binding *b) {
    return quant_row_bytes(b->tensor->format, row_values(b));
}

/* Bytes of a binding's source: of the tensor's rows or values that it takes. */
static size_t source_bytes(const binding *b) {
    if (b->matrix) return (size_t)(b->transposed ? b->matrix->n_cols : b->matrix->n_rows) * row_bytes(b);
    return (size_t)(b->n_values / b->tensor->format->block_size) * (size_t)b->tensor->format->block_bytes;
}

const unsigned char *packing_rows(const binding *b) {
    return b->tensor->data + (size_t)b->first * row_bytes(b);
}

static const unsigned char *source(const binding *b) {
    return b->matrix ? packing_rows(b) : b->tensor->data + (size_t)b->first * (size_t)b->tensor->format->block_bytes;
}

bool packing_transposed(const binding *b, unsigned char *memory, float *scratch) {
    kern_matrix w = *b->matrix;
    const quant_format *format = b->tensor->format;
    const size_t n_rows = (size_t)w.n_cols, n_cols = (size_t)w.n_rows;
    float *turned = malloc((n_rows + 1) * n_cols * sizeof(float));
    if (turned == NULL) return false;
    float *row = turned + n_rows * n_cols;
    for (size_t r = 0; r < n_rows; r++) {
        format->dequantise(packing_rows(b) + r * row_bytes(b), row, n_cols / (size_t)format->block_size);
        for (size_t c = 0; c < n_cols; c++) turned[c * n_rows + r] = row[c];
    }
    w.data = memory;
    kern_pack(&w, QUANT_F32, (const unsigned char *)turned, 0, w.n_panels, scratch);
    free(turned);
    return true;
}

bool packing_vector(const loader *l, const binding *b, void *memory) {
    const quant_format *format = b->tensor->format;
    float *values = b->make ? malloc((size_t)b->n_values * sizeof(float)) : memory;
    if (values == NULL) return false;
    format->dequantise(source(b), values, (size_t)(b->n_values / format->block_size));
    if (b->make == NULL) return true;
    memset(memory, 0, b->n_bytes);
    b->make(&l->m->config, values, memory);
    free(values);
    return true;
}

/* Asks for bytes [begin, end) of the sources of bindings i, i + 1, ... taken as one sequence. */
static void read_ahead(const loader *l, size_t i, size_t begin, size_t end) {
    for (; i < l->n_bindings && end > 0; i++) {
        const size_t n = source_bytes(&l->bindings[i]), last = end < n ? end : n;
        if (begin < last) gguf_will_need(l->m->file, source(&l->bindings[i]) + begin, last - begin);
        begin = begin > n ? begin - n : 0;
        end -= last;
    }
}

/* Quantises a row of the source to `to`; false if a value is not finite or beyond what scales in F16 can hold. */
static bool quantise_row(const binding *b, const unsigned char *row, unsigned char *to, float *values) {
    const size_t n = (size_t)b->matrix->n_cols;
    b->tensor->format->dequantise(row, values, n / (size_t)b->tensor->format->block_size);
    bool fits = true;
    for (size_t i = 0; i < n; i++) fits &= fabsf(values[i]) <= 65504.0f; /* false for NaN, too */
    if (fits) b->format->quantise(values, NULL, to, n / (size_t)b->format->block_size);
    return fits;
}

/* Packs panels whose rows are not taken as they lie in the file: they are in another order, or quantised first. Each panel is
 * made in scratch, which holds two panels and a row of floats. */
static bool pack_made(const binding *b, int begin, int end, float *scratch) {
    const quant_format *to = b->format ? b->format : b->tensor->format;
    const size_t n_cols = (size_t)b->matrix->n_cols, bytes = quant_row_bytes(to, n_cols);
    float *values = scratch + n_cols * KERN_PANEL;
    unsigned char *rows = (unsigned char *)(values + n_cols); /* never wider than floats */
    bool fits = true;
    for (int panel = begin; panel < end; panel++) {
        kern_matrix one = *b->matrix;
        const int32_t first = panel * KERN_PANEL;
        one.data += (size_t)panel * one.panel_bytes;
        one.n_panels = 1;
        one.n_rows = b->matrix->n_rows - first < KERN_PANEL ? b->matrix->n_rows - first : KERN_PANEL;
        for (int32_t r = 0; r < one.n_rows; r++) {
            const unsigned char *row = gguf_tensor_row(b->tensor, (uint64_t)(b->first + first + r));
            if (b->format) fits &= quantise_row(b, row, rows + (size_t)r * bytes, values);
            else memcpy(rows + (size_t)r * bytes, row, bytes);
        }
        if (fits) kern_pack(&one, to->type, rows, 0, 1, scratch);
    }
    return fits;
}

static void pack_thread(void *arg, int thread) {
    packing *p = arg;
    loader *l = p->l;
    const int64_t n_chunks = p->first_chunk[l->n_bindings];
    float *scratch = malloc(l->largest_row * (2 * KERN_PANEL + 1) * sizeof(float)); /* see pack_made */
    if (scratch == NULL) {
        atomic_store(&p->failed, true);
        return;
    }
    size_t i = 0;
    for (int64_t chunk; (chunk = pool_take(&p->next, 1, n_chunks)) < n_chunks && !atomic_load(&p->stop);) {
        while (chunk >= p->first_chunk[i + 1]) i++;
        const binding *b = &l->bindings[i];
        if (b->vector) {
            if (!packing_vector(l, b, l->m->weights + b->offset)) atomic_store(&p->failed, true);
            continue;
        }
        if (b->transposed) {
            if (!packing_transposed(b, b->matrix->data, scratch)) atomic_store(&p->failed, true);
            gguf_dont_need(l->m->file, packing_rows(b), source_bytes(b));
            atomic_fetch_add(&p->values_done, (int64_t)b->matrix->n_rows * b->matrix->n_cols);
            continue;
        }
        int begin = (int)(chunk - p->first_chunk[i]) * PACK_CHUNK, end = begin + PACK_CHUNK;
        if (end > b->matrix->n_panels) end = b->matrix->n_panels;
        const int last_row = end * KERN_PANEL < b->matrix->n_rows ? end * KERN_PANEL : b->matrix->n_rows;
        const size_t from = (size_t)begin * KERN_PANEL * row_bytes(b), to = (size_t)last_row * row_bytes(b);
        read_ahead(l, i, from + READ_AHEAD, to + READ_AHEAD);
        if (b->tensor->rope_head || b->format) {
            if (!pack_made(b, begin, end, scratch)) {
                atomic_store(&p->bad, (int_fast64_t)i);
                atomic_store(&p->stop, true);
            }
        } else {
            kern_pack(b->matrix, b->tensor->format->type, packing_rows(b), begin, end, scratch);
        }
        if (b->tensor->rope_head == 0) gguf_dont_need(l->m->file, packing_rows(b) + from, to - from);
        int64_t done = atomic_fetch_add(&p->values_done, (int64_t)(end - begin) * KERN_PANEL * b->matrix->n_cols);
        if (thread == 0 && p->options && p->options->progress &&
            !p->options->progress(p->options->progress_user, (uint64_t)done, (uint64_t)l->total_values))
            atomic_store(&p->stop, true);
    }
    free(scratch);
}

void packing_bind(loader *l) {
    for (size_t i = 0; i < l->n_bindings; i++) {
        const binding *b = &l->bindings[i];
        unsigned char *at = l->m->weights + b->offset;
        if (b->matrix) b->matrix->data = at;
        if (b->vector) *b->vector = (const float *)at;
    }
}

static int pack_all(loader *l, const weir_model_options *options) {
    packing p = {.l = l, .options = options, .bad = -1};
    p.first_chunk = malloc((l->n_bindings + 1) * sizeof *p.first_chunk);
    FAIL_IF(p.first_chunk == NULL, l->err, WEIR_E_NOMEM, NULL, "no memory for the packing plan");
    p.first_chunk[0] = 0;
    for (size_t i = 0; i < l->n_bindings; i++) {
        const binding *b = &l->bindings[i];
        p.first_chunk[i + 1] =
            p.first_chunk[i] + (b->matrix && !b->transposed ? (b->matrix->n_panels + PACK_CHUNK - 1) / PACK_CHUNK : 1);
    }
    read_ahead(l, 0, 0, READ_AHEAD);
    pool *threads = NULL;
    int rc = pool_open(&threads, options && options->n_threads > 0 ? options->n_threads : cpu_count_available(), l->err);
    if (rc == 0) pool_run(threads, pack_thread, &p);
    pool_close(&threads);
    free(p.first_chunk);
    TRY(rc);
    FAIL_IF(atomic_load(&p.failed), l->err, WEIR_E_NOMEM, NULL, "no memory to pack weights");
    const int_fast64_t bad = atomic_load(&p.bad);
    if (bad >= 0) {
        char name[GGUF_MAX_NAME + 16];
        gguf_printable(l->bindings[bad].tensor->name, name, sizeof name);
        FAIL(l->err, WEIR_E_FORMAT, name, "holds a value that is not finite, or too large to be quantised");
    }
    FAIL_IF(atomic_load(&p.stop), l->err, WEIR_E_CANCELLED, NULL, "loading was stopped");
    if (options && options->progress) options->progress(options->progress_user, l->total_values, l->total_values);
    return 0;
}

int packing_check_memory(loader *l) {
    uint64_t available = memory_available();
    FAIL_IF(l->total_bytes > available, l->err, WEIR_E_NOMEM, gguf_path(l->m->file),
            "the weights need %.1f MB of memory, %.1f MB are available", (double)l->total_bytes / 1e6, (double)available / 1e6);
    return 0;
}

static int reserve_memory(loader *l) {
    weir_model *m = l->m;
    void *memory = mmap(NULL, l->total_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    FAIL_IF(memory == MAP_FAILED, l->err, WEIR_E_NOMEM, gguf_path(m->file), "the weights need %.1f MB of memory: %s",
            (double)l->total_bytes / 1e6, strerror(errno));
    madvise(memory, l->total_bytes, MADV_HUGEPAGE);
    m->weights = memory;
    m->weights_bytes = l->total_bytes;
    return 0;
}

int packing_run(loader *l, const weir_model_options *options) {
    TRY(reserve_memory(l));
    packing_bind(l);
    return pack_all(l, options);
}
