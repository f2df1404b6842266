/* Command lines: defaults, environment, forms of an option, refusals with the nearest name, help, and the worker's strictness.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/tables.h"

static settings s;
static weir_error err;

static const command *find(const char *name) {
    for (size_t i = 0; i < tables_n_commands; i++) {
        if (strcmp(tables_commands[i].name, name) == 0) return &tables_commands[i];
    }
    fail_msg("no command %s", name);
    return NULL;
}

/* Arguments up to a NULL. */
static int parse(const command *c, ...) {
    char *argv[32];
    int argc = 0;
    va_list args;
    va_start(args, c);
    while ((argv[argc] = va_arg(args, char *)) != NULL) argc++;
    va_end(args);
    memset(&err, 0, sizeof err);
    return options_parse(c, argc, argv, &s, &err);
}

static void defaults(void **state) {
    (void)state;
    assert_int_equal(parse(find("serve"), NULL), 0);
    assert_string_equal(s.host, "127.0.0.1");
    assert_int_equal(s.port, 8080);
    assert_null(s.model);
    assert_int_equal(parse(find("run"), NULL), 0);
    assert_float_equal(s.temperature, 0.8, 1e-12);
    assert_int_equal(s.top_k, 40);
    assert_int_equal(s.predict, -1);
}

static void forms(void **state) {
    (void)state;
    assert_int_equal(
        parse(find("run"), "-m", "a.gguf", "--temp=0.5", "-np", "3", "--n-predict", "-1", "-q", "two", "--", "-words", NULL),
        0);
    assert_string_equal(s.model, "a.gguf");
    assert_float_equal(s.temperature, 0.5, 1e-12);
    assert_int_equal(s.parallel, 3);
    assert_true(s.quiet);
    assert_int_equal(s.n_arguments, 2);
    assert_string_equal(s.arguments[1], "-words");
    assert_int_equal(parse(find("serve"), "--port", "1", "--port", "2", NULL), 0);
    assert_int_equal(s.port, 2);
    assert_int_equal(parse(find("serve"), "--port", "70000", "--help", NULL), 1);
}

static void environment(void **state) {
    (void)state;
    setenv("WEIR_CTX_SIZE", "77", 1);
    setenv("WEIR_QUIET", "true", 1);
    assert_int_equal(parse(find("serve"), NULL), 0);
    assert_int_equal(s.ctx_size, 77);
    assert_true(s.quiet);
    assert_int_equal(parse(find("serve"), "-c", "78", "--quiet=false", NULL), 0);
    assert_int_equal(s.ctx_size, 78);
    assert_false(s.quiet);
    setenv("WEIR_CTX_SIZE", "many", 1);
    assert_int_equal(parse(find("serve"), NULL), WEIR_E_INVALID);
    assert_string_equal(err.place, "WEIR_CTX_SIZE");
    unsetenv("WEIR_CTX_SIZE");
    unsetenv("WEIR_QUIET");
}

static void refusals(void **state) {
    static const struct {
        const char *command, *first, *second, *part;
    } cases[] = {
        {"serve", "--prot", "1", "did you mean --port?"},
        {"run", "--tempe", "1", "did you mean --temp?"},
        {"serve", "--zzzzzzzz", NULL, "unknown option --zzzzzzzz; --help"},
        {"serve", "-x", NULL, "unknown option -x"},
        {"serve", "--port", NULL, "needs a value"},
        {"serve", "--port", "", "not a whole number"},
        {"serve", "--port", "80x", "not a whole number"},
        {"serve", "--port", "65536", "out of range"},
        {"serve", "--port", "99999999999999999999", "not a whole number"},
        {"run", "--top-p", "1.5", "out of range"},
        {"run", "--top-p", "nan", "not a number"},
        {"serve", "--log-format", "xml", "none of human|json"},
        {"serve", "stray", NULL, "unexpected argument"},
        {"run", "--raw=perhaps", NULL, "neither true nor false"},
        {"bench", "-o", "yaml", "none of md|json"},
        {"bench", "-r", "0", "out of range"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(parse(find(cases[i].command), cases[i].first, cases[i].second, NULL), WEIR_E_INVALID);
        if (strstr(err.message, cases[i].part) == NULL)
            fail_msg("case %zu: \"%s\" lacks \"%s\"", i, err.message, cases[i].part);
    }
}

#define REQUIRED "--worker-id", "w", "--model", "m", "--port=9"

static void worker(void **state) {
    (void)state;
    setenv("WEIR_MODEL", "other", 1);
    assert_int_equal(parse(&tables_worker, REQUIRED, "--model-ref", "r", "--backend", "cuda", "--device", "2", "--hive-url",
                           "u", "--local-mode", NULL),
                     0);
    assert_string_equal(s.model, "m");
    assert_int_equal(s.device, 2);
    assert_true(s.local_mode);
    assert_int_equal(parse(&tables_worker, REQUIRED, "--queen-url", "q", "--cuda-device", "1", NULL), 0);
    assert_string_equal(s.backend, "cpu");
    assert_int_equal(s.device, 1);
    assert_int_equal(parse(&tables_worker, "--worker-id", "w", "--port", "9", NULL), WEIR_E_INVALID);
    assert_non_null(strstr(err.message, "--model"));
    assert_int_equal(parse(&tables_worker, REQUIRED, "--port", "10", NULL), WEIR_E_INVALID);
    assert_non_null(strstr(err.message, "more than once"));
    assert_int_equal(parse(&tables_worker, REQUIRED, "--local-mode=true", NULL), WEIR_E_INVALID);
    assert_int_equal(parse(&tables_worker, REQUIRED, "--device", "one", NULL), WEIR_E_INVALID);
    assert_int_equal(parse(&tables_worker, REQUIRED, "--version", NULL), WEIR_E_INVALID);
    assert_int_equal(parse(&tables_worker_variant, REQUIRED, "--local-mode", NULL), WEIR_E_INVALID);
    unsetenv("WEIR_MODEL");
}

/* Every row of every table is in its help, with its variable, and no name means two things in one command. */
static void help(void **state) {
    (void)state;
    for (size_t i = 0; i < tables_n_commands; i++) {
        const command *c = &tables_commands[i];
        buf text = BUF_INIT;
        options_help(c, c->name, &text);
        assert_false(text.failed);
        for (size_t g = 0; g < COMMAND_MAX_GROUPS && c->groups[g]; g++) {
            for (size_t k = 0; k < c->groups[g]->n_rows; k++) {
                char name[64], variable[64], bracketed[70];
                snprintf(name, sizeof name, "--%s", c->groups[g]->rows[k].name);
                options_variable(&c->groups[g]->rows[k], variable);
                snprintf(bracketed, sizeof bracketed, "[%s]", variable);
                const char *line = strstr(text.data, bracketed);
                assert_non_null(strstr(text.data, name));
                if (line == NULL) fail_msg("%s: no %s in help", c->name, bracketed);
                if (strstr(line + 1, bracketed)) fail_msg("%s: %s twice", c->name, bracketed);
            }
        }
        buf_free(&text);
    }
}

int main(void) {
    /* The variables that ./test sets for other tests are options here. */
    unsetenv("WEIR_MODEL");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults), cmocka_unit_test(forms),  cmocka_unit_test(environment),
        cmocka_unit_test(refusals), cmocka_unit_test(worker), cmocka_unit_test(help),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
