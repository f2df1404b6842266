/* Loading weights: bindings from tensors with strict shapes, and their packed form, from the sidecar or by packing. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/error.h"
#include "base/nearest.h"
#include "model/loader.h"
#include "model/sidecar.h"

int loader_add(loader *l, binding b) {
    if (l->n_bindings == l->capacity) {
        size_t capacity = l->capacity ? l->capacity * 2 : 256;
        binding *grown = realloc(l->bindings, capacity * sizeof *grown);
        FAIL_IF(grown == NULL, l->err, WEIR_E_NOMEM, NULL, "no memory for the tensor list");
        l->bindings = grown;
        l->capacity = capacity;
    }
    b.offset = l->total_bytes;
    size_t size;
    FAIL_IF(!checked_round_up(b.n_bytes, KERN_ALIGN, &size) || !checked_add(l->total_bytes, size, &l->total_bytes), l->err,
            WEIR_E_LIMIT, NULL, "the packed weights exceed the address space");
    l->bindings[l->n_bindings++] = b;
    return 0;
}

void loader_format_shape(char out[64], const uint64_t *dims, uint32_t n_dims) {
    size_t n = 0;
    out[0] = '\0';
    for (uint32_t i = 0; i < n_dims && n < 48; i++) n += (size_t)snprintf(out + n, 64 - n, i ? " x %llu" : "%llu", (unsigned long long)dims[i]);
}

int loader_missing(loader *l, const char *name, const char *shape) {
    const gguf *g = l->m->file;
    char names[2][GGUF_MAX_NAME], shown[GGUF_MAX_NAME * 4] = "";
    nearest near;
    nearest_begin(&near, name, strlen(name));
    /* Of equally near names one of the same layer is more likely to be meant: those first. */
    const char *dot = strncmp(name, "blk.", 4) == 0 ? strchr(name + 4, '.') : NULL;
    const size_t n = gguf_n_tensors(g), n_layer = dot ? (size_t)(dot - name) + 1 : 0;
    for (size_t i = 0, free = 0; i < 2 * n; i++) {
        const gguf_string s = gguf_tensor_at(g, i % n)->name;
        const bool in_layer = n_layer && s.n_bytes > n_layer && memcmp(s.text, name, n_layer) == 0;
        if (in_layer != (i < n)) continue;
        memcpy(names[free], s.text, s.n_bytes);
        names[free][s.n_bytes] = '\0';
        nearest_try(&near, names[free]);
        if (near.best == names[free]) free = 1 - free;
    }
    if (near.best) gguf_printable((gguf_string){near.best, strlen(near.best)}, shown, sizeof shown);
    return error_set(l->err, WEIR_E_FORMAT, name, "the tensor is missing (architecture %s needs it, %s)%s%s", l->m->arch->name, shape,
                     near.best ? "; the nearest name in the file is " : "; the file has none of a similar name", shown);
}

int loader_check_readable(loader *l, const gguf_tensor *t, const char *name) {
    char text[480];
    if (t->format->dequantise) return 0;
    if (!quant_is_known(t->format)) {
        quant_explain_unknown((uint32_t)t->format->type, text, sizeof text);
        FAIL(l->err, WEIR_E_UNSUPPORTED, name, "%s", text);
    }
    FAIL(l->err, WEIR_E_UNSUPPORTED, name,
         "tensor type %s cannot be computed with; weights are floats or one of the quantised types (weir models lists them)",
         t->format->name);
}

int loader_find(loader *l, const char *name, int64_t n_rows, int64_t n_cols, bool required, const gguf_tensor **out) {
    const gguf_tensor *t = gguf_find_tensor(l->m->file, name);
    *out = t;
    if (t == NULL) {
        const uint64_t dims[2] = {(uint64_t)n_cols, (uint64_t)n_rows};
        char shape[64];
        loader_format_shape(shape, dims, n_rows ? 2 : 1);
        return required ? loader_missing(l, name, shape) : 0;
    }
    uint64_t rows = n_rows ? (uint64_t)n_rows : 1;
    bool fits = t->dims[0] == (uint64_t)n_cols && t->dims[1] == rows && t->dims[2] == 1 && t->dims[3] == 1;
    char shape[64];
    loader_format_shape(shape, t->dims, t->n_dims);
    FAIL_IF(!fits, l->err, WEIR_E_FORMAT, name, "the shape is %s; the metadata ask for %lld x %llu", shape, (long long)n_cols,
            (unsigned long long)rows);
    TRY(loader_check_readable(l, t, name));
    return 1;
}

/* What the tensor's matrices are quantised to; NULL = they stay as they are. */
static const quant_format *quantised_to(const loader *l, const gguf_tensor *t) {
    const bool is_float = t->format->type == QUANT_F32 || t->format->type == QUANT_F16 || t->format->type == QUANT_BF16;
    if (l->choices == NULL || !is_float) return NULL;
    const quant_format *to = l->choices[t - gguf_tensor_at(l->m->file, 0)].format;
    return to == t->format ? NULL : to;
}

int loader_bind_rows(loader *l, kern_matrix *w, int64_t first, int64_t n_rows, int64_t n_rows_whole, int64_t n_cols, bool required,
                     const char *name) {
    const gguf_tensor *t;
    int found = loader_find(l, name, n_rows_whole, n_cols, required, &t);
    if (found <= 0) return found;
    const quant_format *to = quantised_to(l, t);
    int rc = kern_matrix_init(w, to ? to->type : t->format->type, n_rows, n_cols, l->err);
    if (rc < 0) {
        if (l->err) snprintf(l->err->place, sizeof l->err->place, "%s", name);
        return rc;
    }
    if ((size_t)n_cols > l->largest_row) l->largest_row = (size_t)n_cols;
    l->total_values += (size_t)(n_rows * n_cols);
    TRY(loader_add(l, (binding){.tensor = t, .first = first, .matrix = w, .format = to, .n_bytes = kern_matrix_bytes(w)}));
    return 1;
}

int loader_bind_matrix(loader *l, kern_matrix *w, int64_t n_rows, int64_t n_cols, bool required, const char *name) {
    return loader_bind_rows(l, w, 0, n_rows, n_rows, n_cols, required, name);
}

int loader_bind_part(loader *l, const float **v, int64_t first, int64_t n, int64_t n_whole, bool required, const char *name) {
    const gguf_tensor *t;
    int found = loader_find(l, name, 0, n_whole, required, &t);
    if (found <= 0) return found;
    FAIL_IF(t->format->block_size != 1 && (first != 0 || n != n_whole), l->err, WEIR_E_UNSUPPORTED, name,
            "part of a vector of type %s cannot be read", t->format->name);
    /* Padded to whole vectors, so that kernels may read past the end. */
    TRY(loader_add(l, (binding){.tensor = t, .first = first, .n_values = n, .vector = v,
                                 .n_bytes = (size_t)kern_pad16((int32_t)n) * sizeof(float)}));
    return 1;
}

int loader_bind_vector(loader *l, const float **v, int64_t n, bool required, const char *name) {
    return loader_bind_part(l, v, 0, n, n, required, name);
}

int loader_bind_made(loader *l, const float **v, size_t n, void (*make)(const model_config *c, const float *values, float *out),
                     int64_t n_rows, int64_t n_cols, const char *name) {
    const gguf_tensor *t = gguf_find_tensor(l->m->file, name);
    const uint64_t rows = (uint64_t)n_rows, cols = (uint64_t)n_cols;
    char shape[64];
    loader_format_shape(shape, (const uint64_t[]){cols, rows}, 2);
    if (t == NULL) return loader_missing(l, name, shape);
    const bool is_matrix = t->dims[0] == cols && t->dims[1] == rows && t->dims[2] == 1;
    /* One value a row: also stored as a vector. */
    const bool is_vector = cols == 1 && t->dims[0] == rows && t->dims[1] == 1 && t->dims[2] == 1;
    loader_format_shape(shape, t->dims, t->n_dims);
    FAIL_IF(!(is_matrix || is_vector) || t->dims[3] != 1, l->err, WEIR_E_FORMAT, name, "the shape is %s; the metadata ask for %lld x %lld",
            shape, (long long)n_cols, (long long)n_rows);
    TRY(loader_check_readable(l, t, name));
    TRY(loader_add(l, (binding){.tensor = t, .n_values = (int64_t)t->n_values, .vector = v, .make = make, .n_bytes = n * sizeof(float)}));
    return 1;
}

static int bind_stack(loader *l, kern_matrix **matrices, int64_t n, int64_t first, int64_t n_rows, int64_t n_rows_whole, int64_t n_cols,
                      bool transposed, const char *name) {
    const gguf_tensor *t = gguf_find_tensor(l->m->file, name);
    char shape[64];
    loader_format_shape(shape, (const uint64_t[]){(uint64_t)n_cols, (uint64_t)n_rows_whole, (uint64_t)n}, 3);
    if (t == NULL) return loader_missing(l, name, shape);
    loader_format_shape(shape, t->dims, t->n_dims);
    const bool deep = t->dims[1] == (uint64_t)n_rows_whole && t->dims[2] == (uint64_t)n;
    const bool flat = t->dims[1] == (uint64_t)(n * n_rows_whole) && t->dims[2] == 1;
    FAIL_IF(t->dims[0] != (uint64_t)n_cols || !(deep || flat) || t->dims[3] != 1, l->err, WEIR_E_FORMAT, name,
            "the shape is %s; the metadata ask for %lld x %lld x %lld", shape, (long long)n_cols, (long long)n_rows_whole, (long long)n);
    TRY(loader_check_readable(l, t, name));
    *matrices = arena_array(&l->m->strings, (size_t)n, sizeof **matrices);
    FAIL_IF(*matrices == NULL, l->err, WEIR_E_NOMEM, name, "no memory for %lld matrices", (long long)n);
    if ((size_t)n_cols > l->largest_row) l->largest_row = (size_t)n_cols;
    if ((size_t)n_rows > l->largest_row) l->largest_row = (size_t)n_rows;
    for (int64_t k = 0; k < n; k++) {
        kern_matrix *w = *matrices + k;
        int rc = transposed ? kern_matrix_init(w, QUANT_F32, n_cols, n_rows, l->err)
                            : kern_matrix_init(w, t->format->type, n_rows, n_cols, l->err);
        if (rc < 0 && l->err) snprintf(l->err->place, sizeof l->err->place, "%s", name);
        TRY(rc);
        l->total_values += (size_t)(n_rows * n_cols);
        TRY(loader_add(l, (binding){.tensor = t, .first = k * n_rows_whole + first, .matrix = w, .transposed = transposed,
                                    .n_bytes = kern_matrix_bytes(w)}));
    }
    return 1;
}

int loader_bind_stack(loader *l, kern_matrix **matrices, int64_t n, int64_t first, int64_t n_rows, int64_t n_rows_whole, int64_t n_cols,
                      const char *name) {
    return bind_stack(l, matrices, n, first, n_rows, n_rows_whole, n_cols, false, name);
}

int loader_bind_stack_transposed(loader *l, kern_matrix **matrices, int64_t n, int64_t first, int64_t n_rows, int64_t n_rows_whole,
                                 int64_t n_cols, const char *name) {
    return bind_stack(l, matrices, n, first, n_rows, n_rows_whole, n_cols, true, name);
}

/* ---- loading ----------------------------------------------------------------------------------------------------------- */

int model_weights_needed(weir_model *m, model_memory *out, weir_error *err) {
    loader l = {.m = m, .err = err};
    model_work work[MODEL_N_OPS] = {{0}};
    int rc = model_bind(&l);
    out->weights_bytes = l.total_bytes;
    if (rc >= 0) model_add_weights_work(m, 1, 1, work);
    for (int op = 0; op < MODEL_N_OPS; op++) {
        const uint64_t n = (uint64_t)(work[op].int8_macs + work[op].f32_macs);
        if (op == MODEL_OP_HEAD) out->head_params = n;
        else out->matmul_params += n;
        out->decode_bytes += (uint64_t)work[op].bytes;
    }
    free(l.bindings);
    free(m->layers);
    m->layers = NULL;
    return rc < 0 ? rc : 0;
}

/* Chooses what each tensor is quantised to, if the options ask for it. */
static int choose_formats(loader *l, const weir_model_options *options) {
    const char *name = options ? options->quantise : NULL;
    const gguf *g = l->m->file;
    if (name == NULL) return 0;
    const quant_mix *mix = quant_mix_named(name);
    FAIL_IF(mix == NULL, l->err, WEIR_E_INVALID, "quant", "'%.40s' is no type; types are those of weir quantize, such as Q8_0 and Q4_K_M", name);
    l->choices = calloc(gguf_n_tensors(g) + 1, sizeof *l->choices);
    FAIL_IF(l->choices == NULL, l->err, WEIR_E_NOMEM, "quant", "no memory for %zu tensors", gguf_n_tensors(g));
    TRY(quant_mix_choose(g, mix, &(quant_mix_options){0}, l->choices, l->err));
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const quant_format *to = quantised_to(l, gguf_tensor_at(g, i));
        FAIL_IF(to && to->quantise == NULL, l->err, WEIR_E_UNSUPPORTED, "quant", "weir cannot quantise to %s", to->name);
    }
    return 0;
}

int model_load_weights(weir_model *m, const weir_model_options *options, weir_error *err) {
    loader l = {.m = m, .err = err};
    int rc = choose_formats(&l, options);
    if (rc >= 0) rc = model_bind(&l);
    if (rc >= 0) rc = packing_check_memory(&l);
    if (rc >= 0) rc = sidecar_plan(&l, options);
    if (rc >= 0) rc = sidecar_load(&l, options);
    if (rc == 0) rc = packing_run(&l, options);
    if (rc >= 0) rc = model_bind_finish(&l);
    if (rc >= 0) gguf_dont_need(m->file, NULL, 0);
    free(l.bindings);
    free(l.choices);
    return rc < 0 ? rc : 0;
}
