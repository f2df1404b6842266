/* The promises of the engine over tiny models of families that are built otherwise than llama: the same request gives the same bits
 * whatever the threads, the chunking and the company, on every instruction-set level; abandoned steps leave no trace. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/engine.h"
#include "fault/tiny_model.h"
#include "kern/kern.h"

enum { N_PROMPTS = 4, MAX_PROMPT = 150, N_GENERATED = 3, N_OTHERS = 5, N_CTX = 256 };

static const char *const levels[] = {"reference", "avx2", "avx512"};
static const char *const generating[] = {"deepseek2", "deepseek2-old", "mamba", "mamba2", "jamba", "granitehybrid", "falcon-h1", "nemotron_h", "lfm2"};
static const char *const encoding[] = {"bert", "nomic-bert-moe", "jina-bert-v2"};
static const int32_t prompt_lengths[N_PROMPTS] = {1, 2, 33, MAX_PROMPT};
static char model_path[] = "/tmp/weir-test-families-XXXXXX";

static int make_path(void **state) {
    (void)state;
    int fd = mkstemp(model_path);
    return fd < 0 ? -1 : close(fd);
}

static int remove_path(void **state) {
    (void)state;
    unsetenv("WEIR_CPU_LEVEL");
    return unlink(model_path);
}

static engine *open_engine(weir_model *m, int32_t n_threads) {
    engine *e = NULL;
    weir_error err = {0};
    const weir_engine_options options = {
        .n_threads = n_threads, .n_ctx = N_CTX, .n_parallel = N_OTHERS + 1, .n_batch = MAX_PROMPT + N_OTHERS, .kv_cache_bytes = 64 << 20};
    if (engine_open(&e, m, &options, &err) != 0) fail_msg("%s: %s", err.place, err.message);
    return e;
}

static int32_t token_at(int p, int32_t i) { return (int32_t)(((uint32_t)p * 7919u + (uint32_t)i * 2654435761u) >> 9) % GGUF_BUILDER_LLAMA_VOCAB; }

/* One step of n tokens of seq with one token of each of the others before and after it; the logits of its last token. */
static const float *step_among(engine *e, engine_seq *seq, const int32_t *tokens, int32_t n, engine_seq *const *others, int n_others,
                               int32_t round) {
    engine_item items[N_OTHERS + 1];
    int32_t next[N_OTHERS];
    int count = 0, mine = 0;
    for (int i = 0; i <= n_others; i++) {
        if (i == n_others / 2) {
            mine = count;
            items[count++] = (engine_item){.seq = seq, .tokens = tokens, .n_tok = n, .n_logits = true};
        }
        if (i == n_others) break;
        next[i] = token_at(i + 50, round);
        items[count++] = (engine_item){.seq = others[i], .tokens = &next[i], .n_tok = 1, .n_logits = i % 2 == 0};
    }
    weir_error err = {0};
    if (engine_step(e, items, count, NULL, NULL, &err) != 0) fail_msg("%s", err.message);
    return engine_logits(e, mine, 0);
}

/* Logits after prompt p and after each of the tokens that follow it, [N_GENERATED][n_vocab]. */
static void generate(engine *e, int p, int32_t chunk, int n_others, int32_t n_vocab, float *out) {
    int32_t tokens[MAX_PROMPT + N_GENERATED];
    engine_seq *seq = NULL, *others[N_OTHERS];
    const int32_t n = prompt_lengths[p];
    const float *logits = NULL;
    int32_t round = 0;
    for (int32_t i = 0; i < n + N_GENERATED; i++) tokens[i] = token_at(p, i);
    assert_int_equal(engine_seq_open(e, n + N_GENERATED, &seq, NULL), 0);
    for (int i = 0; i < n_others; i++) assert_int_equal(engine_seq_open(e, N_CTX, &others[i], NULL), 0);
    for (int32_t at = 0; at < n; at += chunk)
        logits = step_among(e, seq, tokens + at, n - at < chunk ? n - at : chunk, others, n_others, round++);
    for (int g = 0; g < N_GENERATED; g++) {
        memcpy(out + (size_t)g * (size_t)n_vocab, logits, (size_t)n_vocab * sizeof(float));
        logits = step_among(e, seq, tokens + n + g, 1, others, n_others, round++);
    }
    engine_seq_close(e, &seq);
    for (int i = 0; i < n_others; i++) engine_seq_close(e, &others[i]);
}

static void check_level(const char *family, const char *level, const float *wanted, float *got) {
    static const int32_t chunks[] = {1, 7, 64, 512};
    weir_model *m = tiny_model_open(model_path, level);
    const int32_t n_vocab = weir_model_get_info(m)->n_vocab;
    const size_t size = (size_t)n_vocab * N_GENERATED;
    for (int32_t n_threads = 1; n_threads <= 3; n_threads++) {
        if ((strcmp(level, "reference") == 0) != (n_threads == 2)) continue; /* the reference level is slow */
        engine *e = open_engine(m, n_threads);
        for (int p = 0; p < N_PROMPTS; p++)
            for (size_t k = 0; k < sizeof chunks / sizeof chunks[0]; k++)
                for (int n_others = 0; n_others <= N_OTHERS; n_others += N_OTHERS) {
                    /* Token by token is slow: the long prompt goes that way only alone. */
                    if (chunks[k] == 1 && n_others && prompt_lengths[p] == MAX_PROMPT) continue;
                    generate(e, p, chunks[k], n_others, n_vocab, got);
                    if (memcmp(got, wanted + size * (size_t)p, size * sizeof(float)) != 0)
                        fail_msg("%s, %s: prompt %d differs with %d threads, chunks of %d, %d others", family, level, p, n_threads, chunks[k],
                                 n_others);
                }
        engine_close(&e);
    }
    weir_model_close(&m);
}

static void test_bit_identity(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof generating / sizeof generating[0]; i++) {
        tiny_model_write(model_path, generating[i]);
        weir_model *m = tiny_model_open(model_path, "reference");
        const int32_t n_vocab = weir_model_get_info(m)->n_vocab;
        const size_t size = (size_t)n_vocab * N_GENERATED;
        float *wanted = malloc(size * N_PROMPTS * sizeof(float)), *got = malloc(size * sizeof(float));
        engine *e = open_engine(m, 1);
        for (int p = 0; p < N_PROMPTS; p++) generate(e, p, MAX_PROMPT, 0, n_vocab, wanted + size * (size_t)p);
        engine_close(&e);
        weir_model_close(&m);
        for (size_t k = 0; k < size * N_PROMPTS; k++) assert_true(wanted[k] > -1e6f && wanted[k] < 1e6f);
        for (size_t l = 0; l < sizeof levels / sizeof levels[0]; l++) {
            if (kern_level(levels[l])) check_level(generating[i], levels[l], wanted, got);
            else print_message("skipped: this CPU does not have %s\n", levels[l]);
        }
        free(wanted);
        free(got);
    }
}

/* Says yes at the n-th question. */
static bool abort_at(void *user) { return --*(int *)user == 0; }

static void test_abort(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof generating / sizeof generating[0]; i++) {
        tiny_model_write(model_path, generating[i]);
        weir_model *m = tiny_model_open(model_path, "avx512");
        engine *e = open_engine(m, 2);
        const size_t n_bytes = (size_t)weir_model_get_info(m)->n_vocab * sizeof(float);
        const int32_t tokens[] = {3, 4, 5, 6, 7, 8, 9};
        float *wanted = malloc(n_bytes);
        engine_seq *whole = NULL, *abandoned = NULL;
        assert_int_equal(engine_seq_open(e, 16, &whole, NULL), 0);
        assert_int_equal(engine_seq_open(e, 16, &abandoned, NULL), 0);
        engine_item item = {.seq = whole, .tokens = tokens, .n_tok = 7, .n_logits = true};
        assert_int_equal(engine_step(e, &item, 1, NULL, NULL, NULL), 0);
        memcpy(wanted, engine_logits(e, 0, 0), n_bytes);
        for (int32_t at = 0; at < 7; at += 3) {
            item = (engine_item){.seq = abandoned, .tokens = tokens + at, .n_tok = at == 6 ? 1 : 3, .n_logits = true};
            for (int n = 1; n <= 2; n++) {
                int left = n;
                assert_int_equal(engine_step(e, &item, 1, abort_at, &left, NULL), WEIR_E_CANCELLED);
                assert_int_equal(engine_seq_length(abandoned), at);
            }
            assert_int_equal(engine_step(e, &item, 1, NULL, NULL, NULL), 0);
        }
        assert_memory_equal(wanted, engine_logits(e, 0, 0), n_bytes);
        engine_seq_close(e, &whole);
        engine_seq_close(e, &abandoned);
        engine_close(&e);
        weir_model_close(&m);
        free(wanted);
    }
}

/* Latent attention and encoders keep F32, and say so when asked for less. */
static void test_cache_types(void **state) {
    (void)state;
    static const char *const names[] = {"deepseek2", "bert"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        tiny_model_write(model_path, names[i]);
        weir_model *m = tiny_model_open(model_path, "avx512");
        engine *e = NULL;
        weir_error err = {0};
        weir_engine_options options = {.n_threads = 1, .cache_type_k = WEIR_KV_BF16};
        assert_int_equal(engine_open(&e, m, &options, &err), WEIR_E_UNSUPPORTED);
        assert_non_null(strstr(err.message, "bf16 is not possible"));
        for (int k = 0; k < 2; k++) {
            options.cache_type_k = k ? WEIR_KV_F32 : WEIR_KV_F16;
            assert_int_equal(engine_open(&e, m, &options, &err), 0);
            assert_int_equal(engine_kv(e)->k, KERN_KV_F32);
            engine_close(&e);
        }
        weir_model_close(&m);
    }
}

/* With recurrent state a sequence goes back to nothing, or to a checkpoint; without, anywhere. */
static void test_going_back(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof generating / sizeof generating[0]; i++) {
        tiny_model_write(model_path, generating[i]);
        weir_model *m = tiny_model_open(model_path, "avx512");
        engine *e = open_engine(m, 1);
        const size_t n_bytes = (size_t)weir_model_get_info(m)->n_vocab * sizeof(float);
        const int32_t tokens[] = {3, 4, 5, 6, 7, 8, 9};
        const bool recurrent = engine_state_bytes(e) != 0;
        float *wanted = malloc(n_bytes);
        engine_seq *seq = NULL, *other = NULL;
        engine_checkpoint *empty = NULL, *three = NULL;
        assert_int_equal(recurrent, strncmp(generating[i], "deepseek2", 9) != 0);
        assert_int_equal(engine_seq_open(e, 16, &seq, NULL), 0);
        assert_int_equal(engine_checkpoint_save(seq, &empty, NULL), 0);
        engine_item item = {.seq = seq, .tokens = tokens, .n_tok = 3, .n_logits = 1};
        assert_int_equal(engine_step(e, &item, 1, NULL, NULL, NULL), 0);
        assert_int_equal(engine_checkpoint_save(seq, &three, NULL), 0);
        assert_int_equal(engine_checkpoint_length(three), 3);
        item = (engine_item){.seq = seq, .tokens = tokens + 3, .n_tok = 4, .n_logits = 1};
        assert_int_equal(engine_step(e, &item, 1, NULL, NULL, NULL), 0);
        memcpy(wanted, engine_logits(e, 0, 0), n_bytes);
        assert_int_equal(engine_seq_can_truncate(seq, 3), !recurrent);
        assert_true(engine_seq_can_truncate(seq, 0) && engine_seq_can_truncate(seq, 7));
        assert_false(engine_seq_can_truncate(seq, 8));
        engine_seq_truncate(seq, 3);
        assert_int_equal(engine_seq_length(seq), recurrent ? 7 : 3);
        assert_true(engine_checkpoint_restore(seq, three));
        assert_int_equal(engine_step(e, &item, 1, NULL, NULL, NULL), 0);
        assert_memory_equal(wanted, engine_logits(e, 0, 0), n_bytes);
        for (int k = 0; k < 2; k++) { /* from the start again, one way and the other */
            if (k == 0) engine_seq_truncate(seq, 0);
            else assert_true(engine_checkpoint_restore(seq, empty));
            assert_int_equal(engine_seq_length(seq), 0);
            engine_item whole = {.seq = seq, .tokens = tokens, .n_tok = 7, .n_logits = 1};
            assert_int_equal(engine_step(e, &whole, 1, NULL, NULL, NULL), 0);
            assert_memory_equal(wanted, engine_logits(e, 0, 0), n_bytes);
        }
        assert_int_equal(engine_seq_open(e, 16, &other, NULL), 0);
        assert_false(engine_checkpoint_restore(other, three)); /* it is shorter */
        engine_checkpoint_free(&empty);
        engine_checkpoint_free(&three);
        engine_seq_close(e, &other);
        engine_seq_close(e, &seq);
        engine_close(&e);
        weir_model_close(&m);
        free(wanted);
    }
}

/* States are as many as sequences may run, and come back. */
static void test_states(void **state) {
    (void)state;
    tiny_model_write(model_path, "mamba2");
    weir_model *m = tiny_model_open(model_path, "avx512");
    engine *e = open_engine(m, 1);
    weir_error err = {0};
    engine_seq *seqs[N_OTHERS + 2];
    const int32_t token = 5;
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i <= N_OTHERS; i++) {
            assert_int_equal(engine_seq_open(e, 16, &seqs[i], NULL), 0);
            engine_item item = {.seq = seqs[i], .tokens = &token, .n_tok = 1};
            assert_int_equal(engine_step(e, &item, 1, NULL, NULL, NULL), 0);
        }
        assert_int_equal(engine_seq_open(e, 16, &seqs[N_OTHERS + 1], &err), WEIR_E_LIMIT);
        assert_string_equal(err.place, "recurrent state");
        for (int i = 0; i <= N_OTHERS; i++) engine_seq_close(e, &seqs[i]);
    }
    engine_close(&e);
    weir_model_close(&m);
}

enum { D_MODEL = 64 };

/* States of prompt p's tokens, and their pooled form by the model's own rule. */
static void embed(engine *e, int p, float *states, float *pooled) {
    int32_t tokens[MAX_PROMPT];
    weir_error err = {0};
    for (int32_t i = 0; i < prompt_lengths[p]; i++) tokens[i] = token_at(p, i);
    if (engine_embed(e, tokens, prompt_lengths[p], ENGINE_POOLING_OF_MODEL, states, pooled, &err) != 0) fail_msg("%s", err.message);
}

static void test_embedding_bits(void **state) {
    (void)state;
    static float wanted[N_PROMPTS][MAX_PROMPT * D_MODEL], got[MAX_PROMPT * D_MODEL];
    for (size_t i = 0; i < sizeof encoding / sizeof encoding[0]; i++) {
        tiny_model_write(model_path, encoding[i]);
        float pooled_wanted[N_PROMPTS][D_MODEL] = {{0}}, pooled[D_MODEL] = {0};
        for (size_t l = 0; l < sizeof levels / sizeof levels[0]; l++) {
            if (kern_level(levels[l]) == NULL) continue;
            weir_model *m = tiny_model_open(model_path, levels[l]);
            for (int32_t n_threads = 1; n_threads <= 3; n_threads += 2) {
                engine *e = open_engine(m, n_threads);
                const size_t pooled_bytes = (size_t)engine_embedding_size(e, ENGINE_POOLING_OF_MODEL) * sizeof(float);
                for (int p = 0; p < N_PROMPTS; p++) {
                    const bool first = l == 0 && n_threads == 1;
                    embed(e, p, first ? wanted[p] : got, first ? pooled_wanted[p] : pooled);
                    if (first) continue;
                    assert_memory_equal(got, wanted[p], (size_t)prompt_lengths[p] * D_MODEL * sizeof(float));
                    assert_memory_equal(pooled, pooled_wanted[p], pooled_bytes);
                }
                engine_close(&e);
            }
            weir_model_close(&m);
        }
    }
}

/* Each way of pooling against its definition; tokens see what follows them; what cannot be is refused. */
static void test_embeddings(void **state) {
    (void)state;
    static float states[MAX_PROMPT * D_MODEL], other[MAX_PROMPT * D_MODEL];
    for (size_t i = 0; i < sizeof encoding / sizeof encoding[0]; i++) {
        tiny_model_write(model_path, encoding[i]);
        weir_model *m = tiny_model_open(model_path, "avx512");
        engine *e = open_engine(m, 2);
        weir_error err = {0};
        int32_t tokens[N_CTX] = {5, 6, 7, 8};
        float mean[D_MODEL], first[D_MODEL], last[D_MODEL], scores[3];
        assert_false(engine_can_generate(e));
        assert_int_equal(engine_embed(e, tokens, 4, ENGINE_POOLING_MEAN, states, mean, NULL), 0);
        assert_int_equal(engine_embed(e, tokens, 4, ENGINE_POOLING_FIRST, NULL, first, NULL), 0);
        assert_int_equal(engine_embed(e, tokens, 4, ENGINE_POOLING_LAST, NULL, last, NULL), 0);
        assert_int_equal(engine_embedding_size(e, ENGINE_POOLING_RANK), 3);
        assert_int_equal(engine_embed(e, tokens, 4, ENGINE_POOLING_RANK, NULL, scores, NULL), 0);
        assert_true(isfinite(scores[0]) && scores[0] != scores[1] && scores[1] != scores[2]);
        assert_memory_equal(first, states, sizeof first);
        assert_memory_equal(last, states + 3 * D_MODEL, sizeof last);
        for (int d = 0; d < D_MODEL; d++) {
            const double sum = (double)states[d] + (double)states[D_MODEL + d] + (double)states[2 * D_MODEL + d] + (double)states[3 * D_MODEL + d];
            assert_true(fabs((double)mean[d] - sum / 4) < 1e-5);
        }
        tokens[3] = 9;
        assert_int_equal(engine_embedding_size(e, ENGINE_POOLING_NONE), 0);
        assert_int_equal(engine_embed(e, tokens, 4, ENGINE_POOLING_NONE, other, NULL, NULL), 0);
        assert_memory_not_equal(other, states, D_MODEL * sizeof(float));
        assert_int_equal(engine_embed(e, tokens, 0, ENGINE_POOLING_NONE, other, NULL, &err), WEIR_E_INVALID);
        assert_int_equal(engine_embed(e, tokens, engine_n_ctx(e) + 1, ENGINE_POOLING_NONE, NULL, NULL, &err), WEIR_E_CONTEXT);
        assert_true(engine_n_ctx(e) <= engine_n_batch(e)); /* a text must be one step */
        tokens[0] = -1;
        assert_int_equal(engine_embed(e, tokens, 4, ENGINE_POOLING_NONE, other, NULL, &err), WEIR_E_INVALID);
        engine_seq *seq = NULL;
        assert_int_equal(engine_seq_open(e, 8, &seq, NULL), 0);
        engine_item item = {.seq = seq, .tokens = tokens + 1, .n_tok = 1, .n_logits = 1};
        assert_int_equal(engine_step(e, &item, 1, NULL, NULL, &err), WEIR_E_UNSUPPORTED);
        assert_non_null(strstr(err.message, "cannot generate"));
        engine_seq_close(e, &seq);
        assert_int_equal(engine_kv_tokens_used(e), 0);
        engine_close(&e);
        weir_model_close(&m);
    }
}

/* A model that generates has embeddings too: long texts in several steps, and no token sees what follows it. */
static void test_embeddings_of_a_decoder(void **state) {
    (void)state;
    static float whole[MAX_PROMPT * D_MODEL], pieces[MAX_PROMPT * D_MODEL];
    float last[2][D_MODEL];
    int32_t tokens[MAX_PROMPT];
    tiny_model_write(model_path, "jamba");
    weir_model *m = tiny_model_open(model_path, "avx512");
    for (int32_t i = 0; i < MAX_PROMPT; i++) tokens[i] = token_at(3, i);
    engine *e = open_engine(m, 2), *narrow = NULL;
    const weir_engine_options options = {.n_threads = 1, .n_ctx = N_CTX, .n_parallel = 1, .n_batch = 7};
    assert_int_equal(engine_open(&narrow, m, &options, NULL), 0);
    assert_int_equal(engine_embed(e, tokens, MAX_PROMPT, ENGINE_POOLING_LAST, whole, last[0], NULL), 0);
    assert_int_equal(engine_embed(narrow, tokens, MAX_PROMPT, ENGINE_POOLING_LAST, pieces, last[1], NULL), 0);
    assert_memory_equal(whole, pieces, sizeof whole);
    assert_memory_equal(last[0], last[1], sizeof last[0]);
    assert_int_equal(engine_embedding_size(e, ENGINE_POOLING_RANK), 0);
    assert_int_equal(engine_embed(e, tokens, 4, ENGINE_POOLING_RANK, NULL, last[0], NULL), WEIR_E_INVALID);
    tokens[MAX_PROMPT - 1] ^= 1;
    assert_int_equal(engine_embed(e, tokens, MAX_PROMPT, ENGINE_POOLING_NONE, pieces, NULL, NULL), 0);
    assert_memory_equal(whole, pieces, sizeof whole - D_MODEL * sizeof(float));
    assert_memory_not_equal(whole + (MAX_PROMPT - 1) * D_MODEL, pieces + (MAX_PROMPT - 1) * D_MODEL, D_MODEL * sizeof(float));
    engine_close(&narrow);
    engine_close(&e);
    weir_model_close(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bit_identity),
        cmocka_unit_test(test_abort),
        cmocka_unit_test(test_going_back),
        cmocka_unit_test(test_cache_types),
        cmocka_unit_test(test_states),
        cmocka_unit_test(test_embedding_bits),
        cmocka_unit_test(test_embeddings),
        cmocka_unit_test(test_embeddings_of_a_decoder),
    };
    return cmocka_run_group_tests(tests, make_path, remove_path);
}
