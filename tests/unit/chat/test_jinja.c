/* The template language: against reference results, error positions, bounds, concurrent rendering. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/clock.h"
#include "chat/jinja.h"

#include "jinja_cases.inc"

static const struct tm noon = {.tm_year = 126, .tm_mon = 0, .tm_mday = 15, .tm_hour = 12, .tm_wday = 4, .tm_yday = 14};

static uint64_t max_steps; /* of render; 0 = the default */

/* Compiles and renders; the text (to be freed) or NULL with *e described. */
static char *render(const char *source, const char *json, weir_error *e) {
    jinja_template *t;
    const jinja_options options = {.now = &noon, .max_steps = max_steps};
    char *text = NULL;
    size_t n;
    *e = (weir_error){0};
    if (jinja_compile(&t, source, strlen(source), e) < 0) return NULL;
    if (jinja_render(t, json, strlen(json), NULL, 0, &options, &text, &n, e) == 0) assert_int_equal(n, strlen(text));
    jinja_template_close(&t);
    return text;
}

static void assert_renders(const char *source, const char *json, const char *expected) {
    weir_error e;
    char *text = render(source, json, &e);
    if (text == NULL) fail_msg("%s: %s: %s", source, e.place, e.message);
    assert_string_equal(text, expected);
    free(text);
}

static void assert_fails(const char *source, const char *json, int code, const char *place, const char *message) {
    weir_error e;
    char *text = render(source, json, &e);
    if (text) fail_msg("%s rendered \"%s\"", source, text);
    assert_int_equal(e.code, code);
    assert_string_equal(e.place, place);
    if (strstr(e.message, message) == NULL) fail_msg("%s: \"%s\" lacks \"%s\"", source, e.message, message);
}

static void test_reference(void **state) {
    (void)state;
    size_t n_wrong = 0;
    for (size_t i = 0; i < sizeof reference_cases / sizeof reference_cases[0]; i++) {
        const struct reference_case *c = &reference_cases[i];
        weir_error e;
        char *text = render(c->source, c->variables == 1 ? VARIABLES_1 : VARIABLES_2, &e);
        bool right = c->text ? text && strcmp(text, c->text) == 0
                             : text == NULL && (c->failure == WEIR_E_FORMAT) == (e.code == WEIR_E_FORMAT) && e.message[0];
        if (!right) {
            n_wrong++;
            print_error("%s\n    expected %s\n    got      %s%s\n", c->source, c->text ? c->text : "a failure",
                        text ? text : e.message, text ? "" : " (failure)");
        }
        free(text);
    }
    assert_int_equal(n_wrong, 0);
}

static void test_syntax_error_positions(void **state) {
    (void)state;
    assert_fails("a\nb {{ 1 + }}", "{}", WEIR_E_FORMAT, "template line 2, column 10", "unexpected 'end of print statement'");
    assert_fails("日本 {{ a b }}", "{}", WEIR_E_FORMAT, "template line 1, column 9", "got 'b'");
    assert_fails("\n\n{% if x %}\n", "{}", WEIR_E_FORMAT, "template line 3, column 11", "Unexpected end of template");
    assert_fails("{% if 1 %}{% endfor %}", "{}", WEIR_E_FORMAT, "template line 1, column 14", "unknown tag 'endfor'");
    assert_fails("{{ 'a }}", "{}", WEIR_E_FORMAT, "template line 1, column 4", "string");
    assert_fails("{{ (1] }}", "{}", WEIR_E_FORMAT, "template line 1, column 6", "expected ')'");
    assert_fails("x\n{{ 1 | nope }}", "{}", WEIR_E_FORMAT, "template line 2, column 8", "No filter named 'nope'");
    assert_fails("{{ '\\x4' }}", "{}", WEIR_E_FORMAT, "template line 1, column 5", "escape");
    assert_fails("{% break %}", "{}", WEIR_E_FORMAT, "template line 1, column 4", "outside loop");
    assert_fails("\xff", "{}", WEIR_E_FORMAT, "template", "UTF-8");
}

static void test_render_errors(void **state) {
    (void)state;
    assert_fails("a\nb\n{{ raise_exception('no ' ~ n) }}", "{\"n\":2}", WEIR_E_INVALID, "template line 3", "no 2");
    assert_fails("{{ 1 }}\n{{ x.y }}", "{}", WEIR_E_INVALID, "template line 2", "'x' is undefined");
    assert_fails("{{ d.x.y }}", "{\"d\":{}}", WEIR_E_INVALID, "template line 1", "'dict object' has no attribute 'x'");
    assert_fails("{{ 'a' + 1 }}", "{}", WEIR_E_INVALID, "template line 1", "can only concatenate str (not \"int\") to str");
    assert_fails("{{ d.popitem() }}", "{\"d\":{}}", WEIR_E_INVALID, "template line 1", "is unsafe");
    assert_fails("{% include 'x' %}", "{}", WEIR_E_INVALID, "template line 1", "cannot load");
    assert_fails("x", "[1]", WEIR_E_INVALID, "variables", "expected a JSON object, got list");
    assert_fails("x", "{\"a\":", WEIR_E_INVALID, "variables", "line 1");
}

static void test_integers_and_floats(void **state) {
    (void)state;
    assert_renders("{{ a }} {{ b }} {{ c }} {{ a + 1 }} {{ [a, b] | tojson }}", "{\"a\":9007199254740993,\"b\":2.0,\"c\":-0.0}",
                   "9007199254740993 2.0 -0.0 9007199254740994 [9007199254740993, 2.0]");
    assert_renders("{{ 9223372036854775807 + 1 }} {{ 2 ** 100 // 2 ** 99 }} {{ 5e-324 }}", "{}",
                   "9223372036854775808 2 5e-324");
}

static void test_changing_collections(void **state) {
    (void)state;
    assert_renders("{% set l = [1] %}{% set _ = l.append(2) %}{{ l }}{{ l.pop() }}{{ l }}{{ l.append is defined }}", "{}",
                   "[1, 2]2[1]False");
    assert_renders("{% set _ = d.update({'c': 3}) %}{{ d }}{{ d.pop('a') }}{{ d }}", "{\"a\":0,\"d\":{\"a\":1,\"b\":2}}",
                   "{'a': 1, 'b': 2, 'c': 3}1{'b': 2, 'c': 3}");
    assert_renders("{{ '[1, {\"a\": null}]' | from_json }}", "{}", "[1, {'a': None}]");
}

static void test_fixed_time(void **state) {
    (void)state;
    assert_renders("{{ strftime_now('%A, %d %B %Y %H:%M') }}", "{}", "Thursday, 15 January 2026 12:00");
}

/* ---- bounds: each of these ends, quickly, with WEIR_E_LIMIT ---- */

static void assert_limited(const char *source, const char *json) {
    weir_error e;
    int64_t start = clock_now_us();
    max_steps = 1000000; /* a twentieth of the default, for sanitizers and busy machines */
    char *text = render(source, json, &e);
    max_steps = 0;
    if (text) fail_msg("%.100s rendered", source);
    if (e.code != WEIR_E_LIMIT) fail_msg("%.100s: %s (%s)", source, e.message, weir_code_name(e.code));
    assert_true(clock_now_us() - start < 10 * 1000000); /* milliseconds without them */
}

static void test_work_is_bounded(void **state) {
    (void)state;
#define LOOP "{% for i in range(100000) %}"
    assert_limited(LOOP LOOP LOOP "{% endfor %}{% endfor %}{% endfor %}", "{}");
    assert_limited(LOOP LOOP "{{ 'x' * 1000 }}{% endfor %}{% endfor %}", "{}");
    assert_limited("{% set ns = namespace(s='x') %}" LOOP "{% set ns.s = ns.s ~ ns.s %}{% endfor %}", "{}");
    assert_limited("{% set ns = namespace(l=[1]) %}" LOOP "{% set ns.l = ns.l + ns.l %}{% endfor %}", "{}");
    assert_limited("{% set l = [1] %}{% for x in l %}{% set _ = l.append(x) %}{% endfor %}", "{}");
    assert_limited("{{ 'x' * 10000000000 }}", "{}");
    assert_limited("{{ [1] * 10000000000 }}", "{}");
    assert_limited("{{ range(1000000) }}", "{}");
    assert_limited("{{ '%1000000000d' % 1 }}", "{}");
    assert_limited("{{ '{:>1000000000}'.format(1) }}", "{}");
    assert_limited("{{ 'x'.center(100000000000) }}", "{}");
    assert_limited("{% set s = 'ab' * 1000000 %}" LOOP "{% set t = s.replace('a', 'b') %}{% endfor %}", "{}");
    assert_limited("{% set s = 'ab' * 1000000 %}" LOOP "{% set t = s | upper | lower %}{% endfor %}", "{}");
    assert_limited("{% set s = 'ab' * 1000000 %}" LOOP "{{ 'x' in s }}{% endfor %}", "{}");
    assert_limited("{% set l = range(100000) | list %}" LOOP "{{ l | sort | length }}{% endfor %}", "{}");
    assert_limited("{% set l = range(100000) | list %}" LOOP "{{ -1 in l }}{% endfor %}", "{}");
    assert_limited("{{ lipsum(n=100000000) }}", "{}");
    assert_limited("{{ [1] | tojson(indent=100000000000) }}", "{}");
}

static char *repeated(const char *before, const char *open, size_t n, const char *middle, const char *close,
                      const char *after) {
    buf b = BUF_INIT;
    buf_puts(&b, before);
    for (size_t i = 0; i < n; i++) buf_puts(&b, open);
    buf_puts(&b, middle);
    for (size_t i = 0; i < n; i++) buf_puts(&b, close);
    buf_puts(&b, after);
    return buf_take(&b, NULL);
}

static void test_depth_is_bounded(void **state) {
    (void)state;
    static const struct {
        const char *open, *middle, *close;
    } nests[] = {
        {"(", "1", ")"},           {"[", "", "]"},   {"{1:", "2", "}"}, {"-", "1", ""},         {"not ", "1", ""},
        {"1 if ", "1", " else 2"}, {"a[", "1", "]"}, {"f(", "1", ")"},  {"1 is eq(", "1", ")"}, {"", "1", " + 1"},
        {"", "1", "|abs"},         {"", "a", ".b"},  {"", "a", "(1)"},  {"", "1", " or 1"},     {"1 ** ", "1", ""},
        {"1 < 2 == ", "1", ""},
    };
    for (size_t i = 0; i < sizeof nests / sizeof nests[0]; i++) {
        char *source = repeated("{{ ", nests[i].open, 20000, nests[i].middle, nests[i].close, " }}");
        weir_error e;
        char *text = render(source, "{}", &e);
        assert_null(text);
        assert_true(e.code == WEIR_E_LIMIT || e.code == WEIR_E_FORMAT || e.code == WEIR_E_INVALID);
        free(source);
    }
    char *blocks = repeated("", "{% if 1 %}", 20000, "x", "{% endif %}", "");
    assert_limited(blocks, "{}");
    free(blocks);
    assert_limited("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(1) }}", "{}");
    assert_limited("{% for x in [[1]] recursive %}{{ loop([x]) }}{% endfor %}", "{}");
    assert_limited("{% set l = [] %}{% set _ = l.append(l) %}{{ l }}", "{}");
    assert_limited("{% set l = [] %}{% set _ = l.append(l) %}{{ l | tojson }}", "{}");
    assert_limited("{% set l = [] %}{% set m = [] %}{% set _ = l.append(m) %}{% set _ = m.append(l) %}{{ l == m }}", "{}");
    assert_limited("{% set ns = namespace() %}{% set ns.self = ns %}{{ ns }}", "{}");
    assert_limited("{% block a %}{{ self.a() }}{% endblock %}", "{}");
}

static void test_deep_json(void **state) {
    (void)state;
    char *deep = repeated("{\"a\":", "[", 900, "1", "]", "}"), *deeper = repeated("{\"a\":", "[", 100000, "1", "]", "}");
    char *expected = repeated("", "[", 900, "1", "]", "");
    assert_renders("{{ a | tojson }}", deep, expected);
    assert_renders("{{ a }}", deep, expected);
    assert_limited("x", deeper);
    free(deep), free(deeper), free(expected);
}

/* ---- threads ---- */

static void *render_many(void *arg) {
    static const char json[] =
        "{\"messages\":[{\"role\":\"user\",\"content\":\"hello\"},{\"role\":\"assistant\",\"content\":\"hi\"}]}";
    size_t n_wrong = 0;
    for (int i = 0; i < 200; i++) {
        char *text;
        weir_error e;
        if (jinja_render(arg, json, sizeof json - 1, NULL, 0, NULL, &text, NULL, &e) < 0 ||
            strcmp(text, "USER: hello|ASSISTANT: hi|3") != 0)
            n_wrong++;
        free(text);
    }
    return (void *)n_wrong;
}

static void test_threads_share_a_template(void **state) {
    (void)state;
    static const char source[] =
        "{% macro turn(m) %}{{ m.role | upper }}: {{ m.content }}|{% endmacro %}"
        "{% set ns = namespace(n=1) %}{% for m in messages %}{{ turn(m) }}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}";
    jinja_template *t;
    weir_error e;
    pthread_t threads[8];
    assert_int_equal(jinja_compile(&t, source, sizeof source - 1, &e), 0);
    for (int i = 0; i < 8; i++) assert_int_equal(pthread_create(&threads[i], NULL, render_many, t), 0);
    for (int i = 0; i < 8; i++) {
        void *n_wrong;
        pthread_join(threads[i], &n_wrong);
        assert_null(n_wrong);
    }
    jinja_template_close(&t);
}

/* A text collected message by message costs what its pieces cost, not their square. */
static void test_long_conversation(void **state) {
    (void)state;
    buf json = BUF_INIT;
    weir_error e;
    buf_puts(&json, "{\"messages\":[");
    for (int i = 0; i < 5000; i++) {
        buf_puts(&json, i ? ",{\"content\":\"" : "{\"content\":\"");
        for (int k = 0; k < 50; k++) buf_puts(&json, "some words of a message ");
        buf_puts(&json, "\"}");
    }
    buf_puts(&json, "]}");
    char *text = render(
        "{% set ns = namespace(all='') %}{% for m in messages %}{% set ns.all = ns.all ~ m.content ~ '\\n' %}{% endfor %}"
        "{{ ns.all | length }}",
        json.data, &e);
    if (text == NULL) fail_msg("%s", e.message);
    assert_string_equal(text, "6005000");
    free(text);
    buf_free(&json);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference),
        cmocka_unit_test(test_syntax_error_positions),
        cmocka_unit_test(test_render_errors),
        cmocka_unit_test(test_integers_and_floats),
        cmocka_unit_test(test_changing_collections),
        cmocka_unit_test(test_fixed_time),
        cmocka_unit_test(test_work_is_bounded),
        cmocka_unit_test(test_depth_is_bounded),
        cmocka_unit_test(test_deep_json),
        cmocka_unit_test(test_threads_share_a_template),
        cmocka_unit_test(test_long_conversation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
