/* The life of a job: terminal states, cancelling, releasing, time limits, notification, the queue's bound, drain and close. */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "support.h"

static fixture *setup(fixture *f, int32_t n_parallel) {
    fixture_init(f);
    fixture_open(f, n_parallel, 64, 0);
    return f;
}

static void assert_failed(reply *r, int code) {
    assert_int_equal(r->end.type, WEIR_EVENT_ERROR);
    assert_int_equal(r->end.code, code);
    assert_true(r->message[0] != '\0');
}

/* ---- states ---- */

static void only_these_moves_are_legal(void **state) {
    (void)state;
    static const bool legal[N_JOB_STATES][N_JOB_STATES] = {
        /*               queued prefill decode parked ended */
        [JOB_QUEUED] = {false, true, false, false, false, true},  [JOB_WAITING] = {false, false, true, false, false, true},
        [JOB_PREFILL] = {false, true, false, true, false, true},  [JOB_DECODE] = {false, true, false, false, true, true},
        [JOB_PARKED] = {false, true, false, true, false, true},   [JOB_ENDED] = {false, false, false, false, false, false},
    };
    for (job_state from = JOB_QUEUED; from < N_JOB_STATES; from++)
        for (job_state to = JOB_QUEUED; to < N_JOB_STATES; to++) assert_int_equal(job_may_move(from, to), legal[from][to]);
}

/* ---- how answers end ---- */

static void ends_at_max_tokens(void **state) {
    (void)state;
    fixture f;
    setup(&f, 4);
    int32_t history[64] = {'q'};
    weir_job *job = submit_one(&f, 'q', 20);
    reply r = read_reply(job);
    assert_int_equal(weir_job_n_output(job), 20);
    assert_int_equal(weir_job_queue_position(job), -1);
    assert_int_equal(r.end.stop_reason, WEIR_STOP_LENGTH);
    assert_int_equal(r.n_events, 20);
    assert_int_equal(r.end.timings.n_prompt, 1);
    assert_int_equal(r.end.timings.n_output, 20);
    for (int32_t i = 0; i < 20; i++) {
        history[i + 1] = fake_next(history, i + 1);
        assert_int_equal(((const int32_t *)r.tokens.data)[i], history[i + 1]);
        assert_int_equal(r.text.data[i], history[i + 1]);
    }
    reply_free(&r);
    weir_job_release(&job);
    weir_stats s = stats_of(&f);
    assert_int_equal(s.n_submitted, 1);
    assert_int_equal(s.n_finished, 1);
    assert_int_equal(s.n_running + s.n_waiting + s.n_cancelled + s.n_failed + s.n_refused, 0);
    assert_int_equal(s.prompt_tokens, 1);
    assert_int_equal(s.output_tokens, 20);
    assert_int_equal(s.n_steps, 20);
    assert_int_equal(s.kv_tokens_used, 0);
    fixture_close(&f);
}

static void ends_at_the_end_of_generation(void **state) {
    (void)state;
    fixture f;
    fixture_init(&f);
    fake_script(&f.backend, 3, (const char *const[]){"Hello", ",", " world"}, 3);
    fixture_open(&f, 4, 64, 0);
    weir_job *job = submit_one(&f, FAKE_SCRIPT + 3, -1);
    reply r = finish_reply(&job);
    assert_string_equal(r.text.data, "Hello, world");
    assert_int_equal(r.n_events, 3);
    assert_int_equal(r.end.stop_reason, WEIR_STOP_EOS);
    assert_int_equal(r.end.timings.n_output, 3);
    reply_free(&r);
    /* Banned, the end does not come. */
    int32_t token = FAKE_SCRIPT + 3;
    weir_request q = plain_request(&token, 1);
    q.ignore_eos = true;
    q.max_tokens = 8;
    job = submit(&f, &q);
    r = finish_reply(&job);
    assert_int_equal(r.end.stop_reason, WEIR_STOP_LENGTH);
    assert_int_equal(r.end.timings.n_output, 8);
    assert_memory_equal(r.text.data, "Hello, world", 12);
    reply_free(&r);
    fixture_close(&f);
}

static void ends_at_the_end_of_the_context(void **state) {
    (void)state;
    fixture f;
    fixture_init(&f);
    f.backend.n_ctx = 32;
    fixture_open(&f, 4, 64, 0);
    assert_int_equal(weir_engine_n_ctx(f.engine), 32);
    int32_t tokens[40];
    for (int i = 0; i < 40; i++) tokens[i] = 'a' + i % 26;
    weir_request q = plain_request(tokens, 20);
    for (int32_t max_tokens = -1; max_tokens <= 100; max_tokens += 101) {
        q.max_tokens = max_tokens;
        if (max_tokens == 0) continue;
        weir_job *job = submit(&f, &q);
        reply r = finish_reply(&job);
        assert_int_equal(r.end.stop_reason, WEIR_STOP_LENGTH);
        assert_int_equal(r.end.timings.n_output, 12);
        reply_free(&r);
    }
    q.max_tokens = -1;
    q.n_tokens = 31;
    weir_job *job = submit(&f, &q);
    reply r = finish_reply(&job);
    assert_int_equal(r.end.timings.n_output, 1);
    reply_free(&r);
    weir_error err = {0};
    q.n_tokens = 32;
    assert_int_equal(weir_job_submit(f.engine, &q, &job, &err), WEIR_E_CONTEXT);
    assert_null(job);
    assert_non_null(strstr(err.message, "32"));
    assert_non_null(strstr(err.message, "31"));
    /* Only a prefill: no token, one terminal event. */
    q.max_tokens = 0;
    job = submit(&f, &q);
    r = finish_reply(&job);
    assert_int_equal(r.end.stop_reason, WEIR_STOP_LENGTH);
    assert_int_equal(r.n_events, 0);
    reply_free(&r);
    fixture_close(&f);
}

static void ends_at_a_stop_string(void **state) {
    (void)state;
    fixture f;
    fixture_init(&f);
    fake_script(&f.backend, 0, (const char *const[]){"one t", "wo <", "|en", "d|>", " three"}, 5);
    fixture_open(&f, 4, 64, 0);
    int32_t token = FAKE_SCRIPT;
    weir_request q = plain_request(&token, 1);
    q.stop = (const char *const[]){"four", "<|end|>"};
    q.n_stop = 2;
    weir_job *job = submit(&f, &q);
    reply r = finish_reply(&job);
    assert_string_equal(r.text.data, "one two ");
    assert_int_equal(r.end.stop_reason, WEIR_STOP_SEQUENCE);
    assert_string_equal(r.stop_text, "<|end|>");
    assert_int_equal(r.end.timings.n_output, 4);
    reply_free(&r);
    /* The stop string is not complete at the end: what was held back leaves, in one event. */
    q.max_tokens = 3;
    job = submit(&f, &q);
    r = finish_reply(&job);
    assert_string_equal(r.text.data, "one two <|en");
    assert_int_equal(r.end.stop_reason, WEIR_STOP_LENGTH);
    assert_int_equal(r.tokens.n_bytes, 3 * sizeof(int32_t));
    reply_free(&r);
    /* The limit and the match fall on the same token. */
    q.max_tokens = 4;
    job = submit(&f, &q);
    r = finish_reply(&job);
    assert_int_equal(r.end.stop_reason, WEIR_STOP_SEQUENCE);
    reply_free(&r);
    fixture_close(&f);
}

static void control_tokens_are_silent_unless_asked_for(void **state) {
    (void)state;
    fixture f;
    fixture_init(&f);
    fake_script(&f.backend, 0, (const char *const[]){"a"}, 1);
    fake_script_token(&f.backend, 0, FAKE_CONTROL);
    fake_script(&f.backend, 0, (const char *const[]){"b"}, 1);
    fixture_open(&f, 4, 64, 0);
    int32_t token = FAKE_SCRIPT;
    weir_request q = plain_request(&token, 1);
    for (int special = 0; special < 2; special++) {
        q.special = special;
        weir_job *job = submit(&f, &q);
        reply r = finish_reply(&job);
        assert_string_equal(r.text.data, special ? "a<control>b" : "ab");
        assert_int_equal(r.n_events, special ? 3 : 2);
        assert_int_equal(r.most_event_tokens, special ? 1 : 2);
        assert_int_equal(r.end.timings.n_output, 3);
        reply_free(&r);
    }
    fixture_close(&f);
}

static void code_points_are_whole(void **state) {
    (void)state;
    static const char text[] = "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80z";
    fixture f;
    fixture_init(&f);
    for (size_t i = 0; i < sizeof text - 1; i++) fake_script_bytes(&f.backend, 0, text + i, 1);
    for (size_t i = 0; i < 8; i++) fake_script_bytes(&f.backend, 1, text + i, 1); /* ends inside the last code point */
    fixture_open(&f, 4, 64, 0);
    weir_job *job = submit_one(&f, FAKE_SCRIPT, -1);
    reply r = finish_reply(&job);
    assert_string_equal(r.text.data, text);
    assert_int_equal(r.n_events, 5);
    assert_int_equal(r.tokens.n_bytes, (sizeof text - 1) * sizeof(int32_t));
    reply_free(&r);
    job = submit_one(&f, FAKE_SCRIPT + 1, -1);
    r = finish_reply(&job);
    assert_string_equal(r.text.data, "a\xC3\xA9\xE2\x82\xAC\xEF\xBF\xBD");
    reply_free(&r);
    fixture_close(&f);
}

static void log_probabilities_only_when_asked_for(void **state) {
    (void)state;
    fixture f;
    setup(&f, 4);
    int32_t token = 'k';
    weir_request q = plain_request(&token, 1);
    q.max_tokens = 5;
    for (int32_t n_top = -1; n_top <= 20; n_top += n_top < 1 ? 1 : 19) {
        weir_event ev;
        q.n_top_logprobs = n_top;
        weir_job *job = submit(&f, &q);
        while (weir_job_wait(job, &ev, 10000) == 1 && ev.type == WEIR_EVENT_TOKEN) {
            assert_int_equal(ev.logprobs != NULL, n_top >= 0);
            assert_int_equal(ev.top_logprobs != NULL, n_top > 0);
            if (n_top >= 0) assert_float_equal(ev.logprobs[0], 0, 1e-4);
            if (n_top > 0) assert_int_equal(ev.top_logprobs[0].token, ev.tokens[0]);
            for (int32_t i = 1; i < n_top; i++) assert_true(ev.top_logprobs[i].logprob <= ev.top_logprobs[i - 1].logprob);
        }
        assert_int_equal(ev.type, WEIR_EVENT_END);
        weir_job_release(&job);
    }
    fixture_close(&f);
}

static void nothing_to_sample_is_an_error(void **state) {
    (void)state;
    fixture f;
    setup(&f, 4);
    weir_job *job = submit_one(&f, FAKE_BANNED_ALL, 5);
    reply r = finish_reply(&job);
    assert_failed(&r, WEIR_E_INTERNAL);
    reply_free(&r);
    assert_int_equal(stats_of(&f).n_failed, 1);
    fixture_close(&f);
}

/* ---- refusals ---- */

static void bad_requests_are_refused(void **state) {
    (void)state;
    fixture f;
    setup(&f, 4);
    const int32_t good[] = {'a'}, below[] = {-1}, above[] = {'a', FAKE_N_VOCAB};
    const weir_logit_bias bad_token = {FAKE_N_VOCAB, 1}, bad_bias = {1, NAN}, infinite_bias = {1, INFINITY};
    const char *const empty_stop[] = {""};
    const weir_request base = plain_request(good, 1);
    enum { N = 21 };
    weir_request bad[N];
    const char *places[N];
    int n = 0;
#define BAD(place, change)                                                                                                     \
    do {                                                                                                                       \
        weir_request *q = &bad[n];                                                                                             \
        *q = base;                                                                                                             \
        places[n++] = (place);                                                                                                 \
        change;                                                                                                                \
    } while (0)
    BAD("tokens", q->n_tokens = 0);
    BAD("tokens", q->tokens = NULL);
    BAD("tokens", q->tokens = below);
    BAD("tokens", (q->tokens = above, q->n_tokens = 2));
    BAD("max_tokens", q->max_tokens = -2);
    BAD("temperature", q->sampling.temperature = NAN);
    BAD("temperature", q->sampling.temperature = INFINITY);
    BAD("top_p", q->sampling.top_p = NAN);
    BAD("min_p", q->sampling.min_p = -INFINITY);
    BAD("repetition_penalty", q->sampling.repetition_penalty = 0);
    BAD("repetition_penalty", q->sampling.repetition_penalty = NAN);
    BAD("frequency_penalty", q->sampling.frequency_penalty = INFINITY);
    BAD("presence_penalty", q->sampling.presence_penalty = NAN);
    BAD("penalty_last_n", q->sampling.penalty_last_n = -2);
    BAD("logit_bias", (q->sampling.logit_bias = &bad_token, q->sampling.n_logit_bias = 1));
    BAD("logit_bias", (q->sampling.logit_bias = &bad_bias, q->sampling.n_logit_bias = 1));
    BAD("logit_bias", (q->sampling.logit_bias = &infinite_bias, q->sampling.n_logit_bias = 1));
    BAD("n_top_logprobs", q->n_top_logprobs = 21);
    BAD("n_top_logprobs", q->n_top_logprobs = -2);
    BAD("timeout_ms", q->timeout_ms = -1);
    BAD("stop", (q->stop = empty_stop, q->n_stop = 1));
#undef BAD
    assert_int_equal(n, N);
    for (int i = 0; i < N; i++) {
        weir_error err = {0};
        weir_job *job = (weir_job *)&f;
        assert_int_equal(weir_job_submit(f.engine, &bad[i], &job, &err), WEIR_E_INVALID);
        assert_null(job);
        assert_string_equal(err.place, places[i]);
        weir_job_release(&job);
    }
    assert_int_equal(stats_of(&f).n_submitted, 0);
    fixture_close(&f);
}

static void bad_options_are_refused(void **state) {
    (void)state;
    static const weir_engine_options bad[] = {{.n_batch = -1}, {.n_parallel = -1}, {.n_batch = INT32_MAX}};
    for (size_t i = 0; i < 3; i++) {
        fixture f;
        weir_error err = {0};
        fixture_init(&f);
        sched_backend backend = fake_backend(&f.backend);
        assert_int_equal(sched_open(&f.engine, &backend, &bad[i], &err), WEIR_E_INVALID);
        assert_null(f.engine);
        assert_int_equal(atomic_load(&f.backend.n_closes), 1);
        assert_string_equal(err.place, "options");
        fake_free(&f.backend);
    }
}

static void a_full_queue_refuses(void **state) {
    (void)state;
    fixture f;
    fixture_init(&f);
    fixture_open(&f, 2, 64, 3);
    weir_job *jobs[5] = {hold(&f, 3)}, *more = NULL;
    int32_t token = 'a';
    weir_request q = plain_request(&token, 1);
    weir_error err = {0};
    q.max_tokens = 2;
    for (int i = 1; i < 5; i++) jobs[i] = submit(&f, &q);
    assert_int_equal(weir_job_submit(f.engine, &q, &more, &err), WEIR_E_QUEUE_FULL);
    assert_null(more);
    assert_int_equal(stats_of(&f).n_refused, 1);
    pass_steps(&f, 1);
    assert_int_equal(stats_of(&f).n_waiting, 3);
    assert_int_equal(stats_of(&f).n_running, 2);
    for (int i = 0; i < 5; i++) assert_int_equal(weir_job_queue_position(jobs[i]), i - 2 < 0 ? -1 : i - 2);
    /* One that leaves the queue makes room at once. */
    weir_job_cancel(jobs[3]);
    assert_int_equal(weir_job_queue_position(jobs[4]), 1);
    more = submit(&f, &q);
    assert_int_equal(weir_job_queue_position(more), 2);
    fake_gate(&f.backend, -1);
    for (int i = 0; i < 5; i++) {
        reply r = finish_reply(&jobs[i]);
        assert_int_equal(r.end.type, i == 3 ? WEIR_EVENT_ERROR : WEIR_EVENT_END);
        reply_free(&r);
    }
    reply r = finish_reply(&more);
    reply_free(&r);
    fixture_close(&f);
}

/* ---- cancelling ---- */

static void cancel_in_the_queue_is_immediate(void **state) {
    (void)state;
    fixture f;
    fixture_init(&f);
    fake_gate(&f.backend, 0); /* the engine hangs in a step throughout */
    fixture_open(&f, 1, 64, 0);
    weir_job *runs = submit_one(&f, 'a', 3), *waits = submit_one(&f, 'b', 3);
    WAIT_UNTIL(atomic_load(&f.backend.at_gate));
    assert_int_equal(weir_job_queue_position(waits), 0);
    weir_job_cancel(waits);
    weir_job_cancel(waits);
    weir_event ev;
    assert_int_equal(weir_job_poll(waits, &ev), 1);
    assert_int_equal(ev.type, WEIR_EVENT_ERROR);
    assert_int_equal(ev.code, WEIR_E_CANCELLED);
    assert_int_equal(weir_job_poll(waits, &ev), 0);
    assert_int_equal(stats_of(&f).n_cancelled, 1);
    assert_int_equal(stats_of(&f).n_waiting, 0);
    weir_job_release(&waits);
    assert_int_equal(atomic_load(&f.backend.n_aborted), 0);
    fake_gate(&f.backend, -1);
    reply r = finish_reply(&runs);
    assert_int_equal(r.end.type, WEIR_EVENT_END);
    reply_free(&r);
    fixture_close(&f);
}

static void cancel_in_prefill_aborts_the_step(void **state) {
    (void)state;
    fixture f;
    fixture_init(&f);
    fixture_open(&f, 4, 64, 0);
    int32_t tokens[50];
    for (int i = 0; i < 50; i++) tokens[i] = 'a' + i % 26;
    weir_request q = plain_request(tokens, 50);
    q.max_tokens = 4;
    weir_job *other = hold(&f, 40), *job = submit(&f, &q);
    pass_steps(&f, 1); /* now it is one of both */
    assert_int_equal(stats_of(&f).n_running, 2);
    int32_t n_steps = fake_n_steps(&f.backend);
    weir_job_cancel(job);
    reply r = finish_reply(&job); /* although no step may pass */
    assert_failed(&r, WEIR_E_CANCELLED);
    assert_int_equal(r.n_events, 0);
    assert_int_equal(fake_n_steps(&f.backend), n_steps);
    assert_int_equal(atomic_load(&f.backend.n_aborted), 1);
    reply_free(&r);
    fake_gate(&f.backend, -1);
    /* The other one has lost nothing by the aborted step. */
    r = finish_reply(&other);
    int32_t history[64] = {'h'};
    for (int32_t i = 0; i < 40; i++) {
        history[i + 1] = fake_next(history, i + 1);
        assert_int_equal(((const int32_t *)r.tokens.data)[i], history[i + 1]);
    }
    reply_free(&r);
    fixture_close(&f);
}

static void cancel_in_decode_costs_one_step_at_most(void **state) {
    (void)state;
    fixture f;
    fixture_init(&f);
    fixture_open(&f, 4, 64, 0);
    weir_job *job = hold(&f, 1000);
    pass_steps(&f, 4);
    int32_t n_output = weir_job_n_output(job);
    weir_job_cancel(job);
    fake_gate(&f.backend, -1);
    reply r = finish_reply(&job);
    assert_failed(&r, WEIR_E_CANCELLED);
    assert_true(r.end.timings.n_output <= n_output + 1);
    assert_int_equal(r.n_events, (uint32_t)r.end.timings.n_output);
    reply_free(&r);
    assert_int_equal(atomic_load(&f.backend.n_aborted), 0);
    fixture_close(&f);
}

static void cancel_after_the_end_changes_nothing(void **state) {
    (void)state;
    fixture f;
    setup(&f, 4);
    weir_job *job = submit_one(&f, 'a', 3);
    WAIT_UNTIL(stats_of(&f).n_finished == 1);
    weir_job_cancel(job);
    reply r = read_reply(job);
    assert_int_equal(r.end.stop_reason, WEIR_STOP_LENGTH);
    assert_int_equal(r.n_events, 3);
    weir_job_cancel(job);
    weir_job_release(&job);
    weir_job_release(&job); /* of NULL */
    reply_free(&r);
    assert_int_equal(stats_of(&f).n_cancelled, 0);
    fixture_close(&f);
}

static void release_in_every_state(void **state) {
    (void)state;
    fixture f;
    fixture_init(&f);
    fixture_open(&f, 1, 64, 0);
    weir_job *prefills = hold(&f, 1000), *waits = submit_one(&f, 'b', 3);
    weir_job_release(&waits); /* queued */
    assert_null(waits);
    weir_job_release(&prefills); /* prefilling, in the step */
    WAIT_UNTIL(atomic_load(&f.backend.n_open) == 0);
    weir_job *decodes = hold(&f, 1000);
    pass_steps(&f, 4);
    weir_job_release(&decodes); /* decoding, with unread events */
    fake_gate(&f.backend, -1);
    WAIT_UNTIL(atomic_load(&f.backend.n_open) == 0);
    weir_job *ended = submit_one(&f, 'd', 3);
    WAIT_UNTIL(stats_of(&f).n_finished == 1);
    weir_job_release(&ended); /* ended, nothing read */
    assert_int_equal(stats_of(&f).n_cancelled, 3);
    assert_int_equal(stats_of(&f).n_running, 0);
    fixture_close(&f);
}

/* ---- time limits ---- */

static void time_limits(void **state) {
    (void)state;
    fixture f;
    fixture_init(&f);
    f.backend.decode_cost_us = 10000;
    fixture_open(&f, 1, 64, 0);
    int32_t token = 'a';
    weir_request q = plain_request(&token, 1);
    q.timeout_ms = 100;
    /* In decode: about ten steps. */
    weir_job *job = submit(&f, &q);
    reply r = finish_reply(&job);
    assert_failed(&r, WEIR_E_TIMEOUT);
    assert_in_range(r.end.timings.n_output, 10, 11);
    assert_in_range(r.end.timings.decode_us, 90000, 110000);
    reply_free(&r);
    /* In the queue, and in prefill: the step is abandoned. */
    fake_gate(&f.backend, 0);
    weir_job *runs = submit(&f, &q);
    WAIT_UNTIL(atomic_load(&f.backend.at_gate));
    weir_job *waits = submit(&f, &q);
    fake_advance(&f.backend, 100000);
    r = finish_reply(&runs);
    assert_failed(&r, WEIR_E_TIMEOUT);
    assert_int_equal(r.end.timings.prefill_us, 100000);
    reply_free(&r);
    r = finish_reply(&waits);
    assert_failed(&r, WEIR_E_TIMEOUT);
    assert_int_equal(r.end.timings.queue_us, 100000);
    reply_free(&r);
    fake_gate(&f.backend, -1);
    /* Long enough. */
    q.max_tokens = 5;
    q.timeout_ms = INT64_MAX;
    job = submit(&f, &q);
    r = finish_reply(&job);
    assert_int_equal(r.end.type, WEIR_EVENT_END);
    reply_free(&r);
    assert_int_equal(stats_of(&f).n_failed, 3);
    fixture_close(&f);
}

/* With the real clock nobody has to wake the engine: a queued job ends although all that runs is parked or held. */
static void a_time_limit_wakes_a_sleeping_engine(void **state) {
    (void)state;
    fixture f;
    fixture_init(&f);
    f.backend.real_clock = true;
    f.backend.n_ctx = 100000;
    f.backend.kv_tokens_total = 100000; /* no room for a second one */
    fixture_open(&f, 1, 64, 0);
    weir_job *parked = submit_one(&f, 'a', -1);
    WAIT_UNTIL(job_get_state(parked) == JOB_PARKED);
    int32_t token = 'b';
    weir_request q = plain_request(&token, 1);
    q.timeout_ms = 30;
    int64_t start_us = clock_now_us();
    weir_job *job = submit(&f, &q);
    reply r = finish_reply(&job);
    assert_failed(&r, WEIR_E_TIMEOUT);
    assert_in_range(clock_now_us() - start_us, 30000, 5000000);
    reply_free(&r);
    weir_job_release(&parked);
    fixture_close(&f);
}

static void waiting_gives_up_in_time(void **state) {
    (void)state;
    fixture f;
    fixture_init(&f);
    fake_gate(&f.backend, 0);
    fixture_open(&f, 1, 64, 0);
    weir_job *job = submit_one(&f, 'a', 1);
    weir_event ev;
    assert_int_equal(weir_job_poll(job, &ev), 0);
    assert_int_equal(weir_job_wait(job, &ev, 0), 0);
    int64_t start_us = clock_now_us();
    assert_int_equal(weir_job_wait(job, &ev, 20), 0);
    assert_in_range(clock_now_us() - start_us, 20000, 5000000);
    fake_gate(&f.backend, -1);
    assert_int_equal(weir_job_wait(job, &ev, -1), 1);
    assert_int_equal(weir_job_wait(job, &ev, -1), 1);
    assert_int_equal(ev.type, WEIR_EVENT_END);
    weir_job_release(&job);
    fixture_close(&f);
}

/* ---- notification ---- */

typedef struct counter {
    atomic_int n;
    weir_job *_Atomic job;
    int64_t takes_us; /* how long a call lasts */
    atomic_bool released, late;
} counter;

static void count_notify(void *user, weir_job *job) {
    counter *c = user;
    atomic_fetch_add(&c->n, 1);
    atomic_store(&c->job, job);
    if (c->takes_us) clock_sleep_us(c->takes_us);
    if (atomic_load(&c->released)) atomic_store(&c->late, true);
}

static void notifies_when_it_was_empty(void **state) {
    (void)state;
    fixture f;
    counter c = {0};
    weir_event ev;
    int32_t token = 'a';
    fixture_init(&f);
    fake_gate(&f.backend, 0);
    fixture_open(&f, 2, 64, 0);
    weir_request q = plain_request(&token, 1);
    q.max_tokens = 6;
    q.notify = count_notify;
    q.notify_user = &c;
    weir_job *job = submit(&f, &q);
    pass_steps(&f, 1);
    assert_int_equal(weir_job_n_output(job), 1); /* it waits at the gate again */
    assert_int_equal(atomic_load(&c.n), 1);
    assert_ptr_equal(atomic_load(&c.job), job);
    pass_steps(&f, 1);
    assert_int_equal(weir_job_n_output(job), 2);
    assert_int_equal(atomic_load(&c.n), 1); /* was not empty */
    assert_int_equal(weir_job_poll(job, &ev), 1);
    assert_int_equal(weir_job_poll(job, &ev), 1); /* now it is, although nobody saw a 0 */
    pass_steps(&f, 1);
    assert_int_equal(weir_job_n_output(job), 3);
    assert_int_equal(atomic_load(&c.n), 2);
    assert_int_equal(weir_job_poll(job, &ev), 1);
    assert_int_equal(weir_job_poll(job, &ev), 0);
    /* The terminal event is an event: cancelled while it is empty. */
    weir_job_cancel(job);
    fake_gate(&f.backend, -1);
    WAIT_UNTIL(atomic_load(&c.n) == 3);
    weir_job_release(&job);
    /* Cancelled in the queue by another than the reader: told too. */
    weir_job *first = hold(&f, 5), *second = submit_one(&f, 'c', 2);
    pass_steps(&f, 1);
    assert_int_equal(stats_of(&f).n_running, 2);
    job = submit(&f, &q);
    weir_job_cancel(job);
    assert_int_equal(atomic_load(&c.n), 4);
    weir_job_release(&job);
    /* Released: never again. */
    job = submit(&f, &q);
    weir_job_release(&job);
    assert_int_equal(atomic_load(&c.n), 4);
    fake_gate(&f.backend, -1);
    weir_job_release(&first);
    weir_job_release(&second);
    fixture_close(&f);
}

static void never_notifies_after_release(void **state) {
    (void)state;
    fixture f;
    setup(&f, 8);
    int32_t token = 'a';
    weir_request q = plain_request(&token, 1);
    q.max_tokens = 200;
    q.notify = count_notify;
    for (int round = 0; round < 300; round++) {
        counter c = {.takes_us = round % 2 * 100};
        weir_event ev;
        q.notify_user = &c;
        weir_job *job = submit(&f, &q);
        for (int i = 0; i < round % 7; i++) weir_job_wait(job, &ev, 1000);
        weir_job_release(&job);
        atomic_store(&c.released, true);
        clock_sleep_us(round % 3 * 100);
        assert_false(atomic_load(&c.late));
    }
    fixture_close(&f);
}

/* ---- slow readers ---- */

static void a_slow_reader_parks_only_itself(void **state) {
    (void)state;
    fixture f;
    fixture_init(&f);
    f.backend.n_ctx = 100000;
    fixture_open(&f, 1, 64, 0);
    weir_job *slow = submit_one(&f, 's', 10000);
    WAIT_UNTIL(job_get_state(slow) == JOB_PARKED);
    assert_int_equal(weir_job_n_output(slow), CHANNEL_MAX_EVENTS);
    assert_int_equal(atomic_load(&f.backend.n_open), 1); /* it keeps what it has */
    /* Its place in the step is another's meanwhile, although there is but one. */
    weir_job *other = submit_one(&f, 'o', 500);
    reply r = finish_reply(&other);
    assert_int_equal(r.end.timings.n_output, 500);
    reply_free(&r);
    assert_int_equal(weir_job_n_output(slow), CHANNEL_MAX_EVENTS);
    /* When it could go on and the place is taken, it waits for it. */
    other = hold(&f, 50);
    weir_event ev;
    for (int i = 0; i < 3000; i++) assert_int_equal(weir_job_poll(slow, &ev), 1);
    pass_steps(&f, 20);
    assert_int_equal(weir_job_n_output(other), 20);
    assert_int_equal(job_get_state(slow), JOB_PARKED);
    fake_gate(&f.backend, -1);
    r = finish_reply(&other);
    assert_int_equal(r.end.timings.n_output, 50);
    reply_free(&r);
    WAIT_UNTIL(weir_job_n_output(slow) > CHANNEL_MAX_EVENTS);
    /* Two that are parked are all that may be. */
    weir_job *second = submit_one(&f, 't', 10000), *third = submit_one(&f, 'u', 1);
    WAIT_UNTIL(job_get_state(slow) == JOB_PARKED && job_get_state(second) == JOB_PARKED);
    assert_int_equal(weir_job_queue_position(third), 0);
    weir_job_release(&second);
    r = finish_reply(&third);
    assert_int_equal(r.n_events, 1);
    reply_free(&r);
    /* And it loses nothing. */
    r = (reply){.n_events = 3000};
    while (weir_job_wait(slow, &ev, 10000) == 1 && add_event(&r, &ev)) {
    }
    assert_int_equal(r.end.stop_reason, WEIR_STOP_LENGTH);
    assert_int_equal(r.n_events, 10000);
    weir_job_release(&slow);
    static int32_t history[10001];
    history[0] = 's';
    for (int32_t i = 0; i < 3000; i++) history[i + 1] = fake_next(history, i + 1);
    memcpy(history + 3001, r.tokens.data, 7000 * sizeof(int32_t));
    for (int32_t n = 3001; n < 10001; n += 50) assert_int_equal(history[n], fake_next(history, n));
    reply_free(&r);
    fixture_close(&f);
}

static void a_reader_that_never_comes_loses_its_job(void **state) {
    (void)state;
    fixture f;
    fixture_init(&f);
    f.backend.n_ctx = 100000;
    fixture_open(&f, 2, 64, 0);
    weir_job *job = submit_one(&f, 's', -1);
    WAIT_UNTIL(job_get_state(job) == JOB_PARKED);
    fake_advance(&f.backend, (int64_t)SCHED_PARK_LIMIT_MS * 1000 - 1000);
    sched_wake(f.engine);
    clock_sleep_us(20000);
    assert_int_equal(job_get_state(job), JOB_PARKED);
    fake_advance(&f.backend, 1000);
    sched_wake(f.engine);
    WAIT_UNTIL(job_get_state(job) == JOB_ENDED);
    reply r = finish_reply(&job); /* the text that it has is still there */
    assert_failed(&r, WEIR_E_CANCELLED);
    assert_int_equal(r.n_events, CHANNEL_MAX_EVENTS);
    reply_free(&r);
    /* Cancelled while parked. */
    job = submit_one(&f, 's', -1);
    WAIT_UNTIL(job_get_state(job) == JOB_PARKED);
    weir_job_cancel(job);
    WAIT_UNTIL(job_get_state(job) == JOB_ENDED);
    weir_job_release(&job);
    fixture_close(&f);
}

/* ---- drain and close ---- */

static void drain_finishes_what_is_there(void **state) {
    (void)state;
    fixture f;
    fixture_init(&f);
    fake_gate(&f.backend, 0);
    fixture_open(&f, 1, 64, 0);
    weir_job *runs = submit_one(&f, 'a', 5), *waits = submit_one(&f, 'b', 5), *late = NULL;
    weir_engine_drain(f.engine);
    int32_t token = 'c';
    weir_request q = plain_request(&token, 1);
    assert_int_equal(weir_job_submit(f.engine, &q, &late, NULL), WEIR_E_CLOSED);
    assert_null(late);
    fake_gate(&f.backend, -1);
    reply r = finish_reply(&runs);
    assert_int_equal(r.n_events, 5);
    reply_free(&r);
    r = finish_reply(&waits);
    assert_int_equal(r.n_events, 5);
    reply_free(&r);
    assert_int_equal(stats_of(&f).n_refused, 1);
    fixture_close(&f);
}

static void close_ends_every_job(void **state) {
    (void)state;
    fixture f;
    fixture_init(&f);
    f.backend.n_ctx = 100000;
    fixture_open(&f, 3, 64, 0);
    weir_job *ended = submit_one(&f, 'e', 2);
    WAIT_UNTIL(stats_of(&f).n_finished == 1);
    weir_job *parked = submit_one(&f, 'p', -1);
    WAIT_UNTIL(job_get_state(parked) == JOB_PARKED);
    weir_job *decodes = hold(&f, -1), *prefills = submit_one(&f, 'f', -1);
    pass_steps(&f, 1);
    assert_int_equal(job_get_state(decodes), JOB_DECODE);
    assert_int_equal(job_get_state(prefills), JOB_PREFILL);
    weir_job *waits = submit_one(&f, 'w', -1), *released = submit_one(&f, 'r', -1);
    weir_job_release(&released);
    fixture_close(&f); /* the step that hangs at the gate is abandoned */
    weir_job *closed[] = {parked, decodes, prefills, waits};
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(weir_job_queue_position(closed[i]), -1);
        reply r = finish_reply(&closed[i]);
        assert_failed(&r, WEIR_E_CLOSED);
        reply_free(&r);
    }
    weir_job_cancel(ended);
    reply r = finish_reply(&ended);
    assert_int_equal(r.n_events, 2);
    assert_int_equal(r.end.type, WEIR_EVENT_END);
    reply_free(&r);
    weir_engine *none = NULL;
    weir_engine_close(&none);
}

static void *wait_for_end(void *arg) {
    weir_event ev;
    weir_job *job = arg;
    while (weir_job_wait(job, &ev, -1) == 1 && ev.type == WEIR_EVENT_TOKEN) {
    }
    return (void *)(intptr_t)ev.code;
}

static void close_wakes_readers_that_wait(void **state) {
    (void)state;
    fixture f;
    fixture_init(&f);
    fake_gate(&f.backend, 0);
    fixture_open(&f, 1, 64, 0);
    weir_job *jobs[4];
    pthread_t threads[4];
    void *code;
    for (int i = 0; i < 4; i++) {
        jobs[i] = submit_one(&f, 'a', 5);
        assert_int_equal(pthread_create(&threads[i], NULL, wait_for_end, jobs[i]), 0);
    }
    for (int i = 0; i < 4; i++) WAIT_UNTIL(atomic_load(&jobs[i]->waiting));
    fixture_close(&f);
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], &code);
        assert_int_equal((intptr_t)code, WEIR_E_CLOSED);
        weir_job_release(&jobs[i]);
    }
}

static void an_idle_engine_sleeps(void **state) {
    (void)state;
    fixture f;
    fixture_init(&f);
    f.backend.real_clock = true;
    fixture_open(&f, 2, 64, 0);
    weir_job *job = submit_one(&f, 'a', 5);
    reply r = finish_reply(&job);
    reply_free(&r);
    clockid_t clock;
    struct timespec before, after;
    clock_sleep_us(20000);
    assert_int_equal(pthread_getcpuclockid(f.engine->thread, &clock), 0);
    clock_gettime(clock, &before);
    clock_sleep_us(200000);
    clock_gettime(clock, &after);
    int64_t used_us = (after.tv_sec - before.tv_sec) * 1000000 + (after.tv_nsec - before.tv_nsec) / 1000;
    assert_true(used_us < 1000);
    fixture_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_these_moves_are_legal),
        cmocka_unit_test(ends_at_max_tokens),
        cmocka_unit_test(ends_at_the_end_of_generation),
        cmocka_unit_test(ends_at_the_end_of_the_context),
        cmocka_unit_test(ends_at_a_stop_string),
        cmocka_unit_test(control_tokens_are_silent_unless_asked_for),
        cmocka_unit_test(code_points_are_whole),
        cmocka_unit_test(log_probabilities_only_when_asked_for),
        cmocka_unit_test(nothing_to_sample_is_an_error),
        cmocka_unit_test(bad_requests_are_refused),
        cmocka_unit_test(bad_options_are_refused),
        cmocka_unit_test(a_full_queue_refuses),
        cmocka_unit_test(cancel_in_the_queue_is_immediate),
        cmocka_unit_test(cancel_in_prefill_aborts_the_step),
        cmocka_unit_test(cancel_in_decode_costs_one_step_at_most),
        cmocka_unit_test(cancel_after_the_end_changes_nothing),
        cmocka_unit_test(release_in_every_state),
        cmocka_unit_test(time_limits),
        cmocka_unit_test(a_time_limit_wakes_a_sleeping_engine),
        cmocka_unit_test(waiting_gives_up_in_time),
        cmocka_unit_test(notifies_when_it_was_empty),
        cmocka_unit_test(never_notifies_after_release),
        cmocka_unit_test(a_slow_reader_parks_only_itself),
        cmocka_unit_test(a_reader_that_never_comes_loses_its_job),
        cmocka_unit_test(drain_finishes_what_is_there),
        cmocka_unit_test(close_ends_every_job),
        cmocka_unit_test(close_wakes_readers_that_wait),
        cmocka_unit_test(an_idle_engine_sleeps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
