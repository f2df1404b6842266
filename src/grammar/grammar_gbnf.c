/* GBNF, the grammar notation of llama.cpp: rules `name ::= alternatives`, terminals are code points. A recursive descent over
 * the text, whose depth is bounded. */
#include <stdio.h>
#include <string.h>

#include "base/utf8.h"
#include "grammar/grammar_internal.h"

enum { MAX_GROUPS = 256, MAX_REPEAT = 1000000 };

typedef struct gbnf {
    grammar_builder *b;
    const char *text, *at, *end;
    int depth;
} gbnf;

static int gbnf_fail(gbnf *p, int code, const char *what) {
    char place[32];
    snprintf(place, sizeof place, "byte %zu", (size_t)(p->at - p->text));
    return grammar_fail(p->b, code, place, "%s", what);
}

static bool peek(const gbnf *p, const char *text) {
    const size_t n = strlen(text);
    return (size_t)(p->end - p->at) >= n && memcmp(p->at, text, n) == 0;
}

/* Skips spaces and comments, and line ends if they mean nothing here. */
static void skip_space(gbnf *p, bool newlines) {
    while (p->at < p->end) {
        if (*p->at == '#') {
            while (p->at < p->end && *p->at != '\n' && *p->at != '\r') p->at++;
        } else if (*p->at == ' ' || *p->at == '\t' || (newlines && (*p->at == '\n' || *p->at == '\r'))) {
            p->at++;
        } else {
            return;
        }
    }
}

static bool is_word(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
}

/* The rule of the name at the cursor, made if it is new. */
static uint32_t read_name(gbnf *p) {
    const char *begin = p->at;
    while (p->at < p->end && is_word(*p->at)) p->at++;
    const size_t n = (size_t)(p->at - begin);
    if (n == 0) {
        gbnf_fail(p, WEIR_E_FORMAT, "expected the name of a rule (letters, digits, - and _)");
        return 0;
    }
    if (!grammar_work(p->b, 4 + p->b->n_rules / 8)) return 0;
    for (size_t r = 0; r < p->b->n_rules; r++) {
        const char *name = p->b->rules[r].name;
        if (name && strncmp(name, begin, n) == 0 && name[n] == '\0') return (uint32_t)r;
    }
    return grammar_rule_new(p->b, arena_strndup(&p->b->memory, begin, n));
}

static uint32_t read_hex(gbnf *p, int n_digits) {
    uint32_t value = 0;
    for (int i = 0; i < n_digits; i++, p->at++) {
        const char c = p->at < p->end ? *p->at : '\0';
        const int digit = c >= '0' && c <= '9'   ? c - '0'
                          : c >= 'a' && c <= 'f' ? c - 'a' + 10
                          : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                 : -1;
        if (digit < 0) {
            gbnf_fail(p, WEIR_E_FORMAT, "expected a hexadecimal digit");
            return 0;
        }
        value = value << 4 | (uint32_t)digit;
    }
    if (value > MAX_CODE_POINT) gbnf_fail(p, WEIR_E_FORMAT, "not a code point: over 10FFFF");
    return value;
}

/* One character of a string or class, with its escape. */
static uint32_t read_char(gbnf *p) {
    if (p->at == p->end) {
        gbnf_fail(p, WEIR_E_FORMAT, "the grammar ends inside a string or class");
        return 0;
    }
    uint32_t c;
    if (*p->at != '\\') {
        p->at += utf8_decode(p->at, (size_t)(p->end - p->at), &c);
        return c;
    }
    const char kind = p->at + 1 < p->end ? p->at[1] : '\0';
    p->at += p->at + 1 < p->end ? 2 : 1;
    switch (kind) {
    case 'n':
        return '\n';
    case 'r':
        return '\r';
    case 't':
        return '\t';
    case 'x':
        return read_hex(p, 2);
    case 'u':
        return read_hex(p, 4);
    case 'U':
        return read_hex(p, 8);
    default:
        break;
    }
    if (kind <= ' ' || kind == 0x7F || (is_word(kind) && kind != '-' && kind != '_'))
        gbnf_fail(p, WEIR_E_FORMAT, "unknown escape: \\n \\r \\t \\xXX \\uXXXX \\UXXXXXXXX and punctuation are known");
    return (unsigned char)kind;
}

static const expr *read_string(gbnf *p) {
    char utf8[4];
    expr_list chars = {0};
    p->at++;
    buf text = BUF_INIT;
    while (p->b->code == 0 && p->at < p->end && *p->at != '"') {
        const uint32_t c = read_char(p);
        buf_append(&text, utf8, utf8_encode(c, utf8));
    }
    if (p->at == p->end)
        gbnf_fail(p, WEIR_E_FORMAT, "the string is not closed");
    else
        p->at++;
    if (text.failed) grammar_fail(p->b, WEIR_E_NOMEM, NULL, "out of memory while compiling");
    if (p->b->code == 0) grammar_list_add(p->b, &chars, grammar_literal(p->b, text.data ? text.data : "", text.n_bytes));
    buf_free(&text);
    return grammar_seq(p->b, &chars);
}

static const expr *read_class(gbnf *p) {
    code_set set = {0};
    p->at++;
    const bool negated = p->at < p->end && *p->at == '^';
    p->at += negated;
    while (p->b->code == 0 && p->at < p->end && *p->at != ']') {
        const uint32_t lo = read_char(p);
        uint32_t hi = lo;
        if (p->at + 1 < p->end && p->at[0] == '-' && p->at[1] != ']') {
            p->at++;
            hi = read_char(p);
            if (hi < lo) gbnf_fail(p, WEIR_E_FORMAT, "a range whose end comes before its begin");
        }
        grammar_set_add(p->b, &set, lo, hi);
    }
    if (p->at == p->end)
        gbnf_fail(p, WEIR_E_FORMAT, "the class is not closed");
    else
        p->at++;
    if (p->b->code) return grammar_empty();
    grammar_set_normalise(&set);
    if (negated) set = grammar_set_invert(p->b, &set);
    return grammar_code_points(p->b, &set, false);
}

static uint32_t read_number(gbnf *p) {
    uint32_t value = 0;
    if (p->at == p->end || *p->at < '0' || *p->at > '9') gbnf_fail(p, WEIR_E_FORMAT, "expected a number of repetitions");
    for (; p->at < p->end && *p->at >= '0' && *p->at <= '9' && p->b->code == 0; p->at++) {
        value = 10 * value + (uint32_t)(*p->at - '0');
        if (value > MAX_REPEAT) gbnf_fail(p, WEIR_E_LIMIT, "more than a million repetitions");
    }
    return value;
}

/* Any repetitions after a symbol. */
static const expr *read_repeats(gbnf *p, const expr *item, bool newlines) {
    for (;;) {
        skip_space(p, newlines);
        const char c = p->at < p->end ? *p->at : '\0';
        uint32_t min = c == '+', max = c == '?' ? 1 : NO_BOUND;
        if (c != '*' && c != '+' && c != '?' && c != '{') return item;
        p->at++;
        if (c == '{') {
            skip_space(p, newlines);
            max = min = read_number(p);
            skip_space(p, newlines);
            if (peek(p, ",")) {
                p->at++;
                skip_space(p, newlines);
                max = peek(p, "}") ? NO_BOUND : read_number(p);
                skip_space(p, newlines);
            }
            if (!peek(p, "}"))
                gbnf_fail(p, WEIR_E_FORMAT, "expected } after the number of repetitions");
            else
                p->at++;
            if (max < min) gbnf_fail(p, WEIR_E_FORMAT, "more repetitions at least than at most");
        }
        if (p->b->code) return item;
        item = grammar_repeat(p->b, item, min, max);
    }
}

static const expr *read_alternatives(gbnf *p, bool in_group);

static const expr *read_symbol(gbnf *p) {
    if (*p->at == '"') return read_string(p);
    if (*p->at == '[') return read_class(p);
    if (*p->at == '(') {
        if (++p->depth > MAX_GROUPS) gbnf_fail(p, WEIR_E_LIMIT, "groups nested deeper than 256");
        p->at++;
        if (p->b->code) return grammar_empty();
        const expr *e = read_alternatives(p, true);
        p->depth--;
        if (!peek(p, ")"))
            gbnf_fail(p, WEIR_E_FORMAT, "expected ) at the end of the group");
        else
            p->at++;
        return e;
    }
    if (*p->at == '.') {
        code_set any = {0};
        p->at++;
        grammar_set_add(p->b, &any, 0, MAX_CODE_POINT);
        return grammar_code_points(p->b, &any, false);
    }
    return grammar_call(p->b, read_name(p));
}

static const expr *read_sequence(gbnf *p, bool in_group) {
    expr_list items = {0};
    for (;;) {
        skip_space(p, in_group);
        if (p->b->code || p->at == p->end || *p->at == '|' || *p->at == ')' || *p->at == '\n' || *p->at == '\r') break;
        if (*p->at == '<' || *p->at == '!')
            gbnf_fail(p, WEIR_E_UNSUPPORTED, "tokens (<token>, <[id]>) are not supported; write their text as a string");
        else if (!is_word(*p->at) && strchr("\"[(.", *p->at) == NULL)
            gbnf_fail(p, WEIR_E_FORMAT, "expected a string, a class, a group or the name of a rule");
        if (p->b->code) break;
        const expr *item = read_symbol(p);
        if (p->b->code) break;
        grammar_list_add(p->b, &items, read_repeats(p, item, in_group));
    }
    return grammar_seq(p->b, &items);
}

static const expr *read_alternatives(gbnf *p, bool in_group) {
    expr_list list = {0};
    for (;;) {
        grammar_list_add(p->b, &list, read_sequence(p, in_group));
        if (p->b->code || !peek(p, "|")) return grammar_alt(p->b, &list);
        p->at++;
        skip_space(p, true);
    }
}

static void read_rules(gbnf *p) {
    for (;;) {
        skip_space(p, true);
        if (p->at == p->end || p->b->code) return;
        const uint32_t r = read_name(p);
        skip_space(p, false);
        if (!peek(p, "::=")) gbnf_fail(p, WEIR_E_FORMAT, "expected ::= after the name of a rule");
        if (p->b->code) return;
        p->at += 3;
        skip_space(p, true);
        grammar_rule_define(p->b, r, read_alternatives(p, false)); /* of rules of one name the last holds, as in llama.cpp */
        if (p->b->code == 0 && p->at < p->end && *p->at != '\n' && *p->at != '\r')
            gbnf_fail(p, WEIR_E_FORMAT, "expected the end of the line after a rule");
    }
}

int grammar_compile_gbnf(grammar **out, const char *text, size_t n_bytes, weir_error *err) {
    grammar_builder b;
    *out = NULL;
    FAIL_IF(!utf8_valid(text, n_bytes), err, WEIR_E_FORMAT, NULL, "the grammar is not UTF-8");
    FAIL_IF(memchr(text, '\0', n_bytes) != NULL, err, WEIR_E_FORMAT, NULL, "the grammar has a NUL byte");
    grammar_builder_init(&b, err);
    gbnf p = {&b, text, text, text + n_bytes, 0};
    read_rules(&p);
    uint32_t root = NO_STATE;
    for (size_t r = 0; r < b.n_rules && b.code == 0; r++) {
        if (b.rules[r].body == NULL) grammar_fail(&b, WEIR_E_FORMAT, b.rules[r].name, "the rule is used but not defined");
        if (b.rules[r].name && strcmp(b.rules[r].name, "root") == 0) root = (uint32_t)r;
    }
    if (root == NO_STATE) grammar_fail(&b, WEIR_E_FORMAT, NULL, "the grammar has no rule root");
    const int code = grammar_finish(&b, root, true, out);
    grammar_builder_free(&b);
    return code;
}
