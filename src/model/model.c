/* Opening a model, and the model part of the public library. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/error.h"
#include "model/model.h"
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

/* Names of general.file_type (llama.cpp's enumeration of file types), or the type of most bytes. */
static const char *file_type_name(const gguf *g) {
    static const struct {
        uint32_t number;
        const char *name;
    } names[] = {{0, "F32"},      {1, "F16"},      {2, "Q4_0"},     {3, "Q4_1"},     {7, "Q8_0"},    {8, "Q5_0"},    {9, "Q5_1"},
                 {10, "Q2_K"},    {11, "Q3_K_S"},  {12, "Q3_K_M"},  {13, "Q3_K_L"},  {14, "Q4_K_S"}, {15, "Q4_K_M"}, {16, "Q5_K_S"},
                 {17, "Q5_K_M"},  {18, "Q6_K"},    {19, "IQ2_XXS"}, {20, "IQ2_XS"},  {21, "Q2_K_S"}, {22, "IQ3_XS"}, {23, "IQ3_XXS"},
                 {24, "IQ1_S"},   {25, "IQ4_NL"},  {26, "IQ3_S"},   {27, "IQ3_M"},   {28, "IQ2_S"},  {29, "IQ2_M"},  {30, "IQ4_XS"},
                 {31, "IQ1_M"},   {32, "BF16"},    {36, "TQ1_0"},   {37, "TQ2_0"},   {38, "MXFP4"}};
    uint32_t number;
    if (gguf_get_u32(g, "general.file_type", &number, NULL) > 0)
        for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
            if (names[i].number == number) return names[i].name;
    const char *best = "unknown";
    uint64_t most = 0;
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const gguf_tensor *t = gguf_tensor_at(g, i);
        if (t->n_bytes > most) {
            most = t->n_bytes;
            best = t->format->name;
        }
    }
    return best;
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
    info->file_type = file_type_name(m->file);
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
    return 0;
}

static int find_arch(weir_model *m, weir_error *err) {
    gguf_string name = {0};
    int found = gguf_get_string(m->file, "general.architecture", &name, err);
    TRY(found);
    FAIL_IF(!found, err, WEIR_E_FORMAT, "general.architecture", "the key is missing: this is no model file");
    m->arch = model_arch_named(name.text, name.n_bytes);
    if (m->arch) return 0;
    size_t n_rows, n = 0;
    char known[256] = "";
    const model_arch *table = model_arch_table(&n_rows);
    for (size_t i = 0; i < n_rows && n + 32 < sizeof known; i++) {
        memcpy(known + n, i ? ", " : "", i ? 2 : 0);
        n += i ? 2 : 0;
        size_t length = strlen(table[i].name);
        memcpy(known + n, table[i].name, length + 1);
        n += length;
    }
    FAIL(err, WEIR_E_UNSUPPORTED, "general.architecture", "architecture '%.*s' is not supported; supported: %s",
         (int)(name.n_bytes < 64 ? name.n_bytes : 64), name.text, known);
}

int weir_model_open(weir_model **out, const char *path, const weir_model_options *options, weir_error *err) {
    *out = NULL;
    weir_model *m = calloc(1, sizeof *m);
    FAIL_IF(m == NULL, err, WEIR_E_NOMEM, path, "no memory for the model");
    m->ops = kern_select();
    m->vocab_only = options && options->vocab_only;
    int rc = gguf_open(&m->file, path, err);
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
