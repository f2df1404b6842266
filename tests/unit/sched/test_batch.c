/* What goes into a step: order, shares of prefill and decode, room in the KV cache, and that no sequence notices the others. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support.h"

#include "sched/pace.h"

static void fill(int32_t *tokens, int32_t n, int32_t seed) {
    for (int32_t i = 0; i < n; i++) tokens[i] = 'a' + (i * 7 + seed) % 26;
}

static void assert_greedy(const reply *r, const int32_t *prompt, int32_t n_prompt) {
    int32_t n = (int32_t)(r->tokens.n_bytes / sizeof(int32_t));
    int32_t *history = malloc((size_t)(n_prompt + n) * sizeof *history);
    memcpy(history, prompt, (size_t)n_prompt * sizeof *history);
    if (n > 0) memcpy(history + n_prompt, r->tokens.data, (size_t)n * sizeof *history);
    for (int32_t i = 0; i < n; i++) assert_int_equal(history[n_prompt + i], fake_next(history, n_prompt + i));
    free(history);
}

static void served_in_the_order_of_arrival(void **state) {
    (void)state;
    enum { N = 40 };
    fixture f;
    fixture_init(&f);
    f.backend.decode_cost_us = 1000;
    f.backend.prefill_cost_us = 10;
    fixture_open(&f, 1, 64, 0);
    weir_job *jobs[N] = {hold(&f, 1)};
    for (int32_t i = 1; i < N; i++) jobs[i] = submit_one(&f, 'a', 1 + i % 3);
    for (int32_t i = 1; i < N; i++) assert_int_equal(weir_job_queue_position(jobs[i]), i - 1);
    fake_gate(&f.backend, -1);
    int64_t last = -1;
    for (int32_t i = 0; i < N; i++) {
        reply r = finish_reply(&jobs[i]);
        assert_true(r.end.timings.queue_us >= last);
        last = r.end.timings.queue_us;
        reply_free(&r);
    }
    fixture_close(&f);
}

static void the_same_tokens_alone_and_among_others(void **state) {
    (void)state;
    enum { N = 32 };
    static int32_t prompts[N][200];
    int32_t lengths[N];
    char alone[N][41];
    for (int together = 0; together < 2; together++) {
        fixture f;
        fixture_init(&f);
        fixture_open(&f, N, together ? 48 : 512, 0);
        weir_job *jobs[N];
        for (int32_t i = 0; i < N; i++) {
            lengths[i] = 1 + i * 37 % 200;
            fill(prompts[i], lengths[i], i);
            weir_request q = plain_request(prompts[i], (size_t)lengths[i]);
            /* Half of them draw with a seed, through every stage of the sampler. */
            q.max_tokens = 40;
            q.sampling.seed = (uint64_t)i;
            q.sampling.temperature = i % 2 ? 12 : 0;
            q.sampling.repetition_penalty = 1.1f;
            jobs[i] = submit(&f, &q);
            if (together) continue;
            reply r = finish_reply(&jobs[i]);
            memcpy(alone[i], r.tokens.data ? r.text.data : "", 1);
            snprintf(alone[i], sizeof alone[i], "%s", r.text.data);
            reply_free(&r);
        }
        for (int32_t i = 0; i < N && together; i++) {
            reply r = finish_reply(&jobs[i]);
            assert_int_equal(strncmp(r.text.data, alone[i], sizeof alone[i] - 1), 0);
            if (i % 2 == 0) assert_int_equal(r.n_events, 40);
            reply_free(&r);
        }
        if (together) assert_true(atomic_load(&f.backend.most_open) > 16);
        fixture_close(&f);
    }
}

static void a_long_prompt_alone_takes_full_batches(void **state) {
    (void)state;
    fixture f;
    fixture_init(&f);
    f.backend.prefill_cost_us = 1000;
    f.backend.page_tokens = 1;
    fixture_open(&f, 4, 100, 0);
    int32_t tokens[1050];
    fill(tokens, 1050, 0);
    weir_request q = plain_request(tokens, 1050);
    q.max_tokens = 3;
    weir_job *job = submit(&f, &q);
    reply r = finish_reply(&job);
    assert_greedy(&r, tokens, 1050);
    assert_int_equal(r.end.timings.prefill_us, 1050 * 1000);
    reply_free(&r);
    for (int32_t i = 0; i < 11; i++) {
        assert_int_equal(fake_step_at(&f.backend, i).n_prefill, i < 10 ? 100 : 50);
        assert_int_equal(fake_step_at(&f.backend, i).n_items, 1);
    }
    assert_int_equal(stats_of(&f).prompt_us, 1050 * 1000);
    fixture_close(&f);
}

/* Steps that decode stay near the time they should take however long the prompts beside them are, and the prompts go on. */
static void prefill_beside_decode_keeps_to_its_time(void **state) {
    (void)state;
    static const int64_t costs[] = {20, 300, 1500, 6000};
    for (size_t c = 0; c < 4; c++) {
        fixture f;
        fixture_init(&f);
        f.backend.decode_cost_us = 8000;
        f.backend.prefill_cost_us = costs[c];
        f.backend.page_tokens = 1;
        fixture_open(&f, 4, 512, 0);
        int32_t tokens[3000];
        fill(tokens, 3000, 1);
        /* The stream lasts longer than the prompt's prefill, and fits its channel unread. */
        weir_job *stream = hold(&f, 2500);
        pass_steps(&f, 20);
        weir_request q = plain_request(tokens, 3000);
        q.max_tokens = 2;
        weir_job *job = submit(&f, &q);
        fake_gate(&f.backend, -1);
        reply r = finish_reply(&job);
        assert_greedy(&r, tokens, 3000);
        reply_free(&r);
        weir_job_release(&stream);
        int32_t n_mixed = 0, n_prefill = 0;
        for (int32_t i = 0; i < fake_n_steps(&f.backend); i++) {
            fake_step s = fake_step_at(&f.backend, i);
            if (s.n_decode == 0 || s.n_prefill == 0) continue;
            n_mixed++;
            n_prefill += s.n_prefill;
            assert_int_equal(s.n_decode, 1);
            assert_true(s.n_prefill + s.n_decode <= 512);
            if (n_mixed == 1) continue; /* nothing was known */
            int64_t cost_us = f.backend.decode_cost_us + s.n_prefill * costs[c];
            assert_true(cost_us <= PACE_STEP_US * 3 / 2 || s.n_prefill <= PACE_LEAST_TOKENS);
            if (n_prefill < 3000 && n_mixed > 8)
                assert_true(cost_us >= PACE_STEP_US / 2 || s.n_prefill >= 511 || s.n_prefill == PACE_LEAST_TOKENS);
        }
        assert_int_equal(n_prefill, 3000);
        fixture_close(&f);
    }
}

static void several_prompts_share_a_step_oldest_first(void **state) {
    (void)state;
    fixture f;
    fixture_init(&f);
    f.backend.page_tokens = 1;
    fixture_open(&f, 4, 64, 0);
    weir_job *first = hold(&f, 1), *jobs[3];
    int32_t tokens[3][50];
    for (int32_t i = 0; i < 3; i++) {
        fill(tokens[i], 50, i);
        weir_request q = plain_request(tokens[i], 50);
        q.max_tokens = 1;
        jobs[i] = submit(&f, &q);
    }
    fake_gate(&f.backend, -1);
    for (int32_t i = 0; i < 3; i++) {
        reply r = finish_reply(&jobs[i]);
        assert_greedy(&r, tokens[i], 50);
        reply_free(&r);
    }
    reply r = finish_reply(&first);
    reply_free(&r);
    /* 1, then 64 = 50 + 14, 64 = 36 + 28, 22. */
    assert_int_equal(fake_n_steps(&f.backend), 4);
    assert_int_equal(fake_step_at(&f.backend, 1).n_items, 2);
    assert_int_equal(fake_step_at(&f.backend, 1).n_prefill, 64);
    assert_int_equal(fake_step_at(&f.backend, 2).n_items, 2);
    assert_int_equal(fake_step_at(&f.backend, 3).n_prefill, 22);
    fixture_close(&f);
}

static void never_more_sequences_than_tokens_in_a_step(void **state) {
    (void)state;
    fixture f;
    fixture_init(&f);
    fixture_open(&f, 64, 4, 0);
    weir_job *jobs[20];
    for (int32_t i = 0; i < 20; i++) jobs[i] = submit_one(&f, 'a' + i, 30);
    for (int32_t i = 0; i < 20; i++) {
        reply r = finish_reply(&jobs[i]);
        int32_t prompt = 'a' + i;
        assert_greedy(&r, &prompt, 1);
        reply_free(&r);
    }
    assert_int_equal(atomic_load(&f.backend.most_open), 4);
    for (int32_t i = 0; i < fake_n_steps(&f.backend); i++) {
        fake_step s = fake_step_at(&f.backend, i);
        assert_true(s.n_decode + s.n_prefill <= 4);
    }
    fixture_close(&f);
}

/* ---- room for sequences ---- */

static weir_job *submit_long(fixture *f, int32_t *tokens, int32_t n, int32_t seed, int32_t max_tokens) {
    fill(tokens, n, seed);
    weir_request q = plain_request(tokens, (size_t)n);
    q.max_tokens = max_tokens;
    return submit(f, &q);
}

static void a_full_cache_makes_jobs_wait_in_order(void **state) {
    (void)state;
    fixture f;
    int32_t tokens[3][80];
    fixture_init(&f);
    f.backend.kv_tokens_total = 100;
    f.backend.n_ctx = 100;
    f.backend.page_tokens = 1;
    fixture_open(&f, 8, 64, 0);
    weir_job *a = hold(&f, 49), *b = submit_long(&f, tokens[0], 30, 1, 20);
    /* `large` does not fit beside a and b; `small` would, but came later. */
    weir_job *large = submit_long(&f, tokens[1], 80, 2, 10), *small = submit_long(&f, tokens[2], 3, 3, 5);
    pass_steps(&f, 12);
    assert_int_equal(weir_job_n_output(a), 12);
    assert_int_equal(stats_of(&f).n_running, 2);
    assert_true(stats_of(&f).kv_tokens_used > 40 && stats_of(&f).kv_tokens_used < 60);
    assert_int_equal(stats_of(&f).kv_tokens_total, 100);
    assert_int_equal(weir_job_queue_position(large), 0);
    assert_int_equal(weir_job_queue_position(small), 0); /* the queue's first: `large` has left it and waits for pages */
    fake_gate(&f.backend, -1);
    weir_job *jobs[] = {a, b, large, small};
    static const int32_t n_output[] = {49, 20, 10, 5};
    for (int i = 0; i < 4; i++) {
        reply r = finish_reply(&jobs[i]);
        assert_int_equal(r.end.timings.n_output, n_output[i]);
        reply_free(&r);
    }
    assert_int_equal(stats_of(&f).n_preemptions, 0);
    fixture_close(&f);
}

/* Answers that outgrow the cache together: the ones that came last give way and go on where they were. */
static void a_full_cache_is_left_to_who_came_first(void **state) {
    (void)state;
    enum { N = 5 };
    fixture f;
    int32_t tokens[N][10];
    weir_job *jobs[N];
    fixture_init(&f);
    f.backend.kv_tokens_total = 128;
    f.backend.n_ctx = 128;
    f.backend.page_tokens = 4;
    fixture_open(&f, 8, 64, 0);
    for (int32_t i = 0; i < N; i++) jobs[i] = submit_long(&f, tokens[i], 10, i, 60);
    int64_t last_end = 0;
    for (int32_t i = 0; i < N; i++) {
        reply r = finish_reply(&jobs[i]);
        assert_int_equal(r.end.type, WEIR_EVENT_END);
        assert_int_equal(r.end.timings.n_output, 60);
        assert_greedy(&r, tokens[i], 10);
        int64_t end = r.end.timings.queue_us + r.end.timings.prefill_us + r.end.timings.decode_us;
        assert_true(end >= last_end);
        last_end = end;
        reply_free(&r);
    }
    weir_stats s = stats_of(&f);
    assert_true(s.n_preemptions > 0 && s.recomputed_tokens > 0);
    assert_int_equal(s.prompt_tokens, N * 10);
    assert_int_equal(s.n_finished, N);
    fixture_close(&f);
}

static void a_sequence_that_can_never_fit_fails(void **state) {
    (void)state;
    fixture f;
    fixture_init(&f);
    f.backend.kv_tokens_total = 50;
    f.backend.n_ctx = 100;
    fixture_open(&f, 8, 64, 0);
    weir_job *job = submit_one(&f, 'a', -1), *good = submit_one(&f, 'b', 40);
    reply r = finish_reply(&job);
    assert_int_equal(r.end.code, WEIR_E_LIMIT);
    reply_free(&r);
    r = finish_reply(&good);
    assert_int_equal(r.end.type, WEIR_EVENT_END);
    reply_free(&r);
    /* Any other failure to open one: the job's own, with the backend's words. */
    atomic_store(&f.backend.open_error, WEIR_E_NOMEM);
    job = submit_one(&f, 'a', 5);
    r = finish_reply(&job);
    assert_int_equal(r.end.code, WEIR_E_NOMEM);
    assert_string_equal(r.message, "made to fail");
    reply_free(&r);
    atomic_store(&f.backend.open_error, 0);
    job = submit_one(&f, 'a', 5);
    r = finish_reply(&job);
    assert_int_equal(r.end.type, WEIR_EVENT_END);
    reply_free(&r);
    fixture_close(&f);
}

/* ---- failures of the backend ---- */

static void only_the_culprit_fails(void **state) {
    (void)state;
    fixture f;
    fixture_init(&f);
    fixture_open(&f, 8, 64, 0);
    weir_job *first = hold(&f, 5), *jobs[6];
    for (int32_t i = 0; i < 6; i++) {
        int32_t tokens[3] = {'a', i == 3 ? FAKE_POISON : 'b', 'c' + i};
        weir_request q = plain_request(tokens, 3);
        q.max_tokens = 10;
        jobs[i] = submit(&f, &q);
    }
    fake_gate(&f.backend, -1);
    for (int32_t i = 0; i < 6; i++) {
        reply r = finish_reply(&jobs[i]);
        int32_t tokens[3] = {'a', 'b', 'c' + i};
        if (i == 3) {
            assert_int_equal(r.end.code, WEIR_E_INTERNAL);
            assert_string_equal(r.message, "poison in the batch");
            assert_int_equal(r.n_events, 0);
        } else {
            assert_int_equal(r.end.stop_reason, WEIR_STOP_LENGTH);
            assert_int_equal(r.n_events, 10);
            assert_greedy(&r, tokens, 3);
        }
        reply_free(&r);
    }
    assert_int_equal(stats_of(&f).n_failed, 1);
    reply r = finish_reply(&first);
    assert_int_equal(r.n_events, 5);
    reply_free(&r);
    fixture_close(&f);
}

static void a_batch_that_fails_is_redone_singly(void **state) {
    (void)state;
    fixture f;
    fixture_init(&f);
    fixture_open(&f, 8, 64, 0);
    weir_job *first = hold(&f, 1), *jobs[4];
    atomic_store(&f.backend.fail_batches, 7);
    for (int32_t i = 0; i < 4; i++) jobs[i] = submit_one(&f, 'a' + i, 10);
    fake_gate(&f.backend, -1);
    for (int32_t i = 0; i < 4; i++) {
        reply r = finish_reply(&jobs[i]);
        int32_t prompt = 'a' + i;
        assert_int_equal(r.n_events, 10);
        assert_greedy(&r, &prompt, 1);
        reply_free(&r);
    }
    assert_int_equal(atomic_load(&f.backend.fail_batches), 0);
    reply r = finish_reply(&first);
    reply_free(&r);
    fixture_close(&f);
}

static void the_engine_outlives_failures(void **state) {
    (void)state;
    fixture f;
    fixture_init(&f);
    fixture_open(&f, 4, 64, 0);
    weir_job *jobs[4] = {hold(&f, 10)};
    for (int32_t i = 1; i < 4; i++) jobs[i] = submit_one(&f, 'a' + i, 10);
    pass_steps(&f, 2);
    assert_int_equal(stats_of(&f).n_running, 4);
    atomic_store(&f.backend.fail_steps, 5); /* the batch and each of its items */
    fake_gate(&f.backend, -1);
    uint32_t n_failed = 0;
    for (int32_t i = 0; i < 4; i++) {
        reply r = finish_reply(&jobs[i]);
        if (r.end.type == WEIR_EVENT_ERROR) {
            n_failed++;
            assert_int_equal(r.end.code, WEIR_E_INTERNAL);
            assert_string_equal(r.message, "made to fail");
        }
        reply_free(&r);
    }
    assert_int_equal(n_failed, 4);
    weir_job *job = submit_one(&f, 'z', 10);
    reply r = finish_reply(&job);
    int32_t prompt = 'z';
    assert_int_equal(r.n_events, 10);
    assert_greedy(&r, &prompt, 1);
    reply_free(&r);
    fixture_close(&f);
}

/* ---- pace ---- */

static void pace_arithmetic(void **state) {
    (void)state;
    pace p = {0};
    assert_int_equal(pace_prefill_tokens(&p, 0, 512), 512);
    assert_int_equal(pace_prefill_tokens(&p, 3, 512), PACE_FIRST_TOKENS);
    assert_int_equal(pace_prefill_tokens(&p, 510, 512), 2);
    assert_int_equal(pace_learn(&p, 0, 100, 10000), 10000); /* 100 us for each */
    assert_int_equal(pace_prefill_tokens(&p, 1, 1024), 500);
    assert_int_equal(pace_learn(&p, 4, 0, 10000), 0);
    assert_int_equal(pace_prefill_tokens(&p, 4, 1024), 400);
    assert_int_equal(pace_prefill_tokens(&p, 4, 256), 252);
    assert_int_equal(pace_learn(&p, 4, 100, 20000), 10000); /* the rest is decode's */
    assert_int_equal(pace_prefill_tokens(&p, 4, 1024), 400);
    p = (pace){.decode_us = 10000, .prefill_us = 20000}; /* too dear: the least goes on */
    assert_int_equal(pace_prefill_tokens(&p, 4, 1024), PACE_LEAST_TOKENS);
    p = (pace){.decode_us = 100000, .prefill_us = 100};
    /* A step that is quicker than decoding was thought to be leaves something for its prefill all the same. */
    assert_int_equal(pace_learn(&p, 4, 100, 20000), 2000);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(served_in_the_order_of_arrival),
        cmocka_unit_test(the_same_tokens_alone_and_among_others),
        cmocka_unit_test(a_long_prompt_alone_takes_full_batches),
        cmocka_unit_test(prefill_beside_decode_keeps_to_its_time),
        cmocka_unit_test(several_prompts_share_a_step_oldest_first),
        cmocka_unit_test(never_more_sequences_than_tokens_in_a_step),
        cmocka_unit_test(a_full_cache_makes_jobs_wait_in_order),
        cmocka_unit_test(a_full_cache_is_left_to_who_came_first),
        cmocka_unit_test(a_sequence_that_can_never_fit_fails),
        cmocka_unit_test(only_the_culprit_fails),
        cmocka_unit_test(a_batch_that_fails_is_redone_singly),
        cmocka_unit_test(the_engine_outlives_failures),
        cmocka_unit_test(pace_arithmetic),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
