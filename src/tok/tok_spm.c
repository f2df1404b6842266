/* SentencePiece BPE as Llama 2 and Gemma use it: spaces are stored as U+2581; of all neighbours that together are a token, the
 * one with the highest score is merged first; what no token covers goes through byte tokens. */
#include <string.h>

#include "base/error.h"
#include "base/utf8.h"
#include "tok/tok_internal.h"

static void emit_symbol(const tok *t, tok_work *w, const char *text, size_t n_bytes) {
    const int32_t id = tok_strings_find(&t->by_text, t->texts, text, n_bytes);
    if (id >= 0) {
        tok_emit(w, id);
        return;
    }
    bool covered = true;
    for (size_t i = 0; i < n_bytes; i++) covered = covered && t->byte_ids[(unsigned char)text[i]] >= 0;
    for (size_t i = 0; i < n_bytes && covered; i++) tok_emit(w, t->byte_ids[(unsigned char)text[i]]);
    if (!covered && t->unk >= 0) tok_emit(w, t->unk);
}

static void encode_word(const tok *t, tok_work *w, const char *word, size_t n_bytes) {
    if (!tok_work_grow(w, (void **)&w->symbols, &w->symbols_capacity, n_bytes, sizeof *w->symbols)) return;
    size_t n = 0;
    for (size_t at = 0; at < n_bytes; n++) {
        uint32_t c;
        w->symbols[n] = (tok_symbol){.start = (uint32_t)at, .id = -1};
        w->symbols[n].n_bytes = (uint32_t)utf8_decode(word + at, n_bytes - at, &c);
        at += w->symbols[n].n_bytes;
    }
    w->n_symbols = n;
    tok_merge(t, w, word);
    for (size_t i = 0; i < w->n_symbols && !w->failed; i++) {
        const tok_symbol *s = &w->symbols[i];
        if (s->id >= 0) tok_emit(w, s->id);
        else emit_symbol(t, w, word + s->start, s->n_bytes);
    }
}

static bool is_space_at(const char *text, size_t n_bytes) { return n_bytes >= 3 && memcmp(text, TOK_SPACE, 3) == 0; }

/* Bytes of the first word: up to the first U+2581 that follows anything else, if no token can reach over it. */
static size_t word_length(const tok *t, const char *text, size_t n_bytes) {
    if (!t->cut_at_spaces) return n_bytes;
    size_t at = 0;
    while (is_space_at(text + at, n_bytes - at)) at += 3;
    while (at < n_bytes) {
        const char *next = memchr(text + at, TOK_SPACE[0], n_bytes - at);
        if (next == NULL) return n_bytes;
        at = (size_t)(next - text);
        if (is_space_at(next, n_bytes - at)) return at;
        at++;
    }
    return n_bytes;
}

void tok_spm_encode(const tok *t, tok_work *w, const char *text, size_t n_bytes, bool first) {
    buf_clear(&w->text);
    if (t->add_space_prefix && first) buf_append(&w->text, TOK_SPACE, 3);
    for (size_t at = 0; at < n_bytes;) {
        const char *space = memchr(text + at, ' ', n_bytes - at);
        const size_t end = space ? (size_t)(space - text) : n_bytes;
        buf_append(&w->text, text + at, end - at);
        if (space) buf_append(&w->text, TOK_SPACE, 3);
        at = end + 1;
    }
    w->failed |= w->text.failed;
    for (size_t at = 0; at < w->text.n_bytes && !w->failed;) {
        const size_t length = word_length(t, w->text.data + at, w->text.n_bytes - at);
        encode_word(t, w, w->text.data + at, length);
        at += length;
    }
}

/* Whether a U+2581 stands anywhere but at the beginning of the token (a run of them counts as its beginning). */
static bool has_inner_space(tok_string s) {
    size_t at = 0;
    while (is_space_at(s.text + at, s.n_bytes - at)) at += 3;
    for (; at < s.n_bytes; at++)
        if (is_space_at(s.text + at, s.n_bytes - at)) return true;
    return false;
}

int tok_spm_open(tok *t, weir_error *err) {
    (void)err;
    t->cut_at_spaces = true;
    for (int32_t id = 0; id < t->n_vocab && t->cut_at_spaces; id++) t->cut_at_spaces = !has_inner_space(t->texts[id]);
    return 0;
}
