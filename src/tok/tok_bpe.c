/* Byte pair encoding. Byte-level vocabularies store each byte as a printable character (GPT-2's alphabet); here they are turned
 * back into bytes once, when the tokeniser is opened, so that text is merged as it stands. Raw vocabularies (Gemma 4 and
 * others) are merged by code points and cover what they lack with tokens <0x00>..<0xFF>. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/error.h"
#include "base/utf8.h"
#include "tok/tok_internal.h"

/* The byte that a character of GPT-2's alphabet stands for; -1 for a character that is not in it. Bytes that are printable in
 * Latin-1 stand for themselves, the 68 others are numbered from U+0100. */
int tok_alphabet_byte(uint32_t c) {
    if ((c >= 0x21 && c <= 0x7E) || (c >= 0xA1 && c <= 0xAC) || (c >= 0xAE && c <= 0xFF)) return (int)c;
    if (c < 0x100 || c > 0x143) return -1;
    c -= 0x100;
    if (c <= 0x20) return (int)c;                      /* 0x00..0x20 */
    if (c <= 0x20 + 34) return (int)(c - 0x21 + 0x7F); /* 0x7F..0xA0 */
    return 0xAD;
}

/* False if a character is not of the alphabet: text never becomes this token. */
static bool decode_alphabet(tok_string text, char *out, size_t *n_bytes) {
    size_t n = 0;
    for (size_t at = 0; at < text.n_bytes;) {
        uint32_t c;
        at += utf8_decode(text.text + at, text.n_bytes - at, &c);
        const int byte = tok_alphabet_byte(c);
        if (byte < 0) return false;
        out[n++] = (char)byte;
    }
    *n_bytes = n;
    return true;
}

/* ---- encoding ----------------------------------------------------------------------------------------------------------- */

static void emit_bytes(const tok *t, tok_work *w, const char *bytes, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes; i++) {
        const int32_t id = t->byte_ids[(unsigned char)bytes[i]];
        if (id >= 0) tok_emit(w, id);
        else if (t->unk >= 0) tok_emit(w, t->unk);
    }
}

/* One symbol for each byte or, in raw vocabularies, each code point. */
static bool make_symbols(const tok *t, tok_work *w, const char *word, size_t n_bytes) {
    if (!tok_work_grow(w, (void **)&w->symbols, &w->symbols_capacity, n_bytes, sizeof *w->symbols)) return false;
    size_t n = 0;
    for (size_t at = 0; at < n_bytes; n++) {
        uint32_t c;
        tok_symbol *s = &w->symbols[n];
        s->start = (uint32_t)at;
        s->n_bytes = 1;
        if (t->traits.raw) {
            s->n_bytes = (uint32_t)utf8_decode(word + at, n_bytes - at, &c);
            s->id = tok_strings_find(&t->by_symbol, t->symbols, word + at, s->n_bytes);
        } else {
            s->id = t->byte_symbols[(unsigned char)word[at]];
        }
        at += s->n_bytes;
    }
    w->n_symbols = n;
    return true;
}

static bool only_newlines(const char *word, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes; i++)
        if (word[i] != '\n') return false;
    return true;
}

static void encode_word(const tok *t, tok_work *w, const char *word, size_t n_bytes) {
    if (t->traits.ignore_merges || (t->traits.whole_newlines && only_newlines(word, n_bytes))) {
        const int32_t id = n_bytes > t->longest ? -1 : tok_strings_find(&t->by_symbol, t->symbols, word, n_bytes);
        if (id >= 0 && id < t->n_vocab) {
            tok_emit(w, id);
            return;
        }
    }
    if (!make_symbols(t, w, word, n_bytes)) return;
    tok_merge(t, w, word);
    for (size_t i = 0; i < w->n_symbols; i++) {
        const tok_symbol *s = &w->symbols[i];
        if (s->id >= 0 && s->id < t->n_vocab) tok_emit(w, s->id);
        else emit_bytes(t, w, word + s->start, s->n_bytes);
    }
}

static void encode_valid(const tok *t, tok_work *w, const char *text, size_t n_bytes) {
    if (!tok_pre_split(t->pre, w, text, n_bytes)) return;
    for (size_t i = 0, begin = 0; i < w->n_ends && !w->failed; begin = w->ends[0][i++]) {
        const size_t end = w->ends[0][i];
        uint32_t c;
        utf8_decode(text + begin, end - begin, &c);
        if (t->traits.drop_spaces &&
            (utf8proc_category((utf8proc_int32_t)c) == UTF8PROC_CATEGORY_ZS || c == '\n' || c == '\t' || c == '\r' ||
             c == '\f' || c == '\v' || c == 0x85 || c == 0x2028 || c == 0x2029))
            continue;
        encode_word(t, w, text + begin, end - begin);
    }
}

/* The expressions want well-formed UTF-8: an ill-formed run is a word of its own. */
static void encode_any(const tok *t, tok_work *w, const char *text, size_t n_bytes) {
    if (utf8_valid(text, n_bytes)) {
        encode_valid(t, w, text, n_bytes);
        return;
    }
    for (size_t at = 0; at < n_bytes && !w->failed;) {
        size_t good = at, bad, length;
        uint32_t c;
        while (good < n_bytes && ((length = utf8_decode(text + good, n_bytes - good, &c)), utf8_valid(text + good, length)))
            good += length;
        if (good > at) encode_valid(t, w, text + at, good - at);
        bad = good;
        while (bad < n_bytes && ((length = utf8_decode(text + bad, n_bytes - bad, &c)), !utf8_valid(text + bad, length)))
            bad += length;
        if (bad > good) encode_word(t, w, text + good, bad - good);
        at = bad;
    }
}

void tok_bpe_encode(const tok *t, tok_work *w, const char *text, size_t n_bytes) {
    if (!t->traits.escape_spaces) {
        encode_any(t, w, text, n_bytes);
        return;
    }
    buf_clear(&w->text);
    for (size_t i = 0; i < n_bytes; i++) {
        if (text[i] == ' ') buf_append(&w->text, TOK_SPACE, 3);
        else buf_putc(&w->text, text[i]);
    }
    w->failed |= w->text.failed;
    if (!w->failed) encode_any(t, w, w->text.data, w->text.n_bytes);
}

/* ---- opening ------------------------------------------------------------------------------------------------------------ */

static int no_memory(weir_error *err) { return error_set(err, WEIR_E_NOMEM, "tokenizer.ggml", "out of memory"); }

/* The symbol that stands for the bytes, made if there is none yet; -1 = out of memory. */
static int32_t intern(tok *t, const char *bytes, size_t n_bytes) {
    int32_t found = tok_strings_find(&t->by_symbol, t->symbols, bytes, n_bytes);
    if (found >= 0) return found;
    if (t->n_symbols >= INT32_MAX) return -1;
    if (t->n_symbols == t->symbols_capacity) {
        const size_t capacity = t->symbols_capacity + t->symbols_capacity / 2 + 256;
        tok_string *symbols = realloc(t->symbols, capacity * sizeof *symbols);
        if (symbols == NULL) return -1;
        t->symbols = symbols;
        t->symbols_capacity = capacity;
    }
    char *copy = arena_strndup(&t->memory, bytes, n_bytes);
    if (copy == NULL || !tok_strings_reserve(&t->by_symbol, t->symbols, t->by_symbol.n + 1)) return -1;
    t->symbols[t->n_symbols] = (tok_string){copy, n_bytes};
    return tok_strings_add(&t->by_symbol, t->symbols, (int32_t)t->n_symbols++);
}

static int open_symbols(tok *t, weir_error *err) {
    t->symbols_capacity = (size_t)t->n_vocab + 256;
    t->symbols = calloc(t->symbols_capacity, sizeof *t->symbols);
    if (t->symbols == NULL || !tok_strings_reserve(&t->by_symbol, t->symbols, (size_t)t->n_vocab)) return no_memory(err);
    for (int32_t id = 0; id < t->n_vocab; id++) {
        const tok_string text = t->texts[id];
        t->symbols[id] = text;
        if (!t->traits.raw) {
            size_t n_bytes = 0;
            char *bytes = arena_alloc(&t->memory, text.n_bytes);
            if (bytes == NULL) return no_memory(err);
            t->symbols[id] = decode_alphabet(text, bytes, &n_bytes) ? (tok_string){bytes, n_bytes} : (tok_string){"", 0};
        }
        tok_strings_add(&t->by_symbol, t->symbols, id);
    }
    t->n_symbols = (size_t)t->n_vocab;
    for (int byte = 0; byte < 256 && !t->traits.raw; byte++) {
        const char c = (char)byte;
        const int32_t symbol = intern(t, &c, 1);
        if (symbol < 0) return no_memory(err);
        t->byte_symbols[byte] = symbol;
        t->byte_ids[byte] = symbol < t->n_vocab ? symbol : -1;
    }
    return 0;
}

/* One merge, "left right". The space that parts them is the first after the first byte. */
static int add_merge(tok *t, size_t rank, tok_string merge, char *bytes, weir_error *err) {
    const char *space = merge.n_bytes > 1 ? memchr(merge.text + 1, ' ', merge.n_bytes - 1) : NULL;
    const size_t n_left = space ? (size_t)(space - merge.text) : 0;
    FAIL_IF(space == NULL || n_left + 1 == merge.n_bytes, err, WEIR_E_FORMAT, "tokenizer.ggml.merges",
            "merge %zu is not two parts with a space between them", rank);
    const tok_string left = {merge.text, n_left}, right = {space + 1, merge.n_bytes - n_left - 1};
    size_t n_first, n_second;
    if (t->traits.raw) {
        memcpy(bytes, left.text, n_first = left.n_bytes);
        memcpy(bytes + n_first, right.text, n_second = right.n_bytes);
    } else if (!decode_alphabet(left, bytes, &n_first) || !decode_alphabet(right, bytes + n_first, &n_second)) {
        return 0; /* no text has such parts */
    }
    const int32_t first = intern(t, bytes, n_first), second = intern(t, bytes + n_first, n_second);
    const int32_t merged = intern(t, bytes, n_first + n_second);
    if (first < 0 || second < 0 || merged < 0) return no_memory(err);
    tok_pairs_add(&t->pairs, first, second, (uint32_t)rank, merged);
    return 0;
}

int tok_bpe_open(tok *t, const tok_vocab *vocab, weir_error *err) {
    TRY(open_symbols(t, err));
    FAIL_IF(vocab->n_merges >= UINT32_MAX, err, WEIR_E_FORMAT, "tokenizer.ggml.merges", "%zu merges are too many",
            vocab->n_merges);
    if (!tok_pairs_reserve(&t->pairs, vocab->n_merges)) return no_memory(err);
    size_t longest = 0;
    for (size_t i = 0; i < vocab->n_merges; i++)
        if (vocab->merges[i].n_bytes > longest) longest = vocab->merges[i].n_bytes;
    char *bytes = malloc(longest + 1);
    if (bytes == NULL) return no_memory(err);
    int rc = 0;
    for (size_t i = 0; i < vocab->n_merges && rc == 0; i++) rc = add_merge(t, i, vocab->merges[i], bytes, err);
    free(bytes);
    return rc;
}
