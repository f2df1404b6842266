/* Strings of JSON Schema: lengths, patterns, formats. Free strings take every escape that JSON has; where a pattern or format
 * rules, characters are written in one way only (raw where JSON allows it, else the shortest escape). */
#include <string.h>

#include "base/utf8.h"
#include "grammar/grammar_schema.h"

/* Dates are those of the years 0001 to 9999, with 29 February in leap years only. */
static const struct {
    const char *name, *pattern; /* Python's notation; whole string */
} formats[] = {
    {"date", "(?:(?:[0-9]{3}[1-9]|[0-9]{2}[1-9][0-9]|[0-9][1-9][0-9]{2}|[1-9][0-9]{3})-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-"
             "9]|3[01])|"
             "(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))|"
             "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29)"},
    {"time", "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"},
    {"uuid", "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"},
    {"ipv4", "(?:(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])\\.){3}(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"},
    {"ipv6", "(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}|(?:[0-9a-fA-F]{1,4}:){1,7}:|(?:[0-9a-fA-F]{1,4}:){1,6}:[0-9a-fA-F]{1,4}|"
             "(?:[0-9a-fA-F]{1,4}:){1,5}(?::[0-9a-fA-F]{1,4}){1,2}|(?:[0-9a-fA-F]{1,4}:){1,4}(?::[0-9a-fA-F]{1,4}){1,3}|"
             "(?:[0-9a-fA-F]{1,4}:){1,3}(?::[0-9a-fA-F]{1,4}){1,4}|(?:[0-9a-fA-F]{1,4}:){1,2}(?::[0-9a-fA-F]{1,4}){1,5}|"
             "[0-9a-fA-F]{1,4}:(?::[0-9a-fA-F]{1,4}){1,6}|:(?:(?::[0-9a-fA-F]{1,4}){1,7}|:)"},
    {"hostname", "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,20}[a-zA-Z0-9])?(?:\\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,20}[a-zA-Z0-9])?){0,7}"},
    {"email", "[a-zA-Z0-9_+-]+(?:\\.[a-zA-Z0-9_+-]+)*@[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,20}[a-zA-Z0-9])?"
              "(?:\\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,20}[a-zA-Z0-9])?){1,4}"},
    {"duration",
     "P(?:[0-9]+W|(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)(?:T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|"
     "[0-9]+M(?:[0-9]+S)?|[0-9]+S))?|T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S))"},
    {"uri", "[a-zA-Z][a-zA-Z0-9+.-]*:(?://(?:[a-zA-Z0-9._~!$&'()*+,;=-]|%[0-9a-fA-F]{2})*(?::[0-9]{1,5})?"
            "(?:/(?:[a-zA-Z0-9._~!$&'()*+,;=:@-]|%[0-9a-fA-F]{2})*)*|(?:[a-zA-Z0-9._~!$&'()*+,;=:@-]|%[0-9a-fA-F]{2})"
            "(?:[a-zA-Z0-9._~!$&'()*+,;=:@/-]|%[0-9a-fA-F]{2})*)(?:\\?(?:[a-zA-Z0-9._~!$&'()*+,;=:@/?-]|%[0-9a-fA-F]{2})*)?"
            "(?:#(?:[a-zA-Z0-9._~!$&'()*+,;=:@/?-]|%[0-9a-fA-F]{2})*)?"},
};

static const char *format_pattern(const char *name) {
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++)
        if (strcmp(formats[i].name, name) == 0) return formats[i].pattern;
    return NULL;
}

static const expr *python(schema_compiler *c, const char *pattern) {
    return grammar_regex_parse(c->b, pattern, strlen(pattern), REGEX_PYTHON, true, NULL);
}

static const expr *format_expr(schema_compiler *c, const json_t *schema, const char *name) {
    const char *pattern = format_pattern(name);
    if (pattern) return python(c, pattern);
    if (strcmp(name, "date-time") == 0)
        return grammar_seq4(c->b, python(c, format_pattern("date")), grammar_text(c->b, "T"), python(c, format_pattern("time")),
                            NULL);
    grammar_schema_fail(c, WEIR_E_UNSUPPORTED, schema,
                        "format \"%s\" is not supported; date, time, date-time, duration, uuid, email, hostname, "
                        "ipv4, ipv6 and uri are",
                        name);
    return grammar_nothing();
}

const expr *grammar_any_content(schema_compiler *c, bool with_nul) {
    code_set all = {0};
    grammar_set_add(c->b, &all, with_nul ? 0 : 1, MAX_CODE_POINT);
    return grammar_code_points(c->b, &all, true);
}

const fa *grammar_string_pattern(schema_compiler *c, const char *pattern, size_t n_bytes) {
    return grammar_regular(c->b, grammar_regex_parse(c->b, pattern, n_bytes, REGEX_SCHEMA, true, "pattern"));
}

bool grammar_fa_accepts(const fa *a, const char *bytes, size_t n_bytes) {
    uint32_t at = 0;
    for (size_t i = 0; i < n_bytes && a; i++) {
        const uint32_t byte = (unsigned char)bytes[i];
        uint32_t e = a->first[at];
        while (e < a->first[at + 1] && a->edges[e].hi < byte) e++;
        if (e == a->first[at + 1] || a->edges[e].lo > byte) return false;
        at = a->edges[e].to;
    }
    return a && a->final[at];
}

/* Any character of a string with every escape that JSON has; surrogates in pairs only. */
static const expr *any_char(schema_compiler *c) {
    grammar_builder *b = c->b;
    static const char escapes[] = "\\\\(?:[\"\\\\/"
                                  "bfnrt]|u(?:[0-9a-cA-CefEF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}|[dD][89abAB][0-9a-fA-F]{2}"
                                  "\\\\u[dD][c-fC-F][0-9a-fA-F]{2}))";
    code_set raw = {0};
    grammar_set_add(b, &raw, ' ', '!');
    grammar_set_add(b, &raw, '#', '[');
    grammar_set_add(b, &raw, ']', MAX_CODE_POINT);
    const expr *escaped = grammar_regex_parse(b, escapes, sizeof escapes - 1, REGEX_PYTHON, false, NULL);
    return b->code ? grammar_empty() : grammar_alt2(b, grammar_code_points(b, &raw, false), escaped);
}

static const expr *quoted(schema_compiler *c, const expr *content) {
    return grammar_seq4(c->b, grammar_text(c->b, "\""), content, grammar_text(c->b, "\""), NULL);
}

/* One constraint more on the contents. */
static const fa *narrow(schema_compiler *c, const fa *contents, const expr *by) {
    const fa *a = grammar_regular(c->b, by);
    return contents ? grammar_intersect(c->b, contents, a) : a;
}

typedef struct length_bounds {
    uint32_t min, max;
} length_bounds;

static length_bounds lengths(schema_compiler *c, const conjunction *k) {
    length_bounds l = {0, NO_BOUND};
    for (size_t i = 0; i < k->n; i++) {
        if (k->members[i].negated) continue;
        const uint32_t min = grammar_schema_count(c, k->members[i].schema, "minLength", 0);
        const uint32_t max = grammar_schema_count(c, k->members[i].schema, "maxLength", NO_BOUND);
        if (min > l.min) l.min = min;
        if (max < l.max) l.max = max;
    }
    return l;
}

/* The contents that `schema` alone allows, for a difference; NULL if it cannot be said or after a failure. */
static const fa *contents_of(schema_compiler *c, const json_t *schema) {
    static const char *const known[] = {"type", "pattern", "format", "minLength",  "maxLength",
                                        "enum", "const",   "title",  "description"};
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)schema, key, value) {
        bool is_known = false;
        for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) is_known = is_known || strcmp(known[i], key) == 0;
        if (!is_known) return NULL;
    }
    conjunction k = {0};
    grammar_schema_add(c, &k, schema, false, -1);
    const json_t *values = json_object_get(schema, "enum"), *constant = json_object_get(schema, "const");
    if (values || constant) {
        expr_list list = {0};
        const size_t n = constant ? 1 : json_array_size(values);
        for (size_t i = 0; i < n; i++) {
            const json_t *v = constant ? constant : json_array_get(values, i);
            if (!json_is_string(v)) continue;
            buf text = BUF_INIT;
            grammar_json_escape(&text, json_string_value(v), json_string_length(v));
            grammar_list_add(c->b, &list, grammar_literal(c->b, text.data ? text.data : "", text.n_bytes));
            buf_free(&text);
        }
        return grammar_regular(c->b, grammar_alt(c->b, &list));
    }
    return grammar_string_contents(c, &k);
}

const fa *grammar_string_contents(schema_compiler *c, const conjunction *k) {
    grammar_builder *b = c->b;
    const fa *contents = NULL;
    const bool was_regular = b->regular;
    b->regular = true;
    for (size_t i = 0; i < k->n && b->code == 0; i++) {
        const json_t *schema = k->members[i].schema;
        const json_t *pattern = json_object_get(schema, "pattern"), *format = json_object_get(schema, "format");
        if (k->members[i].negated) continue;
        if ((pattern && !json_is_string(pattern)) || (format && !json_is_string(format)))
            grammar_schema_fail(c, WEIR_E_FORMAT, schema, "pattern and format must be strings");
        if (pattern && b->code == 0)
            contents = narrow(
                c, contents,
                grammar_regex_parse(b, json_string_value(pattern), json_string_length(pattern), REGEX_SCHEMA, true, NULL));
        if (format && b->code == 0) contents = narrow(c, contents, format_expr(c, schema, json_string_value(format)));
        if (b->code) grammar_schema_fail(c, b->code, schema, "pattern");
    }
    const length_bounds l = lengths(c, k);
    bool negations = false;
    for (size_t i = 0; i < k->n; i++) negations = negations || k->members[i].negated;
    if ((contents || negations) && (l.min > 0 || l.max != NO_BOUND) && l.min <= l.max)
        contents = narrow(c, contents, grammar_repeat(b, grammar_any_content(c, true), l.min, l.max));
    for (size_t i = 0; i < k->n && b->code == 0; i++) {
        if (!k->members[i].negated) continue;
        const fa *without = contents_of(c, k->members[i].schema);
        if (without == NULL)
            grammar_schema_fail(c, WEIR_E_UNSUPPORTED, k->members[i].schema,
                                "the negation (not, oneOf or if) of this schema is not supported");
        if (contents == NULL) contents = grammar_regular(b, grammar_repeat(b, grammar_any_content(c, true), 0, NO_BOUND));
        contents = grammar_subtract(b, contents, without);
    }
    b->regular = was_regular;
    return contents;
}

/* Longer ones, and more of them, are cut into blocks that call each other, which keeps compilation fast and small. */
enum { MAX_UNROLLED = 512, MAX_ALL_UNROLLED = 12000 };

/* A string of min to max characters with its quotes: copies of the automaton of one, in which the end of each is the beginning of the
 * next. One character ends in one state that goes nowhere, and does not come back to its first, so the copies stay deterministic; made
 * by subsets, a long string would take most of the time that a compilation may. */
static const fa *unroll(schema_compiler *c, uint32_t min, uint32_t max) {
    grammar_builder *b = c->b;
    if (c->one_char == NULL) {
        const bool was_regular = b->regular;
        b->regular = true;
        c->one_char = grammar_regular(b, any_char(c));
        b->regular = was_regular;
    }
    const fa *one = c->one_char;
    if (b->code || one == NULL) return NULL;
    uint32_t end = 1;
    while (!one->final[end]) end++;
    const uint32_t step = one->n_states - 1, n_states = max * step + 3; /* the first and the last besides */
    fa *a = grammar_alloc(b, 1, sizeof *a);
    uint32_t *first = grammar_alloc(b, (size_t)n_states + 1, sizeof *first);
    fa_edge *edges = grammar_alloc(b, (size_t)max * (one->first[one->n_states] + 1) + 2, sizeof *edges);
    uint8_t *final = grammar_alloc(b, n_states, 1);
    if (b->code || !grammar_work(b, n_states)) return NULL;
    uint32_t n = 0, at = 1;
    edges[n++] = (fa_edge){'"', '"', 1};
    for (uint32_t i = 0; i <= max; i++) {
        const uint32_t base = 1 + i * step; /* the state of so many characters */
        for (uint32_t s = 0; s < (i < max ? one->n_states : 1); s++) {
            bool quote = s == 0 && i >= min; /* its edge has its place among the others */
            if (s == end) continue;
            first[at++] = n;
            for (uint32_t e = one->first[s]; e < one->first[s + 1] && i < max; e++) {
                const uint32_t to = one->edges[e].to;
                if (quote && one->edges[e].lo > '"') {
                    edges[n++] = (fa_edge){'"', '"', n_states - 1};
                    quote = false;
                }
                edges[n++] = (fa_edge){one->edges[e].lo, one->edges[e].hi, to == end ? base + step : base + (to < end ? to : to - 1)};
            }
            if (quote) edges[n++] = (fa_edge){'"', '"', n_states - 1};
        }
    }
    first[at] = first[at + 1] = n;
    final[n_states - 1] = 1;
    *a = (fa){.n_states = n_states, .deterministic = true, .first = first, .edges = edges, .final = final};
    return a;
}

const expr *grammar_schema_string(schema_compiler *c, const conjunction *k) {
    grammar_builder *b = c->b;
    const fa *contents = grammar_string_contents(c, k);
    const length_bounds l = lengths(c, k);
    if (b->code || l.min > l.max) return grammar_nothing();
    if (contents) return quoted(c, grammar_automaton(b, contents));
    if (l.max <= MAX_UNROLLED && c->n_unrolled + l.max <= MAX_ALL_UNROLLED) { /* a mask then knows how many characters are left */
        c->n_unrolled += l.max;
        const fa *unrolled = unroll(c, l.min, l.max);
        return b->code || !unrolled ? grammar_nothing() : grammar_automaton(b, unrolled);
    }
    if (l.min == 0 && l.max == NO_BOUND && c->string) return c->string;
    const expr *e = quoted(c, grammar_repeat(b, any_char(c), l.min, l.max));
    if (l.min > 0 || l.max != NO_BOUND) return e;
    const uint32_t r = grammar_rule_new(b, "string");
    grammar_rule_define(b, r, e);
    return c->string = grammar_call(b, r);
}

/* ---- texts -------------------------------------------------------------------------------------------------------------- */

void grammar_json_escape(buf *out, const char *text, size_t n_bytes) {
    static const char names[] = "\"\\\b\f\n\r\t", letters[] = "\"\\bfnrt";
    for (size_t i = 0; i < n_bytes; i++) {
        const unsigned char byte = (unsigned char)text[i];
        const char *named = byte ? strchr(names, byte) : NULL;
        if (named)
            buf_printf(out, "\\%c", letters[named - names]);
        else if (byte < ' ')
            buf_printf(out, "\\u%04x", byte);
        else
            buf_putc(out, (char)byte);
    }
}

const expr *grammar_json_string(schema_compiler *c, const char *text, size_t n_bytes) {
    buf out = BUF_INIT;
    buf_putc(&out, '"');
    grammar_json_escape(&out, text, n_bytes);
    buf_putc(&out, '"');
    if (out.failed) grammar_fail(c->b, WEIR_E_NOMEM, NULL, "out of memory while compiling");
    const expr *e = out.failed ? grammar_empty() : grammar_literal(c->b, out.data, out.n_bytes);
    buf_free(&out);
    return e;
}

const expr *grammar_json_value(schema_compiler *c, const json_t *value) {
    grammar_builder *b = c->b;
    expr_list list = {0};
    if (json_is_string(value)) return grammar_json_string(c, json_string_value(value), json_string_length(value));
    if (!json_is_object(value) && !json_is_array(value)) {
        char *text = json_dumps(value, JSON_ENCODE_ANY);
        if (text == NULL) grammar_fail(b, WEIR_E_NOMEM, NULL, "out of memory while compiling");
        const expr *e = text ? grammar_text(b, text) : grammar_empty();
        free(text);
        return e;
    }
    if (json_is_array(value)) {
        grammar_list_add(b, &list, grammar_text(b, "["));
        for (size_t i = 0; i < json_array_size(value); i++) {
            if (i) grammar_list_add(b, &list, c->separator);
            grammar_list_add(b, &list, grammar_json_value(c, json_array_get(value, i)));
        }
        grammar_list_add(b, &list, grammar_text(b, "]"));
        return grammar_seq(b, &list);
    }
    const char *key;
    size_t n_key;
    json_t *member;
    grammar_list_add(b, &list, grammar_text(b, "{"));
    json_object_keylen_foreach((json_t *)value, key, n_key, member) {
        if (list.n > 1) grammar_list_add(b, &list, c->separator);
        grammar_list_add(b, &list, grammar_json_string(c, key, n_key));
        grammar_list_add(b, &list, c->colon);
        grammar_list_add(b, &list, grammar_json_value(c, member));
    }
    grammar_list_add(b, &list, grammar_text(b, "}"));
    return grammar_seq(b, &list);
}
