/* The engine over tiny models: the same request gives the same bits whatever the threads, the chunking and the company, on every
 * instruction-set level; steps are abandoned and refused without harm; pages come back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "engine/engine.h"
#include "kern/kern.h"
#include "fault/tiny_model.h"

enum { N_PROMPTS = 20, N_CTX = 700, MAX_PROMPT = 600, N_GENERATED = 6, N_OTHERS = 16 };

static const char *const levels[] = {"reference", "avx2", "avx512"};
static char model_path[] = "/tmp/weir-test-engine-XXXXXX";

/* A tiny llama model, some of its matrices in quantised formats so that every kind of kernel takes part. */
static int make_model(void **state) {
    (void)state;
    static const struct {
        const char *name;
        quant_type type;
    } quantised[] = {{"blk.0.attn_q.weight", QUANT_Q4_0}, {"blk.0.attn_k.weight", QUANT_Q8_0},   {"blk.0.ffn_up.weight", QUANT_Q5_1},
                     {"blk.0.ffn_gate.weight", QUANT_Q4_1}, {"blk.1.ffn_down.weight", QUANT_Q5_0}, {"blk.1.attn_output.weight", QUANT_F16}};
    gguf_builder b;
    const gguf_builder_llama_shape shape = {.n_layer = 2, .d_model = 64, .n_head = 4, .n_head_kv = 2, .d_ff = 128, .n_ctx = 1024};
    gguf_builder_init(&b);
    gguf_builder_llama(&b, &shape);
    for (size_t i = 0; i < sizeof quantised / sizeof quantised[0]; i++) gguf_builder_quantise(&b, quantised[i].name, quantised[i].type);
    int fd = mkstemp(model_path);
    assert_true(fd >= 0);
    close(fd);
    assert_true(gguf_builder_write(&b, model_path));
    gguf_builder_free(&b);
    return 0;
}

static int remove_model(void **state) {
    (void)state;
    unsetenv("WEIR_CPU_LEVEL");
    return unlink(model_path);
}

static weir_model *open_model(const char *level) { return tiny_model_open(model_path, level); }

enum { KV_BYTES = 64 << 20 };

static engine *open_engine_of(weir_model *m, int32_t n_threads, int32_t n_batch, weir_kv_type k, weir_kv_type v) {
    engine *e = NULL;
    weir_error err = {0};
    const weir_engine_options options = {.n_threads = n_threads, .n_ctx = N_CTX, .n_parallel = N_OTHERS + 1, .n_batch = n_batch,
                                         .kv_cache_bytes = KV_BYTES, .cache_type_k = k, .cache_type_v = v};
    if (engine_open(&e, m, &options, &err) != 0) fail_msg("%s: %s", err.place, err.message);
    return e;
}
static engine *open_engine(weir_model *m, int32_t n_threads, int32_t n_batch) {
    return open_engine_of(m, n_threads, n_batch, WEIR_KV_F16, WEIR_KV_F16);
}

static int32_t prompt_length(int p) { return p == 0 ? 1 : p == 1 ? 2 : p == 19 ? MAX_PROMPT : 3 + p * p % 97; }

static void make_prompt(int p, int32_t *tokens, int32_t n_vocab) {
    uint32_t x = (uint32_t)p * 2654435761u + 12345u;
    for (int32_t i = 0; i < prompt_length(p); i++) tokens[i] = (int32_t)((x = x * 1664525u + 1013904223u) >> 8) % n_vocab;
}

/* A sequence of other requests that keeps decoding beside the one that is watched. */
typedef struct company {
    engine_seq *seqs[N_OTHERS];
    int32_t next[N_OTHERS];
    int n;
} company;

static void company_open(company *c, engine *e, int n) {
    c->n = n;
    for (int i = 0; i < n; i++) {
        assert_int_equal(engine_seq_open(e, N_CTX, &c->seqs[i], NULL), 0);
        c->next[i] = i * 7 % 200;
    }
}

static void company_close(company *c, engine *e) {
    for (int i = 0; i < c->n; i++) engine_seq_close(e, &c->seqs[i]);
}

/* Runs one step of `n` tokens of seq with the company's next tokens around it; the logits of seq's last n_logits tokens are then
 * those of the item whose number is returned. */
static int step_with(engine *e, company *c, engine_seq *seq, const int32_t *tokens, int32_t n, int32_t n_logits) {
    engine_item items[N_OTHERS + 1];
    const int before = c->n / 2;
    int count = 0;
    for (int i = 0; i <= c->n; i++) {
        if (i == before) items[count++] = (engine_item){.seq = seq, .tokens = tokens, .n_tok = n, .n_logits = n_logits};
        if (i == c->n) break;
        c->next[i] = (c->next[i] * 5 + 1) % 200;
        items[count++] = (engine_item){.seq = c->seqs[i], .tokens = &c->next[i], .n_tok = 1, .n_logits = i % 3 == 0};
    }
    weir_error err = {0};
    if (engine_step(e, items, count, NULL, NULL, &err) != 0) fail_msg("%s", err.message);
    assert_null(engine_logits(e, before, n_logits));
    return before;
}

static int32_t greatest(const float *logits, int32_t n) {
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

/* Goes on greedily from out[0], the logits after the n tokens that seq holds, to out[N_GENERATED][n_vocab]. With speculation each
 * step has guesses behind the next token, taken from the logits known[N_GENERATED][n_vocab], one of them wrong (which depends on
 * n); what stands behind a wrong one is forgotten. */
static void decode(engine *e, company *c, engine_seq *seq, int32_t n, int32_t n_vocab, const float *known, float *out) {
    int32_t feed[N_GENERATED + 1] = {greatest(out, n_vocab)};
    for (int32_t g = 1; g < N_GENERATED;) {
        int32_t n_fed = 1, row = 0;
        for (; known && g + n_fed < N_GENERATED; n_fed++) {
            feed[n_fed] = greatest(known + (size_t)(g + n_fed - 1) * (size_t)n_vocab, n_vocab);
            if ((g + n_fed) % 3 == n % 3) feed[n_fed] = (feed[n_fed] + 1) % n_vocab;
        }
        const int item = step_with(e, c, seq, feed, n_fed, n_fed);
        do {
            const float *logits = engine_logits(e, item, row++);
            memcpy(out + (size_t)g++ * (size_t)n_vocab, logits, (size_t)n_vocab * sizeof(float));
            feed[0] = greatest(logits, n_vocab);
        } while (row < n_fed && feed[row] == feed[0]);
        engine_seq_truncate(seq, n + g - 1);
    }
}

/* Prefills prompt p in chunks, generates without and with speculation; out[2][N_GENERATED][n_vocab]. */
static void generate(engine *e, int p, int32_t chunk, int n_others, int32_t n_vocab, const float *known, float *out) {
    const size_t size = (size_t)n_vocab * N_GENERATED;
    int32_t tokens[MAX_PROMPT];
    engine_seq *seq = NULL;
    company c;
    make_prompt(p, tokens, n_vocab);
    company_open(&c, e, n_others);
    assert_int_equal(engine_seq_open(e, prompt_length(p) + N_GENERATED, &seq, NULL), 0);
    const int32_t n = prompt_length(p);
    int item = 0;
    for (int32_t at = 0; at < n; at += chunk) {
        const int32_t here = n - at < chunk ? n - at : chunk;
        item = step_with(e, &c, seq, tokens + at, here, at + here == n);
    }
    for (int speculation = 0; speculation < 2; speculation++) {
        float *to = out + size * (size_t)speculation;
        memcpy(to, speculation ? out : engine_logits(e, item, 0), (size_t)n_vocab * sizeof(float));
        engine_seq_truncate(seq, n);
        decode(e, &c, seq, n, n_vocab, speculation ? (known ? known : out) : NULL, to);
    }
    engine_seq_close(e, &seq);
    company_close(&c, e);
}

/* 20 prompts x {1, 2, 3 threads} x {prefill chunks 1, 7, 64, 512} x {alone, among 16 others} x {speculation on, off} on each level,
 * against the reference level with one thread, one chunk, alone. */
static void test_bit_identity(void **state) {
    (void)state;
    static const int32_t chunks[] = {1, 7, 64, 512};
    weir_model *m = open_model("reference");
    const int32_t n_vocab = weir_model_get_info(m)->n_vocab;
    const size_t size = (size_t)n_vocab * N_GENERATED;
    float *wanted = malloc(sizeof(float) * size * N_PROMPTS), *got = malloc(sizeof(float) * 2 * size);
    engine *e = open_engine(m, 1, 1024);
    for (int p = 0; p < N_PROMPTS; p++) {
        generate(e, p, 1024, 0, n_vocab, NULL, got);
        memcpy(wanted + size * (size_t)p, got, sizeof(float) * size);
    }
    engine_close(&e);
    weir_model_close(&m);
    for (size_t l = 0; l < sizeof levels / sizeof levels[0]; l++) {
        if (kern_level(levels[l]) == NULL) {
            print_message("skipped: this CPU does not have %s\n", levels[l]);
            continue;
        }
        m = open_model(levels[l]);
        assert_string_equal(weir_model_get_info(m)->cpu_level, levels[l]);
        for (int32_t n_threads = 1; n_threads <= 3; n_threads++) {
            e = open_engine(m, n_threads, 1024);
            for (int p = 0; p < N_PROMPTS; p++)
                for (size_t k = 0; k < sizeof chunks / sizeof chunks[0]; k++)
                    for (int n_others = 0; n_others <= N_OTHERS; n_others += N_OTHERS) {
                        /* The reference level is slow: there, the longest prompt token by token is left to the others. */
                        if (l == 0 && (n_threads == 3 || (p == 19 && chunks[k] < 64))) continue;
                        if (chunks[k] == 1 && p == 19 && n_threads == 3) continue;
                        const float *known = wanted + size * (size_t)p;
                        generate(e, p, chunks[k], n_others, n_vocab, known, got);
                        for (int speculation = 0; speculation < 2; speculation++)
                            if (memcmp(got + size * (size_t)speculation, known, sizeof(float) * size) != 0)
                                fail_msg("%s: prompt %d differs with %d threads, chunks of %d, %d others, speculation %s", levels[l], p,
                                         n_threads, chunks[k], n_others, speculation ? "on" : "off");
                    }
            engine_close(&e);
        }
        weir_model_close(&m);
    }
    free(wanted);
    free(got);
}

/* ---- cache types ------------------------------------------------------------------------------------------------------ */

typedef struct cache_types {
    weir_kv_type k, v;
    int bits;          /* of one value of a key and one of a value, scales included, times 4 */
    double most_error; /* squared, of the logits after a prompt of 600 tokens, relative to those over F32 */
} cache_types;

static double relative_error(const float *got, const float *wanted, int32_t n) {
    double error = 0, norm = 0;
    for (int32_t i = 0; i < n; i++) {
        error += ((double)got[i] - (double)wanted[i]) * ((double)got[i] - (double)wanted[i]);
        norm += (double)wanted[i] * (double)wanted[i];
    }
    return error / norm;
}

/* Some of the prompts of the test above over one pair of types, against the reference level in one piece. */
static void one_pair_of_types(const char *path, const cache_types *t, const float *over_f32) {
    static const int prompts[] = {0, 5, 13, 19};
    static const int32_t chunks[] = {1, 13, 512};
    weir_model *m = tiny_model_open(path, "reference");
    const int32_t n_vocab = weir_model_get_info(m)->n_vocab;
    const size_t size = (size_t)n_vocab * N_GENERATED;
    float *wanted = malloc(sizeof(float) * 2 * size * 4), *got = malloc(sizeof(float) * 2 * size);
    engine *e = open_engine_of(m, 1, 1024, t->k, t->v);
    assert_int_equal(engine_kv_tokens_total(e), KV_BYTES / (2 * 2 * 32 * KERN_PAGE * t->bits / 32) * KERN_PAGE); /* layers, heads, values */
    for (int p = 0; p < 4; p++) generate(e, prompts[p], 1024, 0, n_vocab, NULL, wanted + 2 * size * (size_t)p);
    engine_close(&e);
    weir_model_close(&m);
    const double error = relative_error(wanted + 2 * size * 3, over_f32, n_vocab);
    if (error > t->most_error || (t->k != WEIR_KV_F32 && error == 0)) fail_msg("types %d and %d: relative error %g", (int)t->k, (int)t->v, error);
    for (size_t l = 1; l < sizeof levels / sizeof levels[0]; l++) {
        if (kern_level(levels[l]) == NULL) continue;
        m = tiny_model_open(path, levels[l]);
        for (int32_t n_threads = 1; n_threads <= 3; n_threads++) {
            e = open_engine_of(m, n_threads, 1024, t->k, t->v);
            for (int i = 0; i < 4 * 3 * 2; i++) {
                const int p = i % 4, n_others = i / 4 % 2 * N_OTHERS;
                const int32_t chunk = chunks[i / 8];
                if (chunk == 1 && p == 3 && n_others) continue; /* long */
                const float *known = wanted + 2 * size * (size_t)p;
                generate(e, prompts[p], chunk, n_others, n_vocab, known, got);
                for (int speculation = 0; speculation < 2; speculation++)
                    if (memcmp(got + size * (size_t)speculation, known, sizeof(float) * size) != 0)
                        fail_msg("%s, types %d and %d: prompt %d differs with %d threads, chunks of %d, %d others, speculation %s", levels[l],
                                 (int)t->k, (int)t->v, prompts[p], n_threads, chunk, n_others, speculation ? "on" : "off");
            }
            engine_close(&e);
        }
        weir_model_close(&m);
    }
    free(wanted);
    free(got);
}

/* The same bits over every type of the KV cache, and logits that are as near to those over F32 as the type allows. */
static void test_cache_types(void **state) {
    (void)state;
    static const cache_types pairs[] = {{WEIR_KV_F32, WEIR_KV_F32, 256, 0},      {WEIR_KV_F16, WEIR_KV_F16, 128, 1e-4},
                                        {WEIR_KV_BF16, WEIR_KV_BF16, 128, 1e-3}, {WEIR_KV_Q8_0, WEIR_KV_Q8_0, 68, 1e-3},
                                        {WEIR_KV_Q4_0, WEIR_KV_Q4_0, 36, 0.1},   {WEIR_KV_Q8_0, WEIR_KV_Q4_0, 52, 0.1},
                                        {WEIR_KV_Q4_0, WEIR_KV_F16, 82, 0.1}};
    static const gguf_builder_llama_shape shape = {.n_layer = 2, .d_model = 128, .n_head = 4, .n_head_kv = 2, .d_ff = 128, .n_ctx = 1024};
    char path[] = "/tmp/weir-test-cache-types-XXXXXX";
    gguf_builder b;
    gguf_builder_init(&b);
    gguf_builder_llama(&b, &shape);
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    assert_true(gguf_builder_write(&b, path));
    gguf_builder_free(&b);
    weir_model *m = tiny_model_open(path, "reference");
    const int32_t n_vocab = weir_model_get_info(m)->n_vocab;
    float *over_f32 = malloc(sizeof(float) * 2 * (size_t)n_vocab * N_GENERATED);
    engine *e = open_engine_of(m, 1, 1024, WEIR_KV_F32, WEIR_KV_F32);
    generate(e, 19, 1024, 0, n_vocab, NULL, over_f32);
    engine_close(&e);
    weir_model_close(&m);
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) one_pair_of_types(path, &pairs[i], over_f32);
    free(over_f32);
    unlink(path);
}

static bool always(void *user) {
    ++*(int *)user;
    return true;
}

/* An abandoned step leaves the sequence as it was; the next one gives what it would have given. */
static void test_abort(void **state) {
    (void)state;
    weir_model *m = open_model("avx512");
    engine *e = open_engine(m, 2, 512);
    const int32_t n_vocab = weir_model_get_info(m)->n_vocab, tokens[] = {3, 4, 5, 6, 7};
    engine_seq *a = NULL, *b = NULL;
    int asked = 0;
    weir_error err = {0};
    assert_int_equal(engine_seq_open(e, 16, &a, NULL), 0);
    assert_int_equal(engine_seq_open(e, 16, &b, NULL), 0);
    engine_item item = {.seq = a, .tokens = tokens, .n_tok = 5, .n_logits = true};
    assert_int_equal(engine_step(e, &item, 1, always, &asked, &err), WEIR_E_CANCELLED);
    assert_true(asked >= 1);
    assert_int_equal(engine_seq_length(a), 0);
    assert_int_equal(engine_step(e, &item, 1, NULL, NULL, &err), 0);
    float *first = malloc(sizeof(float) * (size_t)n_vocab);
    memcpy(first, engine_logits(e, 0, 0), sizeof(float) * (size_t)n_vocab);
    item.seq = b;
    assert_int_equal(engine_step(e, &item, 1, NULL, NULL, &err), 0);
    assert_memory_equal(first, engine_logits(e, 0, 0), sizeof(float) * (size_t)n_vocab);
    assert_true(engine_seq_can_truncate(b, 2));
    assert_false(engine_seq_can_truncate(b, 6));
    assert_false(engine_seq_can_truncate(b, -1));
    engine_seq_truncate(b, 6);
    assert_int_equal(engine_seq_length(b), 5);
    engine_seq_truncate(b, 2);
    assert_int_equal(engine_seq_length(b), 2);
    item = (engine_item){.seq = b, .tokens = tokens + 2, .n_tok = 3, .n_logits = true};
    assert_int_equal(engine_step(e, &item, 1, NULL, NULL, &err), 0);
    assert_memory_equal(first, engine_logits(e, 0, 0), sizeof(float) * (size_t)n_vocab);
    free(first);
    engine_seq_close(e, &a);
    engine_seq_close(e, &b);
    engine_close(&e);
    weir_model_close(&m);
}

static void test_refusals(void **state) {
    (void)state;
    weir_model *m = open_model("avx512");
    weir_error err = {0};
    engine *e = NULL;
    const weir_engine_options small = {.n_threads = 1, .n_ctx = 64, .n_parallel = 2, .n_batch = 8, .kv_cache_bytes = 1};
    assert_int_equal(engine_open(&e, m, &small, &err), WEIR_E_INVALID);
    const weir_engine_options huge = {.n_threads = 1, .kv_cache_bytes = INT64_MAX};
    assert_int_equal(engine_open(&e, m, &huge, &err), WEIR_E_NOMEM);
    assert_null(e);
    const weir_engine_options negative = {.n_threads = 1, .n_batch = -1};
    assert_int_equal(engine_open(&e, m, &negative, &err), WEIR_E_INVALID);
    /* The tiny model's heads have 16 values, half a block. */
    const weir_engine_options q8 = {.n_threads = 1, .cache_type_k = WEIR_KV_Q8_0}, q4 = {.n_threads = 1, .cache_type_v = WEIR_KV_Q4_0};
    const weir_engine_options unknown = {.n_threads = 1, .cache_type_v = WEIR_N_KV_TYPES};
    assert_int_equal(engine_open(&e, m, &q8, &err), WEIR_E_UNSUPPORTED);
    assert_string_equal(err.place, "keys of the KV cache");
    assert_non_null(strstr(err.message, "q8_0 is not possible: the model's heads have 16 values"));
    assert_int_equal(engine_open(&e, m, &q4, &err), WEIR_E_UNSUPPORTED);
    assert_string_equal(err.place, "values of the KV cache");
    assert_int_equal(engine_open(&e, m, &unknown, &err), WEIR_E_INVALID);
    weir_model *vocab = NULL;
    const weir_model_options only = {.vocab_only = true};
    assert_int_equal(weir_model_open(&vocab, model_path, &only, &err), 0);
    assert_int_equal(engine_open(&e, vocab, NULL, &err), WEIR_E_INVALID);
    weir_model_close(&vocab);

    e = open_engine(m, 1, 20);
    engine_seq *seq = NULL;
    assert_int_equal(engine_seq_open(e, N_CTX + 1, &seq, &err), WEIR_E_CONTEXT);
    assert_int_equal(engine_seq_open(e, 0, &seq, &err), WEIR_E_CONTEXT);
    assert_int_equal(engine_seq_open(e, 32, &seq, &err), 0);
    int32_t tokens[40] = {0};
    engine_item item = {.seq = seq, .tokens = tokens, .n_tok = 21};
    assert_int_equal(engine_step(e, &item, 1, NULL, NULL, &err), WEIR_E_INVALID); /* more than n_batch */
    item.n_tok = 20;
    assert_int_equal(engine_step(e, &item, 1, NULL, NULL, &err), 0);
    item.n_tok = 13;
    assert_int_equal(engine_step(e, &item, 1, NULL, NULL, &err), WEIR_E_INVALID); /* more than the sequence's room */
    item.n_tok = 1;
    tokens[0] = weir_model_get_info(m)->n_vocab;
    assert_int_equal(engine_step(e, &item, 1, NULL, NULL, &err), WEIR_E_INVALID); /* no such token */
    tokens[0] = -1;
    assert_int_equal(engine_step(e, &item, 1, NULL, NULL, &err), WEIR_E_INVALID);
    assert_int_equal(engine_step(e, &item, 0, NULL, NULL, &err), WEIR_E_INVALID);
    tokens[0] = 0;
    item.n_logits = 2; /* more than tokens */
    assert_int_equal(engine_step(e, &item, 1, NULL, NULL, &err), WEIR_E_INVALID);
    item.n_logits = -1;
    assert_int_equal(engine_step(e, &item, 1, NULL, NULL, &err), WEIR_E_INVALID);
    assert_int_equal(engine_seq_length(seq), 20);
    engine_seq_close(e, &seq);
    engine_close(&e);
    weir_model_close(&m);
}

/* All pages can be taken, none more, and all come back. */
static void test_pages(void **state) {
    (void)state;
    weir_model *m = open_model("avx512");
    weir_error err = {0};
    engine *e = NULL;
    const weir_engine_options options = {.n_threads = 1, .n_ctx = 64, .n_parallel = 4, .n_batch = 64, .kv_cache_bytes = 1 << 20};
    assert_int_equal(engine_open(&e, m, &options, &err), 0);
    const int64_t total = engine_kv_tokens_total(e);
    engine_seq *seqs[4096];
    for (int round = 0; round < 3; round++) {
        int n = 0;
        while (n < 4096 && engine_seq_open(e, 33, &seqs[n], &err) == 0) n++;
        assert_int_equal(err.code, WEIR_E_LIMIT);
        assert_int_equal(n, total / 64); /* 33 tokens take two pages */
        assert_int_equal(engine_kv_tokens_used(e), (int64_t)n * 64);
        for (int i = 0; i < n; i++) engine_seq_close(e, &seqs[i]);
        assert_int_equal(engine_kv_tokens_used(e), 0);
    }
    engine_close(&e);
    weir_model_close(&m);
}

/* The tiny model's work by hand, and measured times that add up to the steps' own. */
static void test_work_and_time(void **state) {
    (void)state;
    weir_model *m = open_model("avx512");
    model_work one[MODEL_N_OPS] = {{0}}, many[MODEL_N_OPS] = {{0}};
    const kern_kv kv = model_kv(&m->config, KERN_KV_F16, KERN_KV_F16);
    model_add_weights_work(m, 1, 1, one);
    model_add_weights_work(m, 5, 0, many);
    assert_true(one[MODEL_OP_GATE_UP].int8_macs + one[MODEL_OP_GATE_UP].f32_macs == 2 * 2 * 64 * 128); /* layers x gate and up */
    assert_true(one[MODEL_OP_GATE_UP].int8_macs == 2 * 64 * 128);                                     /* those of the first layer */
    assert_true(many[MODEL_OP_GATE_UP].int8_macs == 5 * one[MODEL_OP_GATE_UP].int8_macs);
    assert_true(many[MODEL_OP_GATE_UP].bytes == one[MODEL_OP_GATE_UP].bytes); /* weights are read once for all rows */
    assert_true(one[MODEL_OP_HEAD].bytes > 0 && many[MODEL_OP_HEAD].bytes == 0);
    model_add_attention_work(m, &kv, 7, 2, one);
    assert_true(one[MODEL_OP_ATTENTION].f32_macs == 2 * (8 + 9) * 4 * (16 + 16));
    assert_true(one[MODEL_OP_ATTENTION].bytes == 2 * 9 * 2 * (16 + 16) * 2);

    for (int n_threads = 1; n_threads <= 2; n_threads++) {
        engine *e = open_engine(m, n_threads, 512);
        engine_seq *seq = NULL;
        weir_error err = {0};
        const int32_t tokens[] = {3, 4, 5, 6, 7, 8};
        double ns[MODEL_N_OPS], sum = 0;
        assert_int_equal(engine_seq_open(e, 64, &seq, NULL), 0);
        engine_item item = {.seq = seq, .tokens = tokens, .n_tok = 6, .n_logits = 1};
        assert_int_equal(engine_step(e, &item, 1, NULL, NULL, &err), 0);
        engine_measured(e, ns); /* nothing yet */
        for (int op = 0; op < MODEL_N_OPS; op++) assert_true(ns[op] == 0);
        assert_int_equal(engine_measure(e, &err), 0);
        const int64_t begin = clock_now_ns();
        for (int i = 0; i < 8; i++, item.n_tok = 1) assert_int_equal(engine_step(e, &item, 1, NULL, NULL, &err), 0);
        const int64_t passed = clock_now_ns() - begin;
        engine_measured(e, ns);
        for (int op = 0; op < MODEL_N_OPS; op++) {
            assert_true(ns[op] > 0 || op == MODEL_OP_EXPERTS || op == MODEL_OP_RECURRENT);
            sum += ns[op];
        }
        assert_true(ns[MODEL_OP_EXPERTS] == 0);
        assert_true(sum <= (double)passed);
        engine_seq_close(e, &seq);
        engine_close(&e);
    }
    weir_model_close(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bit_identity),
        cmocka_unit_test(test_cache_types),
        cmocka_unit_test(test_abort),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_pages),
        cmocka_unit_test(test_work_and_time),
    };
    return cmocka_run_group_tests(tests, make_model, remove_model);
}
