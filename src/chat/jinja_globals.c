/* The functions that a template finds besides its variables. */
#include <string.h>
#include <time.h>

#include "chat/jinja_builtin.h"

#define FUNCTION(name) static int name(render *r, const value *self, const value *argv, const call_arguments *all, value *out)
#define UNUSED_ALL (void)r, (void)self, (void)argv, (void)all, (void)out

enum { MAX_RANGE = 100000 };

FUNCTION(function_range) {
    int64_t bounds[3] = {0, 0, 1};
    UNUSED_ALL;
    for (int i = 0; i < 3; i++) TRY(argument_int(r, &argv[i], "range", bounds[i], &bounds[i]));
    if (argv[1].type == V_MISSING) {
        bounds[1] = bounds[0];
        bounds[0] = 0;
    }
    if (bounds[2] == 0) RAISE(r, "range() arg 3 must not be zero");
    __int128 span = (__int128)bounds[1] - bounds[0], step = bounds[2];
    __int128 n = (step > 0) == (span > 0) && span != 0 ? (span + step - (step > 0 ? 1 : -1)) / step : 0;
    if (n > MAX_RANGE)
        return render_fail(r, WEIR_E_LIMIT, "Range too big. The sandbox blocks ranges larger than MAX_RANGE (%d).", MAX_RANGE);
    value_range *g;
    ALLOC(r, g, 1);
    *g = (value_range){bounds[0], bounds[1], bounds[2], (int64_t)n};
    *out = (value){.type = V_RANGE, .range = g};
    return 0;
}

/* dict(mapping or pairs, name=value, ...) */
FUNCTION(function_dict) {
    (void)self, (void)argv;
    TRY(dict_new(r, out));
    if (all->n > 1) RAISE(r, "dict expected at most 1 argument, got %zu", all->n);
    if (all->n && all->items[0].type == V_DICT) {
        const value_dict *d = all->items[0].dict;
        for (size_t i = 0; i < d->n; i++) TRY(dict_set(r, out->dict, &d->entries[i].key, &d->entries[i].item));
    } else if (all->n) {
        value pairs, pair;
        TRY(value_to_list(r, &all->items[0], &pairs));
        for (size_t i = 0; i < pairs.list->n; i++) {
            if (!value_iterable(&pairs.list->items[i]))
                RAISE(r, "cannot convert dictionary update sequence element #%zu to a sequence", i);
            TRY(value_to_list(r, &pairs.list->items[i], &pair));
            if (pair.list->n != 2)
                RAISE(r, "dictionary update sequence element #%zu has length %zu; 2 is required", i, pair.list->n);
            TRY(dict_set(r, out->dict, &pair.list->items[0], &pair.list->items[1]));
        }
    }
    for (size_t i = 0; i < all->n_keywords; i++) TRY(dict_set(r, out->dict, &all->keywords[i].name, &all->keywords[i].item));
    return 0;
}

FUNCTION(function_namespace) {
    TRY(function_dict(r, self, argv, all, out));
    out->type = V_NAMESPACE;
    return 0;
}

FUNCTION(function_raise_exception) {
    value message;
    UNUSED_ALL;
    TRY(value_to_text(r, &argv[0], &message));
    return render_fail(r, WEIR_E_INVALID, "%.*s", (int)(message.n_bytes < 1000 ? message.n_bytes : 1000), message.text);
}

FUNCTION(function_strftime_now) {
    value format;
    UNUSED_ALL;
    TRY(argument_text(r, &argv[0], "strftime_now() argument", &format));
    if (r->now) return format_time(r, &format, r->now, out);
    time_t now = time(NULL);
    struct tm tm;
    if (localtime_r(&now, &tm) == NULL) RAISE(r, "the local time is not known");
    return format_time(r, &format, &tm, out);
}

FUNCTION(function_cycler) {
    value_cycler *c;
    (void)self, (void)argv;
    if (all->n == 0) RAISE(r, "at least one item has to be provided");
    ALLOC(r, c, 1);
    *c = (value_cycler){.items = all->items, .n = all->n};
    *out = (value){.type = V_CYCLER, .cycler = c};
    return 0;
}

FUNCTION(function_joiner) {
    value_cycler *c;
    UNUSED_ALL;
    ALLOC(r, c, 1);
    ALLOC(r, c->items, 1);
    c->n = 1;
    c->items[0] = argv[0].type == V_MISSING ? value_text(", ", 2) : argv[0];
    *out = (value){.type = V_JOINER, .cycler = c};
    return 0;
}

/* Filler text: words in sentences in paragraphs, the same for the same arguments. */
FUNCTION(function_lipsum) {
    static const char *const words[] = {"lorem",  "ipsum", "dolor", "sit",     "amet",   "consectetur", "adipiscing",
                                        "elit",   "sed",   "do",    "eiusmod", "tempor", "incididunt",  "ut",
                                        "labore", "et",    "magna", "aliqua",  "quis",   "nisi"};
    int64_t n, low, high;
    uint32_t state = 1;
    UNUSED_ALL;
    TRY(argument_int(r, &argv[0], "n", 5, &n));
    TRY(argument_int(r, &argv[2], "min", 20, &low));
    TRY(argument_int(r, &argv[3], "max", 100, &high));
    bool html = argument_truth(&argv[1], true);
    if (high <= low) RAISE(r, "empty range for randrange() (%lld, %lld)", (long long)low, (long long)high);
    text_sink s = SINK(r);
    for (int64_t i = 0; i < n; i++) {
        int64_t count = low + (int64_t)((state = state * 1664525u + 1013904223u) >> 8) % (high - low);
        if (i) sink_puts(&s, html ? "\n" : "\n\n");
        if (html) sink_puts(&s, "<p>");
        for (int64_t k = 0; k < count && !s.failed; k++) {
            const char *word = words[((state = state * 1664525u + 1013904223u) >> 8) % 20];
            bool sentence = k % 12 == 0;
            if (k) sink_puts(&s, sentence ? ". " : " ");
            sink_putc(&s, sentence ? (char)(word[0] - 32) : word[0]);
            sink_puts(&s, word + 1);
            TRY(render_charge(r, 1));
        }
        sink_puts(&s, html ? ".</p>" : ".");
        if (s.failed) return s.failed;
    }
    TRY(sink_finish(&s, out));
    if (html) out->flags |= VALUE_SAFE;
    return 0;
}

static const jinja_builtin rows[] = {
    {"range", function_range, "start stop step", 1},
    {"dict", function_dict, "*", 0},
    {"namespace", function_namespace, "*", 0},
    {"raise_exception", function_raise_exception, "message", 1},
    {"strftime_now", function_strftime_now, "format", 1},
    {"cycler", function_cycler, "*", 0},
    {"joiner", function_joiner, "sep", 0},
    {"lipsum", function_lipsum, "n html min max", 0},
};

static const builtin_table table = {rows, sizeof rows / sizeof rows[0]};

const jinja_builtin *function_find(const char *name, size_t n_bytes) {
    return n_bytes ? builtin_find(&table, name, n_bytes) : NULL;
}
