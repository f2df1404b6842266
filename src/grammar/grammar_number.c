/* Numbers of JSON Schema: bounds as automata over decimal digits, multipleOf as an automaton over remainders. Numbers have at
 * most 18 digits before the point and 17 behind; with bounds or multipleOf they are written without exponent. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "grammar/grammar_schema.h"

enum { MAX_INT_DIGITS = 18, MAX_FRACTION_DIGITS = 17, MAX_DECIMAL = 340, MAX_REMAINDERS = 2000 };

/* |value| = whole.fraction, without leading zeros of the whole (but "0") or trailing zeros of the fraction. */
typedef struct decimal {
    bool negative;
    char whole[MAX_DECIMAL + 24], fraction[MAX_DECIMAL + 24];
} decimal;

static bool is_zero(const decimal *d) {
    return strcmp(d->whole, "0") == 0 && d->fraction[0] == '\0';
}

static void decimal_from(const json_t *value, decimal *out) {
    char text[64], digits[40] = "";
    int exponent = 0; /* of the digits read as an integer */
    *out = (decimal){0};
    if (json_is_integer(value))
        snprintf(text, sizeof text, "%lld", (long long)json_integer_value(value));
    else
        for (int precision = 1; precision <= 17; precision++) { /* the shortest that reads back the same */
            snprintf(text, sizeof text, "%.*e", precision - 1, json_real_value(value));
            if (strtod(text, NULL) == json_real_value(value)) break;
        }
    size_t n = 0;
    bool after_point = false;
    for (const char *p = text; *p; p++) {
        if (*p == '-')
            out->negative = true;
        else if (*p == '.')
            after_point = true;
        else if (*p == 'e') {
            exponent += atoi(p + 1);
            break;
        } else if (n + 1 < sizeof digits) {
            digits[n++] = *p;
            exponent -= after_point;
        }
    }
    while (n > 1 && digits[n - 1] == '0') n--, exponent++;
    digits[n] = '\0';
    const int n_whole = (int)n + exponent; /* may be negative: zeros after the point first */
    size_t w = 0, f = 0;
    for (int i = 0; i < n_whole && w < MAX_DECIMAL; i++) out->whole[w++] = i < (int)n ? digits[i] : '0';
    for (int i = n_whole; i < (int)n && f < MAX_DECIMAL; i++) out->fraction[f++] = i < 0 ? '0' : digits[i];
    while (w > 1 && out->whole[0] == '0') memmove(out->whole, out->whole + 1, w--);
    while (f && out->fraction[f - 1] == '0') out->fraction[--f] = '\0';
    if (w == 0) out->whole[0] = '0';
}

typedef struct bound {
    bool is_set, exclusive;
    decimal value;
} bound;

static int compare_magnitudes(const decimal *a, const decimal *b) {
    const size_t n = strlen(a->whole), m = strlen(b->whole);
    if (n != m) return n < m ? -1 : 1;
    const int order = strcmp(a->whole, b->whole);
    return order ? order : strcmp(a->fraction, b->fraction); /* no trailing zeros: the longer of two prefixes is more */
}

static int compare_decimals(const decimal *a, const decimal *b) {
    if (is_zero(a) && is_zero(b)) return 0;
    if (a->negative != b->negative) return a->negative ? -1 : 1;
    return a->negative ? compare_magnitudes(b, a) : compare_magnitudes(a, b);
}

/* Makes *b the stricter of itself and another. `sign`: 1 for lower bounds, -1 for upper. */
static void tighten(bound *b, const json_t *value, bool exclusive, int sign) {
    bound other = {true, exclusive, {0}};
    decimal_from(value, &other.value);
    const int order = b->is_set ? sign * compare_decimals(&other.value, &b->value) : 1;
    if (order > 0 || (order == 0 && exclusive)) *b = other;
}

/* ---- digits ------------------------------------------------------------------------------------------------------------- */

static const expr *digits(grammar_builder *b, uint32_t min, uint32_t max) {
    return grammar_repeat(b, grammar_bytes(b, '0', '9'), min, max);
}

static const expr *digit_range(grammar_builder *b, char lo, char hi) {
    return lo > hi ? grammar_nothing() : grammar_bytes(b, (uint8_t)lo, (uint8_t)hi);
}

/* Digit strings of the length of `least` that are not less than it. */
static const expr *digits_from(grammar_builder *b, const char *least) {
    if (least[0] == '\0') return grammar_empty();
    const uint32_t rest = (uint32_t)strlen(least) - 1;
    return grammar_alt2(b, grammar_seq4(b, digit_range(b, (char)(least[0] + 1), '9'), digits(b, rest, rest), NULL, NULL),
                        grammar_seq4(b, digit_range(b, least[0], least[0]), digits_from(b, least + 1), NULL, NULL));
}

static const expr *digits_up_to(grammar_builder *b, const char *most) {
    if (most[0] == '\0') return grammar_empty();
    const uint32_t rest = (uint32_t)strlen(most) - 1;
    return grammar_alt2(b, grammar_seq4(b, digit_range(b, '0', (char)(most[0] - 1)), digits(b, rest, rest), NULL, NULL),
                        grammar_seq4(b, digit_range(b, most[0], most[0]), digits_up_to(b, most + 1), NULL, NULL));
}

/* Whole numbers without leading zeros. */
static const expr *any_whole(grammar_builder *b) {
    return grammar_alt2(b, grammar_text(b, "0"),
                        grammar_seq4(b, grammar_bytes(b, '1', '9'), digits(b, 0, MAX_INT_DIGITS - 1), NULL, NULL));
}

/* Strings of at least min_length digits, of any length of theirs over the limit too, so that large bounds can be met at all. */
static const expr *longer_than(grammar_builder *b, size_t n) {
    if (n >= MAX_INT_DIGITS) return grammar_nothing();
    return grammar_seq4(b, grammar_bytes(b, '1', '9'), digits(b, (uint32_t)n, MAX_INT_DIGITS - 1), NULL, NULL);
}

static const expr *shorter_than(grammar_builder *b, size_t n) {
    if (n <= 1) return grammar_nothing();
    const uint32_t most = n - 2 < MAX_INT_DIGITS - 1 ? (uint32_t)n - 2 : MAX_INT_DIGITS - 1;
    return grammar_alt2(b, grammar_text(b, "0"), grammar_seq4(b, grammar_bytes(b, '1', '9'), digits(b, 0, most), NULL, NULL));
}

/* Whole numbers greater, or less, than `whole`. */
static const expr *whole_over(grammar_builder *b, const char *whole) {
    const fa *same_length =
        grammar_regular(b, grammar_seq4(b, strlen(whole) > 1 ? digit_range(b, '1', '9') : digits(b, 1, 1),
                                        digits(b, (uint32_t)strlen(whole) - 1, (uint32_t)strlen(whole) - 1), NULL, NULL));
    const fa *not_less = grammar_intersect(b, same_length, grammar_regular(b, digits_from(b, whole)));
    const fa *more = grammar_subtract(b, not_less, grammar_regular(b, grammar_text(b, whole)));
    return grammar_alt2(b, longer_than(b, strlen(whole)), grammar_automaton(b, more));
}

static const expr *whole_under(grammar_builder *b, const char *whole) {
    const fa *same_length =
        grammar_regular(b, grammar_seq4(b, strlen(whole) > 1 ? digit_range(b, '1', '9') : digits(b, 1, 1),
                                        digits(b, (uint32_t)strlen(whole) - 1, (uint32_t)strlen(whole) - 1), NULL, NULL));
    const fa *not_more = grammar_intersect(b, same_length, grammar_regular(b, digits_up_to(b, whole)));
    const fa *less = grammar_subtract(b, not_more, grammar_regular(b, grammar_text(b, whole)));
    return grammar_alt2(b, shorter_than(b, strlen(whole)), grammar_automaton(b, less));
}

/* ---- fractions: the point and at least one digit, or nothing ------------------------------------------------------------ */

static const expr *any_fraction(grammar_builder *b) {
    return grammar_optional(b, grammar_seq4(b, grammar_text(b, "."), digits(b, 1, MAX_FRACTION_DIGITS), NULL, NULL));
}

/* Digits after the point that make at least (or more than) .f; f has no trailing zeros. */
static const expr *fraction_from(grammar_builder *b, const char *f, bool exclusive) {
    const expr *zeros = grammar_repeat(b, grammar_bytes(b, '0', '0'), 0, MAX_FRACTION_DIGITS);
    if (f[0] == '\0')
        return exclusive ? grammar_seq4(b, zeros, grammar_bytes(b, '1', '9'), digits(b, 0, MAX_FRACTION_DIGITS), NULL)
                         : digits(b, 0, MAX_FRACTION_DIGITS);
    return grammar_alt2(b,
                        grammar_seq4(b, digit_range(b, (char)(f[0] + 1), '9'), digits(b, 0, MAX_FRACTION_DIGITS), NULL, NULL),
                        grammar_seq4(b, digit_range(b, f[0], f[0]), fraction_from(b, f + 1, exclusive), NULL, NULL));
}

static const expr *fraction_up_to(grammar_builder *b, const char *f, bool exclusive) {
    if (f[0] == '\0')
        return exclusive ? grammar_nothing() : grammar_repeat(b, grammar_bytes(b, '0', '0'), 0, MAX_FRACTION_DIGITS);
    const expr *less = grammar_seq4(b, digit_range(b, '0', (char)(f[0] - 1)), digits(b, 0, MAX_FRACTION_DIGITS), NULL, NULL);
    const expr *same = grammar_seq4(b, digit_range(b, f[0], f[0]), fraction_up_to(b, f + 1, exclusive), NULL, NULL);
    return grammar_alt2(b, grammar_empty(), grammar_alt2(b, less, same)); /* to end here is less: some digit of f is not zero */
}

/* The point and digits that `content` takes; none at all if it takes the empty string. */
static const expr *with_point(grammar_builder *b, const expr *content) {
    const fa *a = grammar_regular(b, content), *some = grammar_regular(b, digits(b, 1, NO_BOUND));
    if (b->code) return grammar_nothing();
    const expr *written =
        grammar_seq4(b, grammar_text(b, "."), grammar_automaton(b, grammar_intersect(b, a, some)), NULL, NULL);
    return a->final[0] ? grammar_optional(b, written) : written;
}

/* Magnitudes on one side of a bound. */
static const expr *magnitude_from(grammar_builder *b, const decimal *d, bool exclusive, bool integer) {
    const expr *over = whole_over(b, d->whole);
    if (integer) return d->fraction[0] || exclusive ? over : grammar_alt2(b, over, grammar_text(b, d->whole));
    return grammar_alt2(
        b, grammar_seq4(b, over, any_fraction(b), NULL, NULL),
        grammar_seq4(b, grammar_text(b, d->whole), with_point(b, fraction_from(b, d->fraction, exclusive)), NULL, NULL));
}

static const expr *magnitude_up_to(grammar_builder *b, const decimal *d, bool exclusive, bool integer) {
    const expr *under = whole_under(b, d->whole);
    if (integer) return d->fraction[0] == '\0' && exclusive ? under : grammar_alt2(b, under, grammar_text(b, d->whole));
    return grammar_alt2(
        b, grammar_seq4(b, under, any_fraction(b), NULL, NULL),
        grammar_seq4(b, grammar_text(b, d->whole), with_point(b, fraction_up_to(b, d->fraction, exclusive)), NULL, NULL));
}

/* ---- both bounds -------------------------------------------------------------------------------------------------------- */

static const expr *any_magnitude(grammar_builder *b, bool integer) {
    return integer ? any_whole(b) : grammar_seq4(b, any_whole(b), any_fraction(b), NULL, NULL);
}

/* Magnitudes x with least <= x <= most, for bounds that may be unset. */
static const fa *magnitudes(grammar_builder *b, const bound *least, const bound *most, bool integer) {
    const fa *a = NULL;
    if (least && least->is_set) a = grammar_regular(b, magnitude_from(b, &least->value, least->exclusive, integer));
    if (most && most->is_set) {
        const fa *other = grammar_regular(b, magnitude_up_to(b, &most->value, most->exclusive, integer));
        a = a ? grammar_intersect(b, a, other) : other;
    }
    return a ? a : grammar_regular(b, any_magnitude(b, integer));
}

static const fa *between(grammar_builder *b, const bound *lower, const bound *upper, bool integer) {
    expr_list list = {0};
    const bool upper_negative = upper->is_set && (upper->value.negative && !is_zero(&upper->value));
    const bool upper_excludes_zero = upper_negative || (upper->is_set && is_zero(&upper->value) && upper->exclusive);
    const bool lower_positive = lower->is_set && !lower->value.negative && !is_zero(&lower->value);
    const bool lower_excludes_zero = lower_positive || (lower->is_set && is_zero(&lower->value) && lower->exclusive);
    if (!upper_excludes_zero) {
        const bool bounded_below = lower->is_set && (lower_positive || is_zero(&lower->value));
        grammar_list_add(b, &list, grammar_automaton(b, magnitudes(b, bounded_below ? lower : NULL, upper, integer)));
    }
    if (!lower_excludes_zero) {
        const bool bounded_above = upper->is_set && (upper_negative || is_zero(&upper->value));
        const fa *a = magnitudes(b, bounded_above ? upper : NULL, lower, integer);
        grammar_list_add(b, &list, grammar_seq4(b, grammar_text(b, "-"), grammar_automaton(b, a), NULL, NULL));
    }
    return grammar_regular(b, grammar_alt(b, &list));
}

/* ---- multiples ---------------------------------------------------------------------------------------------------------- */

/* Multiples of n / 10^scale: the remainder of the digits read so far modulo n, the point and up to `scale` digits behind it. */
static const expr *multiples(grammar_builder *b, uint32_t n, uint32_t scale) {
    expr_graph g = {.n_nodes = GRAPH_FIRST + n * (scale + 1) + 1};
    const uint32_t zeros = g.n_nodes - 1; /* after `scale` digits of fraction only zeros follow */
    uint32_t power[12] = {1 % n};
    for (uint32_t i = 1; i <= scale; i++) power[i] = (uint32_t)((uint64_t)power[i - 1] * 10 % n);
    const expr *zero = grammar_bytes(b, '0', '0'), *point = grammar_bytes(b, '.', '.');
    const expr *by_digit[10];
    for (int d = 0; d < 10; d++) by_digit[d] = grammar_bytes(b, (uint8_t)('0' + d), (uint8_t)('0' + d));
    grammar_graph_edge(b, &g, GRAPH_START, GRAPH_FIRST, grammar_optional(b, grammar_text(b, "-")));
    grammar_graph_edge(b, &g, zeros, zeros, zero);
    grammar_graph_edge(b, &g, zeros, GRAPH_END, grammar_empty());
    for (uint32_t phase = 0; phase <= scale; phase++)
        for (uint32_t r = 0; r < n && b->code == 0; r++) {
            const uint32_t from = GRAPH_FIRST + phase * n + r;
            const bool done = (uint64_t)r * power[scale - phase] % n == 0;
            for (uint32_t d = 0; d < 10; d++) {
                const uint32_t to = (uint32_t)((10ull * r + d) % n);
                if (phase == 0)
                    grammar_graph_edge(b, &g, from, GRAPH_FIRST + to, by_digit[d]);
                else if (phase < scale)
                    grammar_graph_edge(b, &g, from, GRAPH_FIRST + (phase + 1) * n + to, by_digit[d]);
            }
            if (phase == 0) { /* the first digit behind the point is that of phase 1 */
                for (uint32_t d = 0; d < 10 && scale; d++)
                    grammar_graph_edge(b, &g, from, GRAPH_FIRST + n + (uint32_t)((10ull * r + d) % n),
                                       grammar_seq4(b, point, by_digit[d], NULL, NULL));
                if (scale == 0 && done) grammar_graph_edge(b, &g, from, zeros, grammar_seq4(b, point, zero, NULL, NULL));
            } else if (phase == scale && done) {
                grammar_graph_edge(b, &g, from, zeros, zero);
            }
            if (done) grammar_graph_edge(b, &g, from, GRAPH_END, grammar_empty());
        }
    return grammar_graph(b, &g);
}

static const fa *add_multiple(schema_compiler *c, const fa *a, const json_t *schema, const json_t *value) {
    decimal d;
    char text[2 * MAX_DECIMAL + 64];
    decimal_from(value, &d);
    snprintf(text, sizeof text, "%s%s", d.whole, d.fraction);
    const unsigned long long n = strtoull(text, NULL, 10);
    const size_t scale = strlen(d.fraction);
    if (d.negative || is_zero(&d))
        grammar_schema_fail(c, WEIR_E_FORMAT, schema, "multipleOf must be greater than 0");
    else if (strlen(text) > 9 || scale > 9 || n * (scale + 1) > MAX_REMAINDERS)
        grammar_schema_fail(c, WEIR_E_UNSUPPORTED, schema, "multipleOf %s is not supported: at most %d remainders", text,
                            MAX_REMAINDERS);
    if (c->b->code) return NULL;
    return grammar_intersect(c->b, a, grammar_regular(c->b, multiples(c->b, (uint32_t)n, (uint32_t)scale)));
}

/* ---- together ----------------------------------------------------------------------------------------------------------- */

/* Without bounds: exponents that cannot overflow a double. */
static const expr *free_number(schema_compiler *c, bool integer) {
    static const char whole[] = "-?(?:0|[1-9][0-9]{0,17})";
    static const char any[] = "-?(?:(?:0|[1-9][0-9]{0,17})(?:\\.[0-9]{1,17})?(?:[eE](?:[+-]?[0-9]{1,2}|-[123][0-9]{2}|\\+?1[0-"
                              "9]{2}|\\+?2[0-8][0-9]))?|"
                              "[0-9](?:\\.[0-9]{1,17})?[eE]\\+?(?:29[0-9]|30[0-7]))";
    const char *pattern = integer ? whole : any;
    const expr **shared = integer ? &c->integer : &c->number;
    if (*shared) return *shared;
    const uint32_t r = grammar_rule_new(c->b, integer ? "integer" : "number");
    grammar_rule_define(c->b, r, grammar_regex_parse(c->b, pattern, strlen(pattern), REGEX_PYTHON, false, NULL));
    return *shared = grammar_call(c->b, r);
}

const expr *grammar_schema_number(schema_compiler *c, const conjunction *k, bool integer) {
    static const struct {
        const char *keyword;
        bool exclusive;
        int sign;
    } limits[] = {{"minimum", false, 1}, {"exclusiveMinimum", true, 1}, {"maximum", false, -1}, {"exclusiveMaximum", true, -1}};
    grammar_builder *b = c->b;
    bound lower = {0}, upper = {0};
    bool multiple = false;
    for (size_t i = 0; i < k->n && b->code == 0; i++) {
        const json_t *schema = k->members[i].schema;
        if (k->members[i].negated) {
            grammar_schema_fail(c, WEIR_E_UNSUPPORTED, schema,
                                "the negation (not, oneOf or if) of a schema for numbers is not supported");
            break;
        }
        for (size_t l = 0; l < 4; l++) {
            const json_t *value = json_object_get(schema, limits[l].keyword);
            if (value && !json_is_number(value))
                grammar_schema_fail(c, WEIR_E_FORMAT, schema, "%s must be a number", limits[l].keyword);
            else if (value)
                tighten(limits[l].sign > 0 ? &lower : &upper, value, limits[l].exclusive, limits[l].sign);
        }
        const json_t *m = json_object_get(schema, "multipleOf");
        if (m && !json_is_number(m)) grammar_schema_fail(c, WEIR_E_FORMAT, schema, "multipleOf must be a number");
        multiple = multiple || m;
    }
    if (b->code) return grammar_nothing();
    if (!lower.is_set && !upper.is_set && !multiple) return free_number(c, integer);
    const bool was_regular = b->regular;
    b->regular = true;
    const fa *a = between(b, &lower, &upper, integer);
    for (size_t i = 0; i < k->n && multiple && a; i++) {
        const json_t *m = json_object_get(k->members[i].schema, "multipleOf");
        if (m) a = add_multiple(c, a, k->members[i].schema, m);
    }
    b->regular = was_regular;
    return b->code || a == NULL ? grammar_nothing() : grammar_automaton(b, a);
}
