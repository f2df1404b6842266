/* The weights of a folder: which files, which tensors, under which names and with which shapes. Names and layouts: the model
 * classes of `transformers` on one side, the GGUF specification on the other. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "hf/hf_internal.h"

typedef struct shard {
    const char *name; /* file */
    const unsigned char *bytes;
    safetensors list;
    uint16_t part;
} shard;

typedef struct tensors {
    hf_model *m;
    shard *shards;
    size_t n_shards;
    json_t *weight_map; /* of the index: tensor to file; or NULL */
    json_t *index;
} tensors;

/* ---- files
 * ---------------------------------------------------------------------------------------------------------------------------
 */

static int open_shard(tensors *t, const char *name) {
    hf_model *m = t->m;
    shard *s = &t->shards[t->n_shards];
    char path[4096];
    size_t n_bytes;
    *s = (shard){.name = name, .part = (uint16_t)t->n_shards};
    TRY(hf_path(m, name, path, sizeof path));
    TRY(gguf_build_map(m->builder, path, &s->bytes, &n_bytes, m->err));
    TRY(safetensors_parse(&s->list, s->bytes, n_bytes, name, m->err));
    t->n_shards++;
    return 0;
}

/* A plain name: nothing that leads out of the folder. */
static bool is_plain(const char *name) {
    return name[0] != '\0' && name[0] != '.' && strchr(name, '/') == NULL && strchr(name, '\\') == NULL && strlen(name) < 256;
}

static int by_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int open_indexed(tensors *t) {
    static const char index_name[] = "model.safetensors.index.json";
    hf_model *m = t->m;
    const char *key;
    json_t *value;
    size_t n = 0;
    t->weight_map = json_object_get(t->index, "weight_map");
    FAIL_IF(!json_is_object(t->weight_map) || json_object_size(t->weight_map) == 0, m->err, WEIR_E_FORMAT, index_name,
            "weight_map is no object of tensors and their files");
    const char **names = calloc(json_object_size(t->weight_map), sizeof *names);
    t->shards = calloc(json_object_size(t->weight_map), sizeof *t->shards);
    int rc = names && t->shards ? 0 : error_set(m->err, WEIR_E_NOMEM, index_name, "no memory for the list of files");
    json_object_foreach(t->weight_map, key, value) {
        if (rc < 0) break;
        const char *name = json_string_value(value);
        if (name == NULL || !is_plain(name))
            rc = error_set(m->err, WEIR_E_FORMAT, index_name,
                           "weight_map: the file of '%.80s' is %s%.80s%s; it must be a file in the same folder", key,
                           name ? "'" : "", name ? name : "no text", name ? "'" : "");
        else
            names[n++] = name;
    }
    if (rc == 0) qsort(names, n, sizeof *names, by_text);
    for (size_t i = 0; i < n && rc == 0; i++) {
        if (i > 0 && strcmp(names[i], names[i - 1]) == 0) continue;
        if (t->n_shards == UINT16_MAX)
            rc = error_set(m->err, WEIR_E_LIMIT, index_name, "more than %d files", UINT16_MAX);
        else if (!hf_has(m, names[i]))
            rc = error_set(m->err, WEIR_E_IO, index_name, "the file %.120s, which it names, is missing", names[i]);
        else
            rc = open_shard(t, names[i]);
    }
    free(names);
    return rc;
}

static int open_files(tensors *t) {
    hf_model *m = t->m;
    const int found = hf_read_json(m, "model.safetensors.index.json", &t->index);
    TRY(found);
    if (found) return open_indexed(t);
    if (!hf_has(m, "model.safetensors")) {
        const bool other = hf_has(m, "pytorch_model.bin") || hf_has(m, "pytorch_model.bin.index.json") ||
                           hf_has(m, "consolidated.safetensors");
        FAIL(m->err, other ? WEIR_E_UNSUPPORTED : WEIR_E_IO, m->dir,
             "the folder has no model.safetensors and no model.safetensors.index.json%s",
             other ? "; other formats of weights are not read: save the model as safetensors" : "");
    }
    t->shards = calloc(1, sizeof *t->shards);
    FAIL_IF(t->shards == NULL, m->err, WEIR_E_NOMEM, m->dir, "no memory for the list of files");
    return open_shard(t, "model.safetensors");
}

/* ---- names
 * ----------------------------------------------------------------------------------------------------------------------------
 */

/* What the sizes of a row of the table are. */
typedef enum size_kind { NONE, D_MODEL, D_HEAD, D_FF, TWO_D_FF, Q_ROWS, KV_ROWS, QKV_ROWS, VOCAB } size_kind;

typedef enum families_of { ALL, FOUR_NORMS, TWO_NORMS } families_of;

typedef struct tensor_row {
    const char *hf, *gguf;    /* inside a layer; "" = nothing in front */
    size_kind n_rows, n_cols; /* n_rows NONE: a vector */
    families_of of;
    bool turned; /* rows are turned by RoPE */
    bool norm;
} tensor_row;

static const tensor_row layer_rows[] = {
    {"input_layernorm.weight", "attn_norm.weight", NONE, D_MODEL, ALL, false, true},
    {"self_attn.q_proj.weight", "attn_q.weight", Q_ROWS, D_MODEL, ALL, true, false},
    {"self_attn.k_proj.weight", "attn_k.weight", KV_ROWS, D_MODEL, ALL, true, false},
    {"self_attn.v_proj.weight", "attn_v.weight", KV_ROWS, D_MODEL, ALL, false, false},
    {"self_attn.qkv_proj.weight", "attn_qkv.weight", QKV_ROWS, D_MODEL, ALL, false, false},
    {"self_attn.o_proj.weight", "attn_output.weight", D_MODEL, Q_ROWS, ALL, false, false},
    {"self_attn.q_proj.bias", "attn_q.bias", NONE, Q_ROWS, ALL, true, false},
    {"self_attn.k_proj.bias", "attn_k.bias", NONE, KV_ROWS, ALL, true, false},
    {"self_attn.v_proj.bias", "attn_v.bias", NONE, KV_ROWS, ALL, false, false},
    {"self_attn.o_proj.bias", "attn_output.bias", NONE, D_MODEL, ALL, false, false},
    {"self_attn.q_norm.weight", "attn_q_norm.weight", NONE, D_HEAD, ALL, false, true},
    {"self_attn.k_norm.weight", "attn_k_norm.weight", NONE, D_HEAD, ALL, false, true},
    {"post_attention_layernorm.weight", "ffn_norm.weight", NONE, D_MODEL, TWO_NORMS, false, true},
    {"post_attention_layernorm.weight", "post_attention_norm.weight", NONE, D_MODEL, FOUR_NORMS, false, true},
    {"pre_feedforward_layernorm.weight", "ffn_norm.weight", NONE, D_MODEL, FOUR_NORMS, false, true},
    {"post_feedforward_layernorm.weight", "post_ffw_norm.weight", NONE, D_MODEL, FOUR_NORMS, false, true},
    {"mlp.gate_proj.weight", "ffn_gate.weight", D_FF, D_MODEL, ALL, false, false},
    {"mlp.up_proj.weight", "ffn_up.weight", D_FF, D_MODEL, ALL, false, false},
    {"mlp.gate_up_proj.weight", "ffn_up.weight", TWO_D_FF, D_MODEL, ALL, false, false},
    {"mlp.down_proj.weight", "ffn_down.weight", D_MODEL, D_FF, ALL, false, false},
    {"mlp.gate_proj.bias", "ffn_gate.bias", NONE, D_FF, ALL, false, false},
    {"mlp.up_proj.bias", "ffn_up.bias", NONE, D_FF, ALL, false, false},
    {"mlp.down_proj.bias", "ffn_down.bias", NONE, D_MODEL, ALL, false, false},
};

static const tensor_row model_rows[] = {
    {"embed_tokens.weight", "token_embd.weight", VOCAB, D_MODEL, ALL, false, false},
    {"norm.weight", "output_norm.weight", NONE, D_MODEL, ALL, false, true},
};

static const tensor_row head_row = {"lm_head.weight", "output.weight", VOCAB, D_MODEL, ALL, false, false};

static int64_t size_of(const hf_model *m, size_kind kind) {
    switch (kind) {
    case D_MODEL:
        return m->d_model;
    case D_HEAD:
        return m->d_head;
    case D_FF:
        return m->d_ff;
    case TWO_D_FF:
        return 2 * (int64_t)m->d_ff;
    case Q_ROWS:
        return (int64_t)m->n_head * m->d_head;
    case KV_ROWS:
        return (int64_t)m->n_head_kv * m->d_head;
    case QKV_ROWS:
        return ((int64_t)m->n_head + 2 * (int64_t)m->n_head_kv) * m->d_head;
    case VOCAB:
        return m->n_vocab;
    default:
        return 0;
    }
}

static const tensor_row *find_row(const hf_model *m, const tensor_row *rows, size_t n, const char *name) {
    for (size_t i = 0; i < n; i++) {
        const bool applies = rows[i].of == ALL || (rows[i].of == FOUR_NORMS) == m->family->four_norms;
        if (applies && strcmp(rows[i].hf, name) == 0) return &rows[i];
    }
    return NULL;
}

/* "prefix" taken off; NULL if the name does not begin with it. */
static const char *behind(const char *name, const char *prefix) {
    const size_t n = strlen(prefix);
    return strncmp(name, prefix, n) == 0 ? name + n : NULL;
}

/* The row of a tensor, with the number of its layer (-1 = none). `ignored`: a tensor that nothing needs. */
static const tensor_row *identify(const hf_model *m, const char *name, int32_t *layer, bool *ignored) {
    /* Models of text and images have their text model one level deeper, of which two spellings exist. */
    static const char *const prefixes[] = {"model.language_model.", "language_model.model.", "model."};
    static const char *const others[] = {"vision_tower.", "model.vision_tower.", "multi_modal_projector.",
                                         "model.multi_modal_projector."};
    const char *rest = NULL, *head = behind(name, "language_model.");
    *layer = -1;
    *ignored = false;
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) *ignored |= behind(name, others[i]) != NULL;
    if (*ignored) return NULL;
    if (strcmp(head ? head : name, head_row.hf) == 0) {
        *ignored = m->tied;
        return m->tied ? NULL : &head_row;
    }
    for (size_t i = 0; i < sizeof prefixes / sizeof prefixes[0] && rest == NULL; i++) rest = behind(name, prefixes[i]);
    if (rest == NULL) return NULL;
    const char *number = behind(rest, "layers.");
    if (number == NULL) return find_row(m, model_rows, sizeof model_rows / sizeof model_rows[0], rest);
    int32_t n = 0;
    const char *digits = number;
    for (; *number >= '0' && *number <= '9' && n < 100000; number++) n = n * 10 + (*number - '0');
    if (number == digits || *number != '.' || (digits[0] == '0' && number > digits + 1)) return NULL;
    *ignored = strcmp(number + 1, "self_attn.rotary_emb.inv_freq") == 0;
    *layer = n;
    return *ignored || n >= m->n_layer ? NULL : find_row(m, layer_rows, sizeof layer_rows / sizeof layer_rows[0], number + 1);
}

/* ---- tensors
 * ----------------------------------------------------------------------------------------------------------------------------
 */

static int fail_tensor(const tensors *t, const shard *s, const safetensor *x, int code, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
static int fail_tensor(const tensors *t, const shard *s, const safetensor *x, int code, const char *format, ...) {
    char place[300];
    va_list args;
    snprintf(place, sizeof place, "%.120s: tensor '%.120s'", s->name, x->name);
    va_start(args, format);
    error_setv(t->m->err, code, place, format, args);
    va_end(args);
    return code;
}

static int check_shape(const tensors *t, const shard *s, const safetensor *x, const tensor_row *row) {
    const int64_t n_rows = size_of(t->m, row->n_rows), n_cols = size_of(t->m, row->n_cols);
    const bool fits = row->n_rows == NONE ? x->n_dims == 1 && x->dims[0] == (uint64_t)n_cols
                                          : x->n_dims == 2 && x->dims[0] == (uint64_t)n_rows && x->dims[1] == (uint64_t)n_cols;
    char shape[128] = "no dimensions", wanted[64];
    size_t n = 0;
    if (fits) return 0;
    for (uint32_t d = 0; d < x->n_dims && n < 100; d++)
        n += (size_t)snprintf(shape + n, sizeof shape - n, d ? ", %llu" : "%llu", (unsigned long long)x->dims[d]);
    snprintf(wanted, sizeof wanted, "%lld", (long long)n_cols);
    if (row->n_rows != NONE) snprintf(wanted, sizeof wanted, "%lld, %lld", (long long)n_rows, (long long)n_cols);
    return fail_tensor(t, s, x, WEIR_E_FORMAT, "the shape is [%s]; config.json asks for [%s]", shape, wanted);
}

/* A vector as floats of the object's own, as GGUF files have them: turned, and with 1 added to the weights of a norm. */
static const unsigned char *make_vector(const hf_model *m, const safetensor *x, const unsigned char *data, bool turned,
                                        bool plus_one) {
    const size_t n = (size_t)x->n_values, half = (size_t)m->d_head / 2;
    float *own = gguf_build_memory(m->builder, n * sizeof *own);
    float *stored = own && turned ? malloc(n * sizeof *stored) : own;
    if (stored == NULL) return NULL;
    x->format->dequantise(data, stored, n);
    if (turned) {
        for (size_t i = 0; i < n; i++) {
            const size_t in_head = i % (2 * half);
            own[i] = stored[i - in_head + (in_head % 2) * half + in_head / 2];
        }
        free(stored);
    }
    for (size_t i = 0; plus_one && i < n; i++) own[i] += 1.0f;
    return (const unsigned char *)own;
}

static int put_tensor(const tensors *t, const shard *s, const safetensor *x) {
    const hf_model *m = t->m;
    char name[GGUF_MAX_NAME];
    int32_t layer;
    bool ignored;
    const tensor_row *row = identify(m, x->name, &layer, &ignored);
    if (t->weight_map) {
        const char *file = json_string_value(json_object_get(t->weight_map, x->name));
        if (file == NULL || strcmp(file, s->name) != 0)
            return fail_tensor(t, s, x, WEIR_E_FORMAT, "the index says that it lies in %.120s", file ? file : "no file");
    }
    if (ignored) return 0;
    if (row == NULL)
        return fail_tensor(t, s, x, WEIR_E_UNSUPPORTED, "a %s model of %d layers has no such tensor", m->family->model_type,
                           m->n_layer);
    if (x->format == NULL)
        return fail_tensor(t, s, x, WEIR_E_UNSUPPORTED,
                           "values of type %s cannot be computed with; weights must be F32, F16 or BF16", x->dtype);
    TRY(check_shape(t, s, x, row));
    if (layer < 0)
        snprintf(name, sizeof name, "%s", row->gguf);
    else
        snprintf(name, sizeof name, "blk.%d.%s", layer, row->gguf);
    gguf_tensor out = {.name = {name, strlen(name)},
                       .n_dims = x->n_dims,
                       .format = x->format,
                       .file_offset = x->offset,
                       .part = s->part,
                       .data = s->bytes + x->offset};
    for (uint32_t d = 0; d < x->n_dims; d++) out.dims[d] = x->dims[x->n_dims - 1 - d];
    const bool turned = row->turned && m->family->pairs;
    if (row->n_rows != NONE) {
        out.rope_head = turned ? (uint32_t)m->d_head : 0;
    } else {
        out.format = quant_format_of(QUANT_F32);
        out.data = make_vector(m, x, out.data, turned, row->norm && m->family->norm_plus_one);
        if (out.data == NULL)
            return fail_tensor(t, s, x, WEIR_E_NOMEM, "no memory for %llu values", (unsigned long long)x->n_values);
    }
    gguf_build_tensor(m->builder, &out);
    return 0;
}

static bool has_tensor(const tensors *t, const char *name) {
    for (size_t s = 0; s < t->n_shards; s++)
        for (size_t i = 0; i < t->shards[s].list.n; i++)
            if (strcmp(t->shards[s].list.tensors[i].name, name) == 0) return true;
    return false;
}

/* What the index promises must be there; so must an output matrix that is not tied. */
static int check_complete(const tensors *t) {
    const hf_model *m = t->m;
    const char *key;
    json_t *value;
    json_object_foreach(t->weight_map, key, value)
        FAIL_IF(!has_tensor(t, key), m->err, WEIR_E_FORMAT, json_string_value(value),
                "the tensor '%.120s' is missing; the index says that it is here", key);
    const json_t *tied = json_object_get(m->config, "tie_word_embeddings");
    FAIL_IF(json_is_false(tied) && !has_tensor(t, "lm_head.weight") && !has_tensor(t, "language_model.lm_head.weight"), m->err,
            WEIR_E_FORMAT, "lm_head.weight",
            "the tensor is missing, and config.json says that the embeddings are not tied to it");
    return 0;
}

static int read_tensors(tensors *t) {
    TRY(open_files(t));
    for (size_t s = 0; s < t->n_shards; s++)
        for (size_t i = 0; i < t->shards[s].list.n; i++) TRY(put_tensor(t, &t->shards[s], &t->shards[s].list.tensors[i]));
    return check_complete(t);
}

int hf_read_tensors(hf_model *m) {
    tensors t = {.m = m};
    const int rc = read_tensors(&t);
    for (size_t i = 0; i < t.n_shards; i++) safetensors_free(&t.shards[i].list);
    free(t.shards);
    json_decref(t.index);
    return rc;
}
