/* Regular expressions: the regular part of Python's re and of ECMA-262, read by a recursive descent whose depth is bounded.
 *
 * Anchors: ^ and $ become the bytes 0xFE and 0xFF, which occur in no UTF-8. A pattern is then matched against texts of the form
 * FE* text FF*, which gives anchors their meaning wherever they stand, and the two bytes are erased from the automaton. The
 * usual anchors at the very ends are taken off before. */
#include <stdio.h>
#include <string.h>
#include <utf8proc.h>

#include "base/utf8.h"
#include "grammar/grammar_internal.h"

enum { MAX_GROUPS = 200, MAX_REPEAT = 1000000, BYTE_BEGIN = 0xFE, BYTE_END = 0xFF };

typedef struct regex {
    grammar_builder *b;
    const char *text, *at, *end, *place;
    regex_dialect dialect;
    bool in_json_string;
    int depth;
    size_t n_anchors;
    const expr *begin, *stop; /* the anchors */
} regex;

static void regex_fail(regex *p, int code, const char *what) {
    grammar_fail(p->b, code, p->place, "pattern, byte %zu: %s", (size_t)(p->at - p->text), what);
}

static bool peek(const regex *p, const char *text) {
    const size_t n = strlen(text);
    return (size_t)(p->end - p->at) >= n && memcmp(p->at, text, n) == 0;
}

static bool take(regex *p, const char *text) {
    if (!peek(p, text)) return false;
    p->at += strlen(text);
    return true;
}

static const expr *class_expr(regex *p, code_set *set) {
    if (p->b->code) return grammar_empty();
    grammar_set_normalise(set);
    return grammar_code_points(p->b, set, p->in_json_string);
}

/* ---- classes by name ---------------------------------------------------------------------------------------------------- */

static const code_range ecma_space[] = {{'\t', '\r'},     {' ', ' '},       {0xA0, 0xA0},     {0x1680, 0x1680},
                                        {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F},
                                        {0x3000, 0x3000}, {0xFEFF, 0xFEFF}};
static const code_range python_space[] = {{'\t', '\r'},     {0x1C, ' '},      {0x85, 0x85},     {0xA0, 0xA0},
                                          {0x1680, 0x1680}, {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F},
                                          {0x205F, 0x205F}, {0x3000, 0x3000}};
static const code_range ecma_word[] = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
static const code_range ascii_digit[] = {{'0', '9'}};

static void add_ranges(regex *p, code_set *set, const code_range *ranges, size_t n) {
    for (size_t i = 0; i < n; i++) grammar_set_add(p->b, set, ranges[i].lo, ranges[i].hi);
}

/* Adds the code points whose general category begins with one of the names (two letters each, or one and a space). */
static void add_categories(regex *p, code_set *set, const char *names) {
    bool wanted[UTF8PROC_CATEGORY_CO + 1] = {false};
    if (!grammar_work(p->b, 200000)) return;
    for (uint32_t first = 0, c = 0; c <= MAX_CODE_POINT + 1; c++) {
        static const char of_category[][3] = {"Cn", "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd",
                                              "Nl", "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm",
                                              "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co"};
        if (c == 0)
            for (size_t k = 0; k < sizeof of_category / sizeof of_category[0]; k++)
                for (const char *n = names; *n; n += 2)
                    if (of_category[k][0] == n[0] && (n[1] == ' ' || of_category[k][1] == n[1])) wanted[k] = true;
        const bool in = c <= MAX_CODE_POINT && wanted[utf8proc_category((utf8proc_int32_t)c)];
        if (in) continue;
        if (c > first) grammar_set_add(p->b, set, first, c - 1);
        first = c + 1;
    }
}

/* \d \D \w \W \s \S; false if `letter` is none of them. */
static bool named_class(regex *p, char letter, code_set *set) {
    const bool python = p->dialect == REGEX_PYTHON;
    code_set named = {0};
    switch (letter | 0x20) {
    case 'd':
        if (python)
            add_categories(p, &named, "Nd");
        else
            add_ranges(p, &named, ascii_digit, 1);
        break;
    case 'w':
        if (python) {
            add_categories(p, &named, "L N ");
            grammar_set_add(p->b, &named, '_', '_');
        } else {
            add_ranges(p, &named, ecma_word, sizeof ecma_word / sizeof ecma_word[0]);
        }
        break;
    case 's':
        if (python)
            add_ranges(p, &named, python_space, sizeof python_space / sizeof python_space[0]);
        else
            add_ranges(p, &named, ecma_space, sizeof ecma_space / sizeof ecma_space[0]);
        break;
    default:
        return false;
    }
    if (p->b->code) return true;
    grammar_set_normalise(&named);
    if (letter < 'a') named = grammar_set_invert(p->b, &named);
    add_ranges(p, set, named.ranges, named.n);
    return true;
}

/* \p{L}, \p{Lu}, \p{Letter}..., after the p or P. */
static void property_class(regex *p, bool negated, code_set *set) {
    static const struct {
        const char *name, *categories;
    } long_names[] = {{"Letter", "L "},      {"Uppercase_Letter", "Lu"}, {"Lowercase_Letter", "Ll"}, {"Mark", "M "},
                      {"Number", "N "},      {"Decimal_Number", "Nd"},   {"Punctuation", "P "},      {"Symbol", "S "},
                      {"Separator", "Z "},   {"Space_Separator", "Zs"},  {"Control", "Cc"},          {"Other", "C "},
                      {"Alphabetic", "L Nl"}};
    char name[32] = {0};
    size_t n = 0;
    if (!take(p, "{")) regex_fail(p, WEIR_E_FORMAT, "expected { after \\p");
    if (!take(p, "General_Category=")) take(p, "gc=");
    while (p->at < p->end && *p->at != '}' && n + 1 < sizeof name) name[n++] = *p->at++;
    if (!take(p, "}")) regex_fail(p, WEIR_E_FORMAT, "expected } after the property");
    const char *categories = NULL;
    char written[3] = {name[0], n == 2 ? name[1] : ' ', '\0'};
    if ((n == 1 && strchr("LMNPSZC", name[0])) || (n == 2 && strchr("LMNPSZC", name[0]) && name[1] >= 'a'))
        categories = written;
    for (size_t i = 0; i < sizeof long_names / sizeof long_names[0]; i++)
        if (strcmp(name, long_names[i].name) == 0) categories = long_names[i].categories;
    if (categories == NULL) regex_fail(p, WEIR_E_UNSUPPORTED, "a property other than a general category is not supported");
    if (p->b->code) return;
    code_set named = {0};
    add_categories(p, &named, categories);
    grammar_set_normalise(&named);
    if (negated) named = grammar_set_invert(p->b, &named);
    add_ranges(p, set, named.ranges, named.n);
}

/* ---- characters --------------------------------------------------------------------------------------------------------- */

static int hex_digit(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static uint32_t read_hex(regex *p, int n_digits) {
    uint32_t value = 0;
    for (int i = 0; i < n_digits; i++, p->at++) {
        const int digit = p->at < p->end ? hex_digit(*p->at) : -1;
        if (digit < 0) {
            regex_fail(p, WEIR_E_FORMAT, "expected a hexadecimal digit");
            return 0;
        }
        value = value << 4 | (uint32_t)digit;
    }
    return value;
}

static uint32_t read_unicode_escape(regex *p) {
    uint32_t value = 0;
    if (p->dialect == REGEX_SCHEMA && take(p, "{")) {
        while (p->at < p->end && hex_digit(*p->at) >= 0 && value <= MAX_CODE_POINT)
            value = value << 4 | (uint32_t)hex_digit(*p->at++);
        if (!take(p, "}")) regex_fail(p, WEIR_E_FORMAT, "expected } after the code point");
        return value;
    }
    value = read_hex(p, 4);
    if (p->dialect == REGEX_SCHEMA && value >> 10 == 0xD800 >> 10 && peek(p, "\\u")) {
        const char *back = p->at;
        p->at += 2;
        const uint32_t low = p->at < p->end && *p->at != '{' ? read_hex(p, 4) : 0;
        if (low >> 10 == 0xDC00 >> 10) return 0x10000 + ((value & 0x3FF) << 10) + (low & 0x3FF);
        p->at = back;
    }
    return value;
}

/* An octal escape or a back-reference, at its first digit. */
static uint32_t read_digit_escape(regex *p, bool in_class) {
    const char *begin = p->at;
    uint32_t value = 0;
    int n = 0;
    while (p->at < p->end && n < 3 && *p->at >= '0' && *p->at <= '7') value = 8 * value + (uint32_t)(*p->at++ - '0'), n++;
    if (in_class && n > 0) return value;
    if (*begin == '0' && (p->dialect == REGEX_PYTHON || n == 1)) {
        if (n == 3 && value > 0377) value &= 0377;
        return value;
    }
    if (p->dialect == REGEX_PYTHON && n == 3 && value <= 0377) return value;
    p->at = begin;
    regex_fail(p, WEIR_E_UNSUPPORTED, "back-references are not supported");
    return 0;
}

/* The character of an escape, at the letter after the backslash. */
static uint32_t read_escape(regex *p, bool in_class) {
    uint32_t c;
    const bool python = p->dialect == REGEX_PYTHON;
    const char kind = *p->at;
    if (kind >= '0' && kind <= '9') return read_digit_escape(p, in_class);
    p->at += utf8_decode(p->at, (size_t)(p->end - p->at), &c);
    switch (kind) {
    case 't':
        return '\t';
    case 'n':
        return '\n';
    case 'r':
        return '\r';
    case 'f':
        return '\f';
    case 'v':
        return '\v';
    case 'a':
        if (python) return '\a';
        break;
    case 'b':
        if (in_class) return '\b';
        break;
    case 'x':
        return read_hex(p, 2);
    case 'u':
        return read_unicode_escape(p);
    case 'U':
        if (python) return read_hex(p, 8);
        break;
    case 'c':
        if (!python && p->at < p->end && ((*p->at | 0x20) >= 'a' && (*p->at | 0x20) <= 'z')) return (uint32_t)(*p->at++ & 31);
        break;
    default:
        break;
    }
    if ((kind >= 'a' && kind <= 'z') || (kind >= 'A' && kind <= 'Z')) {
        p->at--;
        regex_fail(p,
                   kind == 'b' || kind == 'B' ? WEIR_E_UNSUPPORTED
                   : kind == 'k'              ? WEIR_E_UNSUPPORTED
                                              : WEIR_E_FORMAT,
                   kind == 'b' || kind == 'B' ? "word boundaries (\\b, \\B) are not supported"
                   : kind == 'k'              ? "back-references are not supported"
                                              : "unknown escape");
    }
    return c;
}

/* One member of a class: a character (returns true), or a class of its own, which is added to the set. */
static bool read_member(regex *p, code_set *set, uint32_t *c) {
    if (p->at == p->end) {
        regex_fail(p, WEIR_E_FORMAT, "the class is not closed");
        return false;
    }
    if (*p->at != '\\') {
        p->at += utf8_decode(p->at, (size_t)(p->end - p->at), c);
        return true;
    }
    if (++p->at == p->end) {
        regex_fail(p, WEIR_E_FORMAT, "the pattern ends after a backslash");
        return false;
    }
    if (named_class(p, *p->at, set)) {
        p->at++;
        return false;
    }
    if (p->dialect == REGEX_SCHEMA && (*p->at | 0x20) == 'p') {
        const bool negated = *p->at++ == 'P';
        property_class(p, negated, set);
        return false;
    }
    *c = read_escape(p, true);
    if (*c > MAX_CODE_POINT) regex_fail(p, WEIR_E_FORMAT, "not a code point: over 10FFFF");
    return p->b->code == 0;
}

static const expr *read_class(regex *p) {
    code_set set = {0};
    const bool negated = take(p, "^");
    bool first = p->dialect == REGEX_PYTHON; /* there a ] at the begin stands for itself */
    for (; p->b->code == 0 && (first || !peek(p, "]")); first = false) {
        uint32_t lo, hi;
        const bool single = read_member(p, &set, &lo);
        if (p->b->code) break;
        if (p->at + 1 < p->end && p->at[0] == '-' && p->at[1] != ']') {
            p->at++;
            if (!single || !read_member(p, &set, &hi) || hi < lo)
                regex_fail(p, WEIR_E_FORMAT, "a range whose ends are not characters in order");
            else
                grammar_set_add(p->b, &set, lo, hi);
        } else if (single) {
            grammar_set_add(p->b, &set, lo, lo);
        }
    }
    take(p, "]");
    if (p->b->code) return grammar_empty();
    grammar_set_normalise(&set);
    if (negated) set = grammar_set_invert(p->b, &set);
    return class_expr(p, &set);
}

static const expr *read_dot(regex *p) {
    code_set lines = {0};
    grammar_set_add(p->b, &lines, '\n', '\n');
    if (p->dialect == REGEX_SCHEMA) {
        grammar_set_add(p->b, &lines, '\r', '\r');
        grammar_set_add(p->b, &lines, 0x2028, 0x2029);
    }
    if (p->b->code) return grammar_empty();
    grammar_set_normalise(&lines);
    code_set set = grammar_set_invert(p->b, &lines);
    return class_expr(p, &set);
}

static const expr *char_expr(regex *p, uint32_t c) {
    code_set set = {0};
    if (c > MAX_CODE_POINT || (c >= 0xD800 && c <= 0xDFFF))
        regex_fail(p, WEIR_E_UNSUPPORTED, "a character that UTF-8 cannot hold");
    grammar_set_add(p->b, &set, c, c);
    return class_expr(p, &set);
}

/* ---- groups, repetitions, sequences ------------------------------------------------------------------------------------- */

static const expr *read_alternatives(regex *p);

/* After the opening parenthesis: skips what makes the kind of the group; false if it is not supported. */
static bool read_group_kind(regex *p) {
    static const struct {
        const char *mark, *why; /* why: NULL = a group like any other */
    } kinds[] = {
        {"?:", NULL},
        {"?=", "look-ahead is not supported"},
        {"?!", "look-ahead is not supported"},
        {"?<=", "look-behind is not supported"},
        {"?<!", "look-behind is not supported"},
        {"?P=", "back-references are not supported"},
        {"?(", "conditional groups are not supported"},
        {"?>", "atomic groups are not supported"},
    };
    if (!peek(p, "?")) return true;
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        if (!peek(p, kinds[i].mark)) continue;
        if (kinds[i].why) regex_fail(p, WEIR_E_UNSUPPORTED, kinds[i].why);
        p->at += strlen(kinds[i].mark);
        return kinds[i].why == NULL;
    }
    if (take(p, p->dialect == REGEX_PYTHON ? "?P<" : "?<")) {
        while (p->at < p->end && *p->at != '>') p->at++;
        if (take(p, ">")) return true;
        regex_fail(p, WEIR_E_FORMAT, "the name of the group is not closed");
        return false;
    }
    regex_fail(p, WEIR_E_UNSUPPORTED, "inline flags and other extensions of groups are not supported");
    return false;
}

static const expr *read_group(regex *p) {
    if (p->dialect == REGEX_PYTHON && take(p, "?#")) {
        while (p->at < p->end && *p->at != ')') p->at++;
        if (!take(p, ")")) regex_fail(p, WEIR_E_FORMAT, "the comment is not closed");
        return grammar_empty();
    }
    if (++p->depth > MAX_GROUPS) regex_fail(p, WEIR_E_LIMIT, "groups nested deeper than 200");
    if (!read_group_kind(p) || p->b->code) return grammar_empty();
    const expr *e = read_alternatives(p);
    p->depth--;
    if (!take(p, ")")) regex_fail(p, WEIR_E_FORMAT, "expected ) at the end of the group");
    return e;
}

static const expr *anchor(regex *p, const expr *e) {
    p->n_anchors++;
    return e;
}

static const expr *read_escaped_atom(regex *p) {
    code_set set = {0};
    if (p->at == p->end) {
        regex_fail(p, WEIR_E_FORMAT, "the pattern ends after a backslash");
        return grammar_empty();
    }
    if (named_class(p, *p->at, &set)) {
        p->at++;
        return class_expr(p, &set);
    }
    if (p->dialect == REGEX_PYTHON && take(p, "A")) return anchor(p, p->begin);
    if (p->dialect == REGEX_PYTHON && take(p, "Z")) return anchor(p, p->stop);
    if (p->dialect == REGEX_SCHEMA && (*p->at | 0x20) == 'p') {
        const bool negated = *p->at++ == 'P';
        property_class(p, negated, &set);
        return class_expr(p, &set);
    }
    const uint32_t c = read_escape(p, false);
    return p->b->code ? grammar_empty() : char_expr(p, c);
}

static const expr *read_atom(regex *p) {
    uint32_t c;
    switch (*p->at) {
    case '(':
        p->at++;
        return read_group(p);
    case '[':
        p->at++;
        return read_class(p);
    case '.':
        p->at++;
        return read_dot(p);
    case '^':
        p->at++;
        return anchor(p, p->begin);
    case '$':
        p->at++;
        return anchor(p, p->stop);
    case '\\':
        p->at++;
        return read_escaped_atom(p);
    case '*':
    case '+':
    case '?':
        regex_fail(p, WEIR_E_FORMAT, "nothing to repeat");
        return grammar_empty();
    default:
        p->at += utf8_decode(p->at, (size_t)(p->end - p->at), &c);
        return char_expr(p, c);
    }
}

/* Reads digits; false if there are none. */
static bool read_count(regex *p, uint32_t *out) {
    const char *begin = p->at;
    *out = 0;
    for (; p->at < p->end && *p->at >= '0' && *p->at <= '9' && p->b->code == 0; p->at++) {
        *out = 10 * *out + (uint32_t)(*p->at - '0');
        if (*out > MAX_REPEAT) regex_fail(p, WEIR_E_LIMIT, "more than a million repetitions");
    }
    return p->at > begin;
}

/* {m}, {m,}, {m,n} and Python's {,n}; false (nothing taken) if the brace stands for itself. */
static bool read_braces(regex *p, uint32_t *min, uint32_t *max) {
    const char *begin = p->at++;
    const bool has_min = read_count(p, min);
    *max = *min;
    bool ok = has_min;
    if (take(p, ",")) {
        const bool has_max = read_count(p, max);
        if (!has_max) *max = NO_BOUND;
        ok = has_min || (has_max && p->dialect == REGEX_PYTHON);
    }
    if (ok && take(p, "}")) return true;
    p->at = begin;
    return false;
}

static bool read_quantifier(regex *p, uint32_t *min, uint32_t *max) {
    if (p->at == p->end) return false;
    switch (*p->at) {
    case '*':
        *min = 0, *max = NO_BOUND;
        break;
    case '+':
        *min = 1, *max = NO_BOUND;
        break;
    case '?':
        *min = 0, *max = 1;
        break;
    case '{':
        return read_braces(p, min, max);
    default:
        return false;
    }
    p->at++;
    return true;
}

static const expr *read_sequence(regex *p) {
    expr_list items = {0};
    while (p->b->code == 0 && p->at < p->end && *p->at != '|' && *p->at != ')') {
        uint32_t min, max;
        const expr *item = read_atom(p);
        if (p->b->code == 0 && read_quantifier(p, &min, &max)) {
            if (min > max) regex_fail(p, WEIR_E_FORMAT, "more repetitions at least than at most");
            if (peek(p, "+")) regex_fail(p, WEIR_E_UNSUPPORTED, "possessive repetitions are not supported");
            take(p, "?"); /* lazy: the same texts */
            uint32_t again_min, again_max;
            if (p->b->code == 0 && read_quantifier(p, &again_min, &again_max))
                regex_fail(p, WEIR_E_FORMAT, "a repetition of a repetition needs a group");
            if (p->b->code == 0) item = grammar_repeat(p->b, item, min, max);
        }
        grammar_list_add(p->b, &items, item);
    }
    return grammar_seq(p->b, &items);
}

static const expr *read_alternatives(regex *p) {
    expr_list list = {0};
    do grammar_list_add(p->b, &list, read_sequence(p));
    while (p->b->code == 0 && take(p, "|"));
    return grammar_alt(p->b, &list);
}

/* ---- anchors ------------------------------------------------------------------------------------------------------------ */

static const expr *any_text(regex *p) {
    code_set all = {0};
    grammar_set_add(p->b, &all, 0, MAX_CODE_POINT);
    return grammar_repeat(p->b, class_expr(p, &all), 0, NO_BOUND);
}

/* The automaton without the anchors' bytes: each path over them goes on without. */
static const expr *erase_anchors(regex *p, const fa *a) {
    if (a == NULL) return grammar_nothing();
    return grammar_automaton(p->b, grammar_erase(p->b, a, BYTE_BEGIN, BYTE_END));
}

static const expr *with_anchors(regex *p, const expr *e) {
    grammar_builder *b = p->b;
    const expr *begins = grammar_repeat(b, p->begin, 0, NO_BOUND), *ends = grammar_repeat(b, p->stop, 0, NO_BOUND);
    const bool search = p->dialect == REGEX_SCHEMA;
    const expr *before = search ? grammar_seq4(b, begins, any_text(p), NULL, NULL) : begins;
    const expr *after = search ? grammar_seq4(b, any_text(p), ends, NULL, NULL) : ends;
    const fa *pattern = grammar_regular(b, grammar_seq4(b, before, e, after, NULL));
    /* The empty text begins where it ends, so there the two come in any order. */
    const expr *both = grammar_repeat(b, grammar_alt2(b, p->begin, p->stop), 0, NO_BOUND);
    const fa *form = grammar_regular(b, grammar_alt2(b, grammar_seq4(b, begins, any_text(p), ends, NULL), both));
    return erase_anchors(p, grammar_intersect(b, pattern, form));
}

const expr *grammar_regex_parse(grammar_builder *b, const char *pattern, size_t n_bytes, regex_dialect dialect,
                                bool in_json_string, const char *place) {
    regex p = {b, pattern, pattern, pattern + n_bytes, place, dialect, in_json_string, 0, 0, NULL, NULL};
    p.begin = grammar_bytes(b, BYTE_BEGIN, BYTE_BEGIN);
    p.stop = grammar_bytes(b, BYTE_END, BYTE_END);
    if (!utf8_valid(pattern, n_bytes)) regex_fail(&p, WEIR_E_FORMAT, "the pattern is not UTF-8");
    if (b->code) return grammar_empty();
    const bool was_regular = b->regular;
    b->regular = true; /* until it is known that there are no anchors inside, and in products later */
    const expr *e = read_alternatives(&p);
    if (b->code == 0 && p.at < p.end) regex_fail(&p, WEIR_E_FORMAT, "a ) without its (");
    /* Anchors that are the first and last of the whole pattern, and no others: the usual case. */
    bool at_begin = false, at_end = false;
    if (e->kind == EXPR_SEQ) {
        expr_list inner = {e->list.items, e->list.n, e->list.n};
        at_begin = inner.items[0] == p.begin;
        at_end = inner.items[inner.n - 1] == p.stop;
        if (p.n_anchors == (size_t)at_begin + at_end) {
            inner.items += at_begin;
            inner.n -= (size_t)at_begin + at_end;
            e = grammar_seq(b, &inner);
        }
    }
    if (b->code == 0 && p.n_anchors != (size_t)at_begin + at_end)
        e = with_anchors(&p, e);
    else if (b->code == 0 && dialect == REGEX_SCHEMA)
        e = grammar_seq4(b, at_begin ? grammar_empty() : any_text(&p), e, at_end ? grammar_empty() : any_text(&p), NULL);
    b->regular = was_regular;
    return e;
}

int grammar_compile_regex(grammar **out, const char *pattern, size_t n_bytes, weir_error *err) {
    grammar_builder b;
    *out = NULL;
    grammar_builder_init(&b, err);
    const uint32_t root = grammar_rule_new(&b, NULL);
    grammar_rule_define(&b, root, grammar_regex_parse(&b, pattern, n_bytes, REGEX_PYTHON, false, NULL));
    const int code = grammar_finish(&b, root, false, out);
    grammar_builder_free(&b);
    return code;
}
