/* weir bench: tokens per second of prompts (ppN) and answers (tgN), by the flags and row labels of llama-bench. It drives the
 * engine alone: no queue, no sampling, no text. Tokens are pseudo-random with a fixed seed. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/cpu.h"
#include "cli/commands.h"
#include "engine/engine.h"

enum { MAX_VALUES = 32 };

typedef struct number_list {
    int32_t values[MAX_VALUES];
    size_t n;
} number_list;

typedef struct test {
    int32_t n_prompt, n_gen, n_depth, n_threads, n_batch; /* one of n_prompt and n_gen is 0 */
} test;

typedef struct outcome {
    test t;
    char label[48], time[48];
    const double *us; /* [n] */
    size_t n;
    double mean_us, stddev_us, mean_speed, stddev_speed;
} outcome;

typedef struct bench {
    const settings *s;
    const weir_model *model;
    const weir_model_info *info;
    engine *e;
    engine_seq *seq;
    int32_t *tokens; /* [n_batch] */
    uint64_t random;
    int32_t n_batch;
    size_t n_rows; /* printed so far */
} bench;

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

/* splitmix64 (Steele, Lea, Flood 2014). */
static int32_t random_token(bench *b) {
    uint64_t z = b->random += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (int32_t)((z ^ (z >> 31)) % (uint64_t)b->info->n_vocab);
}

static int read_prompt(bench *b, int32_t n_tok, weir_error *err) {
    while (n_tok > 0) {
        int32_t n = n_tok < b->n_batch ? n_tok : b->n_batch;
        for (int32_t i = 0; i < n; i++) b->tokens[i] = random_token(b);
        n_tok -= n;
        engine_item item = {.seq = b->seq, .tokens = b->tokens, .n_tok = n, .want_logits = n_tok == 0};
        TRY(engine_step(b->e, &item, 1, NULL, NULL, err));
    }
    return 0;
}

static int generate(bench *b, int32_t n_tok, weir_error *err) {
    for (int32_t i = 0; i < n_tok; i++) {
        int32_t token = random_token(b);
        engine_item item = {.seq = b->seq, .tokens = &token, .n_tok = 1, .want_logits = true};
        TRY(engine_step(b->e, &item, 1, NULL, NULL, err));
    }
    return 0;
}

/* One run from the given depth; *us gets the time. */
static int run_once(bench *b, const test *t, double *us, weir_error *err) {
    engine_seq_truncate(b->seq, t->n_depth);
    int64_t begin = clock_now_us();
    TRY(t->n_prompt ? read_prompt(b, t->n_prompt, err) : generate(b, t->n_gen, err));
    *us = (double)(clock_now_us() - begin);
    return 0;
}

static void summarise(outcome *o) {
    double n = (double)o->n, n_tok = o->t.n_prompt + o->t.n_gen, square_us = 0, square_speed = 0;
    for (size_t i = 0; i < o->n; i++) {
        o->mean_us += o->us[i] / n;
        o->mean_speed += n_tok * 1e6 / o->us[i] / n;
    }
    for (size_t i = 0; i < o->n; i++) {
        square_us += pow(o->us[i] - o->mean_us, 2);
        square_speed += pow(n_tok * 1e6 / o->us[i] - o->mean_speed, 2);
    }
    if (o->n > 1) {
        o->stddev_us = sqrt(square_us / (n - 1));
        o->stddev_speed = sqrt(square_speed / (n - 1));
    }
    int at = snprintf(o->label, sizeof o->label, "%s%d", o->t.n_prompt ? "pp" : "tg", o->t.n_prompt + o->t.n_gen);
    if (o->t.n_depth) snprintf(o->label + at, sizeof o->label - (size_t)at, " @ d%d", o->t.n_depth);
}

/* ---- output ----------------------------------------------------------------------------------------------------------- */

static void print_markdown(bench *b, const outcome *o) {
    if (b->n_rows == 0) {
        printf("| %-30s | %10s | %10s | %-10s | %7s | %15s | %20s |\n", "model", "size", "params", "cpu", "threads", "test",
               "t/s");
        printf("| %.30s | %.9s: | %.9s: | %.10s | %.6s: | %.14s: | %.19s: |\n", "------------------------------", "---------",
               "---------", "----------", "------", "--------------", "-------------------");
    }
    char name[64], size[32], params[32], speed[64];
    snprintf(name, sizeof name, "%s %s", b->info->architecture, b->info->file_type);
    snprintf(size, sizeof size, "%.2f MiB", (double)b->info->weight_bytes / 1048576);
    snprintf(params, sizeof params, "%.2f M", (double)b->info->n_params / 1e6);
    snprintf(speed, sizeof speed, "%.2f ± %.2f", o->mean_speed, o->stddev_speed);
    /* One column more, since the sign takes two bytes. */
    printf("| %-30s | %10s | %10s | %-10s | %7d | %15s | %21s |\n", name, size, params, b->info->cpu_level, o->t.n_threads,
           o->label, speed);
}

static void put_escaped(const char *text, char quote) {
    putchar(quote);
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (quote && c < 0x20) {
            printf("\\u%04x", c);
            continue;
        }
        if (c == '"' || c == '\\') putchar('\\');
        putchar(c);
    }
    putchar(quote);
}

/* The members that llama-bench has, too, under its names. */
static void print_json(bench *b, const outcome *o, bool lines) {
    const char *gap = lines ? " " : "\n    ", *speed_format = "%s%.6f";
    if (!lines) fputs(b->n_rows ? ",\n  {" : "[\n  {", stdout);
    if (lines) putchar('{');
    printf("%s\"build_commit\": \"weir %s\",%s\"cpu_info\": \"%s\",%s\"model_filename\": ", lines ? "" : gap, WEIR_VERSION, gap,
           b->info->cpu_level, gap);
    put_escaped(b->info->path, '"');
    printf(",%s\"model_type\": \"%s %s\",%s\"model_size\": %" PRIu64 ",%s\"model_n_params\": %" PRIu64, gap,
           b->info->architecture, b->info->file_type, gap, b->info->weight_bytes, gap, b->info->n_params);
    printf(",%s\"n_batch\": %d,%s\"n_threads\": %d,%s\"n_prompt\": %d,%s\"n_gen\": %d,%s\"n_depth\": %d", gap, o->t.n_batch,
           gap, o->t.n_threads, gap, o->t.n_prompt, gap, o->t.n_gen, gap, o->t.n_depth);
    printf(",%s\"test\": \"%s\",%s\"test_time\": \"%s\",%s\"avg_ns\": %.0f,%s\"stddev_ns\": %.0f", gap, o->label, gap, o->time,
           gap, 1000 * o->mean_us, gap, 1000 * o->stddev_us);
    printf(",%s\"avg_ts\": %.6f,%s\"stddev_ts\": %.6f,%s\"samples_ns\": [", gap, o->mean_speed, gap, o->stddev_speed, gap);
    for (size_t i = 0; i < o->n; i++) printf("%s%.0f", i ? ", " : "", 1000 * o->us[i]);
    printf("],%s\"samples_ts\": [", gap);
    for (size_t i = 0; i < o->n; i++) printf(speed_format, i ? ", " : "", (o->t.n_prompt + o->t.n_gen) * 1e6 / o->us[i]);
    fputs(lines ? "]}\n" : "]\n  }", stdout);
}

static void print_csv(bench *b, const outcome *o) {
    if (b->n_rows == 0) {
        puts("build_commit,cpu_info,model_filename,model_type,model_size,model_n_params,n_batch,n_threads,n_prompt,n_gen,n_"
             "depth,"
             "test_time,avg_ns,stddev_ns,avg_ts,stddev_ts");
    }
    printf("\"weir %s\",\"%s\",\"", WEIR_VERSION, b->info->cpu_level);
    for (const char *c = b->info->path; *c; c++) printf(*c == '"' ? "\"\"" : "%c", *c);
    printf("\",\"%s %s\",\"%" PRIu64 "\",\"%" PRIu64
           "\",\"%d\",\"%d\",\"%d\",\"%d\",\"%d\",\"%s\",\"%.0f\",\"%.0f\",\"%.6f\",\"%.6f\"\n",
           b->info->architecture, b->info->file_type, b->info->weight_bytes, b->info->n_params, o->t.n_batch, o->t.n_threads,
           o->t.n_prompt, o->t.n_gen, o->t.n_depth, o->time, 1000 * o->mean_us, 1000 * o->stddev_us, o->mean_speed,
           o->stddev_speed);
}

static void print_outcome(bench *b, const outcome *o) {
    const char *format = b->s->output;
    if (strcmp(format, "md") == 0) print_markdown(b, o);
    if (strcmp(format, "csv") == 0) print_csv(b, o);
    if (format[0] == 'j') print_json(b, o, strcmp(format, "jsonl") == 0);
    fflush(stdout);
    b->n_rows++;
}

/* ---- running ---------------------------------------------------------------------------------------------------------- */

static int measure(bench *b, const test *t, weir_error *err) {
    outcome o = {.t = *t, .n = (size_t)b->s->repetitions};
    double *us = calloc(o.n, sizeof *us), warm;
    FAIL_IF(us == NULL, err, WEIR_E_NOMEM, "", "no memory for the figures");
    o.us = us;
    clock_rfc3339(o.time, sizeof o.time, 0, "Z");
    int result = engine_seq_open(b->e, t->n_depth + t->n_prompt + t->n_gen, &b->seq, err);
    if (result >= 0) result = read_prompt(b, t->n_depth, err);
    if (result >= 0 && !b->s->no_warmup) {
        test shorter = *t;
        if (shorter.n_gen > 8) shorter.n_gen = 8;
        result = run_once(b, &shorter, &warm, err);
    }
    for (size_t i = 0; i < o.n && result >= 0; i++) result = run_once(b, t, &us[i], err);
    engine_seq_close(b->e, &b->seq);
    if (result >= 0) {
        summarise(&o);
        print_outcome(b, &o);
    }
    free(us);
    return result;
}

static int measure_all(bench *b, const number_list lists[5], int32_t n_threads, int32_t n_batch, weir_error *err) {
    enum { PROMPT, GENERATE, DEPTH };
    int32_t longest = 1;
    for (int kind = PROMPT; kind <= GENERATE; kind++) {
        for (size_t i = 0; i < lists[kind].n; i++) {
            for (size_t d = 0; d < lists[DEPTH].n; d++) {
                int32_t n = lists[kind].values[i] + lists[DEPTH].values[d];
                longest = n > longest ? n : longest;
            }
        }
    }
    weir_engine_options options = {.n_threads = n_threads, .n_ctx = longest, .n_parallel = 1, .n_batch = n_batch};
    TRY(engine_open(&b->e, b->model, &options, err));
    b->n_batch = engine_n_batch(b->e) < n_batch ? engine_n_batch(b->e) : n_batch;
    b->tokens = calloc((size_t)b->n_batch, sizeof *b->tokens);
    int result = b->tokens ? 0 : error_set(err, WEIR_E_NOMEM, "", "no memory for the tokens");
    for (size_t d = 0; d < lists[DEPTH].n && result >= 0; d++) {
        for (int kind = PROMPT; kind <= GENERATE; kind++) {
            for (size_t i = 0; i < lists[kind].n && result >= 0; i++) {
                int32_t n = lists[kind].values[i];
                test t = {.n_prompt = kind == PROMPT ? n : 0,
                          .n_gen = kind == GENERATE ? n : 0,
                          .n_depth = lists[DEPTH].values[d],
                          .n_threads = engine_n_threads(b->e),
                          .n_batch = b->n_batch};
                if (n) result = measure(b, &t, err);
            }
        }
    }
    free(b->tokens);
    engine_close(&b->e);
    return result;
}

int command_bench(const settings *s) {
    if (s->model == NULL) return command_misused("bench needs --model FILE");
    weir_error err = {0};
    number_list lists[5] = {{.n = 0}};
    const struct {
        const char *option, *text;
        int32_t min;
    } sources[5] = {{"--n-prompt", s->bench_prompt, 0},
                    {"--n-gen", s->bench_generate, 0},
                    {"--n-depth", s->bench_depth, 0},
                    {"--threads", s->bench_threads, 0},
                    {"--batch-size", s->bench_batch, 1}};
    for (int i = 0; i < 5; i++) {
        if (read_list(sources[i].option, sources[i].text, sources[i].min, &lists[i], &err) < 0) {
            command_failed(&err);
            return EXIT_USAGE;
        }
    }
    weir_model *model = command_open_model(s, s->model, false);
    if (model == NULL) return EXIT_FAILED;
    bench b = {.s = s, .model = model, .info = weir_model_get_info(model), .random = 1};
    int result = 0;
    for (size_t t = 0; t < lists[3].n && result >= 0; t++) {
        int32_t n_threads = lists[3].values[t] ? lists[3].values[t] : cpu_count_available();
        for (size_t i = 0; i < lists[4].n && result >= 0; i++) {
            result = measure_all(&b, lists, n_threads, lists[4].values[i], &err);
        }
    }
    if (strcmp(s->output, "json") == 0) puts(b.n_rows ? "\n]" : "[]");
    int code = result < 0 ? command_failed(&err) : command_write("", 0);
    weir_model_close(&model);
    return code;
}
