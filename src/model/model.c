/* Opening a model, and the model part of the public library. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/buf.h"
#include "base/error.h"
#include "base/nearest.h"
#include "hf/hf.h"
#include "model/sidecar.h"
#include "model/vocab.h"

static char *copy_string(weir_model *m, gguf_string s) { return arena_strndup(&m->strings, s.text, s.n_bytes); }

/* The metadata string of `key`, or `fallback`. */
static int info_string(weir_model *m, const char *key, const char *fallback, const char **out, weir_error *err) {
    gguf_string s = {.text = fallback, .n_bytes = fallback ? strlen(fallback) : 0};
    TRY(gguf_get_string(m->file, key, &s, err));
    *out = s.text ? copy_string(m, s) : NULL;
    FAIL_IF(s.text && *out == NULL, err, WEIR_E_NOMEM, key, "no memory for a string of %zu bytes", s.n_bytes);
    return 0;
}

static int fill_info(weir_model *m, const char *path, weir_error *err) {
    weir_model_info *info = &m->info;
    const char *slash = strrchr(path, '/');
    const char *base = slash ? slash + 1 : path;
    gguf_string whole = {path, strlen(path)};
    info->path = copy_string(m, whole);
    FAIL_IF(info->path == NULL, err, WEIR_E_NOMEM, path, "no memory for the model's names");
    TRY(info_string(m, "general.name", base, &info->name, err));
    TRY(info_string(m, "tokenizer.chat_template", NULL, &info->chat_template, err));
    info->architecture = m->arch->name;
    info->file_type = gguf_file_type_name(m->file);
    info->cpu_level = m->ops->name;
    const model_config *c = &m->config;
    info->n_vocab = m->vocab_only ? tok_n_vocab(m->tokenizer) : c->n_vocab;
    info->n_ctx_train = c->n_ctx_train;
    info->d_model = c->d_model;
    info->n_layer = c->n_layer;
    info->n_head = c->n_head;
    info->n_head_kv = c->n_head_kv;
    info->d_head = c->d_head;
    for (size_t i = 0; i < gguf_n_tensors(m->file); i++) {
        info->n_params += gguf_tensor_at(m->file, i)->n_values;
        info->weight_bytes += gguf_tensor_at(m->file, i)->n_bytes;
    }
    info->packed_bytes = m->weights_bytes;
    if (m->sidecar == NULL) return 0;
    info->weights_cached = m->sidecar->loaded;
    info->weights_cache_path = m->sidecar->path;
    if (m->sidecar->rejected.code) {
        char note[sizeof m->sidecar->rejected + 2];
        int n = snprintf(note, sizeof note, "%s: %s", m->sidecar->rejected.place, m->sidecar->rejected.message);
        info->weights_cache_note = arena_strndup(&m->strings, note, (size_t)n);
        FAIL_IF(info->weights_cache_note == NULL, err, WEIR_E_NOMEM, path, "no memory for the model's names");
    }
    return 0;
}

static int find_arch(weir_model *m, weir_error *err) {
    gguf_string name = {0};
    int found = gguf_get_string(m->file, "general.architecture", &name, err);
    TRY(found);
    FAIL_IF(!found, err, WEIR_E_FORMAT, "general.architecture", "the key is missing: this is no model file");
    m->arch = model_arch_named(name.text, name.n_bytes);
    if (m->arch) return 0;
    size_t n_rows;
    nearest near;
    buf known = {.limit = 400};
    const model_arch *table = model_arch_table(&n_rows);
    nearest_begin(&near, name.text, name.n_bytes);
    for (size_t i = 0; i < n_rows; i++) {
        nearest_try(&near, table[i].name);
        buf_printf(&known, "%s%s", i ? ", " : "", table[i].name);
    }
    error_set(err, WEIR_E_UNSUPPORTED, "general.architecture", "architecture '%.*s' is not supported%s%s; supported: %s",
              (int)(name.n_bytes < 64 ? name.n_bytes : 64), name.text, near.best ? "; the nearest name is " : "",
              near.best ? near.best : "", known.data ? known.data : "");
    buf_free(&known);
    return WEIR_E_UNSUPPORTED;
}

int model_memory_needed(gguf *g, model_memory *out, weir_error *err) {
    weir_model m = {.file = g, .ops = kern_select()};
    TRY(find_arch(&m, err));
    TRY(model_config_read(&m.config, m.arch, g, err));
    *out = (model_memory){0};
    int rc = model_weights_needed(&m, out, err);
    arena_free(&m.strings);
    TRY(rc);
    const kern_kv kv = model_kv(&m.config, KERN_KV_F16, KERN_KV_F16);
    out->kv_token_bytes = model_page_bytes(&m.config, &kv) / KERN_PAGE;
    out->state_bytes = model_state_bytes(&m.config);
    out->n_ctx_train = m.config.n_ctx_train;
    return 0;
}

int weir_model_open(weir_model **out, const char *path, const weir_model_options *options, weir_error *err) {
    *out = NULL;
    weir_model *m = calloc(1, sizeof *m);
    FAIL_IF(m == NULL, err, WEIR_E_NOMEM, path, "no memory for the model");
    m->ops = kern_select();
    m->vocab_only = options && options->vocab_only;
    int rc = hf_open(&m->file, path, err);
    if (rc >= 0) rc = find_arch(m, err);
    if (rc >= 0) rc = model_config_read(&m->config, m->arch, m->file, err);
    if (rc >= 0) rc = model_vocab_open(&m->tokenizer, m->file, err);
    if (rc >= 0 && !m->vocab_only) rc = model_load_weights(m, options, err);
    if (rc >= 0) rc = fill_info(m, path, err);
    if (rc < 0) {
        weir_model_close(&m);
        return rc;
    }
    *out = m;
    return 0;
}

void weir_model_close(weir_model **mm) {
    weir_model *m = *mm;
    if (m == NULL) return;
    if (m->weights) munmap(m->weights, m->weights_bytes);
    sidecar_free(&m->sidecar);
    free(m->layers);
    tok_close(&m->tokenizer);
    gguf_close(&m->file);
    arena_free(&m->strings);
    free(m);
    *mm = NULL;
}

const weir_model_info *weir_model_get_info(const weir_model *m) { return &m->info; }

int64_t weir_tokenize(const weir_model *m, const char *text, size_t n_bytes, bool add_special, bool parse_special, int32_t *tokens,
                      size_t capacity) {
    return tok_encode(m->tokenizer, text, n_bytes, add_special, parse_special, tokens, capacity);
}

const char *weir_token_bytes(const weir_model *m, int32_t token, bool special, size_t *n_bytes) {
    return tok_piece(m->tokenizer, token, special, n_bytes);
}

int weir_detokenize(const weir_model *m, const int32_t *tokens, size_t n, bool special, char **text, size_t *n_bytes, weir_error *err) {
    buf b = BUF_INIT;
    *text = NULL;
    int rc = tok_decode(m->tokenizer, tokens, n, special, &b, err);
    if (rc < 0) {
        buf_free(&b);
        return rc;
    }
    *text = buf_take(&b, n_bytes);
    FAIL_IF(*text == NULL, err, WEIR_E_NOMEM, NULL, "no memory for the text of %zu tokens", n);
    return 0;
}

bool weir_token_is_eog(const weir_model *m, int32_t token) { return tok_is_eog(m->tokenizer, token); }
int32_t weir_token_bos(const weir_model *m) { return tok_bos(m->tokenizer); }
int32_t weir_token_eos(const weir_model *m) { return tok_eos(m->tokenizer); }
bool weir_model_adds_bos(const weir_model *m) { return tok_adds_bos(m->tokenizer); }
