/* See jinja_text.h. Categories and simple case mappings come from utf8proc, the multi-character ones from the table below. */
#include "chat/jinja_text.h"

#include <string.h>
#include <utf8proc.h>

#include "base/utf8.h"

bool text_is_space(uint32_t c) {
    if (c < 0x80) return (c >= 9 && c <= 13) || (c >= 28 && c <= 32);
    return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
           c == 0x205F || c == 0x3000;
}

static int category(uint32_t c) {
    return utf8proc_category((utf8proc_int32_t)c);
}

static bool is_letter(uint32_t c) {
    int k = category(c);
    return k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO;
}

/* Digits that are no decimal digits by category: superscripts, circled and the like (Numeric_Type=Digit). */
static bool is_digit(uint32_t c) {
    return category(c) == UTF8PROC_CATEGORY_ND || c == 0xB2 || c == 0xB3 || c == 0xB9 || c == 0x2070 ||
           (c >= 0x2074 && c <= 0x2079) || (c >= 0x2080 && c <= 0x2089) || (c >= 0x2460 && c <= 0x2468) ||
           (c >= 0x2474 && c <= 0x247C) || (c >= 0x2488 && c <= 0x2490) || c == 0x24EA || (c >= 0x24F5 && c <= 0x24FD) ||
           c == 0x24FF || (c >= 0x2776 && c <= 0x277E) || (c >= 0x2780 && c <= 0x2788) || (c >= 0x278A && c <= 0x2792);
}

static bool is_numeric(uint32_t c) {
    int k = category(c);
    return k >= UTF8PROC_CATEGORY_ND && k <= UTF8PROC_CATEGORY_NO;
}

bool text_is_word(uint32_t c) {
    if (c < 0x80) return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
    return is_letter(c) || is_numeric(c);
}

bool text_is_mark(uint32_t c) {
    return category(c) == UTF8PROC_CATEGORY_MN || category(c) == UTF8PROC_CATEGORY_MC;
}

bool text_is_printable(uint32_t c) {
    if (c < 0x80) return c >= 32 && c < 127;
    int k = category(c);
    return !(k == UTF8PROC_CATEGORY_CN || (k >= UTF8PROC_CATEGORY_ZS && k <= UTF8PROC_CATEGORY_CO));
}

uint32_t text_previous(const char *text, size_t end, size_t *start) {
    size_t at = end - 1;
    while (at > 0 && end - at < 4 && ((unsigned char)text[at] & 0xC0) == 0x80) at--;
    uint32_t c;
    size_t n = utf8_decode(text + at, end - at, &c);
    if (at + n != end) { /* ill-formed: its last byte alone */
        at = end - 1;
        c = UTF8_REPLACEMENT;
    }
    *start = at;
    return c;
}

bool text_is_ascii(const char *text, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes; i++)
        if ((unsigned char)text[i] >= 0x80) return false;
    return true;
}

size_t text_offset(const char *text, size_t n_bytes, size_t index) {
    size_t at = 0;
    uint32_t c;
    while (index > 0 && at < n_bytes) {
        at += utf8_decode(text + at, n_bytes - at, &c);
        index--;
    }
    return at;
}

size_t text_find(const char *text, size_t n_bytes, size_t from, const char *needle, size_t n_needle) {
    if (from > n_bytes) return SIZE_MAX;
    if (n_needle == 0) return from;
    const char *hit = memmem(text + from, n_bytes - from, needle, n_needle);
    return hit ? (size_t)(hit - text) : SIZE_MAX;
}

static bool strips(uint32_t c, const value *chars) {
    if (chars == NULL) return text_is_space(c);
    char encoded[4];
    size_t n = utf8_encode(c, encoded);
    return text_find(chars->text, chars->n_bytes, 0, encoded, n) != SIZE_MAX;
}

void text_strip(const value *text, const value *chars, bool left, bool right, size_t *start, size_t *end) {
    size_t from = 0, to = text->n_bytes;
    uint32_t c;
    while (left && from < to) {
        size_t n = utf8_decode(text->text + from, to - from, &c);
        if (!strips(c, chars)) break;
        from += n;
    }
    while (right && to > from) {
        size_t at;
        if (!strips(text_previous(text->text, to, &at), chars)) break;
        to = at;
    }
    *start = from;
    *end = to;
}

/* Unicode SpecialCasing, unconditional mappings: upper and title where they have several characters. */
static const struct special_case {
    uint16_t from, upper[3], title[3];
} special_cases[] = {
    {0x00DF, {'S', 'S'}, {'S', 's'}},
    {0x0149, {0x02BC, 'N'}, {0x02BC, 'N'}},
    {0x01F0, {'J', 0x030C}, {'J', 0x030C}},
    {0x0390, {0x0399, 0x0308, 0x0301}, {0x0399, 0x0308, 0x0301}},
    {0x03B0, {0x03A5, 0x0308, 0x0301}, {0x03A5, 0x0308, 0x0301}},
    {0x0587, {0x0535, 0x0552}, {0x0535, 0x0582}},
    {0x1E96, {'H', 0x0331}, {'H', 0x0331}},
    {0x1E97, {'T', 0x0308}, {'T', 0x0308}},
    {0x1E98, {'W', 0x030A}, {'W', 0x030A}},
    {0x1E99, {'Y', 0x030A}, {'Y', 0x030A}},
    {0x1E9A, {'A', 0x02BE}, {'A', 0x02BE}},
    {0x1F50, {0x03A5, 0x0313}, {0x03A5, 0x0313}},
    {0x1F52, {0x03A5, 0x0313, 0x0300}, {0x03A5, 0x0313, 0x0300}},
    {0x1F54, {0x03A5, 0x0313, 0x0301}, {0x03A5, 0x0313, 0x0301}},
    {0x1F56, {0x03A5, 0x0313, 0x0342}, {0x03A5, 0x0313, 0x0342}},
    {0x1FB6, {0x0391, 0x0342}, {0x0391, 0x0342}},
    {0x1FC6, {0x0397, 0x0342}, {0x0397, 0x0342}},
    {0x1FD2, {0x0399, 0x0308, 0x0300}, {0x0399, 0x0308, 0x0300}},
    {0x1FD3, {0x0399, 0x0308, 0x0301}, {0x0399, 0x0308, 0x0301}},
    {0x1FD6, {0x0399, 0x0342}, {0x0399, 0x0342}},
    {0x1FD7, {0x0399, 0x0308, 0x0342}, {0x0399, 0x0308, 0x0342}},
    {0x1FE2, {0x03A5, 0x0308, 0x0300}, {0x03A5, 0x0308, 0x0300}},
    {0x1FE3, {0x03A5, 0x0308, 0x0301}, {0x03A5, 0x0308, 0x0301}},
    {0x1FE4, {0x03A1, 0x0313}, {0x03A1, 0x0313}},
    {0x1FE6, {0x03A5, 0x0342}, {0x03A5, 0x0342}},
    {0x1FE7, {0x03A5, 0x0308, 0x0342}, {0x03A5, 0x0308, 0x0342}},
    {0x1FF6, {0x03A9, 0x0342}, {0x03A9, 0x0342}},
    {0xFB00, {'F', 'F'}, {'F', 'f'}},
    {0xFB01, {'F', 'I'}, {'F', 'i'}},
    {0xFB02, {'F', 'L'}, {'F', 'l'}},
    {0xFB03, {'F', 'F', 'I'}, {'F', 'f', 'i'}},
    {0xFB04, {'F', 'F', 'L'}, {'F', 'f', 'l'}},
    {0xFB05, {'S', 'T'}, {'S', 't'}},
    {0xFB06, {'S', 'T'}, {'S', 't'}},
    {0xFB13, {0x0544, 0x0546}, {0x0544, 0x0576}},
    {0xFB14, {0x0544, 0x0535}, {0x0544, 0x0565}},
    {0xFB15, {0x0544, 0x053B}, {0x0544, 0x056B}},
    {0xFB16, {0x054E, 0x0546}, {0x054E, 0x0576}},
    {0xFB17, {0x0544, 0x053D}, {0x0544, 0x056D}},
};

/* Greek vowels with iota subscript: the capital and a capital iota. 0 for all others. */
static uint32_t iota_capital(uint32_t c) {
    if (c >= 0x1F80 && c <= 0x1FAF) {
        static const uint16_t base[3] = {0x1F08, 0x1F28, 0x1F68};
        return base[(c - 0x1F80) / 16] + (c & 7);
    }
    switch (c) {
    case 0x1FB2:
        return 0x1FBA;
    case 0x1FB3:
    case 0x1FBC:
        return 0x0391;
    case 0x1FB4:
        return 0x0386;
    case 0x1FC2:
        return 0x1FCA;
    case 0x1FC3:
    case 0x1FCC:
        return 0x0397;
    case 0x1FC4:
        return 0x0389;
    case 0x1FF2:
        return 0x1FFA;
    case 0x1FF3:
    case 0x1FFC:
        return 0x03A9;
    case 0x1FF4:
        return 0x038F;
    default:
        return 0;
    }
}

static void put_upper(text_sink *s, uint32_t c, bool title) {
    if (c < 0x80) {
        sink_putc(s, (char)(c >= 'a' && c <= 'z' ? c - 32 : c));
        return;
    }
    for (size_t i = 0; i < sizeof special_cases / sizeof special_cases[0]; i++) {
        if (special_cases[i].from != c) continue;
        const uint16_t *to = title ? special_cases[i].title : special_cases[i].upper;
        for (int k = 0; k < 3 && to[k]; k++) sink_code_point(s, to[k]);
        return;
    }
    uint32_t capital = title ? 0 : iota_capital(c);
    if (capital) {
        sink_code_point(s, capital);
        sink_code_point(s, 0x0399);
        return;
    }
    utf8proc_int32_t simple = title ? utf8proc_totitle((utf8proc_int32_t)c) : utf8proc_toupper((utf8proc_int32_t)c);
    sink_code_point(s, (uint32_t)simple);
}

static bool is_cased(uint32_t c) {
    int k = category(c);
    return k == UTF8PROC_CATEGORY_LU || k == UTF8PROC_CATEGORY_LL || k == UTF8PROC_CATEGORY_LT || c == 0xAA || c == 0xBA;
}

static bool is_case_ignorable(uint32_t c) {
    int k = category(c);
    return k == UTF8PROC_CATEGORY_MN || k == UTF8PROC_CATEGORY_ME || k == UTF8PROC_CATEGORY_CF || k == UTF8PROC_CATEGORY_LM ||
           k == UTF8PROC_CATEGORY_SK || c == '\'' || c == '.' || c == ':' || c == 0xB7 || c == 0x2018 || c == 0x2019;
}

/* A capital sigma is final when a cased letter comes before it and none after it (case-ignorable ones between do not count). */
static bool sigma_is_final(const char *text, size_t n_bytes, size_t at) {
    uint32_t c = 0;
    size_t i = at;
    bool before = false;
    while (i > 0) {
        c = text_previous(text, i, &i);
        if (is_case_ignorable(c)) continue;
        before = is_cased(c);
        break;
    }
    if (!before) return false;
    for (i = at + 2; i < n_bytes;) {
        i += utf8_decode(text + i, n_bytes - i, &c);
        if (!is_case_ignorable(c)) return !is_cased(c);
    }
    return true;
}

static void put_lower(text_sink *s, const char *text, size_t n_bytes, size_t at, uint32_t c) {
    if (c < 0x80) {
        sink_putc(s, (char)(c >= 'A' && c <= 'Z' ? c + 32 : c));
    } else if (c == 0x0130) {
        sink_puts(s, "i\xCC\x87");
    } else if (c == 0x03A3) {
        sink_code_point(s, sigma_is_final(text, n_bytes, at) ? 0x03C2 : 0x03C3);
    } else {
        sink_code_point(s, (uint32_t)utf8proc_tolower((utf8proc_int32_t)c));
    }
}

void text_map_case(text_sink *s, const char *text, size_t n_bytes, text_case to) {
    if (!s->failed) s->failed = render_charge(s->r, n_bytes);
    if (s->failed) return;
    bool inside = false; /* after a cased letter (title), or after the first character (capitalize) */
    for (size_t i = 0, n; i < n_bytes; i += n) {
        uint32_t c;
        n = utf8_decode(text + i, n_bytes - i, &c);
        bool upper = to == CASE_UPPER, title = false;
        if (to == CASE_TITLE || to == CASE_CAPITALIZE) {
            title = upper = !inside;
            inside = to == CASE_CAPITALIZE || is_cased(c);
        } else if (to == CASE_SWAP) {
            upper = category(c) == UTF8PROC_CATEGORY_LL;
        }
        if (upper)
            put_upper(s, c, title);
        else
            put_lower(s, text, n_bytes, i, c);
    }
}

static bool in_class(uint32_t c, text_class k) {
    switch (k) {
    case CLASS_ALPHA:
        return is_letter(c);
    case CLASS_DIGIT:
        return is_digit(c);
    case CLASS_DECIMAL:
        return category(c) == UTF8PROC_CATEGORY_ND;
    case CLASS_NUMERIC:
        return is_numeric(c);
    case CLASS_ALNUM:
        return is_letter(c) || is_numeric(c);
    case CLASS_SPACE:
        return text_is_space(c);
    case CLASS_ASCII:
        return c < 0x80;
    case CLASS_PRINTABLE:
        return text_is_printable(c);
    default:
        return false;
    }
}

/* Cased text is upper (lower) when it has a letter of that case and none of the other; title when capitals begin words. */
static bool is_cased_text(const char *text, size_t n_bytes, text_class k) {
    bool any = false, after_cased = false;
    for (size_t i = 0; i < n_bytes;) {
        uint32_t c;
        i += utf8_decode(text + i, n_bytes - i, &c);
        int cat = category(c);
        bool upper = cat == UTF8PROC_CATEGORY_LU, lower = cat == UTF8PROC_CATEGORY_LL, title = cat == UTF8PROC_CATEGORY_LT;
        if (k == CLASS_UPPER && (lower || title)) return false;
        if (k == CLASS_LOWER && (upper || title)) return false;
        if (k == CLASS_TITLE && ((upper || title) ? after_cased : lower && !after_cased)) return false;
        after_cased = upper || lower || title;
        any = any || after_cased;
    }
    return any;
}

bool text_is(const char *text, size_t n_bytes, text_class k) {
    if (k == CLASS_UPPER || k == CLASS_LOWER || k == CLASS_TITLE) return is_cased_text(text, n_bytes, k);
    if (n_bytes == 0) return k == CLASS_ASCII || k == CLASS_PRINTABLE;
    for (size_t i = 0; i < n_bytes;) {
        uint32_t c;
        size_t n = utf8_decode(text + i, n_bytes - i, &c);
        if (k == CLASS_IDENTIFIER) {
            int cat = category(c);
            bool mark = cat == UTF8PROC_CATEGORY_MN || cat == UTF8PROC_CATEGORY_MC || cat == UTF8PROC_CATEGORY_ND;
            if (!(is_letter(c) || cat == UTF8PROC_CATEGORY_NL || c == '_' || (i > 0 && mark))) return false;
        } else if (!in_class(c, k)) {
            return false;
        }
        i += n;
    }
    return true;
}
