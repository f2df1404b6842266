/* The scheduler as a state machine: seeded random traces of arrivals, cancellations, slow readers, deadlines, failures and a full KV
 * cache, over a fake model and a fake clock, without threads, so that a seed always gives the same trace. After each event:
 * no page is lost, nothing is held by nobody. At the end: each accepted request has had exactly one terminal event, and the
 * answer that its own prompt asks for. `WEIR_TEST_SEED=n` replays one trace, `WEIR_TEST_TRACES=n` runs more. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support.h"

enum { MAX_JOBS = 40, MAX_PROMPT = 120, N_EVENTS = 300, N_TENANTS = 4, DEFAULT_TRACES = 1500 };

typedef struct live {
    weir_job *job;
    reply r;
    int32_t prompt[MAX_PROMPT], n_prompt, max_tokens;
    bool poisoned, ended, reads; /* reads: as fast as events come */
} live;

typedef struct trace {
    fixture f;
    uint64_t random, seed;
    live jobs[MAX_JOBS];
    int32_t shared[MAX_PROMPT]; /* what many prompts begin with */
    uint64_t n_accepted, n_refused, n_terminal;
    bool fails; /* the backend fails now and then */
} trace;

static uint32_t below(trace *t, uint32_t n) {
    t->random = t->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(t->random >> 33) % n;
}

/* ---- what must always hold ---- */

static void check_pages(trace *t) {
    const fake *b = &t->f.backend;
    REQUIRE(pages_n_used(b->pages) + pages_n_available(b->pages) == (int32_t)(b->kv_tokens_total / b->page_tokens));
    REQUIRE(atomic_load(&b->n_open) <= 2 * t->f.engine->n_parallel);
    if (atomic_load(&b->n_open) == 0) REQUIRE(pages_n_used(b->pages) == 0);
}

static void check_gauges(trace *t) {
    const weir_engine *e = t->f.engine;
    weir_stats s = stats_of(&t->f);
    uint64_t n_waiting = 0;
    for (const tenant *n = e->tenants; n; n = n->next)
        for (const weir_job *j = n->first; j; j = j->next) n_waiting++;
    for (int32_t i = 0; i < e->n_running; i++) {
        const weir_job *j = e->running[i];
        const job_state state = job_get_state(j);
        n_waiting += state == JOB_WAITING;
        REQUIRE(state != JOB_WAITING || j->seq == NULL);
        REQUIRE((state != JOB_PREFILL && state != JOB_DECODE) || j->seq != NULL);
        if (i > 0) REQUIRE(e->running[i - 1]->priority <= j->priority);
    }
    REQUIRE(s.n_waiting == n_waiting);
    REQUIRE(s.n_running + s.n_waiting == s.n_submitted - s.n_finished - s.n_cancelled - s.n_failed);
}

static void check_answer(trace *t, live *l) {
    const reply *r = &l->r;
    const int32_t n = (int32_t)(r->tokens.n_bytes / sizeof(int32_t));
    REQUIRE(r->n_terminals == 1);
    if (!l->poisoned) {
        int32_t *history = malloc((size_t)(l->n_prompt + n) * sizeof *history);
        memcpy(history, l->prompt, (size_t)l->n_prompt * sizeof *history);
        if (n) memcpy(history + l->n_prompt, r->tokens.data, (size_t)n * sizeof *history);
        for (int32_t i = 0; i < n; i++) REQUIRE(history[l->n_prompt + i] == fake_says(&t->f.backend, history, l->n_prompt + i));
        free(history);
    }
    if (r->end.type == WEIR_EVENT_END) {
        REQUIRE(!l->poisoned && n == l->max_tokens && r->end.stop_reason == WEIR_STOP_LENGTH);
        REQUIRE(r->end.timings.n_cached >= 0 && r->end.timings.n_cached < l->n_prompt);
    } else {
        REQUIRE(r->end.code == WEIR_E_CANCELLED || r->end.code == WEIR_E_TIMEOUT || l->poisoned || t->fails);
    }
}

/* ---- events ---- */

static void submit_random(trace *t, live *l) {
    weir_error err = {0};
    char name[16];
    memset(l, 0, sizeof *l);
    l->n_prompt = 1 + (int32_t)below(t, below(t, 3) ? 20 : MAX_PROMPT);
    const int32_t n_shared = below(t, 2) ? (int32_t)below(t, (uint32_t)l->n_prompt) : 0;
    for (int32_t i = 0; i < l->n_prompt; i++) l->prompt[i] = i < n_shared ? t->shared[i] : 'a' + (int32_t)below(t, 26);
    l->poisoned = t->fails && below(t, 20) == 0;
    if (l->poisoned) l->prompt[below(t, (uint32_t)l->n_prompt)] = FAKE_POISON;
    l->max_tokens = 1 + (int32_t)below(t, 60);
    l->reads = below(t, 4) > 0;
    weir_request q = plain_request(l->prompt, (size_t)l->n_prompt);
    q.max_tokens = l->max_tokens;
    if (below(t, 8) == 0) q.timeout_ms = 1 + below(t, 200);
    q.priority = below(t, 6) ? 0 : (int32_t)below(t, 3) - 1;
    snprintf(name, sizeof name, "t%u", below(t, N_TENANTS));
    if (below(t, 3)) q.tenant = name;
    if (below(t, 5) == 0) q.tenant_weight = (float)(1 + below(t, 3));
    q.no_prefix_cache = below(t, 6) == 0;
    if (below(t, 6) == 0) q.cache_salt = "salt";
    if (below(t, 10) == 0) q.n_top_logprobs = 2;
    const int code = weir_job_submit(t->f.engine, &q, &l->job, &err);
    t->n_accepted += code == 0;
    t->n_refused += code != 0;
    REQUIRE(code == 0 || code == WEIR_E_QUEUE_FULL);
}

static void read_events(trace *t, live *l, uint32_t n) {
    weir_event ev;
    while (n-- > 0 && !l->ended && weir_job_poll(l->job, &ev)) {
        if (add_event(&l->r, &ev)) continue;
        l->ended = true;
        t->n_terminal++;
        check_answer(t, l);
    }
}

static void release(live *l) {
    weir_job_release(&l->job);
    reply_free(&l->r);
}

static void one_event(trace *t) {
    live *l = &t->jobs[below(t, MAX_JOBS)];
    fake *b = &t->f.backend;
    const uint32_t what = below(t, 20);
    if (l->job == NULL) {
        if (what < 12) submit_random(t, l);
    } else if (what == 0) {
        weir_job_cancel(l->job);
    } else if (what == 1 && l->ended) {
        release(l);
    } else if (what < 5) {
        read_events(t, l, 1 + below(t, 30));
    }
    if (what == 19) fake_advance(b, below(t, 30000));
    if (t->fails && below(t, 60) == 0) atomic_store(&b->fail_steps, 1);
    if (t->fails && below(t, 60) == 0) atomic_store(&b->fail_batches, 1);
    for (uint32_t n = below(t, 4); n > 0; n--) sched_turn(t->f.engine);
    for (int i = 0; i < MAX_JOBS; i++) {
        live *reader = &t->jobs[i];
        if (reader->job && reader->reads) read_events(t, reader, UINT32_MAX);
        if (reader->job && reader->ended && below(t, 2)) release(reader);
    }
}

/* Everybody reads; what was accepted ends within a bounded number of steps. */
static void run_out(trace *t) {
    atomic_store(&t->f.backend.fail_steps, 0);
    atomic_store(&t->f.backend.fail_batches, 0);
    for (int32_t turns = 0;; turns++) {
        bool some = false;
        for (int i = 0; i < MAX_JOBS; i++) {
            live *l = &t->jobs[i];
            if (l->job == NULL) continue;
            read_events(t, l, UINT32_MAX);
            if (l->ended) release(l);
            some |= l->job != NULL;
        }
        if (!some) return;
        REQUIRE(turns < 20000);
        sched_turn(t->f.engine);
        check_pages(t);
    }
}

static void open_trace(trace *t) {
    static const int32_t n_parallel[] = {1, 2, 4, 16}, n_batch[] = {4, 16, 40, 64}, page_tokens[] = {1, 4, 16};
    weir_error err = {0};
    fixture_init(&t->f);
    fake *b = &t->f.backend;
    b->n_ctx = 192;
    b->page_tokens = page_tokens[below(t, 3)];
    b->kv_tokens_total = 192 + (int64_t)below(t, below(t, 2) ? 200 : 3000);
    b->decode_cost_us = 1000;
    b->prefill_cost_us = 50;
    b->at_ends = below(t, 4) == 0;
    b->keeps_all = b->at_ends;
    /* Half of them say what can be guessed, with exceptions. */
    b->period = below(t, 2) ? 0 : 5;
    b->surprise = 20;
    t->fails = below(t, 3) == 0;
    for (int32_t i = 0; i < MAX_PROMPT; i++) t->shared[i] = 'A' + i % 26;
    const sched_backend backend = fake_backend(b);
    const weir_engine_options o = {.n_parallel = n_parallel[below(t, 4)], .n_batch = n_batch[below(t, 4)], .max_queue = below(t, 3) ? 0 : 6,
                                   .max_queue_tokens = below(t, 4) ? 0 : 300, .no_prefix_cache = below(t, 8) == 0};
    REQUIRE(sched_open_unthreaded(&t->f.engine, &backend, &o, &err) == 0);
}

/* What happened, as one number. */
static uint64_t run_trace(uint64_t seed) {
    trace *t = calloc(1, sizeof *t);
    t->seed = t->random = seed;
    for (int i = 0; i < 5; i++) below(t, 2);
    open_trace(t);
    for (int i = 0; i < N_EVENTS; i++) {
        one_event(t);
        check_pages(t);
        check_gauges(t);
    }
    run_out(t);
    check_gauges(t);
    const weir_stats s = stats_of(&t->f);
    REQUIRE(s.n_running == 0 && s.n_waiting == 0 && s.kv_tokens_used == 0 && s.waiting_tokens == 0);
    REQUIRE(s.n_submitted == t->n_accepted && s.n_refused == t->n_refused && t->n_terminal == t->n_accepted);
    for (const tenant *n = t->f.engine->tenants; n; n = n->next) REQUIRE(n->n_jobs == 0 && n->n_running == 0);
    const uint64_t sum = s.n_steps * 31 + s.output_tokens * 17 + s.n_preemptions * 7 + s.cached_tokens * 5 + s.recomputed_tokens * 3 + s.draft_accepted * 2 + s.n_cancelled;
    fixture_close(&t->f);
    free(t);
    return sum;
}

static uint64_t number_from(const char *name, uint64_t missing) {
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 10) : missing;
}

static void random_traces(void **state) {
    (void)state;
    const uint64_t only = number_from("WEIR_TEST_SEED", 0), n = number_from("WEIR_TEST_TRACES", DEFAULT_TRACES);
    for (uint64_t seed = only ? only : 1; seed <= (only ? only : n); seed++) {
        char line[64];
        snprintf(line, sizeof line, "WEIR_TEST_SEED=%llu", (unsigned long long)seed);
        trace_name = line;
        run_trace(seed);
    }
    trace_name = NULL;
}

static void a_seed_replays_its_trace(void **state) {
    (void)state;
    uint64_t first = run_trace(12345), differs = 0;
    for (uint64_t seed = 12346; seed < 12356; seed++) differs += run_trace(seed) != first;
    assert_true(differs > 0);
    assert_true(run_trace(12345) == first);
}

/* ---- fairness ---- */

static weir_job *submit_for(fixture *f, const char *name, float weight, int32_t priority, int32_t token, int32_t max_tokens) {
    weir_request q = plain_request(&token, 1);
    q.max_tokens = max_tokens;
    q.tenant = name;
    q.tenant_weight = weight;
    q.priority = priority;
    return submit(f, &q);
}

static void open_fair(fixture *f, int32_t n_parallel) {
    weir_error err = {0};
    fixture_init(f);
    f->backend.decode_cost_us = 1000;
    const sched_backend backend = fake_backend(&f->backend);
    const weir_engine_options o = {.n_parallel = n_parallel, .n_batch = 64};
    REQUIRE(sched_open_unthreaded(&f->engine, &backend, &o, &err) == 0);
}

static int32_t n_ended(weir_job **jobs, int32_t n) {
    int32_t ended = 0;
    for (int32_t i = 0; i < n; i++) ended += job_get_state(jobs[i]) == JOB_ENDED;
    return ended;
}

static void release_all(weir_job **jobs, int32_t n) {
    for (int32_t i = 0; i < n; i++) weir_job_release(&jobs[i]);
}

/* A hundred requests of one tenant are before a single one of another, which does not notice. */
static void a_flood_does_not_delay_a_single_request(void **state) {
    (void)state;
    fixture f;
    weir_job *flood[100], *single;
    open_fair(&f, 4);
    for (int32_t i = 0; i < 100; i++) flood[i] = submit_for(&f, "flood", 0, 0, 'a' + i % 26, 50);
    for (int32_t i = 0; i < 20; i++) sched_turn(f.engine);
    single = submit_for(&f, "single", 0, 0, 'z', 30);
    assert_true(weir_job_queue_position(single) <= 1);
    int32_t turns = 0;
    while (job_get_state(single) != JOB_ENDED && turns++ < 1000) sched_turn(f.engine);
    assert_true(turns <= 32); /* a step for each token, and one to begin with */
    assert_true(stats_of(&f).n_preemptions == 1);
    while (n_ended(flood, 100) < 100) sched_turn(f.engine);
    assert_int_equal(stats_of(&f).n_failed, 0);
    release_all(flood, 100);
    weir_job_release(&single);
    fixture_close(&f);
}

/* While both have work, what is done for them is as their weights, whatever the number of their requests. */
static void shares_follow_weights(void **state) {
    (void)state;
    fixture f;
    enum { N = 120 };
    weir_job *a[N], *b[N];
    open_fair(&f, 2);
    for (int32_t i = 0; i < N; i++) a[i] = submit_for(&f, "a", 3, 0, 'a', 10);
    for (int32_t i = 0; i < N; i++) b[i] = submit_for(&f, "b", 1, 0, 'b', 10);
    while (n_ended(a, N) + n_ended(b, N) < 80) sched_turn(f.engine);
    const int32_t n_a = n_ended(a, N), n_b = n_ended(b, N);
    assert_in_range(n_a, 55, 64); /* of 80, three quarters and some that run at once */
    assert_in_range(n_b, 16, 25);
    while (n_ended(a, N) + n_ended(b, N) < 2 * N) sched_turn(f.engine);
    release_all(a, N);
    release_all(b, N);
    fixture_close(&f);
}

static void a_more_important_request_takes_the_place_of_a_less_important_one(void **state) {
    (void)state;
    fixture f;
    weir_job *low[3], *high;
    open_fair(&f, 2);
    for (int32_t i = 0; i < 3; i++) low[i] = submit_for(&f, NULL, 0, 5, 'a' + i, 40);
    for (int32_t i = 0; i < 10; i++) sched_turn(f.engine);
    high = submit_for(&f, NULL, 0, -1, 'h', 20);
    int32_t turns = 0;
    while (job_get_state(high) != JOB_ENDED && turns++ < 1000) sched_turn(f.engine);
    assert_true(turns <= 22);
    assert_int_equal(n_ended(low, 3), 0);
    while (n_ended(low, 3) < 3) sched_turn(f.engine);
    for (int32_t i = 0; i < 3; i++) {
        reply r = read_reply(low[i]);
        assert_int_equal(r.end.type, WEIR_EVENT_END);
        assert_int_equal(r.end.timings.n_output, 40);
        reply_free(&r);
    }
    release_all(low, 3);
    weir_job_release(&high);
    fixture_close(&f);
}

/* ---- sharing ---- */

static void choices_of_one_prompt_compute_it_once(void **state) {
    (void)state;
    enum { N = 8, N_PROMPT = 230 };
    fixture f;
    int32_t tokens[N_PROMPT];
    weir_job *jobs[N];
    for (int with_room = 0; with_room < 2; with_room++) {
        open_fair(&f, N);
        f.engine->n_batch = with_room ? 1000 : 64;
        for (int32_t i = 0; i < N_PROMPT; i++) tokens[i] = 'a' + i * 7 % 25;
        weir_request q = plain_request(tokens, N_PROMPT);
        q.max_tokens = 5;
        for (int32_t i = 0; i < N; i++) jobs[i] = submit(&f, &q);
        while (n_ended(jobs, N) < N) sched_turn(f.engine);
        const weir_stats s = stats_of(&f);
        /* 14 pages of 16 are shared; the rest is each one's own. */
        assert_int_equal(s.prompt_tokens, N_PROMPT + (N - 1) * (N_PROMPT - 224));
        assert_int_equal(s.cached_tokens, (N - 1) * 224);
        for (int32_t i = 0; i < N; i++) {
            reply r = read_reply(jobs[i]);
            assert_int_equal(r.end.timings.n_cached, i ? 224 : 0);
            reply_free(&r);
        }
        release_all(jobs, N);
        fixture_close(&f);
    }
}

static void the_next_turn_of_a_chat_pays_for_what_is_new(void **state) {
    (void)state;
    fixture f;
    int32_t history[400], n = 100;
    open_fair(&f, 2);
    for (int32_t i = 0; i < n; i++) history[i] = 'a' + i * 11 % 26;
    for (int32_t turn = 0; turn < 4; turn++) {
        weir_request q = plain_request(history, (size_t)n);
        q.max_tokens = 20;
        weir_job *job = submit(&f, &q);
        while (job_get_state(job) != JOB_ENDED) sched_turn(f.engine);
        reply r = read_reply(job);
        assert_int_equal(r.end.timings.n_cached, turn == 0 ? 0 : (n - 30 - 1) / 16 * 16); /* all but the new message and the last token said */
        memcpy(history + n, r.tokens.data, 20 * sizeof *history);
        n += 20;
        for (int32_t i = 0; i < 30; i++) history[n++] = 'A' + (turn + i) % 26;
        reply_free(&r);
        weir_job_release(&job);
    }
    fixture_close(&f);
}

static void nothing_is_shared_across_salts(void **state) {
    (void)state;
    fixture f;
    int32_t tokens[100];
    static const struct {
        const char *salt;
        bool off;
        int32_t cached;
    } cases[] = {{NULL, false, 0}, {NULL, false, 96}, {"a", false, 0}, {"b", false, 0}, {"a", false, 96}, {NULL, true, 0}};
    open_fair(&f, 2);
    for (int32_t i = 0; i < 100; i++) tokens[i] = 'a' + i % 26;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        weir_request q = plain_request(tokens, 100);
        q.max_tokens = 1;
        q.cache_salt = cases[i].salt;
        q.no_prefix_cache = cases[i].off;
        weir_job *job = submit(&f, &q);
        while (job_get_state(job) != JOB_ENDED) sched_turn(f.engine);
        reply r = finish_reply(&job);
        assert_int_equal(r.end.timings.n_cached, cases[i].cached);
        reply_free(&r);
    }
    fixture_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_flood_does_not_delay_a_single_request),
        cmocka_unit_test(shares_follow_weights),
        cmocka_unit_test(a_more_important_request_takes_the_place_of_a_less_important_one),
        cmocka_unit_test(choices_of_one_prompt_compute_it_once),
        cmocka_unit_test(the_next_turn_of_a_chat_pays_for_what_is_new),
        cmocka_unit_test(nothing_is_shared_across_salts),
        cmocka_unit_test(a_seed_replays_its_trace),
        cmocka_unit_test(random_traces),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
