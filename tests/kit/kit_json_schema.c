/* Sub-folder json_schema: schemas, GBNF grammars and regular expressions with texts to accept and to reject, byte by byte
 * through the matcher, and token by token through masks where the tokenizer sub-folder beside it has vocabularies. A schema of
 * a level other than core may be refused by name; that is counted as skipped. */
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "gguf/gguf.h"
#include "grammar/grammar.h"
#include "kit.h"
#include "model/vocab.h"
#include "tok/tok.h"

enum { MAX_VOCABULARIES = 2 };

typedef struct kit_vocabulary {
    const char *name;
    tok *t;
    grammar_vocab *v;
} kit_vocabulary;

typedef struct schema_case {
    kit_report *r;
    kit_vocabulary vocabularies[MAX_VOCABULARIES];
    size_t n_vocabularies;
    const char *name;
    const grammar *g;
} schema_case;

/* Byte by byte; 1 = matches, 0 = does not, negative = a failure. */
static int match_bytes(const grammar *g, const char *text, size_t n_bytes) {
    grammar_state *s = NULL;
    int alive = grammar_state_open(&s, g, NULL);
    if (alive == 0) alive = 1;
    for (size_t i = 0; i < n_bytes && alive == 1; i++) alive = grammar_advance(s, text + i, 1, NULL);
    const int result = alive == 1 ? grammar_can_end(s) : alive;
    grammar_state_close(&s);
    return result;
}

/* The text as the tokeniser cuts it, without the space that SPM puts in front: then a line end goes before the text, and both
 * are left out. Returns the ids (to be freed), or NULL. */
static int32_t *cut(const tok *t, const char *text, size_t n_bytes, int64_t *n) {
    char *with_line = malloc(n_bytes + 2);
    if (with_line == NULL) return NULL;
    with_line[0] = '\n';
    memcpy(with_line + 1, text, n_bytes);
    for (int attempt = 0; attempt < 2; attempt++) {
        const char *from = with_line + 1 - attempt;
        const size_t n_from = n_bytes + (size_t)attempt, n_skip = attempt ? 2 : 0; /* the space and the line end */
        *n = tok_encode(t, from, n_from, false, false, NULL, 0);
        int32_t *ids = malloc((size_t)(*n < 0 ? 0 : *n) * sizeof *ids + 1);
        if (*n < 0 || ids == NULL || tok_encode(t, from, n_from, false, false, ids, (size_t)*n) != *n) *n = 0;
        size_t n_total = 0;
        int64_t first = 0;
        for (int64_t i = 0; i < *n; i++) {
            size_t n_piece;
            if (n_total < n_skip) first = i + 1;
            tok_piece(t, ids[i], false, &n_piece);
            n_total += n_piece;
        }
        if (n_total == n_bytes + n_skip && ids) {
            *n -= first;
            memmove(ids, ids + first, (size_t)*n * sizeof *ids);
            free(with_line);
            return ids;
        }
        free(ids);
    }
    free(with_line);
    return NULL;
}

/* Token by token: each must be in the mask if and only if the matcher takes it. */
static int match_tokens(const kit_vocabulary *kv, const grammar *g, const char *text, size_t n_bytes) {
    int64_t n = 0;
    int32_t *ids = cut(kv->t, text, n_bytes, &n);
    uint32_t *bits = malloc((grammar_vocab_mask_words(kv->v) + 1) * sizeof *bits);
    grammar_state *s = NULL;
    grammar_masks *m = NULL;
    int alive = ids && bits ? 1 : WEIR_E_INTERNAL;
    if (alive == 1 && (grammar_state_open(&s, g, NULL) < 0 || grammar_masks_open(&m, g, kv->v, NULL) < 0)) alive = WEIR_E_NOMEM;
    for (int64_t i = 0; i < n && alive == 1; i++) {
        alive = grammar_mask(m, s, bits, NULL);
        if (alive < 0) break;
        const bool allowed = bits[ids[i] / 32] >> ids[i] % 32 & 1;
        alive = grammar_accept_token(s, kv->v, ids[i], NULL);
        if (alive >= 0 && allowed != (alive == 1)) alive = WEIR_E_INTERNAL;
    }
    const int result = alive == 1 ? grammar_can_end(s) : alive;
    grammar_masks_close(&m);
    grammar_state_close(&s);
    free(ids);
    free(bits);
    return result;
}

static void check_texts(schema_case *c, const json_t *texts, bool accept) {
    for (size_t i = 0; i < json_array_size(texts); i++) {
        const json_t *text = json_array_get(texts, i);
        const char *bytes = json_string_value(text);
        const size_t n_bytes = json_string_length(text);
        int result = match_bytes(c->g, bytes, n_bytes);
        const char *how = "bytes";
        for (size_t v = 0; v < c->n_vocabularies && result == accept; v++) {
            result = match_tokens(&c->vocabularies[v], c->g, bytes, n_bytes);
            how = c->vocabularies[v].name;
        }
        if (result == accept)
            kit_pass(c->r);
        else
            kit_fail(c->r, "%s, by %s: '%s' %s", c->name, how, bytes,
                     result < 0 ? "fails"
                     : accept   ? "is refused"
                                : "is accepted");
    }
}

static int compile(grammar **g, const json_t *line, weir_error *err) {
    const json_t *schema = json_object_get(line, "schema"), *text = json_object_get(line, "grammar"),
                 *pattern = json_object_get(line, "pattern");
    if (text) return grammar_compile_gbnf(g, json_string_value(text), json_string_length(text), err);
    if (pattern) return grammar_compile_regex(g, json_string_value(pattern), json_string_length(pattern), err);
    char *dumped = json_dumps(schema, JSON_ENCODE_ANY);
    const int code = dumped ? grammar_compile_json_schema(g, dumped, strlen(dumped), err) : WEIR_E_NOMEM;
    free(dumped);
    return code;
}

static void run_line(schema_case *c, const json_t *line) {
    weir_error err = {0};
    grammar *g = NULL;
    const char *level = json_string_value(json_object_get(line, "level"));
    c->name = json_string_value(json_object_get(line, "name"));
    const int code = compile(&g, line, &err);
    if (code == WEIR_E_UNSUPPORTED && level && strcmp(level, "core") != 0) {
        kit_skip(c->r, "%s: refused: %s: %s", c->name, err.place, err.message);
    } else if (code < 0) {
        kit_fail(c->r, "%s: %s: %s", c->name, err.place, err.message);
    } else {
        c->g = g;
        check_texts(c, json_object_get(line, "accept"), true);
        check_texts(c, json_object_get(line, "reject"), false);
    }
    grammar_close(&g);
}

static void run_file(schema_case *c, const char *path) {
    size_t n_bytes;
    char *data = kit_read_file(path, &n_bytes);
    if (data == NULL) {
        kit_fail(c->r, "%s cannot be read", path);
        return;
    }
    for (size_t at = 0, line_number = 1; at < n_bytes; line_number++) {
        const char *newline = memchr(data + at, '\n', n_bytes - at);
        const size_t end = newline ? (size_t)(newline - data) : n_bytes;
        json_error_t error;
        json_t *line = end > at ? json_loadb(data + at, end - at, JSON_ALLOW_NUL, &error) : NULL;
        if (line)
            run_line(c, line);
        else if (end > at)
            kit_fail(c->r, "%s:%zu: %s", path, line_number, error.text);
        json_decref(line);
        at = end + 1;
    }
    free(data);
}

/* The vocabulary of a file, as text: control tokens have none. */
static void open_vocabulary(schema_case *c, const char *path, const char *name) {
    struct stat st;
    if (stat(path, &st) < 0) return;
    weir_error err = {0};
    gguf *file = NULL;
    kit_vocabulary kv = {.name = name};
    int code = gguf_open(&file, path, &err);
    if (code == 0) code = model_vocab_open(&kv.t, file, &err);
    gguf_close(&file);
    const size_t n = code == 0 ? (size_t)tok_n_vocab(kv.t) : 0;
    grammar_token *tokens = calloc(n + 1, sizeof *tokens);
    for (size_t i = 0; i < n && tokens; i++)
        if (!tok_is_control(kv.t, (int32_t)i)) tokens[i].bytes = tok_piece(kv.t, (int32_t)i, false, &tokens[i].n_bytes);
    if (code == 0 && tokens) code = grammar_vocab_open(&kv.v, tokens, n, &err);
    free(tokens);
    if (code == 0) {
        c->vocabularies[c->n_vocabularies++] = kv;
        return;
    }
    kit_fail(c->r, "%s: %s", path, err.message);
    tok_close(&kv.t);
}

void kit_run_json_schema(kit_report *r, const char *dir) {
    static const char *const names[MAX_VOCABULARIES] = {"ggml-vocab-llama-spm.gguf", "ggml-vocab-llama-bpe.gguf"};
    static const char *const files[] = {"schemas.jsonl", "gbnf.jsonl", "regex.jsonl"};
    schema_case c = {.r = r};
    for (size_t i = 0; i < MAX_VOCABULARIES; i++) open_vocabulary(&c, kit_path(dir, "../tokenizer/%s", names[i]), names[i]);
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) run_file(&c, kit_path(dir, "%s", files[i]));
    for (size_t i = 0; i < c.n_vocabularies; i++) {
        grammar_vocab_close(&c.vocabularies[i].v);
        tok_close(&c.vocabularies[i].t);
    }
}
