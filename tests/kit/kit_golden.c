/* Sub-folder golden: log probabilities, greedy continuations and perplexity of real models, whose files lie in the folder that
 * the environment variable WEIR_MODELS names.
 *
 * weir quantises activations and keeps keys and values in F16; the folder's README derives for such an implementation, against
 * the reference or the exact run: mean top-1 log probability difference up to 0.12, 99th percentile up to 0.6, top-1 agreement
 * of at least 92 %, mean negative log-likelihood within 1 %, greedy tokens equal where the margin is above 1. */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "engine/engine.h"
#include "kern/kern.h"
#include "kit.h"
#include "model/model.h"

enum { CHUNK = 128, MAX_SAMPLES = 100000 };

typedef struct distances {
    size_t n, n_agree;
    double *top1; /* |difference| of the best token's log probability */
} distances;

typedef struct golden {
    kit_report *r;
    const char *name;
    weir_model *model;
    engine *e;
    int32_t n_vocab;
    float *logits; /* [CHUNK][n_vocab padded] */
    distances to_reference, to_exact;
} golden;

static double log_sum_exp(const float *x, int32_t n) {
    float largest = x[0];
    for (int32_t i = 1; i < n; i++) largest = x[i] > largest ? x[i] : largest;
    double sum = 0;
    for (int32_t i = 0; i < n; i++) sum += exp((double)(x[i] - largest));
    return (double)largest + log(sum);
}

typedef void (*visit_fn)(golden *g, void *user, size_t position, const float *logits);

/* Runs tokens from an empty context and visits the logits after each. */
static bool run_tokens(golden *g, const int32_t *tokens, size_t n, visit_fn visit, void *user) {
    weir_error err = {0};
    engine_seq *seq = NULL;
    int rc = engine_seq_open(g->e, (int32_t)n, &seq, &err);
    for (size_t at = 0; rc == 0 && at < n; at += CHUNK) {
        engine_item item = {.seq = seq, .tokens = tokens + at, .n_tok = (int32_t)(n - at < CHUNK ? n - at : CHUNK)};
        rc = engine_step_all(g->e, &item, g->logits, &err);
        for (int32_t i = 0; rc == 0 && i < item.n_tok; i++)
            visit(g, user, at + (size_t)i, g->logits + (size_t)i * (size_t)kern_pad16(g->n_vocab));
    }
    if (seq) engine_seq_close(g->e, &seq);
    if (rc != 0) kit_fail(g->r, "%s: %s", g->name, err.message);
    return rc == 0;
}

static void compare_top(golden *g, distances *d, const json_t *row, const float *logits) {
    const int32_t best = (int32_t)json_integer_value(json_array_get(json_object_get(row, "ids"), 0));
    const double wanted = json_number_value(json_array_get(json_object_get(row, "logprobs"), 0));
    if (d->n == MAX_SAMPLES) return;
    d->top1[d->n++] = fabs((double)logits[best] - log_sum_exp(logits, g->n_vocab) - wanted);
    d->n_agree += kit_argmax(logits, g->n_vocab) == best;
}

typedef struct prompt_run {
    const json_t *prompt;
    size_t n_prompt, n_wrong, n_checked;
} prompt_run;

static const json_t *row_at(const json_t *rows, size_t position) {
    const json_t *row;
    size_t index;
    json_array_foreach(rows, index, row) {
        if ((size_t)json_integer_value(json_object_get(row, "pos")) == position) return row;
    }
    return NULL;
}

static void visit_prompt(golden *g, void *user, size_t position, const float *logits) {
    prompt_run *p = user;
    const json_t *row = row_at(json_object_get(p->prompt, "topk"), position);
    const json_t *exact = row_at(json_object_get(json_object_get(p->prompt, "exact"), "topk"), position);
    if (row) compare_top(g, &g->to_reference, row, logits);
    if (exact) compare_top(g, &g->to_exact, exact, logits);
    if (position + 1 < p->n_prompt) return;
    const json_t *greedy = json_object_get(p->prompt, "greedy");
    const size_t i = position + 1 - p->n_prompt;
    if (i >= json_array_size(json_object_get(greedy, "ids"))) return;
    if (json_number_value(json_array_get(json_object_get(greedy, "margin"), i)) <= 1.0) return;
    p->n_checked++;
    p->n_wrong += kit_argmax(logits, g->n_vocab) != json_integer_value(json_array_get(json_object_get(greedy, "ids"), i));
}

static void run_prompt(golden *g, const json_t *prompt) {
    const json_t *ids = json_object_get(prompt, "tokens"), *more = json_object_get(json_object_get(prompt, "greedy"), "ids");
    const json_t *text = json_object_get(prompt, "text");
    const char *name = json_string_value(json_object_get(prompt, "name"));
    prompt_run p = {.prompt = prompt, .n_prompt = json_array_size(ids)};
    const size_t n = p.n_prompt + json_array_size(more);
    int32_t *tokens = malloc(n * sizeof *tokens), *own = malloc((n + 16) * sizeof *own);
    for (size_t i = 0; i < n; i++)
        tokens[i] = (int32_t)json_integer_value(i < p.n_prompt ? json_array_get(ids, i) : json_array_get(more, i - p.n_prompt));
    int64_t n_own = weir_tokenize(g->model, json_string_value(text), json_string_length(text), true, true, own, n + 16);
    if (n_own == (int64_t)p.n_prompt && memcmp(own, tokens, p.n_prompt * sizeof *own) == 0) kit_pass(g->r);
    else kit_fail(g->r, "%s/%s: the prompt's token ids differ", g->name, name);
    if (run_tokens(g, tokens, n, visit_prompt, &p)) {
        if (p.n_wrong == 0) kit_pass(g->r);
        else kit_fail(g->r, "%s/%s: %zu of %zu greedy tokens with a margin above 1 differ", g->name, name, p.n_wrong, p.n_checked);
    }
    free(tokens);
    free(own);
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static bool within(const distances *d, double *mean, double *p99, double *agree) {
    double sum = 0;
    if (d->n == 0) return false;
    qsort(d->top1, d->n, sizeof *d->top1, by_value);
    for (size_t i = 0; i < d->n; i++) sum += d->top1[i];
    *mean = sum / (double)d->n;
    *p99 = d->top1[(d->n - 1) * 99 / 100];
    *agree = (double)d->n_agree / (double)d->n;
    return *mean <= 0.12 && *p99 <= 0.6 && *agree >= 0.92;
}

static void check_distances(golden *g) {
    double mean[2] = {0}, p99[2] = {0}, agree[2] = {0};
    bool reference = within(&g->to_reference, &mean[0], &p99[0], &agree[0]), exact = within(&g->to_exact, &mean[1], &p99[1], &agree[1]);
    printf("golden %s: top-1 log probability off by mean %.4f, p99 %.4f (reference), %.4f, %.4f (exact); top-1 agreement %.1f %%, %.1f %%\n",
           g->name, mean[0], p99[0], mean[1], p99[1], agree[0] * 100, agree[1] * 100);
    if (reference || exact) kit_pass(g->r);
    else kit_fail(g->r, "%s: log probabilities are outside the tolerances", g->name);
}

typedef struct nll_run {
    const int32_t *tokens;
    size_t n;
    double sum;
} nll_run;

static void visit_nll(golden *g, void *user, size_t position, const float *logits) {
    nll_run *p = user;
    if (position + 1 < p->n) p->sum += log_sum_exp(logits, g->n_vocab) - (double)logits[p->tokens[position + 1]];
}

static void check_perplexity(golden *g, const json_t *perplexity) {
    const json_t *chunk, *chunks = json_object_get(perplexity, "chunks");
    size_t index, count = 0;
    double total = 0;
    json_array_foreach(chunks, index, chunk) {
        const size_t n = json_array_size(chunk);
        int32_t *tokens = malloc(n * sizeof *tokens);
        for (size_t i = 0; i < n; i++) tokens[i] = (int32_t)json_integer_value(json_array_get(chunk, i));
        nll_run p = {.tokens = tokens, .n = n};
        if (!run_tokens(g, tokens, n, visit_nll, &p)) return;
        total += p.sum;
        count += n - 1;
        free(tokens);
    }
    const double mean = total / (double)count, reference = json_number_value(json_object_get(perplexity, "mean_nll"));
    const double exact = json_number_value(json_object_get(json_object_get(perplexity, "exact"), "mean_nll"));
    printf("golden %s: mean NLL %.4f (reference %.4f, exact %.4f, llama.cpp's defaults %.4f)\n", g->name, mean, reference, exact,
           json_number_value(json_object_get(perplexity, "llamacpp_default_mean_nll")));
    if (fabs(mean - reference) <= 0.01 * reference || fabs(mean - exact) <= 0.01 * exact) kit_pass(g->r);
    else kit_fail(g->r, "%s: mean NLL %.4f is not within 1 %% of %.4f or %.4f", g->name, mean, reference, exact);
}

static void run_model(kit_report *r, const json_t *spec, const char *path) {
    golden g = {.r = r, .name = json_string_value(json_object_get(spec, "model_file"))};
    weir_error err = {0};
    const json_t *prompt;
    size_t index;
    const weir_engine_options options = {.n_ctx = 2048, .n_parallel = 1, .n_batch = CHUNK};
    if (weir_model_open(&g.model, path, NULL, &err) != 0 || engine_open(&g.e, g.model, &options, &err) != 0) {
        kit_fail(r, "%s: %s: %s", g.name, err.place, err.message);
    } else {
        g.n_vocab = weir_model_get_info(g.model)->n_vocab;
        g.logits = malloc(sizeof(float) * CHUNK * (size_t)kern_pad16(g.n_vocab));
        g.to_reference.top1 = malloc(sizeof(double) * MAX_SAMPLES);
        g.to_exact.top1 = malloc(sizeof(double) * MAX_SAMPLES);
        json_array_foreach(json_object_get(spec, "prompts"), index, prompt) run_prompt(&g, prompt);
        check_distances(&g);
        check_perplexity(&g, json_object_get(spec, "perplexity"));
        free(g.logits);
        free(g.to_reference.top1);
        free(g.to_exact.top1);
    }
    engine_close(&g.e);
    weir_model_close(&g.model);
}

static void run_document(kit_report *r, const char *dir, json_t *spec) {
    const char *models = getenv("WEIR_MODELS"), *file = json_string_value(json_object_get(spec, "model_file"));
    struct stat st;
    char path[2048];
    (void)dir;
    if (file == NULL) return;
    snprintf(path, sizeof path, "%s/%s", models ? models : "", file);
    if (models == NULL || stat(path, &st) != 0) kit_skip(r, "%s is not in the folder that WEIR_MODELS names", file);
    else run_model(r, spec, path);
}

void kit_run_golden(kit_report *r, const char *dir) { kit_each_json(r, dir, run_document); }
