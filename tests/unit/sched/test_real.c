/* The scheduler over the real engine and a tiny model: two hundred requests with fixed seeds, of every kind and all at once, in a KV cache
 * that is too small for them, give the tokens that each gives alone. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "support.h"

#include "base/log.h"
#include "fault/tiny_model.h"

enum { N_REQUESTS = 200, MAX_PROMPT = 150, MAX_OUTPUT = 60, N_CTX = 250 };

static char model_path[] = "/tmp/weir-test-real-XXXXXX";

static int make_path(void **state) {
    (void)state;
    const int fd = mkstemp(model_path);
    log_setup(2, false, LOG_ERROR);
    return fd < 0 ? -1 : close(fd);
}

static int remove_path(void **state) {
    (void)state;
    return unlink(model_path);
}

static weir_engine *open_engine(weir_model *m, int32_t n_parallel, int64_t kv_bytes, bool bare) {
    weir_engine *e = NULL;
    weir_error err = {0};
    const weir_engine_options o = {.n_threads = 2, .n_ctx = N_CTX, .n_parallel = n_parallel, .n_batch = 100, .max_queue = -1,
                                   .kv_cache_bytes = kv_bytes, .n_draft = bare ? -1 : 0, .no_prefix_cache = bare};
    if (weir_engine_open(&e, m, &o, &err) != 0) fail_msg("%s: %s", err.place, err.message);
    return e;
}

static uint32_t scramble(uint32_t x) {
    x = (x ^ x >> 16) * 0x7feb352dU;
    x = (x ^ x >> 15) * 0x846ca68bU;
    return x ^ x >> 16;
}

/* Request i; a third of them begin like others, some repeat themselves so that guesses hold. */
static weir_request make_request(int i, int32_t *tokens) {
    weir_request q;
    const uint32_t kind = scramble((uint32_t)i);
    const int32_t n = 1 + (int32_t)(scramble(kind) % MAX_PROMPT);
    for (int32_t t = 0; t < n; t++) {
        const uint32_t key = kind % 3 == 0 && t < 80 ? kind % 2 : (uint32_t)i + 10;
        tokens[t] = 3 + (int32_t)(scramble(key * 1000 + (uint32_t)(kind % 5 == 0 ? t % 7 : t)) % 256);
    }
    weir_request_init(&q);
    q.tokens = tokens;
    q.n_tokens = (size_t)n;
    q.max_tokens = 1 + (int32_t)(scramble(kind + 1) % MAX_OUTPUT);
    q.ignore_eos = true;
    q.special = true;
    q.sampling.seed = (uint64_t)i;
    q.sampling.temperature = kind % 4 ? 0.9f : 0;
    q.sampling.repetition_penalty = kind % 7 ? 1 : 1.2f;
    q.priority = (int32_t)(kind % 11 == 0) - (int32_t)(kind % 13 == 0);
    q.tenant = kind % 2 ? "odd" : kind % 4 ? "even" : NULL;
    return q;
}

static reply alone(weir_model *m, int i) {
    int32_t tokens[MAX_PROMPT];
    const weir_request q = make_request(i, tokens);
    weir_engine *e = open_engine(m, 1, 8 << 20, true);
    weir_job *job = NULL;
    assert_int_equal(weir_job_submit(e, &q, &job, NULL), 0);
    reply r = finish_reply(&job);
    weir_engine_close(&e);
    return r;
}

static void check_family(const char *family, int64_t kv_pages) {
    tiny_model_write(model_path, family);
    weir_model *m = tiny_model_open(model_path, NULL);
    weir_job *jobs[N_REQUESTS] = {NULL};
    weir_error err = {0};
    weir_engine *probe = open_engine(m, 16, 16 << 20, true);
    weir_stats s;
    weir_engine_get_stats(probe, &s);
    const int64_t page_bytes = (16 << 20) / (int64_t)s.kv_tokens_total * (int64_t)s.kv_page_tokens;
    weir_engine_close(&probe);
    weir_engine *e = open_engine(m, 16, kv_pages * page_bytes, false);
    for (int i = 0; i < N_REQUESTS; i++) {
        int32_t tokens[MAX_PROMPT];
        const weir_request q = make_request(i, tokens);
        if (weir_job_submit(e, &q, &jobs[i], &err) != 0) fail_msg("%s", err.message);
        if (i % 10 == 9) weir_job_cancel(jobs[i]);
        if (i % 16 == 15) clock_sleep_us(2000);
    }
    for (int i = 0; i < N_REQUESTS; i++) {
        reply r = finish_reply(&jobs[i]);
        if (i % 10 != 9) {
            reply wanted = alone(m, i);
            assert_int_equal(r.end.type, WEIR_EVENT_END);
            assert_int_equal(r.tokens.n_bytes, wanted.tokens.n_bytes);
            if (memcmp(r.tokens.data, wanted.tokens.data, r.tokens.n_bytes) != 0) fail_msg("%s: request %d has other tokens than alone", family, i);
            reply_free(&wanted);
        }
        reply_free(&r);
    }
    weir_engine_get_stats(e, &s);
    print_message("%s: %llu preemptions, %llu tokens computed again, %llu of %llu prompt tokens from the cache\n", family,
                  (unsigned long long)s.n_preemptions, (unsigned long long)s.recomputed_tokens, (unsigned long long)s.cached_tokens,
                  (unsigned long long)s.queried_tokens);
    assert_true(s.n_preemptions > 0 && s.recomputed_tokens > 0 && s.cached_tokens > 0);
    assert_int_equal(s.kv_tokens_used, 0);
    assert_int_equal(s.n_running + s.n_waiting, 0);
    weir_engine_close(&e);
    weir_model_close(&m);
}

static void the_same_tokens_under_load(void **state) {
    (void)state;
    check_family("llama", 14);
    check_family("jamba", 14);
    check_family("deepseek2", 14);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_same_tokens_under_load)};
    return cmocka_run_group_tests(tests, make_path, remove_path);
}
