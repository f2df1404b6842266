/* The language itself: kit/jinja_core, one case a line. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "chat/jinja.h"
#include "kit_jinja.h"

static const struct tm kit_time = {.tm_year = 126, .tm_mon = 0, .tm_mday = 15, .tm_hour = 12, .tm_wday = 4, .tm_yday = 14};

/* The first place where two texts differ, for the report. */
static size_t first_difference(const char *a, size_t n_a, const char *b, size_t n_b) {
    size_t i = 0;
    while (i < n_a && i < n_b && a[i] == b[i]) i++;
    return i;
}

static int same(const json_t *expected, const char *text, size_t n) {
    return expected && json_string_length(expected) == n && memcmp(json_string_value(expected), text, n) == 0;
}

static void compare_text(kit_report *r, const char *name, const json_t *item, const char *text, size_t n) {
    const json_t *expected = json_object_get(item, "rendered"), *lenient = json_object_get(item, "lenient_rendered");
    if (same(expected, text, n) || same(lenient, text, n)) {
        kit_pass(r);
        return;
    }
    if (expected == NULL) expected = lenient;
    if (expected == NULL) {
        kit_fail(r, "%s: rendered \"%.80s\", expected the error \"%s\"", name, text,
                 json_string_value(json_object_get(json_object_get(item, "error"), "message")));
        return;
    }
    size_t at = first_difference(text, n, json_string_value(expected), json_string_length(expected));
    size_t from = at > 20 ? at - 20 : 0;
    kit_fail(r, "%s: differs at byte %zu\n    got      ...%.70s\n    expected ...%.70s", name, at, text + from,
             json_string_value(expected) + from);
}

static void compare_error(kit_report *r, const char *name, const json_t *item, int compiled, const weir_error *e) {
    const json_t *error = json_object_get(item, "error");
    const char *kind = json_string_value(json_object_get(error, "kind"));
    const char *message = json_string_value(json_object_get(error, "message"));
    if (error == NULL)
        kit_fail(r, "%s: failed with %s: %s", name, e->place, e->message);
    else if ((strcmp(kind, "syntax_error") == 0) == (compiled != 0))
        kit_fail(r, "%s: a %s was expected, got %s: %s", name, kind, e->place, e->message);
    else if (strcmp(kind, "raise_exception") == 0 && strcmp(message, e->message) != 0 && strlen(message) < sizeof e->message)
        kit_fail(r, "%s: message \"%s\", expected \"%s\"", name, e->message, message);
    else
        kit_pass(r);
}

/* ---- time --------------------------------------------------------------------------------------------------------------- */

enum { MAX_TIMES = 8192 };

static struct render_time {
    int64_t us;
    char name[128];
} times[MAX_TIMES];
static size_t n_times;

static int by_time(const void *a, const void *b) {
    const struct render_time *x = a, *y = b;
    return (x->us > y->us) - (x->us < y->us);
}

static void take_time(const char *name, const jinja_template *t, const char *vars) {
    const jinja_options options = {.now = &kit_time};
    int64_t best = INT64_MAX;
    for (int i = 0; i < 3; i++) {
        char *text = NULL;
        const int64_t begin = clock_now_us();
        (void)jinja_render(t, vars, strlen(vars), NULL, 0, &options, &text, NULL, NULL);
        const int64_t taken = clock_now_us() - begin;
        free(text);
        if (taken < best) best = taken;
    }
    if (n_times == MAX_TIMES) return;
    times[n_times].us = best;
    snprintf(times[n_times++].name, sizeof times[0].name, "%s", name);
}

void kit_jinja_times(kit_report *r) {
    if (n_times == 0) return;
    qsort(times, n_times, sizeof times[0], by_time);
    const struct render_time *p99 = &times[n_times * 99 / 100], *slowest = &times[n_times - 1];
    printf("%s: %zu renderings, median %lld us, 99%% under %lld us, slowest %lld us (%s)\n", r->folder, n_times,
           (long long)times[n_times / 2].us, (long long)p99->us, (long long)slowest->us, slowest->name);
    n_times = 0;
}

void kit_jinja_case(kit_report *r, const char *name, const char *source, size_t n_bytes, const json_t *item) {
    jinja_template *t = NULL;
    weir_error e = {0};
    char *text = NULL, *vars = json_dumps(json_object_get(item, "vars"), JSON_REAL_PRECISION(17));
    size_t n_text = 0;
    const jinja_options options = {.now = &kit_time};
    int compiled = jinja_compile(&t, source, n_bytes, &e);
    int result = compiled < 0 ? compiled : jinja_render(t, vars, strlen(vars), NULL, 0, &options, &text, &n_text, &e);
    if (result == 0)
        compare_text(r, name, item, text, n_text);
    else
        compare_error(r, name, item, compiled == 0, &e);
    if (result == 0) take_time(name, t, vars);
    jinja_template_close(&t);
    free(text);
    free(vars);
}

void kit_run_jinja_core(kit_report *r, const char *dir) {
    size_t n;
    char *data = kit_read_file(kit_path(dir, "cases.jsonl"), &n), *save = NULL;
    if (data == NULL) {
        kit_fail(r, "cases.jsonl cannot be read");
        return;
    }
    for (char *line = strtok_r(data, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        json_error_t e;
        json_t *item = json_loads(line, 0, &e);
        const json_t *source = json_object_get(item, "template");
        if (source == NULL)
            kit_fail(r, "a line is no case: %s", e.text);
        else
            kit_jinja_case(r, json_string_value(json_object_get(item, "name")), json_string_value(source),
                           json_string_length(source), item);
        json_decref(item);
    }
    free(data);
    n_times = 0; /* these are no conversations */
}
