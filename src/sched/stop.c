/* See stop.h. */
#include "sched/stop.h"

#include <string.h>

#include "base/error.h"
#include "base/utf8.h"
#include "weir/weir.h"

const char *weir_stop_name(weir_stop_reason reason) {
    static const char *const names[] = {"none", "eos", "length", "stop"};
    return names[reason];
}

/* How long the longest prefix is that text[0..matched) followed by `byte` ends in; amortised constant time. */
static size_t advance(const stop_string *s, size_t matched, char byte) {
    while (matched > 0 && (matched == s->n_bytes || s->text[matched] != byte)) matched = s->failure[matched - 1];
    return s->text[matched] == byte ? matched + 1 : 0;
}

static int init_one(stop_string *s, const char *text, size_t index, arena *memory, weir_error *err) {
    size_t n_bytes = text ? strlen(text) : 0;
    FAIL_IF(n_bytes == 0, err, WEIR_E_INVALID, "stop", "stop string %zu is empty; it must have at least one character", index);
    FAIL_IF(n_bytes > INT32_MAX, err, WEIR_E_INVALID, "stop", "stop string %zu has %zu bytes; at most %d are possible", index,
            n_bytes, INT32_MAX);
    FAIL_IF(!utf8_valid(text, n_bytes), err, WEIR_E_INVALID, "stop", "stop string %zu is not valid UTF-8", index);
    s->n_bytes = n_bytes;
    s->text = arena_strndup(memory, text, n_bytes);
    s->failure = arena_array(memory, n_bytes, sizeof *s->failure);
    FAIL_IF(s->text == NULL || s->failure == NULL, err, WEIR_E_NOMEM, "stop", "no memory for a stop string of %zu bytes",
            n_bytes);
    for (size_t i = 1, matched = 0; i < n_bytes; i++) s->failure[i] = (uint32_t)(matched = advance(s, matched, text[i]));
    return 0;
}

int stop_init(stop_set *set, const char *const *strings, size_t n, arena *memory, weir_error *err) {
    *set = (stop_set){.n = n};
    if (n == 0) return 0;
    FAIL_IF(strings == NULL, err, WEIR_E_INVALID, "stop", "%zu stop strings are announced, but the list is NULL", n);
    set->strings = arena_array(memory, n, sizeof *set->strings);
    FAIL_IF(set->strings == NULL, err, WEIR_E_NOMEM, "stop", "no memory for %zu stop strings", n);
    for (size_t i = 0; i < n; i++) TRY(init_one(&set->strings[i], strings[i], i, memory, err));
    return 0;
}

int64_t stop_feed(stop_set *set, char byte) {
    int64_t found = -1;
    for (size_t i = 0; i < set->n; i++) {
        stop_string *s = &set->strings[i];
        s->matched = advance(s, s->matched, byte);
        if (s->matched == s->n_bytes && (found < 0 || s->n_bytes > set->strings[found].n_bytes)) found = (int64_t)i;
    }
    return found;
}

size_t stop_held(const stop_set *set) {
    size_t held = 0;
    for (size_t i = 0; i < set->n; i++)
        if (set->strings[i].matched > held) held = set->strings[i].matched;
    return held;
}
