/* weir perplexity: how well a model predicts a text. The text is cut into chunks of --ctx-size tokens, the first of each being
 * BOS where the model adds one; each chunk is read from an empty context; a last partial chunk is dropped. The mean negative
 * log likelihood runs over ids 1.. of all chunks, in nats; perplexity is its exponential. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/commands.h"
#include "engine/engine.h"

enum { STEP = 64 }; /* tokens whose logits are held at a time */

typedef struct evaluation {
    engine *e;
    int32_t n_vocab;
    float *logits; /* [STEP][n_vocab rounded up to 16] */
    double sum, sum_squares;
    size_t n;
} evaluation;

/* -log softmax(logits)[token], summed in double. */
static double negative_log_likelihood(const float *logits, int32_t n_vocab, int32_t token) {
    float highest = logits[0];
    for (int32_t i = 1; i < n_vocab; i++) highest = logits[i] > highest ? logits[i] : highest;
    double sum = 0;
    for (int32_t i = 0; i < n_vocab; i++) sum += exp((double)logits[i] - highest);
    return log(sum) + highest - logits[token];
}

static int evaluate_chunk(evaluation *v, const int32_t *chunk, int32_t n_tok, weir_error *err) {
    engine_seq *seq = NULL;
    size_t stride = ((size_t)v->n_vocab + 15) / 16 * 16;
    TRY(engine_seq_open(v->e, n_tok, &seq, err));
    int result = 0;
    for (int32_t at = 0; at < n_tok - 1 && result >= 0; at += STEP) {
        int32_t n = n_tok - at < STEP ? n_tok - at : STEP;
        engine_item item = {.seq = seq, .tokens = chunk + at, .n_tok = n};
        result = engine_step_all(v->e, &item, v->logits, err);
        for (int32_t i = 0; i < n && at + i + 1 < n_tok && result >= 0; i++) {
            double nll = negative_log_likelihood(v->logits + (size_t)i * stride, v->n_vocab, chunk[at + i + 1]);
            v->sum += nll;
            v->sum_squares += nll * nll;
            v->n++;
        }
    }
    engine_seq_close(v->e, &seq);
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

static int print_result(const settings *s, const evaluation *v) {
    double mean = v->sum / (double)v->n, variance = v->sum_squares / (double)v->n - mean * mean;
    double error = v->n > 1 && variance > 0 ? sqrt(variance / (double)(v->n - 1)) : 0;
    char text[256];
    int n = s->json
                ? snprintf(text, sizeof text,
                           "{\"tokens\": %zu, \"mean_nll\": %.7f, \"perplexity\": %.5f, \"perplexity_error\": %.5f}\n", v->n,
                           mean, exp(mean), error * exp(mean))
                : snprintf(text, sizeof text, "Perplexity %.4f +/- %.4f (mean negative log likelihood %.6f over %zu tokens)\n",
                           exp(mean), error * exp(mean), mean, v->n);
    return command_write(text, (size_t)n);
}

int command_perplexity(const settings *s) {
    const char *path = s->file ? s->file : s->n_arguments ? s->arguments[0] : NULL;
    if (s->model == NULL || path == NULL) return command_misused("perplexity needs --model FILE and --file FILE");
    weir_error err = {0};
    evaluation v = {0};
    buf text = BUF_INIT;
    int32_t *tokens = NULL;
    int code = EXIT_FAILED;
    weir_model *model = command_open_model(s, s->model, false);
    if (model == NULL) return EXIT_FAILED;
    int64_t n = command_read_file(path, &text, &err);
    if (n < 0) goto failed;
    n = weir_tokenize(model, text.data ? text.data : "", text.n_bytes, false, false, NULL, 0);
    v.n_vocab = weir_model_get_info(model)->n_vocab;
    tokens = n < 0 ? NULL : calloc((size_t)n + 1, sizeof *tokens);
    v.logits = malloc(((size_t)v.n_vocab + 16) * STEP * sizeof *v.logits);
    if (tokens == NULL || v.logits == NULL) {
        error_set(&err, WEIR_E_NOMEM, "", "no memory for the logits");
        goto failed;
    }
    n = weir_tokenize(model, text.data ? text.data : "", text.n_bytes, false, false, tokens, (size_t)n);
    weir_engine_options options = {
        .n_threads = (int32_t)s->threads, .n_ctx = (int32_t)s->ctx_size, .n_parallel = 1, .n_batch = STEP};
    if (engine_open(&v.e, model, &options, &err) < 0 || evaluate(s, &v, model, tokens, (size_t)n, &err) < 0) goto failed;
    code = print_result(s, &v);
    command_save_weights(s, model, NULL);
    goto done;
failed:
    command_failed(&err);
done:
    free(v.logits);
    free(tokens);
    buf_free(&text);
    engine_close(&v.e);
    weir_model_close(&model);
    return code;
}
