/* Binding tensors to the slots of a model, with strict shapes, and packing them with all threads. */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/checked.h"
#include "base/cpu.h"
#include "base/error.h"
#include "base/memory.h"
#include "model/model.h"

/* Something to be made from a tensor once the memory for all is there. */
typedef struct binding {
    const gguf_tensor *tensor;
    kern_matrix *matrix;   /* packed, or */
    const float **vector;  /* dequantised */
    size_t offset, n_bytes;
} binding;

typedef struct loader {
    weir_model *m;
    weir_error *err;
    binding *bindings;
    size_t n_bindings, capacity;
    size_t total_bytes, total_values, largest_row;
} loader;

static int add_binding(loader *l, binding b) {
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

static void format_shape(char out[64], const uint64_t *dims, uint32_t n_dims) {
    size_t n = 0;
    out[0] = '\0';
    for (uint32_t i = 0; i < n_dims && n < 48; i++) n += (size_t)snprintf(out + n, 64 - n, i ? " x %llu" : "%llu", (unsigned long long)dims[i]);
}

/* The tensor of that name with shape [n_rows][n_cols] (n_rows 0: a vector [n_cols]); NULL in *out if absent and not required. */
static int find_tensor(loader *l, const char *name, int64_t n_rows, int64_t n_cols, bool required, const gguf_tensor **out) {
    const gguf_tensor *t = gguf_find_tensor(l->m->file, name);
    *out = t;
    if (t == NULL) {
        FAIL_IF(required, l->err, WEIR_E_FORMAT, name, "the tensor is missing (architecture %s needs it)", l->m->arch->name);
        return 0;
    }
    uint64_t rows = n_rows ? (uint64_t)n_rows : 1;
    bool fits = t->dims[0] == (uint64_t)n_cols && t->dims[1] == rows && t->dims[2] == 1 && t->dims[3] == 1;
    char shape[64];
    format_shape(shape, t->dims, t->n_dims);
    FAIL_IF(!fits, l->err, WEIR_E_FORMAT, name, "the shape is %s; the metadata ask for %lld x %llu", shape, (long long)n_cols,
            (unsigned long long)rows);
    FAIL_IF(t->format->dequantise == NULL, l->err, WEIR_E_UNSUPPORTED, name, "tensor type %s cannot be computed with", t->format->name);
    return 1;
}

static int bind_matrix(loader *l, kern_matrix *w, int64_t n_rows, int64_t n_cols, bool required, const char *name) {
    const gguf_tensor *t;
    int found = find_tensor(l, name, n_rows, n_cols, required, &t);
    if (found <= 0) return found;
    int rc = kern_matrix_init(w, t->format->type, n_rows, n_cols, l->err);
    if (rc < 0) {
        if (l->err) snprintf(l->err->place, sizeof l->err->place, "%s", name);
        return rc;
    }
    if ((size_t)n_cols > l->largest_row) l->largest_row = (size_t)n_cols;
    l->total_values += (size_t)t->n_values;
    return add_binding(l, (binding){.tensor = t, .matrix = w, .n_bytes = kern_matrix_bytes(w)});
}

static int bind_vector(loader *l, const float **v, int64_t n, bool required, const char *name) {
    const gguf_tensor *t;
    int found = find_tensor(l, name, 0, n, required, &t);
    if (found <= 0) return found;
    /* Padded to whole vectors, so that kernels may read past the end. */
    return add_binding(l, (binding){.tensor = t, .vector = v, .n_bytes = (size_t)kern_pad16((int32_t)n) * sizeof(float)});
}

static int bind_layer(loader *l, int32_t i) {
    const model_config *c = &l->m->config;
    const model_arch *arch = l->m->arch;
    model_layer *layer = &l->m->layers[i];
    const int64_t n_q = (int64_t)c->n_head * c->d_head, n_k = (int64_t)c->n_head_kv * c->d_head, n_v = (int64_t)c->n_head_kv * c->d_value;
    char name[GGUF_MAX_NAME];
#define NAME(suffix) (snprintf(name, sizeof name, "blk.%d." suffix, (int)i), name)
    layer->windowed = arch->window_pattern && (i + 1) % arch->window_pattern != 0;
    TRY(bind_vector(l, &layer->attn_norm, c->d_model, true, NAME("attn_norm.weight")));
    TRY(bind_matrix(l, &layer->q, n_q, c->d_model, true, NAME("attn_q.weight")));
    TRY(bind_matrix(l, &layer->k, n_k, c->d_model, true, NAME("attn_k.weight")));
    TRY(bind_matrix(l, &layer->v, n_v, c->d_model, true, NAME("attn_v.weight")));
    TRY(bind_vector(l, &layer->q_bias, n_q, false, NAME("attn_q.bias")));
    TRY(bind_vector(l, &layer->k_bias, n_k, false, NAME("attn_k.bias")));
    TRY(bind_vector(l, &layer->v_bias, n_v, false, NAME("attn_v.bias")));
    if (arch->qk_norm) {
        TRY(bind_vector(l, &layer->q_norm, c->d_head, true, NAME("attn_q_norm.weight")));
        TRY(bind_vector(l, &layer->k_norm, c->d_head, true, NAME("attn_k_norm.weight")));
    }
    TRY(bind_matrix(l, &layer->o, c->d_model, (int64_t)c->n_head * c->d_value, true, NAME("attn_output.weight")));
    TRY(bind_vector(l, &layer->o_bias, c->d_model, false, NAME("attn_output.bias")));
    if (arch->post_norms) {
        TRY(bind_vector(l, &layer->attn_post_norm, c->d_model, true, NAME("post_attention_norm.weight")));
        TRY(bind_vector(l, &layer->ffn_post_norm, c->d_model, true, NAME("post_ffw_norm.weight")));
    }
    TRY(bind_vector(l, &layer->ffn_norm, c->d_model, true, NAME("ffn_norm.weight")));
    TRY(bind_matrix(l, &layer->gate, c->d_ff, c->d_model, true, NAME("ffn_gate.weight")));
    TRY(bind_matrix(l, &layer->up, c->d_ff, c->d_model, true, NAME("ffn_up.weight")));
    TRY(bind_matrix(l, &layer->down, c->d_model, c->d_ff, true, NAME("ffn_down.weight")));
    TRY(bind_vector(l, &layer->gate_bias, c->d_ff, false, NAME("ffn_gate.bias")));
    TRY(bind_vector(l, &layer->up_bias, c->d_ff, false, NAME("ffn_up.bias")));
    return bind_vector(l, &layer->down_bias, c->d_model, false, NAME("ffn_down.bias"));
#undef NAME
}

static int bind_all(loader *l) {
    weir_model *m = l->m;
    model_config *c = &m->config;
    const gguf_tensor *embedding = gguf_find_tensor(m->file, "token_embd.weight");
    FAIL_IF(embedding == NULL, l->err, WEIR_E_FORMAT, "token_embd.weight", "the tensor is missing");
    FAIL_IF(embedding->dims[1] > INT32_MAX / 64, l->err, WEIR_E_FORMAT, "token_embd.weight", "%llu rows are more than a vocabulary can have",
            (unsigned long long)embedding->dims[1]);
    c->n_vocab = (int32_t)embedding->dims[1];
    const int32_t n_tokens = tok_n_vocab(m->tokenizer);
    FAIL_IF(n_tokens > c->n_vocab, l->err, WEIR_E_FORMAT, "token_embd.weight", "%d rows for the tokeniser's %d tokens", c->n_vocab, n_tokens);
    TRY(find_tensor(l, "token_embd.weight", c->n_vocab, c->d_model, true, &m->embedding));
    TRY(bind_vector(l, &m->output_norm, c->d_model, true, "output_norm.weight"));
    bool untied = gguf_find_tensor(m->file, "output.weight") != NULL;
    TRY(bind_matrix(l, &m->output, c->n_vocab, c->d_model, true, untied ? "output.weight" : "token_embd.weight"));
    if (c->n_rot > 0) TRY(bind_vector(l, &c->rope[0].factors, c->n_rot / 2, false, "rope_freqs.weight"));
    for (int32_t i = 0; i < c->n_layer; i++) TRY(bind_layer(l, i));
    return 0;
}

/* ---- packing ---------------------------------------------------------------------------------------------------------- */

enum { PACK_CHUNK = 8 }; /* panels a thread takes at once */

typedef struct packing {
    loader *l;
    const weir_model_options *options;
    atomic_int_fast64_t next, values_done;
    int64_t *first_chunk; /* [n_bindings + 1] prefix sums of chunks */
    atomic_bool stop, failed;
} packing;

static void make_vector(const binding *b, unsigned char *memory) {
    float *v = (float *)memory;
    b->tensor->format->dequantise(b->tensor->data, v, (size_t)(b->tensor->n_values / (uint64_t)b->tensor->format->block_size));
    *b->vector = v;
}

static void pack_thread(void *arg, int thread) {
    packing *p = arg;
    loader *l = p->l;
    const int64_t n_chunks = p->first_chunk[l->n_bindings];
    float *scratch = malloc(l->largest_row * KERN_PANEL * sizeof(float));
    if (scratch == NULL) {
        atomic_store(&p->failed, true);
        return;
    }
    size_t i = 0;
    for (int64_t chunk; (chunk = pool_take(&p->next, 1, n_chunks)) < n_chunks && !atomic_load(&p->stop);) {
        while (chunk >= p->first_chunk[i + 1]) i++;
        const binding *b = &l->bindings[i];
        if (b->vector) {
            make_vector(b, l->m->weights + b->offset);
            continue;
        }
        int begin = (int)(chunk - p->first_chunk[i]) * PACK_CHUNK, end = begin + PACK_CHUNK;
        if (end > b->matrix->n_panels) end = b->matrix->n_panels;
        kern_pack(b->matrix, b->tensor->format->type, b->tensor->data, begin, end, scratch);
        int64_t done = atomic_fetch_add(&p->values_done, (int64_t)(end - begin) * KERN_PANEL * b->matrix->n_cols);
        if (thread == 0 && p->options && p->options->progress &&
            !p->options->progress(p->options->progress_user, (uint64_t)done, (uint64_t)l->total_values))
            atomic_store(&p->stop, true);
    }
    free(scratch);
}

static int pack_all(loader *l, const weir_model_options *options) {
    packing p = {.l = l, .options = options};
    p.first_chunk = malloc((l->n_bindings + 1) * sizeof *p.first_chunk);
    FAIL_IF(p.first_chunk == NULL, l->err, WEIR_E_NOMEM, NULL, "no memory for the packing plan");
    p.first_chunk[0] = 0;
    for (size_t i = 0; i < l->n_bindings; i++) {
        binding *b = &l->bindings[i];
        if (b->matrix) b->matrix->data = l->m->weights + b->offset;
        p.first_chunk[i + 1] = p.first_chunk[i] + (b->matrix ? (b->matrix->n_panels + PACK_CHUNK - 1) / PACK_CHUNK : 1);
    }
    pool *threads = NULL;
    int rc = pool_open(&threads, options && options->n_threads > 0 ? options->n_threads : cpu_count_available(), l->err);
    if (rc == 0) pool_run(threads, pack_thread, &p);
    pool_close(&threads);
    free(p.first_chunk);
    TRY(rc);
    FAIL_IF(atomic_load(&p.failed), l->err, WEIR_E_NOMEM, NULL, "no memory to pack weights");
    FAIL_IF(atomic_load(&p.stop), l->err, WEIR_E_CANCELLED, NULL, "loading was stopped");
    if (options && options->progress) options->progress(options->progress_user, l->total_values, l->total_values);
    return 0;
}

static int reserve_memory(loader *l) {
    weir_model *m = l->m;
    uint64_t available = memory_available();
    FAIL_IF(l->total_bytes > available, l->err, WEIR_E_NOMEM, gguf_path(m->file),
            "the weights need %.1f MB of memory, %.1f MB are available", (double)l->total_bytes / 1e6, (double)available / 1e6);
    void *memory = mmap(NULL, l->total_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    FAIL_IF(memory == MAP_FAILED, l->err, WEIR_E_NOMEM, gguf_path(m->file), "the weights need %.1f MB of memory: %s",
            (double)l->total_bytes / 1e6, strerror(errno));
    madvise(memory, l->total_bytes, MADV_HUGEPAGE);
    m->weights = memory;
    m->weights_bytes = l->total_bytes;
    return 0;
}

static int check_rope_factors(loader *l) {
    const model_config *c = &l->m->config;
    for (int32_t i = 0; c->rope[0].factors && i < c->n_rot / 2; i++)
        FAIL_IF(!(c->rope[0].factors[i] > 0.0f), l->err, WEIR_E_FORMAT, "rope_freqs.weight", "factor %d is %g; it must be positive", i,
                (double)c->rope[0].factors[i]);
    return 0;
}

int model_load_weights(weir_model *m, const weir_model_options *options, weir_error *err) {
    loader l = {.m = m, .err = err};
    m->layers = calloc((size_t)m->config.n_layer, sizeof *m->layers);
    int rc = m->layers ? bind_all(&l) : error_set(err, WEIR_E_NOMEM, NULL, "no memory for %d layers", m->config.n_layer);
    if (rc >= 0) rc = reserve_memory(&l);
    if (rc >= 0) gguf_will_need(m->file);
    if (rc >= 0) rc = pack_all(&l, options);
    if (rc >= 0) rc = check_rope_factors(&l);
    if (rc >= 0) gguf_dont_need(m->file);
    free(l.bindings);
    return rc < 0 ? rc : 0;
}
