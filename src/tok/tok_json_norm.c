/* Normalizers of tokenizer.json: text to text. Each reads t->bytes and appends to t->out. See `tokenizers`' documentation of
 * its normalizers; what characters count as is Rust's. */
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/error.h"
#include "base/utf8.h"
#include "tok/tok_json_internal.h"

/* ---- characters --------------------------------------------------------------------------------------------------------- */

static utf8proc_category_t category(uint32_t c) {
    return utf8proc_category((utf8proc_int32_t)c);
}

bool json_is_word(uint32_t c) {
    const utf8proc_category_t k = category(c);
    return (k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_NL) || k == UTF8PROC_CATEGORY_PC || c == 0x200C ||
           c == 0x200D || (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
           (c >= 0x1F170 && c <= 0x1F189);
}

static void put(buf *out, uint32_t c) {
    char bytes[4];
    buf_append(out, bytes, utf8_encode(c, bytes));
}

static bool is_mark(uint32_t c) {
    const utf8proc_category_t k = category(c);
    return k >= UTF8PROC_CATEGORY_MN && k <= UTF8PROC_CATEGORY_ME;
}

static bool is_control(uint32_t c) {
    const utf8proc_category_t k = category(c);
    if (c == '\t' || c == '\n' || c == '\r') return false;
    return k == UTF8PROC_CATEGORY_CC || k == UTF8PROC_CATEGORY_CF || k == UTF8PROC_CATEGORY_CO || k == UTF8PROC_CATEGORY_CS;
}

void json_put_alphabet(buf *out, unsigned char byte) {
    const bool plain = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    put(out, plain ? byte : byte < 0x21 ? 0x100u + byte : byte == 0xAD ? 0x143u : 0x121u + byte - 0x7F);
}

/* ---- steps -------------------------------------------------------------------------------------------------------------- */

/* Runs over the characters of t->bytes; `keep` says what becomes of each: 0 = dropped. */
static void map_characters(json_text *t, uint32_t (*keep)(uint32_t c)) {
    for (size_t at = 0; at < t->bytes.n_bytes;) {
        uint32_t c;
        at += utf8_decode(t->bytes.data + at, t->bytes.n_bytes - at, &c);
        const uint32_t kept = keep(c);
        if (kept != UINT32_MAX)
            put(&t->out, kept);
        else if (t->out.n_bytes == 0)
            t->trimmed = true;
    }
}

static void to_form(json_text *t, uint32_t option) {
    utf8proc_uint8_t *result = NULL;
    const utf8proc_ssize_t n = utf8proc_map((const utf8proc_uint8_t *)t->bytes.data, (utf8proc_ssize_t)t->bytes.n_bytes,
                                            &result, (utf8proc_option_t)(UTF8PROC_STABLE | (int)option));
    if (n < 0)
        t->failed = true;
    else
        buf_append(&t->out, result, (size_t)n);
    free(result);
}

static void run_form(const json_step *s, json_text *t) {
    to_form(t, s->option);
}

static void put_lower(buf *out, uint32_t c) {
    if (c == 0x130)
        buf_append(out, "i\xcc\x87", 3); /* the one letter whose small form is two */
    else
        put(out, (uint32_t)utf8proc_tolower((utf8proc_int32_t)c));
}

static void run_lowercase(const json_step *s, json_text *t) {
    (void)s;
    for (size_t at = 0; at < t->bytes.n_bytes;) {
        uint32_t c;
        at += utf8_decode(t->bytes.data + at, t->bytes.n_bytes - at, &c);
        put_lower(&t->out, c);
    }
}

static uint32_t without_marks(uint32_t c) {
    return is_mark(c) ? UINT32_MAX : c;
}
static void run_strip_accents(const json_step *s, json_text *t) {
    (void)s;
    map_characters(t, without_marks);
}

/* SentencePiece's NMT rules. */
static uint32_t as_nmt(uint32_t c) {
    if ((c >= 1 && c <= 8) || c == 0xB || (c >= 0xE && c <= 0x1F) || c == 0x7F || c == 0x8F || c == 0x9F) return UINT32_MAX;
    if (c == 9 || c == 0xA || c == 0xC || c == 0xD || c == 0x1680 || (c >= 0x200B && c <= 0x200F) || c == 0x2028 ||
        c == 0x2029 || c == 0x2581 || c == 0xFEFF || c == 0xFFFD)
        return ' ';
    return c;
}
static void run_nmt(const json_step *s, json_text *t) {
    (void)s;
    map_characters(t, as_nmt);
}

static void run_strip(const json_step *s, json_text *t) {
    size_t begin = 0, end = 0;
    bool inside = false;
    for (size_t at = 0; at < t->bytes.n_bytes;) {
        uint32_t c;
        const size_t from = at;
        at += utf8_decode(t->bytes.data + at, t->bytes.n_bytes - at, &c);
        if (tok_is_space(c)) continue;
        if (!inside) begin = from;
        inside = true;
        end = at;
    }
    if (!inside) begin = s->left ? t->bytes.n_bytes : 0;
    if (!s->left) begin = 0;
    if (!s->right || !inside) end = s->right && !inside ? begin : t->bytes.n_bytes;
    if (begin > 0) t->trimmed = true;
    buf_append(&t->out, t->bytes.data + begin, end - begin);
}

static void run_prepend(const json_step *s, json_text *t) {
    if (t->bytes.n_bytes) buf_append(&t->out, s->text.text, s->text.n_bytes);
    buf_append(&t->out, t->bytes.data, t->bytes.n_bytes);
}

static void run_replace(const json_step *s, json_text *t) {
    if (!json_text_match_data(t)) return;
    json_matcher m = {.s = s, .text = {t->bytes.data, t->bytes.n_bytes}, .last_end = SIZE_MAX, .match_data = t->match_data};
    size_t at = 0, from, to;
    while (json_next_match(&m, &from, &to)) {
        if (from == 0 && to > 0 && s->text.n_bytes == 0) t->trimmed = true;
        buf_append(&t->out, t->bytes.data + at, from - at);
        buf_append(&t->out, s->text.text, s->text.n_bytes);
        at = to;
    }
    buf_append(&t->out, t->bytes.data + at, t->bytes.n_bytes - at);
}

static void run_byte_level(const json_step *s, json_text *t) {
    (void)s;
    for (size_t i = 0; i < t->bytes.n_bytes; i++) json_put_alphabet(&t->out, (unsigned char)t->bytes.data[i]);
}

static void swap_bytes(json_text *t) {
    const buf other = t->bytes;
    t->failed |= t->out.failed;
    t->bytes = t->out;
    t->out = other;
    buf_clear(&t->out);
    if (t->bytes.data == NULL) buf_append(&t->bytes, "", 0);
}

static void run_bert(const json_step *s, json_text *t) {
    const bool accents = s->strip_accents;
    for (size_t at = 0; at < t->bytes.n_bytes;) {
        uint32_t c;
        at += utf8_decode(t->bytes.data + at, t->bytes.n_bytes - at, &c);
        if (s->clean_text) {
            if (c == 0 || c == UTF8_REPLACEMENT || is_control(c)) {
                if (t->out.n_bytes == 0) t->trimmed = true;
                continue;
            }
            if (tok_is_space(c)) c = ' ';
        }
        const bool alone = s->chinese && tok_is_chinese(c);
        if (alone) buf_putc(&t->out, ' ');
        put(&t->out, c);
        if (alone) buf_putc(&t->out, ' ');
    }
    if (accents) {
        swap_bytes(t);
        to_form(t, UTF8PROC_DECOMPOSE);
        swap_bytes(t);
        for (size_t at = 0; at < t->bytes.n_bytes;) {
            uint32_t c;
            at += utf8_decode(t->bytes.data + at, t->bytes.n_bytes - at, &c);
            if (category(c) != UTF8PROC_CATEGORY_MN) put(&t->out, c);
        }
    }
    if (!s->lowercase) return;
    swap_bytes(t);
    run_lowercase(s, t);
}

/* What the table has for the shortest beginning of the text that it knows, as `tokenizers` takes it. */
static const char *replacement_of(const tok_charsmap *map, const char *text, size_t n_bytes) {
    if (map->n_units == 0) return NULL;
    size_t node = map->units[0] >> 10 << ((map->units[0] & (1u << 9)) >> 6);
    for (size_t i = 0; i < n_bytes && text[i]; i++) {
        node ^= (unsigned char)text[i];
        if (node >= map->n_units) return NULL;
        const uint32_t unit = map->units[node];
        if ((unit & ((1u << 31) | 0xFF)) != (unsigned char)text[i]) return NULL;
        node ^= (size_t)(unit >> 10) << ((unit & (1u << 9)) >> 6);
        if (!(unit >> 8 & 1)) continue;
        const uint32_t offset = node < map->n_units ? map->units[node] & ((1u << 31) - 1) : UINT32_MAX;
        return offset < map->n_replacements ? map->replacements + offset : NULL;
    }
    return NULL;
}

static void put_precompiled(const json_step *s, json_text *t, size_t begin, size_t end) {
    enum { WHOLE_CLUSTER = 6 }; /* bytes; longer clusters are looked up by character only */
    const char *whole = end - begin < WHOLE_CLUSTER ? replacement_of(&s->charsmap, t->bytes.data + begin, end - begin) : NULL;
    if (whole) {
        buf_puts(&t->out, whole);
        return;
    }
    for (size_t at = begin, length; at < end; at += length) {
        uint32_t c;
        length = utf8_decode(t->bytes.data + at, end - at, &c);
        const char *part = replacement_of(&s->charsmap, t->bytes.data + at, length);
        if (part)
            buf_puts(&t->out, part);
        else
            buf_append(&t->out, t->bytes.data + at, length);
    }
}

static void run_precompiled(const json_step *s, json_text *t) {
    utf8proc_int32_t state = 0;
    uint32_t before = 0;
    size_t begin = 0;
    for (size_t at = 0; at < t->bytes.n_bytes;) {
        uint32_t c;
        const size_t length = utf8_decode(t->bytes.data + at, t->bytes.n_bytes - at, &c);
        if (at > 0 && utf8proc_grapheme_break_stateful((utf8proc_int32_t)before, (utf8proc_int32_t)c, &state)) {
            put_precompiled(s, t, begin, at);
            begin = at;
        }
        before = c;
        at += length;
        if (at == t->bytes.n_bytes) put_precompiled(s, t, begin, at);
    }
}

/* ---- reading ------------------------------------------------------------------------------------------------------------- */

#define SIMPLE(name, function)                                                                                                 \
    static int name(json_reader *r, const json_t *object, json_steps *out) {                                                   \
        (void)object;                                                                                                          \
        json_step *s = json_add_step(r, out);                                                                                  \
        if (s == NULL) return r->code;                                                                                         \
        s->normalise = (function);                                                                                             \
        return 0;                                                                                                              \
    }
SIMPLE(read_lowercase, run_lowercase)
SIMPLE(read_strip_accents, run_strip_accents)
SIMPLE(read_nmt, run_nmt)
SIMPLE(read_byte_level, run_byte_level)

static int read_form(json_reader *r, const json_t *object, json_steps *out) {
    const char *type = json_string_value(json_object_get(object, "type"));
    json_step *s = json_add_step(r, out);
    if (s == NULL) return r->code;
    s->normalise = run_form;
    s->option = (uint32_t)(type[2] == 'C' || type[3] == 'C' ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE);
    if (type[2] == 'K') s->option |= (uint32_t)UTF8PROC_COMPAT;
    return 0;
}

static int read_strip(json_reader *r, const json_t *object, json_steps *out) {
    json_step *s = json_add_step(r, out);
    if (s == NULL) return r->code;
    s->normalise = run_strip;
    s->left = s->right = true;
    TRY(json_read_bool(r, object, "strip_left", &s->left));
    TRY(json_read_bool(r, object, "strip_right", &s->right));
    return 0;
}

static int read_prepend(json_reader *r, const json_t *object, json_steps *out) {
    json_step *s = json_add_step(r, out);
    if (s == NULL) return r->code;
    s->normalise = run_prepend;
    TRY(json_need_text(r, object, "prepend", &s->text));
    return json_keep(r, &s->text);
}

static int read_replace(json_reader *r, const json_t *object, json_steps *out) {
    json_step *s = json_add_step(r, out);
    if (s == NULL) return r->code;
    s->normalise = run_replace;
    TRY(json_read_pattern(r, object, s));
    TRY(json_need_text(r, object, "content", &s->text));
    return json_keep(r, &s->text);
}

static int read_bert(json_reader *r, const json_t *object, json_steps *out) {
    json_step *s = json_add_step(r, out);
    if (s == NULL) return r->code;
    s->normalise = run_bert;
    s->clean_text = s->chinese = s->lowercase = true;
    TRY(json_read_bool(r, object, "clean_text", &s->clean_text));
    TRY(json_read_bool(r, object, "handle_chinese_chars", &s->chinese));
    TRY(json_read_bool(r, object, "lowercase", &s->lowercase));
    s->strip_accents = s->lowercase;
    TRY(json_read_bool(r, object, "strip_accents", &s->strip_accents));
    return 0;
}

static int base64_digit(char c) {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Decodes base64 to out[3 n / 4]; the bytes written, or -1. */
static int64_t decode_base64(tok_string s, unsigned char *out) {
    uint32_t bits = 0;
    int n_bits = 0;
    int64_t n = 0;
    while (s.n_bytes > 0 && s.text[s.n_bytes - 1] == '=') s.n_bytes--;
    for (size_t i = 0; i < s.n_bytes; i++) {
        const int digit = base64_digit(s.text[i]);
        if (digit < 0) return -1;
        bits = bits << 6 | (uint32_t)digit;
        if ((n_bits += 6) < 8) continue;
        n_bits -= 8;
        out[n++] = (unsigned char)(bits >> n_bits);
    }
    return n;
}

static int read_precompiled(json_reader *r, const json_t *object, json_steps *out) {
    tok_string text = {"", 0};
    json_step *s = json_add_step(r, out);
    if (s == NULL) return r->code;
    s->normalise = run_precompiled;
    TRY(json_read_text(r, object, "precompiled_charsmap", &text));
    if (text.n_bytes == 0) return 0;
    unsigned char *bytes = arena_alloc(r->memory, text.n_bytes);
    if (bytes == NULL) return json_fail(r, WEIR_E_NOMEM, NULL, "out of memory");
    const int64_t n = decode_base64(text, bytes);
    if (n < 0) return json_fail(r, WEIR_E_FORMAT, "precompiled_charsmap", "is not base64");
    weir_error problem = {0};
    const int rc = tok_charsmap_open(&s->charsmap, r->memory, bytes, (size_t)n, &problem);
    return rc < 0 ? json_fail(r, rc, "precompiled_charsmap", "%s", problem.message) : 0;
}

int json_read_normalizer(json_reader *r, const json_t *object, json_steps *out) {
    static const json_step_kind kinds[] = {
        {"NFC", read_form},
        {"NFD", read_form},
        {"NFKC", read_form},
        {"NFKD", read_form},
        {"Lowercase", read_lowercase},
        {"StripAccents", read_strip_accents},
        {"BertNormalizer", read_bert},
        {"Replace", read_replace},
        {"Prepend", read_prepend},
        {"Strip", read_strip},
        {"Nmt", read_nmt},
        {"Precompiled", read_precompiled},
        {"ByteLevel", read_byte_level},
    };
    return json_read_steps(r, object, out, kinds, sizeof kinds / sizeof kinds[0], "normalizers", "normalizer", 0);
}

/* ---- running --------------------------------------------------------------------------------------------------------------
 */

void json_text_free(json_text *t) {
    buf_free(&t->bytes);
    buf_free(&t->out);
    free(t->pieces);
    free(t->out_pieces);
    free(t->spans);
    pcre2_match_data_free(t->match_data);
}

bool json_text_match_data(json_text *t) {
    if (t->match_data == NULL) t->match_data = pcre2_match_data_create(1, NULL);
    t->failed |= t->match_data == NULL;
    return t->match_data != NULL;
}

void json_normalise(const json_steps *steps, json_text *t) {
    t->trimmed = false;
    for (size_t i = 0; i < steps->n && t->bytes.n_bytes > 0 && !t->failed; i++) {
        buf_clear(&t->out);
        steps->steps[i].normalise(&steps->steps[i], t);
        swap_bytes(t);
    }
}
