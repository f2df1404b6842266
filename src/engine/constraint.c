/* See constraint.h. */
#include "engine/constraint.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

enum { N_CACHED = 32 };

/* A vocabulary, shared by the grammars compiled for it. */
typedef struct vocabulary {
    atomic_int n_references;
    grammar_vocab *v;
    size_t n_tokens;
} vocabulary;

struct weir_grammar {
    atomic_int n_references;
    vocabulary *vocabulary;
    grammar *g;
    pthread_mutex_t lock; /* of masks */
    grammar_masks *masks;
    /* The cache's key. */
    weir_grammar_kind kind;
    char *text;
    size_t n_bytes;
};

struct weir_grammars {
    vocabulary *vocabulary;
    pthread_mutex_t lock;
    weir_grammar *cached[N_CACHED]; /* the latest first */
    size_t n_cached;
};

/* ---- vocabularies and the cache --------------------------------------------------------------------------------------- */

static void vocabulary_unref(vocabulary *v) {
    if (v == NULL || atomic_fetch_sub(&v->n_references, 1) != 1) return;
    grammar_vocab_close(&v->v);
    free(v);
}

int weir_grammars_open_tokens(weir_grammars **out, const grammar_token *tokens, size_t n_tokens, weir_error *err) {
    *out = NULL;
    weir_grammars *set = calloc(1, sizeof *set);
    vocabulary *v = calloc(1, sizeof *v);
    if (set == NULL || v == NULL) {
        free(set);
        free(v);
        FAIL(err, WEIR_E_NOMEM, NULL, "no memory for the vocabulary of grammars");
    }
    atomic_init(&v->n_references, 1);
    pthread_mutex_init(&set->lock, NULL);
    set->vocabulary = v;
    v->n_tokens = n_tokens;
    int code = grammar_vocab_open(&v->v, tokens, n_tokens, err);
    if (code < 0) {
        weir_grammars_close(&set);
        return code;
    }
    *out = set;
    return 0;
}

int weir_grammars_open(weir_grammars **out, const weir_model *model, weir_error *err) {
    *out = NULL;
    size_t n = (size_t)weir_model_get_info(model)->n_vocab;
    grammar_token *tokens = calloc(n + 1, sizeof *tokens);
    FAIL_IF(tokens == NULL, err, WEIR_E_NOMEM, NULL, "no memory for the vocabulary of grammars");
    for (size_t i = 0; i < n; i++) {
        if (weir_token_is_eog(model, (int32_t)i)) continue;
        tokens[i].bytes = weir_token_bytes(model, (int32_t)i, false, &tokens[i].n_bytes);
        if (tokens[i].bytes == NULL) tokens[i].n_bytes = 0;
    }
    int code = weir_grammars_open_tokens(out, tokens, n, err);
    free(tokens);
    return code;
}

void weir_grammars_close(weir_grammars **handle) {
    weir_grammars *set = *handle;
    if (set == NULL) return;
    *handle = NULL;
    for (size_t i = 0; i < set->n_cached; i++) weir_grammar_close(&set->cached[i]);
    vocabulary_unref(set->vocabulary);
    pthread_mutex_destroy(&set->lock);
    free(set);
}

/* ---- grammars --------------------------------------------------------------------------------------------------------- */

static int compile_tagged(grammar **out, const char *text, size_t n_bytes, weir_error *err) {
    const char *end = text + n_bytes, *first = memchr(text, '\n', n_bytes);
    const char *second = first ? memchr(first + 1, '\n', (size_t)(end - first - 1)) : NULL;
    FAIL_IF(second == NULL || second == first + 1, err, WEIR_E_FORMAT, NULL, "two lines with the tags must stand before the schema");
    const grammar_frame_tags tags = {first > text ? text : NULL, first + 1, (size_t)(first - text), (size_t)(second - first - 1)};
    return grammar_compile_tagged(out, second + 1, (size_t)(end - second - 1), &tags, err);
}

static int compile(grammar **out, weir_grammar_kind kind, const char *text, size_t n_bytes, weir_error *err) {
    switch (kind) {
    case WEIR_GRAMMAR_JSON_SCHEMA: return grammar_compile_json_schema(out, text, n_bytes, err);
    case WEIR_GRAMMAR_JSON_OBJECT: return grammar_compile_json_object(out, err);
    case WEIR_GRAMMAR_REGEX: return grammar_compile_regex(out, text, n_bytes, err);
    case WEIR_GRAMMAR_TAGGED: return compile_tagged(out, text, n_bytes, err);
    case WEIR_GRAMMAR_GBNF: return grammar_compile_gbnf(out, text, n_bytes, err);
    }
    FAIL(err, WEIR_E_INVALID, "kind", "%d is no kind of grammar", (int)kind);
}

static int make(weir_grammar **out, weir_grammars *set, weir_grammar_kind kind, const char *text, size_t n_bytes, weir_error *err) {
    weir_grammar *g = calloc(1, sizeof *g);
    FAIL_IF(g == NULL, err, WEIR_E_NOMEM, NULL, "no memory for a grammar");
    atomic_init(&g->n_references, 1);
    pthread_mutex_init(&g->lock, NULL);
    g->vocabulary = set->vocabulary;
    atomic_fetch_add(&g->vocabulary->n_references, 1);
    g->kind = kind;
    g->n_bytes = n_bytes;
    g->text = malloc(n_bytes + 1);
    int code = g->text ? compile(&g->g, kind, text, n_bytes, err) : error_set(err, WEIR_E_NOMEM, NULL, "no memory for a grammar");
    if (code == 0) code = grammar_masks_open(&g->masks, g->g, g->vocabulary->v, err);
    if (code < 0) {
        weir_grammar_close(&g);
        return code;
    }
    if (n_bytes) memcpy(g->text, text, n_bytes);
    *out = g;
    return 0;
}

/* The cached grammar, moved to the front, or NULL. Under the lock. */
static weir_grammar *find(weir_grammars *set, weir_grammar_kind kind, const char *text, size_t n_bytes) {
    for (size_t i = 0; i < set->n_cached; i++) {
        weir_grammar *g = set->cached[i];
        if (g->kind != kind || g->n_bytes != n_bytes || (n_bytes && memcmp(g->text, text, n_bytes) != 0)) continue;
        memmove(&set->cached[1], &set->cached[0], i * sizeof set->cached[0]);
        set->cached[0] = g;
        return weir_grammar_ref(g);
    }
    return NULL;
}

static void keep(weir_grammars *set, weir_grammar *g) {
    if (set->n_cached == N_CACHED) weir_grammar_close(&set->cached[--set->n_cached]);
    memmove(&set->cached[1], &set->cached[0], set->n_cached * sizeof set->cached[0]);
    set->cached[0] = weir_grammar_ref(g);
    set->n_cached++;
}

int weir_grammar_open(weir_grammar **out, weir_grammars *set, weir_grammar_kind kind, const char *text, size_t n_bytes, weir_error *err) {
    if (kind == WEIR_GRAMMAR_JSON_OBJECT) n_bytes = 0;
    pthread_mutex_lock(&set->lock);
    *out = find(set, kind, text, n_bytes);
    pthread_mutex_unlock(&set->lock);
    if (*out) return 0;
    TRY(make(out, set, kind, text, n_bytes, err)); /* not under the lock: it may take a while */
    pthread_mutex_lock(&set->lock);
    weir_grammar *meanwhile = find(set, kind, text, n_bytes);
    if (meanwhile == NULL) keep(set, *out);
    pthread_mutex_unlock(&set->lock);
    weir_grammar_close(&meanwhile);
    return 0;
}

weir_grammar *weir_grammar_ref(weir_grammar *g) {
    atomic_fetch_add(&g->n_references, 1);
    return g;
}

void weir_grammar_close(weir_grammar **handle) {
    weir_grammar *g = *handle;
    *handle = NULL;
    if (g == NULL || atomic_fetch_sub(&g->n_references, 1) != 1) return;
    grammar_masks_close(&g->masks);
    grammar_close(&g->g);
    vocabulary_unref(g->vocabulary);
    pthread_mutex_destroy(&g->lock);
    free(g->text);
    free(g);
}

size_t weir_grammar_n_tokens(const weir_grammar *g) { return g->vocabulary->n_tokens; }

/* ---- one job's place -------------------------------------------------------------------------------------------------- */

struct constraint {
    weir_grammar *g;
    grammar_state *state;
    const int32_t *eog;
    size_t n_eog;
    uint32_t *mask;
    size_t n_words;
    /* What must come before; [n_after], of which n_matched bytes end the text so far. */
    char *after;
    size_t n_after, n_matched;
};

int constraint_open(constraint **out, weir_grammar *g, const char *after, const int32_t *eog, size_t n_eog, weir_error *err) {
    *out = NULL;
    constraint *c = calloc(1, sizeof *c);
    FAIL_IF(c == NULL, err, WEIR_E_NOMEM, NULL, "no memory for the state of a grammar");
    c->g = weir_grammar_ref(g);
    c->eog = eog;
    c->n_eog = n_eog;
    c->n_words = grammar_vocab_mask_words(g->vocabulary->v);
    c->n_after = after ? strlen(after) : 0;
    c->after = strdup(after ? after : "");
    c->mask = calloc(c->n_words + 1, sizeof *c->mask);
    int code = c->after && c->mask ? grammar_state_open(&c->state, g->g, err)
                                   : error_set(err, WEIR_E_NOMEM, NULL, "no memory for the state of a grammar");
    if (code < 0) {
        constraint_close(&c);
        return code;
    }
    *out = c;
    return 0;
}

void constraint_close(constraint **handle) {
    constraint *c = *handle;
    if (c == NULL) return;
    *handle = NULL;
    grammar_state_close(&c->state);
    weir_grammar_close(&c->g);
    free(c->after);
    free(c->mask);
    free(c);
}

static bool in_effect(const constraint *c) { return c->n_matched == c->n_after; }

int constraint_mask(constraint *c, const uint32_t **mask, weir_error *err) {
    if (c == NULL || !in_effect(c)) return CONSTRAINT_NONE;
    pthread_mutex_lock(&c->g->lock);
    int code = grammar_mask(c->g->masks, c->state, c->mask, err);
    pthread_mutex_unlock(&c->g->lock);
    TRY(code);
    *mask = c->mask;
    if (!grammar_can_end(c->state)) return CONSTRAINT_MASK;
    uint32_t any = 0;
    for (size_t i = 0; i < c->n_words; i++) any |= c->mask[i];
    if (any == 0) return CONSTRAINT_COMPLETE;
    for (size_t i = 0; i < c->n_eog; i++)
        if (c->eog[i] >= 0 && (size_t)c->eog[i] < weir_grammar_n_tokens(c->g)) c->mask[c->eog[i] / 32] |= 1u << c->eog[i] % 32;
    return CONSTRAINT_MASK;
}

/* How much of `after` the text ends in once byte has followed n matched bytes. The string is short: no table is needed. */
static size_t matched_after(const constraint *c, size_t n, char byte) {
    for (size_t length = n + 1; length > 0; length--)
        if (c->after[length - 1] == byte && memcmp(c->after, c->after + n - (length - 1), length - 1) == 0) return length;
    return 0;
}

int constraint_accept(constraint *c, const char *bytes, size_t n_bytes, weir_error *err) {
    size_t at = 0;
    if (c == NULL) return 0;
    for (; at < n_bytes && !in_effect(c); at++) c->n_matched = matched_after(c, c->n_matched, bytes[at]);
    if (at == n_bytes) return 0;
    int code = grammar_advance(c->state, bytes + at, n_bytes - at, err);
    if (code == 0) FAIL(err, WEIR_E_INVALID, NULL, "a token that the grammar does not allow was taken");
    return code < 0 ? code : 0;
}
