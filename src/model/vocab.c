/* See vocab.h. */
#include "model/vocab.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/error.h"
#include "tok/tok_json.h"

static int no_memory(const char *key, weir_error *err) { return error_set(err, WEIR_E_NOMEM, key, "out of memory"); }

static tok_string view(gguf_string s) { return (tok_string){s.text, s.n_bytes}; }

/* 1 = *out is the array; 0 = absent. */
static int find_array(const gguf *g, const char *key, bool strings, const gguf_key_value **out, weir_error *err) {
    const gguf_key_value *kv = gguf_find(g, key);
    if (kv == NULL) return 0;
    FAIL_IF(kv->type != GGUF_ARRAY, err, WEIR_E_FORMAT, key, "is a %s; an array is needed", gguf_value_type_name(kv->type));
    FAIL_IF((kv->item_type == GGUF_STRING) != strings, err, WEIR_E_FORMAT, key, "is an array of %s; %s are needed",
            gguf_value_type_name(kv->item_type), strings ? "strings" : "numbers");
    *out = kv;
    return 1;
}

static int read_strings(arena *memory, const gguf *g, const char *key, const tok_string **out, size_t *n, weir_error *err) {
    const gguf_key_value *kv;
    const int rc = find_array(g, key, true, &kv, err);
    if (rc <= 0) return rc;
    tok_string *strings = arena_array(memory, (size_t)kv->n_items, sizeof *strings);
    if (strings == NULL) return no_memory(key, err);
    for (size_t i = 0; i < kv->n_items; i++) strings[i] = view(kv->strings[i]);
    *out = strings;
    *n = (size_t)kv->n_items;
    return 1;
}

/* An array of numbers about the tokens: at least one for each. */
static int find_numbers(const gguf *g, const char *key, size_t n_tokens, const gguf_key_value **out, weir_error *err) {
    const int rc = find_array(g, key, false, out, err);
    if (rc <= 0) return rc;
    FAIL_IF((*out)->n_items < n_tokens, err, WEIR_E_FORMAT, key, "has %llu items for %zu tokens",
            (unsigned long long)(*out)->n_items, n_tokens);
    return 1;
}

static int read_scores(arena *memory, const gguf *g, tok_vocab *v, weir_error *err) {
    static const char key[] = "tokenizer.ggml.scores";
    const gguf_key_value *kv;
    const int rc = find_numbers(g, key, v->n_tokens, &kv, err);
    if (rc <= 0) return rc;
    float *scores = arena_array(memory, v->n_tokens, sizeof *scores);
    if (scores == NULL) return no_memory(key, err);
    for (size_t i = 0; i < v->n_tokens; i++) {
        double value;
        FAIL_IF(gguf_item_f64(kv, i, &value) != 1, err, WEIR_E_FORMAT, key, "item %zu is not a number", i);
        scores[i] = (float)value;
    }
    v->scores = scores;
    return 1;
}

static int read_types(arena *memory, const gguf *g, tok_vocab *v, weir_error *err) {
    static const char key[] = "tokenizer.ggml.token_type";
    const gguf_key_value *kv;
    const int rc = find_numbers(g, key, v->n_tokens, &kv, err);
    if (rc <= 0) return rc;
    int32_t *types = arena_array(memory, v->n_tokens, sizeof *types);
    if (types == NULL) return no_memory(key, err);
    for (size_t i = 0; i < v->n_tokens; i++) {
        int64_t value;
        FAIL_IF(gguf_item_i64(kv, i, &value) != 1, err, WEIR_E_FORMAT, key, "item %zu is not an integer", i);
        types[i] = value >= 0 && value <= TOK_BYTE ? (int32_t)value : 0;
    }
    v->types = types;
    return 1;
}

/* A token id, or -1 if the key is absent. */
static int read_id(const gguf *g, const char *key, size_t n_tokens, int32_t *out, weir_error *err) {
    uint32_t value;
    const int rc = gguf_get_u32(g, key, &value, err);
    *out = -1;
    if (rc <= 0) return rc;
    FAIL_IF(value >= n_tokens, err, WEIR_E_FORMAT, key, "token id %u is not in 0..%zu", value, n_tokens - 1);
    *out = (int32_t)value;
    return 1;
}

static int read_ids(const gguf *g, tok_vocab *v, int32_t fim[TOK_N_FIM], weir_error *err) {
    static const char *const fim_keys[TOK_N_FIM][2] = {
        {"tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id"},
        {"tokenizer.ggml.fim_suf_token_id", "tokenizer.ggml.suffix_token_id"},
        {"tokenizer.ggml.fim_mid_token_id", "tokenizer.ggml.middle_token_id"},
        {"tokenizer.ggml.fim_pad_token_id", NULL},
        {"tokenizer.ggml.fim_rep_token_id", NULL},
        {"tokenizer.ggml.fim_sep_token_id", NULL},
    };
    TRY(read_id(g, "tokenizer.ggml.bos_token_id", v->n_tokens, &v->bos, err));
    TRY(read_id(g, "tokenizer.ggml.eos_token_id", v->n_tokens, &v->eos, err));
    TRY(read_id(g, "tokenizer.ggml.eot_token_id", v->n_tokens, &v->eot, err));
    TRY(read_id(g, "tokenizer.ggml.eom_token_id", v->n_tokens, &v->eom, err));
    TRY(read_id(g, "tokenizer.ggml.unknown_token_id", v->n_tokens, &v->unk, err));
    TRY(read_id(g, "tokenizer.ggml.seperator_token_id", v->n_tokens, &v->sep, err));
    if (v->sep < 0) TRY(read_id(g, "tokenizer.ggml.separator_token_id", v->n_tokens, &v->sep, err));
    /* Padding and mask tokens are never produced; files exist whose padding id lies beyond the vocabulary. */
    v->pad = v->mask = v->nl = -1;
    for (size_t i = 0; i < TOK_N_FIM; i++) {
        TRY(read_id(g, fim_keys[i][0], v->n_tokens, &fim[i], err));
        if (fim[i] < 0 && fim_keys[i][1]) TRY(read_id(g, fim_keys[i][1], v->n_tokens, &fim[i], err));
    }
    v->fim = fim;
    return 0;
}

static int read_flag(const gguf *g, const char *key, bool *has, bool *value, weir_error *err) {
    const int rc = gguf_get_bool(g, key, value, err);
    if (rc >= 0) *has = rc == 1;
    return rc;
}

static int read_flags(const gguf *g, tok_vocab *v, weir_error *err) {
    bool ignored;
    TRY(read_flag(g, "tokenizer.ggml.add_bos_token", &v->has_add_bos, &v->add_bos, err));
    TRY(read_flag(g, "tokenizer.ggml.add_eos_token", &v->has_add_eos, &v->add_eos, err));
    TRY(read_flag(g, "tokenizer.ggml.add_sep_token", &ignored, &v->add_sep, err));
    TRY(read_flag(g, "tokenizer.ggml.add_space_prefix", &v->has_add_space_prefix, &v->add_space_prefix, err));
    TRY(read_flag(g, "tokenizer.ggml.remove_extra_whitespaces", &ignored, &v->remove_extra_whitespaces, err));
    TRY(read_flag(g, "tokenizer.ggml.normalizer.lowercase", &v->has_lowercase, &v->lowercase, err));
    TRY(read_flag(g, "tokenizer.ggml.normalizer.strip_accents", &v->has_strip_accents, &v->strip_accents, err));
    return 0;
}

static int read_charsmap(const gguf *g, tok_vocab *v, weir_error *err) {
    static const char key[] = "tokenizer.ggml.precompiled_charsmap";
    const gguf_key_value *kv;
    const int rc = find_array(g, key, false, &kv, err);
    if (rc <= 0) return rc;
    FAIL_IF(kv->item_type != GGUF_UINT8 && kv->item_type != GGUF_INT8, err, WEIR_E_FORMAT, key,
            "is an array of %s; bytes are needed", gguf_value_type_name(kv->item_type));
    v->charsmap = kv->data;
    v->n_charsmap = (size_t)kv->n_items;
    return 1;
}

/* Whether the string has the word, in any case. */
static bool mentions(gguf_string s, const char *word) {
    const size_t n = strlen(word);
    for (size_t at = 0; at + n <= s.n_bytes; at++) {
        size_t i = 0;
        while (i < n && tolower((unsigned char)s.text[at + i]) == word[i]) i++;
        if (i == n) return true;
    }
    return false;
}

/* Which tokens swallow white space is not in the file: it is known by the model's name and architecture. */
static int read_strip_rules(const gguf *g, tok_vocab *v, weir_error *err) {
    gguf_string name = {"", 0}, architecture = {"", 0};
    const gguf_string pre = {v->pre.text, v->pre.n_bytes};
    TRY(gguf_get_string(g, "general.name", &name, err));
    TRY(gguf_get_string(g, "general.architecture", &architecture, err));
    const bool jina = mentions(pre, "jina-v2-de") || mentions(pre, "jina-v2-es") || mentions(pre, "jina-v2-code") ||
                      mentions(architecture, "nomic-bert-moe") || mentions(architecture, "jina-bert-v3");
    v->special_rstrip = !jina && (mentions(name, "phi-3") || mentions(name, "phi3"));
    v->mask_lstrip = jina || mentions(name, "modern-bert");
    return 0;
}

/* Which tokens end a generation besides the one of eos_token_id: some models have several. */
static int read_ends(arena *memory, const gguf *g, tok_vocab *v, weir_error *err) {
    static const char key[] = "tokenizer.ggml.eos_token_ids";
    const gguf_key_value *kv;
    const int rc = find_array(g, key, false, &kv, err);
    if (rc <= 0) return rc;
    int32_t *ends = arena_array(memory, (size_t)kv->n_items, sizeof *ends);
    if (ends == NULL) return no_memory(key, err);
    for (size_t i = 0; i < kv->n_items; i++) {
        int64_t value;
        FAIL_IF(gguf_item_i64(kv, i, &value) != 1 || value < 0 || value > INT32_MAX, err, WEIR_E_FORMAT, key, "item %zu is no token id", i);
        ends[i] = (int32_t)value;
    }
    v->ends = ends;
    v->n_ends = (size_t)kv->n_items;
    return 1;
}

static int read_vocab(arena *memory, const gguf *g, tok_vocab *v, int32_t fim[TOK_N_FIM], weir_error *err) {
    gguf_string model, pre = {"", 0};
    int rc = gguf_get_string(g, "tokenizer.ggml.model", &model, err);
    FAIL_IF(rc == 0, err, WEIR_E_FORMAT, "tokenizer.ggml.model", "is missing: the file has no vocabulary");
    TRY(rc);
    TRY(gguf_get_string(g, "tokenizer.ggml.pre", &pre, err));
    v->model = view(model);
    v->pre = view(pre);
    rc = read_strings(memory, g, "tokenizer.ggml.tokens", &v->tokens, &v->n_tokens, err);
    FAIL_IF(rc == 0, err, WEIR_E_FORMAT, "tokenizer.ggml.tokens", "is missing: the file has no vocabulary");
    TRY(rc);
    FAIL_IF(v->n_tokens == 0, err, WEIR_E_FORMAT, "tokenizer.ggml.tokens", "no tokens; a vocabulary needs at least one");
    TRY(read_scores(memory, g, v, err));
    TRY(read_types(memory, g, v, err));
    rc = read_strings(memory, g, "tokenizer.ggml.merges", &v->merges, &v->n_merges, err);
    const bool needs_merges = model.n_bytes == 4 && memcmp(model.text, "gpt2", 4) == 0;
    FAIL_IF(rc == 0 && needs_merges, err, WEIR_E_FORMAT, "tokenizer.ggml.merges", "is missing; byte-level BPE needs merges");
    TRY(rc);
    TRY(read_ids(g, v, fim, err));
    TRY(read_flags(g, v, err));
    TRY(read_charsmap(g, v, err));
    TRY(read_ends(memory, g, v, err));
    return read_strip_rules(g, v, err);
}

/* A whole tokenizer.json: 1 = opened; 0 = the file has a vocabulary of its own, or neither. */
static int open_json(tok **out, arena *memory, const gguf *g, tok_vocab *v, int32_t fim[TOK_N_FIM], weir_error *err) {
    gguf_string text;
    if (gguf_find(g, "tokenizer.ggml.model")) return 0;
    const int rc = gguf_get_string(g, "tokenizer.huggingface.json", &text, err);
    if (rc <= 0) return rc;
    v->n_tokens = INT32_MAX; /* not known yet; tok_open_json checks the ids */
    TRY(read_ids(g, v, fim, err));
    TRY(read_ends(memory, g, v, err));
    TRY(tok_open_json(out, text.text, text.n_bytes, v, err));
    return 1;
}

int model_vocab_open(tok **out, const gguf *g, weir_error *err) {
    arena memory = ARENA_INIT;
    tok_vocab vocab = {0};
    int32_t fim[TOK_N_FIM];
    *out = NULL;
    int rc = open_json(out, &memory, g, &vocab, fim, err);
    if (rc == 0) {
        rc = read_vocab(&memory, g, &vocab, fim, err);
        if (rc >= 0) rc = tok_open(out, &vocab, err);
    }
    arena_free(&memory);
    return rc < 0 ? rc : 0;
}
