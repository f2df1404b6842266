/* The lexer: template source to tokens, with white space control (trim_blocks, lstrip_blocks and the signs + and -) applied to
 * the text between tags. Knows nothing of the grammar. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "chat/jinja_ast.h"
#include "chat/jinja_text.h"

typedef struct lexer {
    jinja_template *t;
    arena *memory;
    weir_error *err;
    token_list *out;
    const char *s;
    size_t n, at;
    uint32_t line;
    size_t line_counted; /* `line` is the line of this offset */
    bool line_starting;  /* the last match ended a line */
    char open[256];      /* brackets not closed yet, innermost last */
    size_t n_open;
} lexer;

void source_position(const jinja_template *t, size_t offset, uint32_t *line, uint32_t *column) {
    size_t start = 0;
    *line = 1;
    if (offset > t->n_bytes) offset = t->n_bytes;
    for (size_t i = 0; i < offset; i++) {
        if (t->source[i] != '\n') continue;
        ++*line;
        start = i + 1;
    }
    *column = (uint32_t)utf8_count(t->source + start, offset - start) + 1;
}

int syntax_error(const jinja_template *t, weir_error *err, size_t offset, const char *format, ...) {
    uint32_t line, column;
    char place[64];
    source_position(t, offset, &line, &column);
    snprintf(place, sizeof place, "template line %u, column %u", line, column);
    va_list args;
    va_start(args, format);
    error_setv(err, WEIR_E_FORMAT, place, format, args);
    va_end(args);
    return WEIR_E_FORMAT;
}

static int no_memory(lexer *x) {
    bool limit = x->memory->limit_bytes && x->memory->total_bytes >= x->memory->limit_bytes / 2;
    return error_set(x->err, limit ? WEIR_E_LIMIT : WEIR_E_NOMEM, "template", "%s",
                     limit ? "the template is too large to compile" : "out of memory while compiling the template");
}

static uint32_t line_at(lexer *x, size_t offset) {
    for (; x->line_counted < offset; x->line_counted++)
        if (x->s[x->line_counted] == '\n') x->line++;
    return x->line;
}

static int push(lexer *x, token_type type, size_t offset, const char *text, size_t n_bytes) {
    token_list *l = x->out;
    if (l->n == l->capacity) {
        size_t capacity = l->capacity ? l->capacity * 2 : 256;
        token *items = arena_array(x->memory, capacity, sizeof *items);
        if (items == NULL) return no_memory(x);
        if (l->n) memcpy(items, l->items, l->n * sizeof *items);
        l->items = items;
        l->capacity = capacity;
    }
    l->items[l->n++] =
        (token){.type = (uint8_t)type, .line = line_at(x, offset), .offset = offset, .text = text, .n_bytes = n_bytes};
    return 0;
}

/* Bytes of white space at `at`. */
static size_t space_length(const lexer *x, size_t at) {
    size_t from = at;
    uint32_t c;
    while (at < x->n) {
        size_t n = utf8_decode(x->s + at, x->n - at, &c);
        if (!text_is_space(c)) break;
        at += n;
    }
    return at - from;
}

static bool starts(const lexer *x, size_t at, const char *text) {
    size_t n = strlen(text);
    return x->n - at >= n && memcmp(x->s + at, text, n) == 0;
}

/* ---- text between tags ---- */

/* The length of text[n] before a tag with `sign`; `block` is false for {{, which keeps the indentation before it. */
static size_t stripped_length(const lexer *x, const char *text, size_t n, char sign, bool block) {
    if (sign == '-') {
        size_t start, end;
        value v = value_text(text, n);
        text_strip(&v, NULL, false, true, &start, &end);
        return end;
    }
    if (sign == '+' || !block) return n;
    size_t line = n;
    while (line > 0 && text[line - 1] != '\n') line--;
    if (line == 0 && !x->line_starting) return n;
    size_t start, end;
    value v = value_text(text + line, n - line);
    text_strip(&v, NULL, false, true, &start, &end);
    return end == 0 ? line : n;
}

static int push_data(lexer *x, size_t offset, size_t n) {
    return n ? push(x, T_DATA, offset, x->s + offset, n) : 0;
}

/* Ends a tag at `at` if it ends there with `close` ("%}", "}}", "#}"); returns the bytes the end takes, or 0. */
static size_t tag_end(const lexer *x, size_t at, const char *close) {
    bool variable = close[0] == '}';
    if (x->s[at] == '-' && starts(x, at + 1, close)) return 3 + space_length(x, at + 3);
    if (!variable && x->s[at] == '+' && starts(x, at + 1, close)) return 3;
    if (!starts(x, at, close)) return 0;
    return !variable && at + 2 < x->n && x->s[at + 2] == '\n' ? 3 : 2;
}

static char sign_at(const lexer *x, size_t at) {
    return at < x->n && (x->s[at] == '-' || x->s[at] == '+') ? x->s[at] : 0;
}

/* Is there a raw tag after "{%"? Returns where its content starts, or 0. */
static size_t raw_begin(const lexer *x, size_t at) {
    at += sign_at(x, at) ? 1 : 0;
    at += space_length(x, at);
    if (!starts(x, at, "raw")) return 0;
    at += 3;
    at += space_length(x, at);
    if (starts(x, at, "-%}")) return at + 3 + space_length(x, at + 3);
    return starts(x, at, "%}") ? at + 2 : 0;
}

static int lex_raw(lexer *x, size_t tag) {
    size_t from = x->at;
    for (size_t at = from; at + 2 <= x->n; at++) {
        if (!starts(x, at, "{%")) continue;
        char sign = sign_at(x, at + 2);
        size_t p = at + 2 + (sign ? 1 : 0);
        p += space_length(x, p);
        if (!starts(x, p, "endraw")) continue;
        p += 6;
        p += space_length(x, p);
        size_t end = p < x->n ? tag_end(x, p, "%}") : 0;
        if (end == 0) continue;
        TRY(push_data(x, from, stripped_length(x, x->s + from, at - from, sign, true)));
        x->at = p + end;
        x->line_starting = x->s[x->at - 1] == '\n';
        return 0;
    }
    if (from >= x->n) return 0; /* Jinja lets an unclosed tag pass when nothing at all follows it */
    return syntax_error(x->t, x->err, tag, "Missing end of raw directive");
}

static int lex_comment(lexer *x, size_t tag) {
    if (x->at >= x->n) return 0;
    for (; x->at < x->n; x->at++) {
        size_t end = tag_end(x, x->at, "#}");
        if (end == 0) continue;
        x->at += end;
        x->line_starting = x->s[x->at - 1] == '\n';
        return 0;
    }
    return syntax_error(x->t, x->err, tag, "Missing end of comment tag");
}

/* ---- inside tags ---- */

static bool is_digit_of(char c, int base) {
    int d = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : 99;
    return d < base;
}

/* Digits with single underscores between them: the bytes they take at `at`. */
static size_t digits_length(const lexer *x, size_t at, int base, bool leading_underscore) {
    size_t from = at;
    if (leading_underscore && at < x->n && x->s[at] == '_') at++;
    if (at >= x->n || !is_digit_of(x->s[at], base)) return 0;
    for (;;) {
        while (at < x->n && is_digit_of(x->s[at], base)) at++;
        if (at + 1 < x->n && x->s[at] == '_' && is_digit_of(x->s[at + 1], base)) {
            at++;
            continue;
        }
        return at - from;
    }
}

static size_t float_length(const lexer *x, size_t at) {
    if (at > 0 && x->s[at - 1] == '.') return 0;
    size_t p = at, n = digits_length(x, at, 10, false);
    if (n == 0) return 0;
    p += n;
    bool fraction = false;
    if (p < x->n && x->s[p] == '.' && (n = digits_length(x, p + 1, 10, false)) > 0) {
        p += 1 + n;
        fraction = true;
    }
    if (p < x->n && (x->s[p] == 'e' || x->s[p] == 'E')) {
        size_t q = p + 1;
        if (q < x->n && (x->s[q] == '+' || x->s[q] == '-')) q++;
        if ((n = digits_length(x, q, 10, false)) > 0) return q + n - at;
    }
    return fraction ? p - at : 0;
}

static int lex_number(lexer *x, bool *done) {
    char digits[400];
    size_t at = x->at, n = float_length(x, at);
    bool real = n > 0;
    int base = 10;
    if (!real) {
        char kind = at + 1 < x->n && x->s[at] == '0' ? (char)(x->s[at + 1] | 32) : 0;
        base = kind == 'x' ? 16 : kind == 'o' ? 8 : kind == 'b' ? 2 : 10;
        if (base != 10 && (n = digits_length(x, at + 2, base, true)) > 0) {
            n += 2;
        } else { /* a leading 0 takes zeros only */
            base = 10;
            n = digits_length(x, at, x->s[at] == '0' ? 1 : 10, false);
        }
    }
    *done = n > 0;
    if (n == 0) return 0;
    size_t k = 0;
    for (size_t i = base == 10 ? 0 : 2; i < n; i++) {
        if (x->s[at + i] == '_') continue;
        if (k + 1 >= sizeof digits) return syntax_error(x->t, x->err, at, "number with too many digits");
        digits[k++] = x->s[at + i];
    }
    digits[k] = '\0';
    TRY(push(x, real ? T_FLOAT : T_INTEGER, at, x->s + at, n));
    token *t = &x->out->items[x->out->n - 1];
    errno = 0;
    long long i = real ? 0 : strtoll(digits, NULL, base);
    if (real)
        t->number = value_float(strtod(digits, NULL));
    else if (errno != ERANGE)
        t->number = value_int(i);
    else if (base == 10)
        t->number = (value){.type = V_FLOAT, .flags = VALUE_INTEGRAL, .real = strtod(digits, NULL)};
    else
        return syntax_error(x->t, x->err, at, "integer beyond 64 bits");
    x->at = at + n;
    return 0;
}

static const char *name_characters(const lexer *x, size_t at) {
    while (at < x->n) {
        uint32_t c;
        size_t n = utf8_decode(x->s + at, x->n - at, &c);
        if (!text_is_word(c) && !text_is_mark(c)) break;
        at += n;
    }
    return x->s + at;
}

static int lex_name(lexer *x, bool *done) {
    const char *from = x->s + x->at, *to = name_characters(x, x->at);
    *done = to > from;
    if (!*done) return 0;
    if (!text_is(from, (size_t)(to - from), CLASS_IDENTIFIER))
        return syntax_error(x->t, x->err, x->at, "Invalid character in identifier");
    TRY(push(x, T_NAME, x->at, from, (size_t)(to - from)));
    x->at = (size_t)(to - x->s);
    return 0;
}

/* The escape sequence after a backslash at s[*at]; appends what it stands for. False: malformed. */
static bool unescape(const char *s, size_t n, size_t *at, char *out, size_t *n_out) {
    static const char simple[] = "\\\\''\"\"a\ab\bf\fn\nr\rt\tv\v";
    char c = s[(*at)++];
    for (const char *p = simple; *p; p += 2) {
        if (*p != c) continue;
        out[(*n_out)++] = p[1];
        return true;
    }
    if (c == '\n') return true;
    uint32_t code = 0;
    if (c >= '0' && c <= '7') {
        code = (uint32_t)(c - '0');
        for (int i = 0; i < 2 && *at < n && s[*at] >= '0' && s[*at] <= '7'; i++) code = code * 8 + (uint32_t)(s[(*at)++] - '0');
        *n_out += utf8_encode(code, out + *n_out);
        return true;
    }
    int width = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (width == 0) { /* unknown: the backslash stays, and keeps Python's own escape of what is not ASCII from being resolved */
        out[(*n_out)++] = '\\';
        --*at;
        if ((unsigned char)c >= 0x80) {
            *at += utf8_decode(s + *at, n - *at, &code);
            *n_out += (size_t)sprintf(out + *n_out, code < 0x100 ? "x%02x" : code < 0x10000 ? "u%04x" : "U%08x", code);
        }
        return c != 'N';
    }
    for (int i = 0; i < width; i++) {
        if (*at >= n || !is_digit_of(s[*at], 16)) return false;
        char d = s[(*at)++];
        code = code << 4 | (uint32_t)(d <= '9' ? d - '0' : (d | 32) - 'a' + 10);
    }
    if (code > 0x10FFFF) return false;
    *n_out += utf8_encode(code, out + *n_out);
    return true;
}

static int lex_string(lexer *x) {
    size_t from = x->at + 1, end = from;
    char quote = x->s[x->at];
    while (end < x->n && x->s[end] != quote) end += x->s[end] == '\\' ? 2 : 1;
    if (end >= x->n) return syntax_error(x->t, x->err, x->at, "unexpected char '%c': the string does not end", quote);
    const char *text = x->s + from;
    size_t n = end - from;
    if (memchr(text, '\\', n)) {
        char *out = arena_alloc(&x->t->memory, 3 * n + 16); /* an escaped code point can take 10 bytes for 4 */
        if (out == NULL) return no_memory(x);
        size_t n_out = 0;
        for (size_t i = 0; i < n;) {
            if (text[i] != '\\') {
                out[n_out++] = text[i++];
                continue;
            }
            size_t escape = i++;
            if (!unescape(text, n, &i, out, &n_out))
                return syntax_error(x->t, x->err, from + escape, "malformed escape sequence in a string");
        }
        text = out;
        n = n_out;
    }
    TRY(push(x, T_STRING, x->at, text, n));
    x->at = end + 1;
    return 0;
}

static const struct {
    char text[3];
    uint8_t type;
} operators[] = {
    {"//", T_FLOORDIV}, {"**", T_POW},      {"==", T_EQ},    {"!=", T_NE},    {">=", T_GE},    {"<=", T_LE},
    {"+", T_ADD},       {"-", T_SUB},       {"/", T_DIV},    {"*", T_MUL},    {"%", T_MOD},    {"~", T_TILDE},
    {"[", T_LBRACKET},  {"]", T_RBRACKET},  {"(", T_LPAREN}, {")", T_RPAREN}, {"{", T_LBRACE}, {"}", T_RBRACE},
    {">", T_GT},        {"<", T_LT},        {"=", T_ASSIGN}, {".", T_DOT},    {":", T_COLON},  {"|", T_PIPE},
    {",", T_COMMA},     {";", T_SEMICOLON},
};

static int lex_operator(lexer *x) {
    size_t i = 0, n_operators = sizeof operators / sizeof operators[0];
    while (i < n_operators && !starts(x, x->at, operators[i].text)) i++;
    if (i == n_operators) {
        uint32_t c;
        size_t n = utf8_decode(x->s + x->at, x->n - x->at, &c);
        return syntax_error(x->t, x->err, x->at, "unexpected char '%.*s'", (int)n, x->s + x->at);
    }
    char c = operators[i].text[0];
    if (c == '(' || c == '[' || c == '{') {
        if (x->n_open == sizeof x->open) return syntax_error(x->t, x->err, x->at, "brackets nested too deep");
        x->open[x->n_open++] = c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (c == ')' || c == ']' || c == '}') {
        if (x->n_open == 0) return syntax_error(x->t, x->err, x->at, "unexpected '%c'", c);
        char expected = x->open[--x->n_open];
        if (expected != c) return syntax_error(x->t, x->err, x->at, "unexpected '%c', expected '%c'", c, expected);
    }
    size_t n = strlen(operators[i].text);
    TRY(push(x, operators[i].type, x->at, x->s + x->at, n));
    x->at += n;
    return 0;
}

/* Tokens up to the end of a {{ or {% tag. */
static int lex_tag(lexer *x, const char *close) {
    x->n_open = 0;
    for (;;) {
        x->at += space_length(x, x->at);
        if (x->at >= x->n) return 0; /* the parser reports the missing end */
        size_t end = x->n_open ? 0 : tag_end(x, x->at, close);
        if (end) {
            TRY(push(x, close[0] == '}' ? T_VARIABLE_END : T_BLOCK_END, x->at, x->s + x->at, 2));
            x->at += end;
            x->line_starting = x->s[x->at - 1] == '\n';
            return 0;
        }
        char c = x->s[x->at];
        bool done = false;
        if (c >= '0' && c <= '9') TRY(lex_number(x, &done));
        if (!done) TRY(lex_name(x, &done));
        if (done) continue;
        TRY(c == '"' || c == '\'' ? lex_string(x) : lex_operator(x));
    }
}

int jinja_tokenize(jinja_template *t, arena *memory, token_list *out, weir_error *err) {
    lexer lx = {
        .t = t, .memory = memory, .err = err, .out = out, .s = t->source, .n = t->n_bytes, .line = 1, .line_starting = true};
    lexer *x = &lx;
    while (x->at < x->n) {
        size_t from = x->at, tag = from;
        while (tag + 1 < x->n && !(x->s[tag] == '{' && strchr("{%#", x->s[tag + 1]) && x->s[tag + 1])) tag++;
        if (tag + 1 >= x->n) {
            TRY(push_data(x, from, x->n - from));
            break;
        }
        char kind = x->s[tag + 1], sign = sign_at(x, tag + 2);
        TRY(push_data(x, from, stripped_length(x, x->s + from, tag - from, sign, kind != '{')));
        x->line_starting = false;
        size_t raw = kind == '%' ? raw_begin(x, tag + 2) : 0;
        x->at = raw ? raw : tag + 2 + (sign ? 1 : 0);
        if (raw) {
            x->line_starting = x->s[raw - 1] == '\n';
            TRY(lex_raw(x, tag));
        } else if (kind == '#') {
            TRY(lex_comment(x, tag));
        } else {
            TRY(push(x, kind == '{' ? T_VARIABLE_BEGIN : T_BLOCK_BEGIN, tag, x->s + tag, 2));
            TRY(lex_tag(x, kind == '{' ? "}}" : "%}"));
        }
    }
    return push(x, T_EOF, x->n, "", 0);
}
