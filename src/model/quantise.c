/* See quantise.h. */
#include "model/quantise.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/error.h"
#include "gguf/gguf_write.h"
#include "kern/kern.h"

enum { PIECE_BYTES = 16 << 20, QUANTIZATION_VERSION = 2 };

/* ---- the plan --------------------------------------------------------------------------------------------------------- */

void quantise_targets(char *out, size_t capacity) {
    size_t n_formats, n = 0;
    const quant_format *formats = quant_format_table(&n_formats);
    *out = '\0';
    for (size_t i = 0; i < n_formats && n < capacity; i++) {
        if (formats[i].quantise) n += (size_t)snprintf(out + n, capacity - n, "%s%s", n ? ", " : "", formats[i].name);
    }
}

static const char *place_of(const gguf *g, const gguf_tensor *t, char place[192]) {
    char name[GGUF_MAX_NAME];
    gguf_printable(t->name, name, sizeof name);
    size_t n = strlen(gguf_path(g));
    snprintf(place, 192, "%s: tensor '%s'", gguf_path(g) + (n > 60 ? n - 60 : 0), name);
    return place;
}

/* The importance of a tensor's columns; NULL if there is none. */
static const imatrix_entry *importance_of(const imatrix *im, const gguf_tensor *t) {
    char name[GGUF_MAX_NAME];
    if (im == NULL) return NULL;
    memcpy(name, t->name.text, t->name.n_bytes);
    name[t->name.n_bytes] = '\0';
    return imatrix_find(im, name);
}

static int check_tensor(const quantise_plan *p, const gguf_tensor *t, const quant_format *to, bool requantise,
                        weir_error *err) {
    char place[192], targets[480];
    place_of(p->in, t, place);
    if (!quant_is_known(t->format)) {
        quant_explain_unknown((uint32_t)t->format->type, targets, sizeof targets);
        FAIL(err, WEIR_E_UNSUPPORTED, place, "%s", targets);
    }
    if (t->format == to) return 0;
    FAIL_IF(t->format->dequantise == NULL, err, WEIR_E_UNSUPPORTED, place, "type %s cannot be read", t->format->name);
    if (to->quantise == NULL) {
        quantise_targets(targets, sizeof targets);
        FAIL(err, WEIR_E_UNSUPPORTED, place, "weir cannot quantise to %s; possible are %s", to->name, targets);
    }
    FAIL_IF(t->format->block_size > 1 && !requantise, err, WEIR_E_INVALID, place,
            "it is %s already; quantising again loses more than from the original: --allow-requantize permits it",
            t->format->name);
    const imatrix_entry *e = importance_of(p->im, t);
    bool sound = e == NULL || (e->n_values == t->dims[0] * t->dims[2] && t->dims[3] == 1) || e->n_values == t->dims[0];
    FAIL_IF(!sound, err, WEIR_E_INVALID, place, "the importance matrix has %zu values for it; its %llu columns%s need %llu",
            e->n_values, (unsigned long long)t->dims[0], t->dims[2] > 1 ? " and experts" : "",
            (unsigned long long)(t->dims[0] * t->dims[2]));
    return 0;
}

int quantise_plan_make(quantise_plan *plan, const gguf *in, const quant_mix *mix, const quant_mix_options *options,
                       bool requantise, const imatrix *im, const char *im_path, weir_error *err) {
    *plan = (quantise_plan){.in = in, .mix = mix, .im = im, .im_path = im_path};
    size_t n = gguf_n_tensors(in);
    plan->choices = calloc(n + 1, sizeof *plan->choices);
    FAIL_IF(plan->choices == NULL, err, WEIR_E_NOMEM, gguf_path(in), "no memory for a plan of %zu tensors", n);
    TRY(quant_mix_choose(in, mix, options, plan->choices, err));
    for (size_t i = 0; i < n; i++) {
        const gguf_tensor *t = gguf_tensor_at(in, i);
        const quant_choice *c = &plan->choices[i];
        TRY(check_tensor(plan, t, c->format, requantise, err));
        size_t row_bytes = quant_row_bytes(c->format, (size_t)t->dims[0]);
        plan->n_values += t->n_values;
        plan->in_bytes += t->n_bytes;
        plan->out_bytes += row_bytes * (t->n_values / t->dims[0]);
        plan->n_fallbacks += c->reason == QUANT_REASON_FALLBACK;
    }
    return 0;
}

void quantise_plan_free(quantise_plan *plan) {
    free(plan->choices);
    plan->choices = NULL;
}

/* ---- a piece of a tensor, by all threads ------------------------------------------------------------------------------ */

enum { BAD_NONE = -1 };

/* Rows [first, first + n_rows) of a tensor. */
typedef struct piece {
    const gguf_tensor *t;
    const quant_format *to;
    void (*quantise)(const float *x, const float *importance, void *blocks, size_t n_blocks);
    const float *importance; /* [n_experts or 1][n_cols], mean 1; NULL without */
    size_t n_cols, in_row_bytes, out_row_bytes, rows_of_expert;
    bool importance_per_expert;
    int64_t first, n_rows, chunk;
    unsigned char *out;
    float *rows;                       /* [n_threads][n_cols] */
    float limit;                       /* magnitudes beyond it do not fit */
    atomic_int_fast64_t next, bad_row; /* bad_row: a row that cannot be quantised, or BAD_NONE */
} piece;

static bool all_fit(const float *x, size_t n, float limit) {
    bool fit = true;
    for (size_t i = 0; i < n; i++) fit &= fabsf(x[i]) <= limit; /* false for NaN, too */
    return fit;
}

static void quantise_piece(void *arg, int thread) {
    piece *p = arg;
    float *row = p->rows + (size_t)thread * p->n_cols;
    size_t from_blocks = p->n_cols / (size_t)p->t->format->block_size, to_blocks = p->n_cols / (size_t)p->to->block_size;
    for (int64_t at; (at = pool_take(&p->next, p->chunk, p->n_rows)) < p->n_rows;) {
        int64_t end = at + p->chunk < p->n_rows ? at + p->chunk : p->n_rows;
        for (int64_t r = at; r < end; r++) {
            size_t index = (size_t)(p->first + r);
            const float *importance = p->importance;
            if (importance && p->importance_per_expert) importance += index / p->rows_of_expert * p->n_cols;
            p->t->format->dequantise(gguf_tensor_row(p->t, index), row, from_blocks);
            if (!all_fit(row, p->n_cols, p->limit)) {
                /* Relaxed: any bad row will do for the message, and the end of the run orders it. */
                atomic_store_explicit(&p->bad_row, p->first + r, memory_order_relaxed);
                continue;
            }
            p->quantise(row, importance, p->out + (size_t)r * p->out_row_bytes, to_blocks);
        }
    }
}

/* The largest magnitude that a format takes. Scales are 16-bit floats but for these. */
static float limit_of(const quant_format *f) {
    switch (f->type) {
    case QUANT_F32:
        return FLT_MAX;
    case QUANT_BF16:
        return 0x1.fep127f;
    case QUANT_MXFP4:
        return 0x1p126f;
    case QUANT_NVFP4:
        return 448 * 6;
    default:
        return 65504;
    }
}

/* ---- a tensor --------------------------------------------------------------------------------------------------------- */

typedef struct run {
    const quantise_plan *plan;
    gguf_writer *w;
    pool *threads;
    quantise_progress progress;
    void *user;
    uint64_t done;
    weir_error *err;
} run;

static int report(const run *r, size_t tensor) {
    if (r->progress == NULL || r->progress(r->user, tensor, r->done, r->plan->in_bytes)) return 0;
    FAIL(r->err, WEIR_E_CANCELLED, "", "stopped");
}

static int copy_tensor(run *r, size_t i) {
    const gguf_tensor *t = gguf_tensor_at(r->plan->in, i);
    const uint64_t most = t->rope_head ? quant_row_bytes(t->format, (size_t)t->dims[0]) : PIECE_BYTES;
    for (uint64_t at = 0, n; at < t->n_bytes; at += n) {
        n = t->n_bytes - at < most ? t->n_bytes - at : most;
        TRY(report(r, i));
        TRY(gguf_writer_data(r->w, t->rope_head ? gguf_tensor_row(t, at / most) : t->data + at, (size_t)n, r->err));
        r->done += n;
    }
    return 0;
}

/* Importances with a mean of 1 and none of 0, so that every value counts for something. Each row of n_cols by itself. */
static float *normalised(const imatrix_entry *e, size_t n_cols) {
    float *out = malloc(e->n_values * sizeof *out);
    for (size_t first = 0; out && first < e->n_values; first += n_cols) {
        double sum = 0;
        for (size_t i = 0; i < n_cols; i++) sum += e->means[first + i];
        for (size_t i = 0; i < n_cols; i++) {
            double share = sum > 0 ? e->means[first + i] * ((double)n_cols / sum) : 1;
            out[first + i] = (float)(share > 1e-6 ? share : 1e-6);
        }
    }
    return out;
}

static int run_pieces(run *r, size_t i, piece *p, int64_t rows_at_once) {
    int64_t n_rows = (int64_t)(p->t->n_values / p->n_cols);
    for (; p->first < n_rows; p->first += p->n_rows) {
        TRY(report(r, i));
        p->n_rows = n_rows - p->first < rows_at_once ? n_rows - p->first : rows_at_once;
        atomic_store(&p->next, 0);
        pool_run(r->threads, quantise_piece, p);
        if (atomic_load(&p->bad_row) != BAD_NONE) {
            char place[192];
            FAIL(r->err, WEIR_E_FORMAT, place_of(r->plan->in, p->t, place),
                 "row %lld holds a value that is not finite, or too large for %s", (long long)atomic_load(&p->bad_row),
                 p->to->name);
        }
        TRY(gguf_writer_data(r->w, p->out, (size_t)p->n_rows * p->out_row_bytes, r->err));
        r->done += (uint64_t)p->n_rows * p->in_row_bytes;
    }
    return 0;
}

static int quantise_tensor(run *r, size_t i) {
    const gguf_tensor *t = gguf_tensor_at(r->plan->in, i);
    const quant_format *to = r->plan->choices[i].format;
    const imatrix_entry *e = importance_of(r->plan->im, t);
    piece p = {.t = t, .to = to, .n_cols = (size_t)t->dims[0], .rows_of_expert = (size_t)t->dims[1], .limit = limit_of(to)};
    bool avx2 = to->quantise_avx2 && strcmp(kern_select()->name, "reference") != 0;
    p.quantise = avx2 ? to->quantise_avx2 : to->quantise;
    p.in_row_bytes = quant_row_bytes(t->format, p.n_cols);
    p.out_row_bytes = quant_row_bytes(to, p.n_cols);
    p.importance_per_expert = e && e->n_values > p.n_cols;
    atomic_init(&p.next, 0);
    atomic_init(&p.bad_row, BAD_NONE);
    int64_t n_rows = (int64_t)(t->n_values / p.n_cols), rows_at_once = (int64_t)(PIECE_BYTES / p.out_row_bytes) + 1;
    if (rows_at_once > n_rows) rows_at_once = n_rows;
    p.chunk = (int64_t)(16384 / p.n_cols) + 1;
    size_t out_bytes, rows_bytes;
    float *importance = e ? normalised(e, p.n_cols) : NULL;
    int rc = 0;
    if (checked_mul((size_t)rows_at_once, p.out_row_bytes, &out_bytes)) p.out = malloc(out_bytes);
    if (checked_mul((size_t)pool_n_threads(r->threads) * sizeof *p.rows, p.n_cols, &rows_bytes)) p.rows = malloc(rows_bytes);
    p.importance = importance;
    if (p.out == NULL || p.rows == NULL || (e && importance == NULL)) {
        char place[192];
        rc = error_set(r->err, WEIR_E_NOMEM, place_of(r->plan->in, t, place), "no memory for its rows");
    }
    if (rc == 0) rc = run_pieces(r, i, &p, rows_at_once);
    free(importance);
    free(p.rows);
    free(p.out);
    return rc;
}

/* ---- the file --------------------------------------------------------------------------------------------------------- */

static void describe(const quantise_plan *plan, gguf_writer *w) {
    gguf_writer_copy_all(w, plan->in);
    int32_t file_type = quant_mix_file_type(plan->mix);
    if (file_type >= 0) {
        gguf_writer_u32(w, "general.file_type", (uint32_t)file_type);
        gguf_writer_u32(w, "general.quantization_version", QUANTIZATION_VERSION);
    }
    if (plan->im) {
        gguf_writer_string(w, "quantize.imatrix.file", plan->im_path);
        gguf_writer_string(w, "quantize.imatrix.dataset", imatrix_dataset(plan->im));
        gguf_writer_u32(w, "quantize.imatrix.entries_count", (uint32_t)imatrix_n_entries(plan->im));
        gguf_writer_u32(w, "quantize.imatrix.chunks_count", imatrix_n_chunks(plan->im));
    }
    for (size_t i = 0; i < gguf_n_tensors(plan->in); i++) {
        const gguf_tensor *t = gguf_tensor_at(plan->in, i);
        gguf_writer_tensor(w, t->name.text, t->name.n_bytes, t->n_dims, t->dims, plan->choices[i].format);
    }
}

int quantise_run(const quantise_plan *plan, const char *path, pool *threads, quantise_progress progress, void *user,
                 weir_error *err) {
    run r = {.plan = plan, .threads = threads, .progress = progress, .user = user, .err = err};
    TRY(gguf_writer_open(&r.w, path, err));
    describe(plan, r.w);
    int rc = gguf_writer_begin(r.w, err);
    for (size_t i = 0; rc >= 0 && i < gguf_n_tensors(plan->in); i++) {
        rc = plan->choices[i].format == gguf_tensor_at(plan->in, i)->format ? copy_tensor(&r, i) : quantise_tensor(&r, i);
    }
    if (rc >= 0) rc = gguf_writer_finish(r.w, err);
    gguf_writer_close(&r.w);
    return rc < 0 ? rc : 0;
}
