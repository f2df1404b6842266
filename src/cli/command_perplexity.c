/* weir perplexity: how well a model predicts a text. The text is cut into chunks of --ctx-size tokens, the first of each being
 * BOS where the model adds one; each chunk is read from an empty context; a last partial chunk is dropped. The mean negative
 * log likelihood runs over ids 1.. of all chunks, in nats; perplexity is its exponential. With --reference a second model reads
 * the same tokens: its distribution P and the model's Q give the mean Kullback-Leibler divergence sum P log(P/Q), in nats, and
 * how often both find the same token the most likely; and the ratio of both perplexities, whose standard error is that of the
 * mean difference of the log likelihoods of each token: much smaller than those of the perplexities, as both read the same text. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/commands.h"
#include "engine/engine.h"

enum { STEP = 64 }; /* tokens whose logits are held at a time */

typedef struct evaluation {
    engine *e, *reference; /* reference: or NULL */
    int32_t n_vocab;
    float *logits, *reference_logits; /* [STEP][n_vocab rounded up to 16] */
    double sum, sum_squares;
    double sum_divergence, sum_difference, sum_square_differences; /* of the negative log likelihoods, less the reference's */
    size_t n, n_same;
} evaluation;

static int32_t most_likely(const float *logits, int32_t n_vocab) {
    int32_t best = 0;
    for (int32_t i = 1; i < n_vocab; i++) best = logits[i] > logits[best] ? i : best;
    return best;
}

/* log sum_i exp(logits[i]), summed in double. */
static double log_sum(const float *logits, int32_t n_vocab) {
    double sum = 0, highest = logits[most_likely(logits, n_vocab)];
    for (int32_t i = 0; i < n_vocab; i++) sum += exp(logits[i] - highest);
    return log(sum) + highest;
}

/* sum P log(P/Q) of the distributions of two rows of logits, whose log sums are given. */
static double divergence(const float *p, double log_sum_p, const float *q, double log_sum_q, int32_t n_vocab) {
    double sum = 0;
    for (int32_t i = 0; i < n_vocab; i++) {
        double log_p = p[i] - log_sum_p;
        sum += exp(log_p) * (log_p - (q[i] - log_sum_q));
    }
    return sum;
}

/* One position, whose next token is `token`. */
static void count_position(evaluation *v, const float *logits, const float *reference, int32_t token) {
    double sum = log_sum(logits, v->n_vocab), nll = sum - logits[token];
    v->sum += nll;
    v->sum_squares += nll * nll;
    v->n++;
    if (reference == NULL) return;
    const double reference_sum = log_sum(reference, v->n_vocab), difference = nll - (reference_sum - reference[token]);
    v->sum_divergence += divergence(reference, reference_sum, logits, sum, v->n_vocab);
    v->sum_difference += difference;
    v->sum_square_differences += difference * difference;
    v->n_same += most_likely(logits, v->n_vocab) == most_likely(reference, v->n_vocab);
}

static int evaluate_chunk(evaluation *v, const int32_t *chunk, int32_t n_tok, weir_error *err) {
    engine_seq *seq = NULL, *reference = NULL;
    size_t stride = ((size_t)v->n_vocab + 15) / 16 * 16;
    int result = engine_seq_open(v->e, n_tok, &seq, err);
    if (result >= 0 && v->reference) result = engine_seq_open(v->reference, n_tok, &reference, err);
    for (int32_t at = 0; at < n_tok - 1 && result >= 0; at += STEP) {
        int32_t n = n_tok - at < STEP ? n_tok - at : STEP;
        engine_item item = {.seq = seq, .tokens = chunk + at, .n_tok = n};
        result = engine_step_all(v->e, &item, v->logits, err);
        item.seq = reference;
        if (result >= 0 && reference) result = engine_step_all(v->reference, &item, v->reference_logits, err);
        for (int32_t i = 0; i < n && at + i + 1 < n_tok && result >= 0; i++) {
            const float *of_reference = reference ? v->reference_logits + (size_t)i * stride : NULL;
            count_position(v, v->logits + (size_t)i * stride, of_reference, chunk[at + i + 1]);
        }
    }
    engine_seq_close(v->e, &seq);
    if (reference) engine_seq_close(v->reference, &reference);
    return result;
}

static int evaluate(const settings *s, evaluation *v, const weir_model *model, const int32_t *tokens, size_t n,
                    weir_error *err) {
    size_t n_chunk = (size_t)s->ctx_size, taken = n_chunk - weir_model_adds_bos(model), n_chunks = n / taken;
    FAIL_IF(n_chunks == 0, err, WEIR_E_INVALID, "--file", "the text has %zu tokens, fewer than one chunk of %zu", n, taken);
    int32_t *chunk = malloc(n_chunk * sizeof *chunk);
    FAIL_IF(chunk == NULL, err, WEIR_E_NOMEM, "", "no memory for a chunk");
    int result = 0;
    for (size_t i = 0; i < n_chunks && result >= 0; i++) {
        if (taken < n_chunk) chunk[0] = weir_token_bos(model);
        memcpy(chunk + (n_chunk - taken), tokens + i * taken, taken * sizeof *chunk);
        result = evaluate_chunk(v, chunk, (int32_t)n_chunk, err);
        if (result >= 0 && !s->json && !s->quiet) {
            fprintf(stderr, "[%zu/%zu] %.4f\n", i + 1, n_chunks, exp(v->sum / (double)v->n));
        }
    }
    free(chunk);
    return result;
}

/* The standard error of the mean of n values. */
static double error_of_mean(double sum, double sum_squares, size_t n) {
    const double mean = sum / (double)n, variance = sum_squares / (double)n - mean * mean;
    return n > 1 && variance > 0 ? sqrt(variance / (double)(n - 1)) : 0;
}

static int print_result(const settings *s, const evaluation *v) {
    double n = (double)v->n, mean = v->sum / n, error = error_of_mean(v->sum, v->sum_squares, v->n);
    double ratio = exp(v->sum_difference / n), ratio_error = ratio * error_of_mean(v->sum_difference, v->sum_square_differences, v->n);
    buf out = BUF_INIT;
    if (s->json) {
        buf_printf(&out, "{\"tokens\": %zu, \"mean_nll\": %.7f, \"perplexity\": %.5f, \"perplexity_error\": %.5f", v->n, mean,
                   exp(mean), error * exp(mean));
        if (v->reference) {
            buf_printf(&out, ", \"mean_kl_divergence\": %.7f, \"same_top_token\": %.6f, \"ratio\": %.6f, \"ratio_error\": %.6f",
                       v->sum_divergence / n, (double)v->n_same / n, ratio, ratio_error);
        }
        buf_puts(&out, "}\n");
    } else {
        buf_printf(&out, "Perplexity %.4f +/- %.4f (mean negative log likelihood %.6f over %zu tokens)\n", exp(mean),
                   error * exp(mean), mean, v->n);
        if (v->reference) {
            buf_printf(&out, "Mean KL divergence from the reference %.6f; same most likely token %.2f %%; perplexity %.4f +/- %.4f times the "
                             "reference's\n",
                       v->sum_divergence / n, 100 * (double)v->n_same / n, ratio, ratio_error);
        }
    }
    int code = out.failed ? EXIT_FAILED : command_write(out.data, out.n_bytes);
    buf_free(&out);
    return code;
}

/* Opens the engines and makes room for the logits. */
static int prepare(const settings *s, evaluation *v, const weir_model *model, const weir_model *reference, weir_error *err) {
    v->n_vocab = weir_model_get_info(model)->n_vocab;
    FAIL_IF(reference && weir_model_get_info(reference)->n_vocab != v->n_vocab, err, WEIR_E_INVALID, "--reference",
            "a vocabulary of %d tokens; the model has %d", weir_model_get_info(reference)->n_vocab, v->n_vocab);
    size_t n_bytes = ((size_t)v->n_vocab + 16) * STEP * sizeof *v->logits;
    v->logits = malloc(n_bytes);
    v->reference_logits = reference ? malloc(n_bytes) : NULL;
    FAIL_IF(v->logits == NULL || (reference && v->reference_logits == NULL), err, WEIR_E_NOMEM, "", "no memory for the logits");
    weir_engine_options options = {
        .n_threads = (int32_t)s->threads, .n_ctx = (int32_t)s->ctx_size, .n_parallel = 1, .n_batch = STEP};
    weir_engine_options of_model = options;
    of_model.cache_type_k = command_kv_type(s->cache_type_k);
    of_model.cache_type_v = command_kv_type(s->cache_type_v);
    TRY(engine_open(&v->e, model, &of_model, err));
    return reference ? engine_open(&v->reference, reference, &options, err) : 0;
}

/* The tokens of the file, in an array that the caller frees, also after failure. */
static int64_t read_tokens(const char *path, const weir_model *model, int32_t **tokens, weir_error *err) {
    buf text = BUF_INIT;
    int64_t n = command_read_file(path, &text, err);
    const char *bytes = text.data ? text.data : "";
    if (n >= 0) n = weir_tokenize(model, bytes, text.n_bytes, false, false, NULL, 0);
    *tokens = n < 0 ? NULL : calloc((size_t)n + 1, sizeof **tokens);
    if (*tokens) {
        n = weir_tokenize(model, bytes, text.n_bytes, false, false, *tokens, (size_t)n);
    } else if (n >= 0) {
        n = error_set(err, WEIR_E_NOMEM, path, "no memory for its tokens");
    }
    buf_free(&text);
    return n;
}

int command_perplexity(const settings *s) {
    const char *path = s->file ? s->file : s->n_arguments ? s->arguments[0] : NULL;
    if (s->model == NULL || path == NULL) return command_misused("perplexity needs --model FILE and --file FILE");
    weir_error err = {0};
    evaluation v = {0};
    int32_t *tokens = NULL;
    int code = EXIT_FAILED;
    weir_model *model = command_open_model(s, s->model, false), *reference = NULL;
    if (model && s->reference) reference = command_open_model(s, s->reference, false);
    if (model == NULL || (s->reference && reference == NULL)) goto done;
    int64_t n = read_tokens(path, model, &tokens, &err);
    if (n < 0 || prepare(s, &v, model, reference, &err) < 0 || evaluate(s, &v, model, tokens, (size_t)n, &err) < 0) {
        command_failed(&err);
    } else {
        code = print_result(s, &v);
        command_save_weights(s, model, NULL);
    }
done:
    free(v.logits);
    free(v.reference_logits);
    free(tokens);
    engine_close(&v.e);
    engine_close(&v.reference);
    weir_model_close(&reference);
    weir_model_close(&model);
    return code;
}
