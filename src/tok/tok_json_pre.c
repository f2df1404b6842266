/* Pre-tokenizers of tokenizer.json: each cuts the pieces that the one before it left, and may rewrite them. A step gets one
 * piece and puts what becomes of it behind t->out; empty pieces vanish. */
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/error.h"
#include "base/utf8.h"
#include "tok/tok_json_internal.h"

/* ---- cutting --------------------------------------------------------------------------------------------------------------
 */

static bool grow(json_text *t, void **array, size_t *capacity, size_t n, size_t size) {
    if (n <= *capacity) return true;
    const size_t grown = *capacity + *capacity / 2 + 64;
    void *memory = grown <= SIZE_MAX / size ? realloc(*array, grown * size) : NULL;
    t->failed |= memory == NULL;
    if (memory == NULL) return false;
    *array = memory;
    *capacity = grown;
    return true;
}

/* What was appended to t->out since `begin` is a piece. */
static void end_piece(json_text *t, size_t begin, bool first) {
    if (t->out.n_bytes == begin || !grow(t, (void **)&t->out_pieces, &t->out_capacity, t->n_out + 1, sizeof(json_piece)))
        return;
    t->out_pieces[t->n_out++] = (json_piece){begin, t->out.n_bytes, first};
}

static void put_piece(json_text *t, tok_string text, bool first) {
    const size_t begin = t->out.n_bytes;
    buf_append(&t->out, text.text, text.n_bytes);
    end_piece(t, begin, first);
}

static void add_span(json_text *t, size_t begin, size_t end, bool match) {
    if (grow(t, (void **)&t->spans, &t->spans_capacity, t->n_spans + 1, sizeof(json_span)))
        t->spans[t->n_spans++] = (json_span){begin, end, match};
}

/* Fills t->spans with the matches of the pattern and what is between them. */
static void find_spans(const json_step *s, json_text *t, tok_string text) {
    t->n_spans = 0;
    if (!json_text_match_data(t)) return;
    json_matcher m = {.s = s, .text = text, .last_end = SIZE_MAX, .match_data = t->match_data};
    size_t at = 0, from, to;
    while (json_next_match(&m, &from, &to) && !t->failed) {
        if (from > at) add_span(t, at, from, false);
        add_span(t, from, to, true);
        at = to;
    }
    if (at < text.n_bytes) add_span(t, at, text.n_bytes, false);
}

/* The same for characters of a class: each is a match of its own. */
static void find_characters(json_text *t, tok_string text, bool (*is)(uint32_t)) {
    size_t begin = 0;
    t->n_spans = 0;
    for (size_t at = 0; at < text.n_bytes && !t->failed;) {
        uint32_t c;
        const size_t length = utf8_decode(text.text + at, text.n_bytes - at, &c);
        if (is(c)) {
            if (at > begin) add_span(t, begin, at, false);
            add_span(t, at, at + length, true);
            begin = at + length;
        }
        at += length;
    }
    if (begin < text.n_bytes) add_span(t, begin, text.n_bytes, false);
}

/* Joins spans as the behaviour says; afterwards `match` means that a span is dropped. */
static void join_spans(json_text *t, json_behaviour behaviour) {
    json_span *s = t->spans;
    size_t n = 0;
    bool before = false; /* whether the span before was a match */
    if (behaviour == SPLIT_REMOVED) return;
    if (behaviour == SPLIT_WITH_NEXT) {
        size_t at = t->n_spans;
        for (size_t i = t->n_spans; i-- > 0; before = s[i].match) {
            if (s[i].match && !before && at < t->n_spans)
                s[at].begin = s[i].begin;
            else
                s[--at].begin = s[i].begin, s[at].end = s[i].end;
        }
        /* s[at..) are the joined spans; the slots they moved into had been read already. */
        n = t->n_spans - at;
        memmove(s, s + at, n * sizeof *s);
    } else {
        for (size_t i = 0; i < t->n_spans; i++) {
            const json_span span = s[i];
            const bool joins = n > 0 && (behaviour == SPLIT_CONTIGUOUS      ? span.match == before
                                         : behaviour == SPLIT_WITH_PREVIOUS ? span.match && !before
                                                                            : false);
            if (joins)
                s[n - 1].end = span.end;
            else
                s[n++] = span;
            before = span.match;
        }
    }
    t->n_spans = n;
    for (size_t i = 0; i < n; i++) s[i].match = false;
}

static void cut(json_text *t, tok_string text, bool first, json_behaviour behaviour, bool invert) {
    for (size_t i = 0; invert && i < t->n_spans; i++) t->spans[i].match = !t->spans[i].match;
    join_spans(t, behaviour);
    for (size_t i = 0; i < t->n_spans && !t->failed; i++) {
        const json_span span = t->spans[i];
        if (!span.match) put_piece(t, (tok_string){text.text + span.begin, span.end - span.begin}, first && span.begin == 0);
    }
}

/* ---- steps -----------------------------------------------------------------------------------------------------------------
 */

static bool is_ascii_punctuation(uint32_t c) {
    return (c >= 0x21 && c <= 0x2F) || (c >= 0x3A && c <= 0x40) || (c >= 0x5B && c <= 0x60) || (c >= 0x7B && c <= 0x7E);
}

static bool is_punctuation(uint32_t c) {
    const utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    return is_ascii_punctuation(c) || (k >= UTF8PROC_CATEGORY_PC && k <= UTF8PROC_CATEGORY_PO);
}

static bool is_numeric(uint32_t c) {
    const utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    return k >= UTF8PROC_CATEGORY_ND && k <= UTF8PROC_CATEGORY_NO;
}

static void run_split(const json_step *s, json_text *t, tok_string text, bool first) {
    find_spans(s, t, text);
    cut(t, text, first, s->behaviour, s->invert);
}

static void run_whitespace_split(const json_step *s, json_text *t, tok_string text, bool first) {
    (void)s;
    find_characters(t, text, tok_is_space);
    cut(t, text, first, SPLIT_REMOVED, false);
}

static void run_punctuation(const json_step *s, json_text *t, tok_string text, bool first) {
    find_characters(t, text, is_punctuation);
    cut(t, text, first, s->behaviour, false);
}

static void run_digits(const json_step *s, json_text *t, tok_string text, bool first) {
    find_characters(t, text, is_numeric);
    cut(t, text, first, s->behaviour, false);
}

/* \w+|[^\w\s]+ : runs of word characters, runs of what is neither word nor space. */
static void run_whitespace(const json_step *s, json_text *t, tok_string text, bool first) {
    (void)s;
    size_t begin = 0;
    int before = 0;
    for (size_t at = 0; at <= text.n_bytes;) {
        uint32_t c = 0;
        const size_t length = at < text.n_bytes ? utf8_decode(text.text + at, text.n_bytes - at, &c) : 1;
        const int class = at == text.n_bytes ? 0 : json_is_word(c) ? 1 : tok_is_space(c) ? 0 : 2;
        if (class != before) {
            if (before) put_piece(t, (tok_string){text.text + begin, at - begin}, first && begin == 0);
            begin = at;
            before = class;
        }
        at += length;
    }
}

static void run_bert(const json_step *s, json_text *t, tok_string text, bool first) {
    (void)s;
    size_t begin = 0;
    for (size_t at = 0; at <= text.n_bytes;) {
        uint32_t c = ' ';
        const size_t length = at < text.n_bytes ? utf8_decode(text.text + at, text.n_bytes - at, &c) : 1;
        const bool space = tok_is_space(c), alone = is_punctuation(c);
        if (space || alone) {
            put_piece(t, (tok_string){text.text + begin, at - begin}, first && begin == 0);
            if (alone) put_piece(t, (tok_string){text.text + at, length}, first && at == 0);
            begin = at + length;
        }
        at += length;
    }
}

static bool begins_with(tok_string text, tok_string prefix) {
    return text.n_bytes >= prefix.n_bytes && memcmp(text.text, prefix.text, prefix.n_bytes) == 0;
}

/* Appends text with each space replaced. */
static void put_replaced(buf *out, tok_string text, tok_string replacement) {
    for (size_t i = 0; i < text.n_bytes; i++) {
        if (text.text[i] == ' ')
            buf_append(out, replacement.text, replacement.n_bytes);
        else
            buf_putc(out, text.text[i]);
    }
}

/* Spaces become the replacement, a piece may get one in front, and each stands at the beginning of its piece. */
static void run_metaspace(const json_step *s, json_text *t, tok_string text, bool first) {
    const bool has = text.n_bytes > 0 && (text.text[0] == ' ' || begins_with(text, s->text));
    size_t begin = t->out.n_bytes;
    if (!has && (s->prepend == PREPEND_ALWAYS || (s->prepend == PREPEND_FIRST && first)))
        buf_append(&t->out, s->text.text, s->text.n_bytes);
    put_replaced(&t->out, text, s->text);
    if (t->out.failed || !s->flag) {
        end_piece(t, begin, first);
        return;
    }
    const size_t end = t->out.n_bytes;
    /* A run of replacements: all but the last are pieces of their own. */
    for (size_t at = begin + 1; at < end; at++) {
        if (!begins_with((tok_string){t->out.data + at, end - at}, s->text)) continue;
        t->out.n_bytes = at;
        end_piece(t, begin, first);
        first = false;
        begin = at;
    }
    t->out.n_bytes = end;
    end_piece(t, begin, first);
}

#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

static void put_alphabet(json_text *t, tok_string text, bool first) {
    const size_t begin = t->out.n_bytes;
    for (size_t i = 0; i < text.n_bytes; i++) json_put_alphabet(&t->out, (unsigned char)text.text[i]);
    end_piece(t, begin, first);
}

static void run_byte_level(const json_step *s, json_text *t, tok_string text, bool first) {
    buf prefixed = BUF_INIT;
    if (s->flag && text.n_bytes > 0 && text.text[0] != ' ') {
        buf_putc(&prefixed, ' ');
        buf_append(&prefixed, text.text, text.n_bytes);
        t->failed |= prefixed.failed;
        text = (tok_string){prefixed.data, prefixed.n_bytes};
    }
    if (!t->failed && s->code == NULL) {
        put_alphabet(t, text, first);
    } else if (!t->failed) {
        find_spans(s, t, text);
        for (size_t i = 0; i < t->n_spans && !t->failed; i++) {
            const json_span span = t->spans[i];
            put_alphabet(t, (tok_string){text.text + span.begin, span.end - span.begin}, first && span.begin == 0);
        }
    }
    buf_free(&prefixed);
}

static void run_fixed_length(const json_step *s, json_text *t, tok_string text, bool first) {
    size_t begin = 0, n = 0;
    for (size_t at = 0; at < text.n_bytes;) {
        uint32_t c;
        at += utf8_decode(text.text + at, text.n_bytes - at, &c);
        if (++n < s->stop && at < text.n_bytes) continue;
        put_piece(t, (tok_string){text.text + begin, at - begin}, first && begin == 0);
        begin = at;
        n = 0;
    }
}

/* ---- reading ---------------------------------------------------------------------------------------------------------------
 */

static int read_behaviour(json_reader *r, const json_t *object, json_behaviour fallback, json_behaviour *out) {
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    tok_string name;
    const int found = json_read_text(r, object, "behavior", &name);
    *out = fallback;
    if (found <= 0) return found;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcasecmp(names[i], name.text) != 0) continue;
        *out = (json_behaviour)i;
        return 0;
    }
    return json_fail(r, WEIR_E_FORMAT, "behavior",
                     "'%.30s' is not Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous", name.text);
}

static json_step *add(json_reader *r, json_steps *out, void (*split)(const json_step *, json_text *, tok_string, bool)) {
    json_step *s = json_add_step(r, out);
    if (s) s->split = split;
    return s;
}

static int read_plain(json_reader *r, const json_t *object, json_steps *out) {
    const char *type = json_string_value(json_object_get(object, "type"));
    return add(r, out,
               strcmp(type, "Whitespace") == 0        ? run_whitespace
               : strcmp(type, "WhitespaceSplit") == 0 ? run_whitespace_split
                                                      : run_bert)
               ? 0
               : r->code;
}

static int read_split(json_reader *r, const json_t *object, json_steps *out) {
    json_step *s = add(r, out, run_split);
    if (s == NULL) return r->code;
    TRY(json_read_pattern(r, object, s));
    TRY(read_behaviour(r, object, SPLIT_ISOLATED, &s->behaviour));
    TRY(json_read_bool(r, object, "invert", &s->invert));
    return 0;
}

static int read_delimiter(json_reader *r, const json_t *object, json_steps *out) {
    json_step *s = add(r, out, run_split);
    if (s == NULL) return r->code;
    s->behaviour = SPLIT_REMOVED;
    const int found = json_read_char(r, object, "delimiter", &s->literal);
    TRY(found);
    if (!found) return json_fail(r, WEIR_E_FORMAT, "delimiter", "is missing; expected one character");
    return json_keep(r, &s->literal);
}

static int read_punctuation(json_reader *r, const json_t *object, json_steps *out) {
    json_step *s = add(r, out, run_punctuation);
    return s ? read_behaviour(r, object, SPLIT_ISOLATED, &s->behaviour) : r->code;
}

static int read_digits(json_reader *r, const json_t *object, json_steps *out) {
    json_step *s = add(r, out, run_digits);
    bool single = false;
    if (s == NULL) return r->code;
    TRY(json_read_bool(r, object, "individual_digits", &single));
    s->behaviour = single ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS;
    return 0;
}

int json_read_metaspace(json_reader *r, const json_t *object, json_step *s) {
    static const char *const names[] = {"always", "first", "never"};
    tok_string scheme;
    bool prefix = true;
    s->text = (tok_string){TOK_SPACE, 3};
    s->flag = true;
    TRY(json_read_char(r, object, "replacement", &s->text));
    TRY(json_keep(r, &s->text));
    TRY(json_read_bool(r, object, "split", &s->flag));
    TRY(json_read_bool(r, object, "add_prefix_space", &prefix));
    s->prepend = prefix ? PREPEND_ALWAYS : PREPEND_NEVER;
    const int found = json_read_text(r, object, "prepend_scheme", &scheme);
    if (found <= 0) return found;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(names[i], scheme.text) != 0) continue;
        s->prepend = (json_prepend)i;
        if (!prefix && s->prepend != PREPEND_NEVER)
            return json_fail(r, WEIR_E_FORMAT, "add_prefix_space", "is false, which contradicts the prepend_scheme %s",
                             scheme.text);
        return 0;
    }
    return json_fail(r, WEIR_E_FORMAT, "prepend_scheme", "'%.30s' is not always, first or never", scheme.text);
}

static int read_metaspace(json_reader *r, const json_t *object, json_steps *out) {
    json_step *s = add(r, out, run_metaspace);
    return s ? json_read_metaspace(r, object, s) : r->code;
}

static int read_byte_level(json_reader *r, const json_t *object, json_steps *out) {
    json_step *s = add(r, out, run_byte_level);
    bool use_regex = true;
    if (s == NULL) return r->code;
    s->flag = true;
    TRY(json_read_bool(r, object, "add_prefix_space", &s->flag));
    TRY(json_read_bool(r, object, "use_regex", &use_regex));
    return use_regex ? json_compile(r, (tok_string){GPT2, sizeof GPT2 - 1}, &s->code) : 0;
}

static int read_fixed_length(json_reader *r, const json_t *object, json_steps *out) {
    json_step *s = add(r, out, run_fixed_length);
    if (s == NULL) return r->code;
    s->stop = 5;
    const int found = json_read_size(r, object, "length", 1, 1 << 20, &s->stop);
    return found < 0 ? found : 0;
}

int json_read_pre_tokenizer(json_reader *r, const json_t *object, json_steps *out) {
    static const json_step_kind kinds[] = {
        {"ByteLevel", read_byte_level},
        {"Split", read_split},
        {"Whitespace", read_plain},
        {"WhitespaceSplit", read_plain},
        {"BertPreTokenizer", read_plain},
        {"Punctuation", read_punctuation},
        {"Digits", read_digits},
        {"Metaspace", read_metaspace},
        {"CharDelimiterSplit", read_delimiter},
        {"FixedLength", read_fixed_length},
        {"UnicodeScripts", NULL},
    };
    return json_read_steps(r, object, out, kinds, sizeof kinds / sizeof kinds[0], "pretokenizers", "pre-tokenizer", 0);
}

/* ---- running ---------------------------------------------------------------------------------------------------------------
 */

static void swap(json_text *t) {
    const buf bytes = t->bytes;
    json_piece *pieces = t->pieces;
    const size_t capacity = t->pieces_capacity;
    t->failed |= t->out.failed;
    t->bytes = t->out;
    t->pieces = t->out_pieces;
    t->n_pieces = t->n_out;
    t->pieces_capacity = t->out_capacity;
    t->out = bytes;
    t->out_pieces = pieces;
    t->out_capacity = capacity;
}

void json_pre_tokenise(const json_steps *steps, json_text *t, bool first) {
    t->n_pieces = 0;
    if (t->bytes.n_bytes == 0 || !grow(t, (void **)&t->pieces, &t->pieces_capacity, 1, sizeof(json_piece))) return;
    t->pieces[t->n_pieces++] = (json_piece){0, t->bytes.n_bytes, first && !t->trimmed};
    for (size_t i = 0; i < steps->n && !t->failed; i++) {
        buf_clear(&t->out);
        t->n_out = 0;
        for (size_t k = 0; k < t->n_pieces && !t->failed; k++) {
            const json_piece p = t->pieces[k];
            steps->steps[i].split(&steps->steps[i], t, (tok_string){t->bytes.data + p.begin, p.end - p.begin}, p.first);
        }
        swap(t);
    }
}
