/* Renders for tests/e2e/test_jinja.py: each line of standard input is {"source", "variables"}, each of standard output
 * {"text"} or {"error", "syntax"}, where `syntax` tells a template that does not compile from one that fails. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chat/jinja.h"

static json_t *render(const json_t *line) {
    static const struct tm noon = {.tm_year = 126, .tm_mon = 0, .tm_mday = 15, .tm_hour = 12, .tm_wday = 4, .tm_yday = 14};
    const jinja_options options = {.now = &noon};
    const json_t *source = json_object_get(line, "source");
    char *variables = json_dumps(json_object_get(line, "variables"), JSON_REAL_PRECISION(17)), *text = NULL;
    jinja_template *t = NULL;
    weir_error err = {0};
    size_t n = 0;
    const int compiled = jinja_compile(&t, json_string_value(source), json_string_length(source), &err);
    const int rc = compiled < 0 ? compiled : jinja_render(t, variables, strlen(variables), NULL, 0, &options, &text, &n, &err);
    json_t *result = rc < 0 ? json_pack("{s:s, s:b}", "error", err.message, "syntax", compiled < 0)
                            : json_pack("{s:o}", "text", json_stringn(text, n));
    jinja_template_close(&t);
    free(text);
    free(variables);
    return result;
}

int main(void) {
    char *text = NULL;
    size_t capacity = 0;
    while (getline(&text, &capacity, stdin) > 0) {
        json_t *line = json_loads(text, 0, NULL), *result = line ? render(line) : NULL;
        if (result == NULL) return 1;
        json_dumpf(result, stdout, JSON_COMPACT);
        putchar('\n');
        json_decref(result);
        json_decref(line);
    }
    free(text);
    return 0;
}
