/* Patterns of tokenizer.json. Its expressions are in Oniguruma's Ruby syntax; they are rewritten for PCRE2 where the two
 * differ: what \s, \w, \b, \h and [:punct:] mean, scripts (\p{Han}: PCRE2 would take the script extensions), (?m), \u, and a
 * class inside a class. What PCRE2 cannot say (intersections, \W in a class) is refused. Knows nothing of the steps. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/utf8.h"
#include "tok/tok_json_internal.h"

#define SPACES "\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
/* Alphabetic, marks, decimal digits and connectors, and the numbers of Latin-1, as Oniguruma has them. */
#define WORDS                                                                                                                  \
    "\\p{L}\\p{M}\\p{Nl}\\p{Nd}\\p{Pc}\\xb2\\xb3\\xb9\\xbc-\\xbe\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}" \
    "\\x{1f170}-\\x{1f189}"
#define HEX "0-9A-Fa-f"

typedef struct translator {
    json_reader *r;
    const char *p, *end;
    buf out;
} translator;

static int refuse(translator *t, const char *what) {
    return json_fail(t->r, WEIR_E_UNSUPPORTED, NULL, "%s in an expression is not supported", what);
}

/* What the POSIX class of that name has, in any case, as the inside of a class; NULL for another name. */
static const char *members_of(const char *name, size_t n_bytes) {
    static const struct {
        const char *name, *members;
    } classes[] = {
        {"punct", "\\p{P}\\p{S}"},
        {"alpha", "\\p{Alphabetic}"},
        {"alnum", "\\p{Alphabetic}\\p{Nd}"},
        {"upper", "\\p{Uppercase}"},
        {"lower", "\\p{Lowercase}"},
        {"digit", "\\p{Nd}"},
        {"space", SPACES},
        {"word", WORDS},
        {"xdigit", HEX},
        {"cntrl", "\\p{Cc}"},
        {"blank", "\\t\\p{Zs}"},
    };
    for (size_t i = 0; i < sizeof classes / sizeof classes[0]; i++)
        if (strlen(classes[i].name) == n_bytes && strncasecmp(classes[i].name, name, n_bytes) == 0) return classes[i].members;
    return NULL;
}

/* \p{Name} or \P{Name} at t->p, behind the backslash. Names of scripts mean the script itself. */
static int translate_property(translator *t, bool in_class) {
    char name[48];
    size_t n = 0;
    const char kind = *t->p++;
    if (t->p == t->end || *t->p != '{') { /* \pL */
        buf_printf(&t->out, "\\%c", kind);
        return 0;
    }
    t->p++;
    bool negated = kind == 'P';
    if (t->p < t->end && *t->p == '^') negated = !negated, t->p++;
    while (t->p < t->end && *t->p != '}' && n + 1 < sizeof name) name[n++] = *t->p++;
    name[n] = '\0';
    if (t->p == t->end || *t->p != '}')
        return json_fail(t->r, WEIR_E_FORMAT, NULL, "\\%c{%.20s has no closing brace", kind, name);
    t->p++;
    /* As a property, Punct is Unicode's short name of the punctuation, without the symbols that the POSIX class has. */
    const char *members = strcasecmp(name, "Punct") == 0 ? "\\p{P}" : members_of(name, n);
    if (members) {
        if (in_class && negated) return refuse(t, "a negated POSIX property in a class");
        buf_printf(&t->out, "%s%s%s", in_class ? "" : negated ? "[^" : "[", members, in_class ? "" : "]");
        return 0;
    }
    static const struct {
        const char *name, *same;
    } longer[] = {{"Letter", "L"}, {"Number", "N"}, {"Punctuation", "P"}, {"Symbol", "S"}, {"Mark", "M"}};
    for (size_t i = 0; i < sizeof longer / sizeof longer[0]; i++)
        if (strcasecmp(name, longer[i].name) == 0) snprintf(name, sizeof name, "%s", longer[i].same);
    char script[64];
    int code;
    PCRE2_SIZE offset;
    snprintf(script, sizeof script, "\\p{sc:%s}", name);
    pcre2_code *probe =
        n > 2 ? pcre2_compile((PCRE2_SPTR)script, PCRE2_ZERO_TERMINATED, PCRE2_UTF, &code, &offset, NULL) : NULL;
    buf_printf(&t->out, "\\%c{%s%s}", negated ? 'P' : 'p', probe ? "sc:" : "", name);
    pcre2_code_free(probe);
    return 0;
}

/* An escape at t->p, behind the backslash. */
static int translate_escape(translator *t, bool in_class) {
    if (t->p == t->end) return json_fail(t->r, WEIR_E_FORMAT, NULL, "an expression ends in a backslash");
    const char c = *t->p;
    const char *class = c == 's' || c == 'S' ? SPACES : c == 'w' || c == 'W' ? WORDS : c == 'h' || c == 'H' ? HEX : NULL;
    if (class) {
        t->p++;
        const bool negated = c < 'a';
        if (in_class && negated && c != 'S') return refuse(t, c == 'W' ? "\\W in a class" : "\\H in a class");
        if (in_class && negated)
            buf_puts(&t->out, "\\S");
        else if (in_class)
            buf_puts(&t->out, class);
        else
            buf_printf(&t->out, "[%s%s]", negated ? "^" : "", class);
        return 0;
    }
    if (c == 'p' || c == 'P') return translate_property(t, in_class);
    if (!in_class && (c == 'b' || c == 'B')) {
        t->p++;
        buf_puts(&t->out, c == 'b' ? "(?:(?<=[" WORDS "])(?![" WORDS "])|(?<![" WORDS "])(?=[" WORDS "]))"
                                   : "(?:(?<=[" WORDS "])(?=[" WORDS "])|(?<![" WORDS "])(?![" WORDS "]))");
        return 0;
    }
    if (c == 'u' && t->end - t->p >= 5 && strspn(t->p + 1, "0123456789abcdefABCDEF") >= 4) {
        buf_printf(&t->out, "\\x{%.4s}", t->p + 1);
        t->p += 5;
        return 0;
    }
    uint32_t ignored;
    const size_t n = utf8_decode(t->p, (size_t)(t->end - t->p), &ignored);
    buf_putc(&t->out, '\\');
    buf_append(&t->out, t->p, n);
    t->p += n;
    return 0;
}

/* [:name:] at t->p, which is the '['; false if it is something else. */
static bool translate_posix(translator *t) {
    const char *close = t->end - t->p >= 4 && t->p[1] == ':' ? memmem(t->p + 2, (size_t)(t->end - t->p - 2), ":]", 2) : NULL;
    const char *members = close ? members_of(t->p + 2, (size_t)(close - t->p - 2)) : NULL;
    if (members == NULL) return false;
    buf_puts(&t->out, members);
    t->p = close + 2;
    return true;
}

/* A class at t->p, behind its '['. A class inside it that is not negated adds its members. */
static int translate_class(translator *t) {
    int depth = 1;
    bool start = true;
    buf_putc(&t->out, '[');
    if (t->p < t->end && *t->p == '^') buf_putc(&t->out, *t->p++);
    while (t->p < t->end) {
        const char c = *t->p;
        if (c == ']' && !start) {
            t->p++;
            if (--depth == 0) {
                buf_putc(&t->out, ']');
                return 0;
            }
        } else if (c == '\\') {
            t->p++;
            TRY(translate_escape(t, true));
        } else if (c == '[') {
            if (translate_posix(t)) {
                start = false;
                continue;
            }
            t->p++;
            if (t->p < t->end && *t->p == '^') return refuse(t, "a negated class in a class");
            depth++;
        } else if (c == '&' && t->end - t->p > 1 && t->p[1] == '&') {
            return refuse(t, "an intersection of classes (&&)");
        } else {
            buf_putc(&t->out, c);
            t->p++;
        }
        start = false;
    }
    return json_fail(t->r, WEIR_E_FORMAT, NULL, "an expression has a class without an end");
}

/* The options of (?imx-imx: at t->p, behind "(?": Ruby's m is PCRE2's s. */
static void translate_options(translator *t) {
    while (t->p < t->end && (strchr("imx-", *t->p) != NULL)) {
        buf_putc(&t->out, *t->p == 'm' ? 's' : *t->p);
        t->p++;
    }
}

static int translate(translator *t) {
    while (t->p < t->end) {
        const char c = *t->p++;
        if (c == '\\') {
            TRY(translate_escape(t, false));
        } else if (c == '[') {
            TRY(translate_class(t));
        } else if (c == '(' && t->p < t->end && *t->p == '?') {
            buf_puts(&t->out, "(?");
            t->p++;
            translate_options(t);
        } else if (c == '}' && t->p < t->end && *t->p == '+') {
            return refuse(t, "a repeated interval ({n,m}+)");
        } else {
            buf_putc(&t->out, c);
        }
    }
    return 0;
}

static int compile(json_reader *r, const buf *pattern, pcre2_code **out) {
    int code;
    PCRE2_SIZE offset;
    *out = pcre2_compile((PCRE2_SPTR)pattern->data, pattern->n_bytes, PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &code, &offset,
                         NULL);
    if (*out == NULL && code == PCRE2_ERROR_HEAP_FAILED) return json_fail(r, WEIR_E_NOMEM, NULL, "out of memory");
    if (*out == NULL) {
        PCRE2_UCHAR text[128];
        pcre2_get_error_message(code, text, sizeof text);
        return json_fail(r, WEIR_E_FORMAT, NULL, "the expression does not compile: %s (at byte %zu of %.60s)", (char *)text,
                         (size_t)offset, pattern->data);
    }
    /* Where the system forbids executable memory this fails, and matching is interpreted: slower, with the same result. */
    (void)pcre2_jit_compile(*out, PCRE2_JIT_COMPLETE);
    return 0;
}

int json_compile(json_reader *r, tok_string expression, pcre2_code **out) {
    translator t = {.r = r, .p = expression.text, .end = expression.text + expression.n_bytes};
    *out = NULL;
    int rc = translate(&t);
    if (rc == 0 && t.out.failed) rc = json_fail(r, WEIR_E_NOMEM, NULL, "out of memory");
    if (rc == 0 && t.out.n_bytes == 0) rc = json_fail(r, WEIR_E_FORMAT, NULL, "the expression is empty");
    if (rc == 0) rc = compile(r, &t.out, out);
    buf_free(&t.out);
    return rc;
}

int json_read_pattern(json_reader *r, const json_t *object, json_step *s) {
    const json_t *pattern = json_object_get(object, "pattern");
    tok_string expression = {0};
    const size_t before = json_enter(r, "pattern", 0);
    if (!json_is_object(pattern))
        return json_fail(r, WEIR_E_FORMAT, NULL, "is missing; expected {\"String\": ...} or {\"Regex\": ...}");
    int found = json_read_text(r, pattern, "Regex", &expression);
    TRY(found);
    if (found) {
        json_enter(r, "Regex", 0);
        TRY(json_compile(r, expression, &s->code));
    } else {
        TRY(json_need_text(r, pattern, "String", &s->literal));
        if (s->literal.n_bytes == 0) return json_fail(r, WEIR_E_FORMAT, "String", "is empty; it would match everywhere");
        TRY(json_keep(r, &s->literal));
    }
    json_leave(r, before);
    return 0;
}

static bool find(const json_matcher *m, size_t at, size_t *from, size_t *to) {
    if (m->s->code == NULL) {
        const char *found = memmem(m->text.text + at, m->text.n_bytes - at, m->s->literal.text, m->s->literal.n_bytes);
        if (found == NULL) return false;
        *from = (size_t)(found - m->text.text);
        *to = *from + m->s->literal.n_bytes;
        return true;
    }
    const PCRE2_SPTR text = (PCRE2_SPTR)m->text.text;
    int rc = pcre2_match(m->s->code, text, m->text.n_bytes, at, PCRE2_NO_UTF_CHECK, m->match_data, NULL);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(m->s->code, text, m->text.n_bytes, at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, m->match_data, NULL);
    if (rc < 0) return false; /* no match, or the matcher gave up: then the rest stays as it is */
    const PCRE2_SIZE *ovector = pcre2_get_ovector_pointer(m->match_data);
    *from = ovector[0];
    *to = ovector[1];
    return *to >= *from; /* \K in a lookahead could turn them round */
}

bool json_next_match(json_matcher *m, size_t *from, size_t *to) {
    while (m->at <= m->text.n_bytes && find(m, m->at, from, to)) {
        if (*to == *from) {
            uint32_t ignored;
            m->at = *to == m->text.n_bytes ? *to + 1 : *to + utf8_decode(m->text.text + *to, m->text.n_bytes - *to, &ignored);
            if (*to == m->last_end) continue;
        } else {
            m->at = *to;
        }
        m->last_end = *to;
        return true;
    }
    return false;
}
