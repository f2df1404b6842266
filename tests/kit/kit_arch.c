/* Sub-folder arch: tiny models of many architectures with reference logits, token ids and greedy continuations.
 *
 * weir keeps keys and values in F16 and quantises activations to int8 where the weights are quantised, so the limits are those
 * that the folder's README derives for such an implementation: NMSE 1e-4 for floating point files, 1e-3 with expert routing, 3e-3
 * for quantised ones (against the nearer of both references), argmax where the reference's margin is above the noise. */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"
#include "kern/kern.h"
#include "kit.h"
#include "model/model.h"

typedef struct arch_case {
    kit_report *r;
    const char *name;
    weir_model *model;
    json_t *spec, *test;
    const float *reference, *exact; /* rows of logits; exact may be NULL */
    int32_t n_vocab;
    bool quantised, routed;
} arch_case;

static int32_t *int_array(const json_t *array, size_t *n) {
    *n = json_array_size(array);
    int32_t *out = malloc((*n + 1) * sizeof *out);
    for (size_t i = 0; out && i < *n; i++) out[i] = (int32_t)json_integer_value(json_array_get(array, i));
    return out;
}

static const char *text_of(const json_t *object, const char *key) {
    const char *s = json_string_value(json_object_get(object, key));
    return s ? s : "";
}

/* Sum of squared differences over sum of squares, both rows less their means. */
static double nmse(const float *reference, const float *x, int32_t n) {
    double mean_r = 0, mean_x = 0, error = 0, power = 0;
    for (int32_t i = 0; i < n; i++) {
        mean_r += (double)reference[i] / n;
        mean_x += (double)x[i] / n;
    }
    for (int32_t i = 0; i < n; i++) {
        double a = (double)reference[i] - mean_r, b = (double)x[i] - mean_x;
        error += (a - b) * (a - b);
        power += a * a;
    }
    return error / power;
}

/* Runs tokens in chunks of `chunk`; logits of every token into out. */
static int run_tokens(const arch_case *c, int32_t n_ctx, const int32_t *tokens, size_t n, int32_t chunk, int n_threads, float *out,
                      weir_error *err) {
    engine *e = NULL;
    engine_seq *seq = NULL;
    const weir_engine_options options = {.n_threads = n_threads, .n_ctx = n_ctx, .n_parallel = 1, .n_batch = chunk};
    int rc = engine_open(&e, c->model, &options, err);
    if (rc == 0) rc = engine_seq_open(e, (int32_t)n, &seq, err);
    for (size_t at = 0; rc == 0 && at < n; at += (size_t)chunk) {
        engine_item item = {.seq = seq, .tokens = tokens + at, .n_tok = (int32_t)(n - at < (size_t)chunk ? n - at : (size_t)chunk)};
        rc = engine_step_all(e, &item, out + at * (size_t)kern_pad16(c->n_vocab), err);
    }
    if (seq) engine_seq_close(e, &seq);
    engine_close(&e);
    return rc;
}

static void check_rows(const arch_case *c, const float *logits, size_t n_tokens) {
    size_t n_positions;
    int32_t *positions = int_array(json_object_get(c->test, "positions"), &n_positions);
    const size_t first = (size_t)json_integer_value(json_object_get(c->test, "first_row"));
    const double limit = c->quantised ? 3e-3 : c->routed ? 1e-3 : 1e-4;
    double worst = 0;
    size_t where = 0;
    for (size_t i = 0; i < n_positions; i++) {
        if ((size_t)positions[i] >= n_tokens) continue;
        const float *row = logits + (size_t)positions[i] * (size_t)kern_pad16(c->n_vocab);
        double error = nmse(c->reference + (first + i) * (size_t)c->n_vocab, row, c->n_vocab);
        if (c->exact) {
            double other = nmse(c->exact + (first + i) * (size_t)c->n_vocab, row, c->n_vocab);
            if (other < error) error = other;
        }
        if (!(error <= worst)) {
            worst = error;
            where = (size_t)positions[i];
        }
    }
    if (worst <= limit) kit_pass(c->r);
    else kit_fail(c->r, "%s/%s: NMSE %.2e at position %zu, limit %.0e", c->name, text_of(c->test, "name"), worst, where, limit);
    free(positions);
}

/* Teacher forcing: the reference's continuation is fed, and ours must agree wherever its margin is above the noise. */
static void check_greedy(const arch_case *c, const float *logits, size_t n_prompt) {
    const json_t *greedy = json_object_get(c->test, "greedy"), *ids = json_object_get(greedy, "ids");
    const json_t *margins = json_object_get(greedy, "margin");
    const double limit = c->quantised ? 0.5 : 0.05;
    for (size_t i = 0; i < json_array_size(ids); i++) {
        int32_t wanted = (int32_t)json_integer_value(json_array_get(ids, i));
        if (json_number_value(json_array_get(margins, i)) <= limit) continue;
        int32_t got = kit_argmax(logits + (n_prompt - 1 + i) * (size_t)kern_pad16(c->n_vocab), c->n_vocab);
        if (got != wanted) {
            kit_fail(c->r, "%s/%s: greedy token %zu is %d, expected %d", c->name, text_of(c->test, "name"), i, got, wanted);
            return;
        }
    }
    kit_pass(c->r);
}

static void run_case(arch_case *c) {
    size_t n_prompt, n_more;
    int32_t *tokens = int_array(json_object_get(c->test, "tokens"), &n_prompt);
    int32_t *more = int_array(json_object_get(json_object_get(c->test, "greedy"), "ids"), &n_more);
    int32_t n_ctx = (int32_t)json_integer_value(json_object_get(c->test, "n_ctx"));
    const size_t n = n_prompt + n_more, stride = (size_t)kern_pad16(c->n_vocab);
    float *whole = malloc(n * stride * sizeof(float)), *pieces = malloc(n * stride * sizeof(float));
    tokens = realloc(tokens, (n + 1) * sizeof *tokens);
    memcpy(tokens + n_prompt, more, n_more * sizeof *tokens);
    weir_error err = {0};
    if (run_tokens(c, n_ctx, tokens, n, 512, 1, whole, &err) != 0 || run_tokens(c, n_ctx, tokens, n, 7, 2, pieces, &err) != 0) {
        kit_fail(c->r, "%s/%s: %s: %s", c->name, text_of(c->test, "name"), err.place, err.message);
    } else {
        check_rows(c, whole, n_prompt);
        check_greedy(c, whole, n_prompt);
        if (memcmp(whole, pieces, n * stride * sizeof(float)) == 0) kit_pass(c->r);
        else kit_fail(c->r, "%s/%s: chunks of 7 on 2 threads differ from one chunk on 1", c->name, text_of(c->test, "name"));
    }
    free(tokens);
    free(more);
    free(whole);
    free(pieces);
}

/* Embedding models: rows are the states of all tokens and then the pooled one. One thread and two must agree to the bit. */
static void run_embedding(arch_case *c) {
    size_t n;
    int32_t *tokens = int_array(json_object_get(c->test, "tokens"), &n);
    const size_t d = (size_t)weir_model_get_info(c->model)->d_model, n_values = (n + 1) * d;
    const int32_t n_ctx = (int32_t)json_integer_value(json_object_get(c->test, "n_ctx"));
    const size_t first = (size_t)json_integer_value(json_object_get(c->test, "first_row"));
    const double limit = c->quantised ? 3e-3 : 1e-5;
    float *rows[2] = {malloc(n_values * sizeof(float)), malloc(n_values * sizeof(float))};
    weir_error err = {0};
    int rc = 0;
    for (int k = 0; k < 2 && rc == 0; k++) {
        engine *e = NULL;
        const weir_engine_options options = {.n_threads = k + 1, .n_ctx = n_ctx, .n_parallel = 1};
        rc = engine_open(&e, c->model, &options, &err);
        if (rc == 0) rc = engine_embed(e, tokens, (int32_t)n, ENGINE_POOLING_OF_MODEL, rows[k], rows[k] + n * d, &err);
        engine_close(&e);
    }
    double worst = 0;
    for (size_t i = 0; rc == 0 && i <= n; i++) {
        double error = nmse(c->reference + (first + i) * d, rows[0] + i * d, (int32_t)d);
        double other = c->exact ? nmse(c->exact + (first + i) * d, rows[0] + i * d, (int32_t)d) : error;
        if (other < error) error = other;
        if (!(error <= worst)) worst = error;
    }
    const char *name = text_of(c->test, "name");
    if (rc != 0) kit_fail(c->r, "%s/%s: %s: %s", c->name, name, err.place, err.message);
    else if (!(worst <= limit)) kit_fail(c->r, "%s/%s: NMSE %.2e, limit %.0e", c->name, name, worst, limit);
    else if (memcmp(rows[0], rows[1], n_values * sizeof(float)) != 0) kit_fail(c->r, "%s/%s: two threads differ from one", c->name, name);
    else kit_pass(c->r);
    free(tokens);
    free(rows[0]);
    free(rows[1]);
}

static void check_tokenize(const arch_case *c) {
    const json_t *item;
    size_t index;
    json_array_foreach(json_object_get(c->spec, "tokenize"), index, item) {
        const json_t *text = json_object_get(item, "text");
        size_t n_wanted;
        int32_t *wanted = int_array(json_object_get(item, "ids"), &n_wanted), got[512];
        int64_t n = weir_tokenize(c->model, json_string_value(text), json_string_length(text),
                                  json_is_true(json_object_get(item, "add_special")), json_is_true(json_object_get(item, "parse_special")),
                                  got, 512);
        if (n == (int64_t)n_wanted && memcmp(got, wanted, n_wanted * sizeof *wanted) == 0) kit_pass(c->r);
        else kit_fail(c->r, "%s: token ids of text %zu differ (%lld, expected %zu)", c->name, index, (long long)n, n_wanted);
        free(wanted);
    }
}

static bool has_only_floats(const json_t *types) {
    const json_t *type;
    size_t index;
    json_array_foreach(types, index, type) {
        const char *name = json_string_value(type);
        if (strcmp(name, "F32") != 0 && strcmp(name, "F16") != 0 && strcmp(name, "BF16") != 0) return false;
    }
    return true;
}

static void run_model(kit_report *r, const char *dir, json_t *spec) {
    if (!json_object_get(spec, "gguf")) return;
    arch_case c = {.r = r, .name = text_of(spec, "name"), .spec = spec};
    weir_error err = {0};
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", dir, text_of(spec, "gguf"));
    int rc = weir_model_open(&c.model, path, NULL, &err);
    if (rc == WEIR_E_UNSUPPORTED) {
        kit_skip(r, "%s: %s", c.name, err.message);
        return;
    }
    if (rc != 0) {
        kit_fail(r, "%s: %s: %s", c.name, err.place, err.message);
        return;
    }
    check_tokenize(&c);
    const char *exact_name = json_string_value(json_object_get(spec, "logits_exact"));
    char *reference = kit_read_file(kit_path(dir, "%s", text_of(spec, "logits")), NULL);
    char *exact = exact_name ? kit_read_file(kit_path(dir, "%s", exact_name), NULL) : NULL;
    c.reference = (const float *)reference;
    c.exact = (const float *)exact;
    c.n_vocab = weir_model_get_info(c.model)->n_vocab;
    c.quantised = !has_only_floats(json_object_get(spec, "tensor_types"));
    c.routed = strstr(c.name, "moe") != NULL || strstr(c.name, "mixtral") != NULL || strstr(c.name, "deepseek") != NULL;
    size_t index;
    const bool embedding = strcmp(text_of(spec, "kind"), "embedding") == 0;
    if (reference == NULL || (!embedding && json_integer_value(json_object_get(spec, "n_vocab")) != c.n_vocab)) {
        kit_fail(r, "%s: the reference logits are missing or the vocabulary is %d", c.name, c.n_vocab);
    } else {
        json_array_foreach(json_object_get(spec, "cases"), index, c.test) {
            if (embedding) run_embedding(&c);
            else run_case(&c);
        }
    }
    free(reference);
    free(exact);
    weir_model_close(&c.model);
}

void kit_run_arch(kit_report *r, const char *dir) { kit_each_json(r, dir, run_model); }
