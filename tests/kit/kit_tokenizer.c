/* Sub-folder tokenizer: vocabulary files with texts and their token ids (corpus and golden lines), and with token ids, the
 * bytes of each and what a streaming decoder may release after each (detok lines). Where the makers of the data disagree, a
 * line is marked as disputed and either answer is right. */
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/buf.h"
#include "gguf/gguf.h"
#include "kit.h"
#include "model/vocab.h"
#include "tok/tok.h"

typedef struct tokenizer_case {
    kit_report *r;
    const char *file; /* of the line */
    size_t line;
    const tok *t;
} tokenizer_case;

typedef void (*line_fn)(const tokenizer_case *c, const json_t *line);

/* Calls `run` for each line of a JSON Lines file. */
static void each_line(tokenizer_case *c, const char *dir, const json_t *name, line_fn run) {
    if (!json_is_string(name)) return;
    size_t n_bytes;
    c->file = json_string_value(name);
    char *data = kit_read_file(kit_path(dir, "%s", c->file), &n_bytes);
    if (data == NULL) {
        kit_fail(c->r, "%s cannot be read", c->file);
        return;
    }
    c->line = 0;
    for (size_t at = 0; at < n_bytes;) {
        const char *newline = memchr(data + at, '\n', n_bytes - at);
        const size_t end = newline ? (size_t)(newline - data) : n_bytes;
        json_error_t error;
        c->line++;
        json_t *line = end > at ? json_loadb(data + at, end - at, JSON_ALLOW_NUL, &error) : NULL;
        if (line) run(c, line);
        else if (end > at) kit_fail(c->r, "%s:%zu: %s", c->file, c->line, error.text);
        json_decref(line);
        at = end + 1;
    }
    free(data);
}

/* ---- encoding ----------------------------------------------------------------------------------------------------------- */

/* Index of the first difference, or -1. */
static int64_t difference(const int32_t *ids, int64_t n, const json_t *expected) {
    const int64_t n_expected = (int64_t)json_array_size(expected);
    for (int64_t i = 0; i < n && i < n_expected; i++)
        if (ids[i] != json_integer_value(json_array_get(expected, (size_t)i))) return i;
    return n == n_expected ? -1 : n < n_expected ? n : n_expected;
}

static void check_encode(const tokenizer_case *c, const json_t *line) {
    const json_t *text = json_object_get(line, "text"), *ids = json_object_get(line, "ids"),
                 *other = json_object_get(line, "hf_ids");
    const bool add_special = json_is_true(json_object_get(line, "add_special"));
    const bool parse_special = json_is_true(json_object_get(line, "parse_special"));
    const char *bytes = json_string_value(text);
    const size_t n_bytes = json_string_length(text);
    if (!json_is_string(text) || !json_is_array(ids)) {
        kit_fail(c->r, "%s:%zu: no text or no ids", c->file, c->line);
        return;
    }
    const int64_t n = tok_encode(c->t, bytes, n_bytes, add_special, parse_special, NULL, 0);
    int32_t *got = malloc((size_t)(n < 0 ? 0 : n) * sizeof *got + 1);
    if (n < 0 || got == NULL || tok_encode(c->t, bytes, n_bytes, add_special, parse_special, got, (size_t)n) != n) {
        kit_fail(c->r, "%s:%zu: encoding failed", c->file, c->line);
        free(got);
        return;
    }
    const int64_t at = difference(got, n, ids);
    if (at < 0 || (json_is_true(json_object_get(line, "disputed")) && json_is_array(other) && difference(got, n, other) < 0)) {
        kit_pass(c->r);
    } else {
        const json_int_t wanted = json_integer_value(json_array_get(ids, (size_t)at));
        size_t n_got = 0, n_wanted = 0;
        const char *piece = at < n ? tok_piece(c->t, got[at], true, &n_got) : NULL;
        const char *wanted_piece = tok_piece(c->t, (int32_t)wanted, true, &n_wanted);
        kit_fail(c->r, "%s:%zu: token %lld of %lld is %d '%.*s'; %lld '%.*s' of %zu is right", c->file, c->line, (long long)at,
                 (long long)n, at < n ? got[at] : -1, (int)n_got, piece ? piece : "", (long long)wanted, (int)n_wanted,
                 wanted_piece ? wanted_piece : "", json_array_size(ids));
    }
    free(got);
}

/* ---- decoding ----------------------------------------------------------------------------------------------------------- */

static bool equals_hex(const char *bytes, size_t n_bytes, const json_t *hex) {
    static const char digits[] = "0123456789abcdef";
    const char *h = json_string_value(hex);
    if (h == NULL || json_string_length(hex) != 2 * n_bytes) return false;
    for (size_t i = 0; i < n_bytes; i++) {
        const unsigned char byte = (unsigned char)bytes[i];
        if (h[2 * i] != digits[byte >> 4] || h[2 * i + 1] != digits[byte & 15]) return false;
    }
    return true;
}

static bool equals_text(const buf *b, size_t from, const json_t *text) {
    return b->n_bytes - from == json_string_length(text) &&
           (b->n_bytes == from || memcmp(b->data + from, json_string_value(text), b->n_bytes - from) == 0);
}

static bool check_pieces(const tokenizer_case *c, const json_t *ids, const json_t *pieces, bool special) {
    size_t i, n_bytes;
    const json_t *id;
    json_array_foreach(ids, i, id) {
        const char *piece = tok_piece(c->t, (int32_t)json_integer_value(id), special, &n_bytes);
        if (piece && equals_hex(piece, n_bytes, json_array_get(pieces, i))) continue;
        kit_fail(c->r, "%s:%zu: the bytes of token %lld (number %zu, special %d) differ", c->file, c->line,
                 (long long)json_integer_value(id), i, special);
        return false;
    }
    return json_array_size(ids) == json_array_size(pieces);
}

static bool check_stream(const tokenizer_case *c, const json_t *ids, const json_t *line) {
    const json_t *stream = json_object_get(line, "stream");
    tok_stream s = TOK_STREAM_INIT;
    buf out = BUF_INIT;
    size_t i, n_bytes, from = 0;
    const json_t *id;
    bool equal = true;
    json_array_foreach(ids, i, id) {
        const char *piece = tok_piece(c->t, (int32_t)json_integer_value(id), true, &n_bytes);
        tok_stream_push(&s, piece, n_bytes, &out);
        equal = equal && equals_text(&out, from, json_array_get(stream, i));
        from = out.n_bytes;
        if (equal) continue;
        kit_fail(c->r, "%s:%zu: the stream differs after token number %zu", c->file, c->line, i);
        break;
    }
    if (equal) {
        tok_stream_finish(&s, &out);
        equal = equals_text(&out, from, json_object_get(line, "stream_final"));
        if (!equal) kit_fail(c->r, "%s:%zu: the end of the stream differs", c->file, c->line);
    }
    buf_free(&out);
    return equal;
}

/* The whole text is the pieces joined, less at most one leading space. */
static bool check_decode(const tokenizer_case *c, const json_t *json_ids) {
    buf joined = BUF_INIT, whole = BUF_INIT;
    const size_t n = json_array_size(json_ids);
    int32_t *ids = malloc((n + 1) * sizeof *ids);
    size_t n_bytes;
    for (size_t i = 0; i < n; i++) {
        ids[i] = (int32_t)json_integer_value(json_array_get(json_ids, i));
        const char *piece = tok_piece(c->t, ids[i], true, &n_bytes);
        buf_append(&joined, piece, n_bytes);
    }
    bool equal = tok_decode(c->t, ids, n, true, &whole, NULL) == 0;
    const size_t cut = joined.n_bytes - whole.n_bytes;
    equal = equal && (cut == 0 || (cut == 1 && joined.data[0] == ' '));
    equal = equal && (whole.n_bytes == 0 || memcmp(whole.data, joined.data + cut, whole.n_bytes) == 0);
    if (!equal) kit_fail(c->r, "%s:%zu: the decoded text is not that of the pieces", c->file, c->line);
    buf_free(&joined);
    buf_free(&whole);
    free(ids);
    return equal;
}

static void check_detok(const tokenizer_case *c, const json_t *line) {
    const json_t *ids = json_object_get(line, "ids");
    if (check_pieces(c, ids, json_object_get(line, "pieces"), true) &&
        check_pieces(c, ids, json_object_get(line, "pieces_nospecial"), false) && check_stream(c, ids, line) &&
        check_decode(c, ids))
        kit_pass(c->r);
}

/* ---- the folder --------------------------------------------------------------------------------------------------------- */

static void run_vocabulary(kit_report *r, const char *dir, const json_t *entry) {
    const char *file = json_string_value(json_object_get(entry, "gguf"));
    gguf *g = NULL;
    tok *t = NULL;
    weir_error err = {0};
    struct stat st;
    if (file == NULL || stat(kit_path(dir, "%s", file), &st) != 0) {
        kit_skip(r, "vocabulary %s is not there", file ? file : "without a name");
        return;
    }
    if (gguf_open(&g, kit_path(dir, "%s", file), &err) < 0 || model_vocab_open(&t, g, &err) < 0) {
        kit_fail(r, "%s: %s: %s", file, err.place, err.message);
    } else {
        tokenizer_case c = {.r = r, .t = t};
        each_line(&c, dir, json_object_get(entry, "golden"), check_encode);
        each_line(&c, dir, json_object_get(entry, "corpus"), check_encode);
        each_line(&c, dir, json_object_get(entry, "detok"), check_detok);
    }
    tok_close(&t);
    gguf_close(&g);
}

void kit_run_tokenizer(kit_report *r, const char *dir) {
    json_error_t error;
    json_t *index = json_load_file(kit_path(dir, "index.json"), 0, &error), *entry;
    size_t i;
    if (!json_is_array(index)) kit_fail(r, "index.json: %s", index ? "not an array" : error.text);
    else json_array_foreach(index, i, entry) run_vocabulary(r, dir, entry);
    json_decref(index);
}
