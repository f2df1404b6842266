/* WordPiece as BERT uses it: text is normalised (control characters dropped, accents stripped, lower case), cut at white space
 * and around punctuation and Chinese characters, and each word covered by the longest tokens from the left; a word that cannot
 * be covered, or is longer than 100 characters, is one unknown token. Ill-formed UTF-8 is read as U+FFFD and dropped. */
#include <string.h>
#include <utf8proc.h>

#include "base/error.h"
#include "base/utf8.h"
#include "tok/tok_internal.h"

/* As in Hugging Face's WordPiece (max_input_chars_per_word). It also bounds the work for each word. */
enum { MAX_WORD_CHARS = 100 };

static bool is_space(uint32_t c, utf8proc_category_t category) {
    return (c >= 9 && c <= 13) || c == 0x85 || (category >= UTF8PROC_CATEGORY_ZS && category <= UTF8PROC_CATEGORY_ZP);
}

bool tok_is_chinese(uint32_t c) {
    static const struct {
        uint32_t first, last;
    } ranges[] = {
        {0x4E00, 0x9FFF},   {0x3400, 0x4DBF},   {0x20000, 0x2A6DF}, {0x2A700, 0x2B73F},
        {0x2B740, 0x2B81F}, {0x2B920, 0x2CEAF}, {0xF900, 0xFAFF},   {0x2F800, 0x2FA1F},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++)
        if (c >= ranges[i].first && c <= ranges[i].last) return true;
    return false;
}

static bool stands_alone(uint32_t c, utf8proc_category_t category) {
    const bool punctuation = category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO;
    const bool symbol = category >= UTF8PROC_CATEGORY_SM && category <= UTF8PROC_CATEGORY_SO;
    return punctuation || (c < 0x7F && symbol) || tok_is_chinese(c);
}

/* The word in w->text, which begins with U+2581. */
static void finish_word(const tok *t, tok_work *w, size_t n_chars) {
    const int64_t before = w->n_ids;
    bool covered = n_chars <= MAX_WORD_CHARS;
    if (n_chars == 0 || w->text.failed) return;
    for (size_t at = 0; covered && at < w->text.n_bytes;) {
        size_t length = 0;
        const int32_t id = tok_trie_longest(&t->words, w->text.data + at, w->text.n_bytes - at, &length);
        covered = id >= 0;
        if (covered) tok_emit(w, id);
        at += length;
    }
    if (!covered) {
        w->n_ids = before;
        tok_emit(w, t->unk);
    }
    w->text.n_bytes = 3; /* U+2581 stays */
}

static void put(tok_work *w, uint32_t c) {
    char bytes[4];
    buf_append(&w->text, bytes, utf8_encode(c, bytes));
}

/* Takes one character of the normalised text; returns the characters of the word so far. */
static size_t take(const tok *t, tok_work *w, uint32_t c, size_t n_chars) {
    const utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)c);
    if (is_space(c, category)) {
        finish_word(t, w, n_chars);
        return 0;
    }
    if (c == 0 || c == UTF8_REPLACEMENT || category == UTF8PROC_CATEGORY_CC || category == UTF8PROC_CATEGORY_CF ||
        category == UTF8PROC_CATEGORY_CO || category == UTF8PROC_CATEGORY_CS)
        return n_chars;
    if (t->strip_accents && category == UTF8PROC_CATEGORY_MN) return n_chars;
    const bool alone = stands_alone(c, category);
    if (alone) finish_word(t, w, n_chars);
    put(w, t->lowercase ? (uint32_t)utf8proc_tolower((utf8proc_int32_t)c) : c);
    if (!alone) return n_chars + 1;
    finish_word(t, w, 1);
    return 0;
}

/* What take() does with ASCII. */
enum { WORD, SPACE, ALONE, DROPPED };
static const unsigned char ascii_kind[128] = {
    [0 ... 8] = DROPPED,   ['\t' ... '\r'] = SPACE, [14 ... 31] = DROPPED, [' '] = SPACE,   ['!' ... '/'] = ALONE,
    [':' ... '@'] = ALONE, ['[' ... '`'] = ALONE,   ['{' ... '~'] = ALONE, [127] = DROPPED,
};

/* Takes the run of ASCII at the begin of the text; returns its bytes. */
static size_t take_ascii(const tok *t, tok_work *w, const char *text, size_t n_bytes, size_t *n_chars) {
    size_t at = 0;
    while (at < n_bytes && (unsigned char)text[at] < 0x80) {
        const unsigned char kind = ascii_kind[(unsigned char)text[at]];
        size_t end = at + 1;
        if (kind != WORD) {
            if (kind != DROPPED) {
                finish_word(t, w, *n_chars);
                *n_chars = 0;
            }
            if (kind == ALONE) {
                buf_putc(&w->text, text[at]);
                finish_word(t, w, 1);
            }
            at = end;
            continue;
        }
        while (end < n_bytes && (unsigned char)text[end] < 0x80 && ascii_kind[(unsigned char)text[end]] == WORD) end++;
        const size_t begin = w->text.n_bytes, n = end - at;
        buf_append(&w->text, text + at, n);
        if (w->text.failed) return n_bytes;
        for (char *c = w->text.data + begin; t->lowercase && c < w->text.data + begin + n; c++)
            if (*c >= 'A' && *c <= 'Z') *c = (char)(*c | 0x20);
        *n_chars += n;
        at = end;
    }
    return at;
}

void tok_wordpiece_encode(const tok *t, tok_work *w, const char *text, size_t n_bytes) {
    enum { MAX_DECOMPOSED = 32 }; /* the longest canonical decomposition has 4 */
    size_t n_chars = 0;
    buf_clear(&w->text);
    buf_append(&w->text, TOK_SPACE, 3);
    for (size_t at = 0; at < n_bytes && !w->failed;) {
        uint32_t c;
        if ((unsigned char)text[at] < 0x80) {
            at += take_ascii(t, w, text + at, n_bytes - at, &n_chars);
            w->failed |= w->text.failed;
            continue;
        }
        at += utf8_decode(text + at, n_bytes - at, &c);
        utf8proc_int32_t parts[MAX_DECOMPOSED] = {(utf8proc_int32_t)c};
        utf8proc_ssize_t n = 1;
        /* The order of marks does not matter: those that could be reordered are dropped. */
        if (t->strip_accents && c >= 0x80) {
            int last_class = 0;
            n = utf8proc_decompose_char((utf8proc_int32_t)c, parts, MAX_DECOMPOSED, UTF8PROC_DECOMPOSE, &last_class);
            if (n < 1 || n > MAX_DECOMPOSED) n = 1;
        }
        for (utf8proc_ssize_t i = 0; i < n; i++) n_chars = take(t, w, (uint32_t)parts[i], n_chars);
        w->failed |= w->text.failed;
    }
    if (!w->failed) finish_word(t, w, n_chars);
}

int tok_wordpiece_open(tok *t, const tok_vocab *vocab, weir_error *err) {
    FAIL_IF(t->unk < 0 || t->bos < 0 || t->sep < 0, err, WEIR_E_FORMAT, "tokenizer.ggml",
            "a WordPiece vocabulary needs the ids of its unknown, class (bos) and separator tokens");
    t->lowercase = !vocab->has_lowercase || vocab->lowercase;
    t->strip_accents = vocab->has_strip_accents ? vocab->strip_accents : t->lowercase;
    FAIL_IF(!tok_trie_open(&t->words, t, 0, 0), err, WEIR_E_NOMEM, "tokenizer.ggml.tokens", "out of memory");
    return 0;
}
