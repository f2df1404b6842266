/* weir bench: tokens per second of prompts (ppN) and answers (tgN), by the flags and row labels of llama-bench; of several
 * sequences at once, by those of llama-batched-bench; where the time goes; and the machine's limits. It drives the engine
 * alone: no queue, no sampling, no text. */
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "base/error.h"
#include "cli/bench.h"

enum { MAX_VALUES = 32 };

typedef struct number_list {
    int32_t values[MAX_VALUES];
    size_t n;
} number_list;

enum { PROMPT, GENERATE, DEPTH, THREADS, BATCH, BATCHED_PROMPT, BATCHED_GENERATE, BATCHED_PARALLEL, N_LISTS };

/* "1,2,3" and ranges "1-4" (llama-bench's form without steps). */
static int read_list(const char *name, const char *text, int32_t min, number_list *out, weir_error *err) {
    for (const char *at = text;;) {
        char *end;
        long long from = strtoll(at, &end, 10), to = from;
        FAIL_IF(end == at, err, WEIR_E_INVALID, name, "\"%s\" is no list of numbers such as 128,512", text);
        if (*end == '-') {
            at = end + 1;
            to = strtoll(at, &end, 10);
            FAIL_IF(end == at || to < from, err, WEIR_E_INVALID, name, "\"%s\" has a range that is none", text);
        }
        FAIL_IF(from < min || to > 1 << 24, err, WEIR_E_INVALID, name, "\"%s\" is out of range; it must be from %d to %d", text,
                min, 1 << 24);
        for (; from <= to; from++) {
            FAIL_IF(out->n == MAX_VALUES, err, WEIR_E_INVALID, name, "more than %d values", MAX_VALUES);
            out->values[out->n++] = (int32_t)from;
        }
        if (*end == '\0') return 0;
        FAIL_IF(*end != ',', err, WEIR_E_INVALID, name, "\"%s\" is no list of numbers such as 128,512", text);
        at = end + 1;
    }
}

static int read_lists(const settings *s, number_list lists[N_LISTS], weir_error *err) {
    const struct {
        const char *option, *text;
        int32_t min;
    } sources[N_LISTS] = {[PROMPT] = {"--n-prompt", s->bench_prompt, 0},
                          [GENERATE] = {"--n-gen", s->bench_generate, 0},
                          [DEPTH] = {"--n-depth", s->bench_depth, 0},
                          [THREADS] = {"--threads", s->bench_threads, 0},
                          [BATCH] = {"--batch-size", s->bench_batch, 1},
                          [BATCHED_PROMPT] = {"--batched-prompt", s->batched_prompt, 1},
                          [BATCHED_GENERATE] = {"--batched-gen", s->batched_generate, 1},
                          [BATCHED_PARALLEL] = {"--batched-parallel", s->batched_parallel, 1}};
    for (int i = 0; i < N_LISTS; i++)
        if (sources[i].text) TRY(read_list(sources[i].option, sources[i].text, sources[i].min, &lists[i], err));
    for (size_t i = 0; i < lists[THREADS].n; i++)
        if (lists[THREADS].values[i] == 0) lists[THREADS].values[i] = cpu_count_available();
    return 0;
}

static int32_t largest(const number_list *list) {
    int32_t result = 0;
    for (size_t i = 0; i < list->n; i++) result = list->values[i] > result ? list->values[i] : result;
    return result;
}

/* ---- tests ------------------------------------------------------------------------------------------------------------ */

static int measure_single(bench *b, const number_list lists[N_LISTS], bench_test t, weir_error *err) {
    for (size_t d = 0; d < lists[DEPTH].n; d++) {
        t.n_depth = lists[DEPTH].values[d];
        for (int kind = PROMPT; kind <= GENERATE; kind++) {
            for (size_t i = 0; i < lists[kind].n; i++) {
                const int32_t n = lists[kind].values[i];
                t.n_prompt = kind == PROMPT ? n : 0;
                t.n_gen = kind == GENERATE ? n : 0;
                if (n) TRY(bench_measure(b, &t, err));
            }
        }
    }
    return 0;
}

static int measure_batched(bench *b, const number_list lists[N_LISTS], bench_test t, weir_error *err) {
    for (size_t i = 0; i < lists[BATCHED_PROMPT].n; i++) {
        t.n_prompt = lists[BATCHED_PROMPT].values[i];
        for (size_t k = 0; k < lists[BATCHED_GENERATE].n; k++) {
            t.n_gen = lists[BATCHED_GENERATE].values[k];
            for (size_t n = 0; n < lists[BATCHED_PARALLEL].n; n++) {
                t.n_parallel = lists[BATCHED_PARALLEL].values[n];
                TRY(bench_measure(b, &t, err));
            }
        }
    }
    return 0;
}

/* All tests with one engine. */
static int measure_all(bench *b, const number_list lists[N_LISTS], int32_t n_threads, int32_t n_batch, weir_error *err) {
    const bool batched = lists[BATCHED_PARALLEL].n > 0;
    const int32_t n_prompt = largest(&lists[PROMPT]), n_gen = largest(&lists[GENERATE]);
    weir_engine_options options = {.n_threads = n_threads, .n_parallel = 1, .n_batch = n_batch,
                                   .cache_type_k = command_kv_type(b->s->cache_type_k), .cache_type_v = command_kv_type(b->s->cache_type_v)};
    options.n_ctx = 1 + largest(&lists[DEPTH]) + (n_prompt > n_gen ? n_prompt : n_gen);
    if (batched) {
        options.n_ctx = largest(&lists[BATCHED_PROMPT]) + largest(&lists[BATCHED_GENERATE]);
        options.n_parallel = largest(&lists[BATCHED_PARALLEL]);
    }
    TRY(engine_open(&b->e, b->model, &options, err));
    b->n_batch = engine_n_batch(b->e) < n_batch ? engine_n_batch(b->e) : n_batch;
    const bench_test t = {.n_threads = engine_n_threads(b->e), .n_batch = b->n_batch};
    const int result = batched ? measure_batched(b, lists, t, err) : measure_single(b, lists, t, err);
    engine_close(&b->e);
    return result;
}

static int measure_model(bench *b, const number_list lists[N_LISTS], weir_error *err) {
    for (size_t t = 0; t < lists[THREADS].n; t++) {
        const int32_t n_threads = lists[THREADS].values[t];
        limits of_threads;
        if (b->s->profile) {
            limits_buffer buffer = {0};
            TRY(limits_buffer_open(&buffer, err));
            const int result = limits_measure(b->model->ops, &buffer, n_threads, &of_threads, err);
            limits_buffer_close(&buffer);
            TRY(result);
            b->limits = &of_threads;
        }
        for (size_t i = 0; i < lists[BATCH].n; i++) TRY(measure_all(b, lists, n_threads, lists[BATCH].values[i], err));
    }
    return 0;
}

/* ---- the command ------------------------------------------------------------------------------------------------------ */

static int show_limits(const settings *s, const number_list *threads) {
    weir_error err = {0};
    limits_buffer buffer = {0};
    limits all[MAX_VALUES];
    const kern_ops *ops = kern_select();
    int result = limits_buffer_open(&buffer, &err);
    for (size_t i = 0; i < threads->n && result >= 0; i++)
        result = limits_measure(ops, &buffer, threads->values[i], &all[i], &err);
    limits_buffer_close(&buffer);
    if (result < 0) return command_failed(&err);
    bench_print_limits(s, ops, &buffer, all, threads->n);
    return command_write("", 0);
}

int command_bench(const settings *s) {
    if (s->model == NULL && !s->limits) return command_misused("bench needs --model FILE, or --limits");
    if (s->profile && strcmp(s->output, "csv") == 0)
        return command_misused("--profile has no CSV form; -o md, json and jsonl do");
    weir_error err = {0};
    number_list lists[N_LISTS] = {{.n = 0}};
    if (read_lists(s, lists, &err) < 0) {
        command_failed(&err);
        return EXIT_USAGE;
    }
    if (s->limits) return show_limits(s, &lists[THREADS]);
    weir_model *model = command_open_model(s, s->model, false);
    if (model == NULL) return EXIT_FAILED;
    bench b = {.s = s, .model = model, .info = weir_model_get_info(model), .random = 1};
    const int result = measure_model(&b, lists, &err);
    bench_print_end(&b);
    const int code = result < 0 ? command_failed(&err) : command_write("", 0);
    if (result >= 0) command_save_weights(s, model, NULL);
    weir_model_close(&model);
    return code;
}
