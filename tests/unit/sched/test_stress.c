/* Seeded random interleavings of everything a caller can do, on several threads, with a backend that fails, refuses room and
 * runs out of time now and then. Checked throughout: every accepted request gets exactly one terminal event and the answer that
 * its own prompt asks for (never another's), no sequence is left open, the counters add up. */
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "support.h"

enum { N_THREADS = 3, MAX_LIVE = 12, MAX_PROMPT = 90, N_OPERATIONS = 4000 };

typedef struct live {
    weir_job *job;
    reply r;
    int32_t prompt[MAX_PROMPT], n_prompt, max_tokens;
    bool poisoned, scripted, ended;
    atomic_int n_notified;
} live;

typedef struct client {
    fixture *f;
    pthread_t thread;
    uint64_t random;
    live jobs[MAX_LIVE];
    uint64_t n_accepted, n_refused, n_terminal, n_released_early;
} client;

static uint32_t below(client *c, uint32_t n) {
    c->random = c->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(c->random >> 33) % n;
}

static void count_notify(void *user, weir_job *job) {
    (void)job;
    atomic_fetch_add((atomic_int *)user, 1);
}

static void submit_random(client *c, live *l) {
    static const char *const stops[] = {"qq", "abc", "x", "zyx"};
    weir_error err = {0};
    memset(l, 0, sizeof *l);
    l->n_prompt = 1 + (int32_t)below(c, below(c, 4) ? 10 : MAX_PROMPT);
    for (int32_t i = 0; i < l->n_prompt; i++) l->prompt[i] = 'a' + (int32_t)below(c, 26);
    l->poisoned = below(c, 25) == 0;
    l->scripted = !l->poisoned && below(c, 8) == 0;
    if (l->poisoned) l->prompt[below(c, (uint32_t)l->n_prompt)] = FAKE_POISON;
    if (l->scripted) l->prompt[l->n_prompt - 1] = FAKE_SCRIPT;
    weir_request q = plain_request(l->prompt, (size_t)l->n_prompt);
    l->max_tokens = q.max_tokens = below(c, 30) == 0 ? 6000 : 1 + (int32_t)below(c, 60);
    if (below(c, 3) == 0) {
        q.stop = stops;
        q.n_stop = 4;
    }
    if (below(c, 5) == 0) q.timeout_ms = 1 + below(c, 30);
    if (below(c, 4) == 0) q.n_top_logprobs = (int32_t)below(c, 6);
    if (below(c, 2) == 0) {
        q.notify = count_notify;
        q.notify_user = &l->n_notified;
    }
    int code = weir_job_submit(c->f->engine, &q, &l->job, &err);
    if (code == 0) {
        c->n_accepted++;
    } else {
        REQUIRE(code == WEIR_E_QUEUE_FULL);
        REQUIRE(l->job == NULL);
        c->n_refused++;
    }
}

/* What came must be a prefix of what this prompt gives, and a whole answer when it ended well. */
static void check_answer(live *l) {
    const reply *r = &l->r;
    int32_t n = (int32_t)(r->tokens.n_bytes / sizeof(int32_t));
    if (l->scripted) {
        /* A limit may fall inside a code point. */
        size_t n_bytes = r->text.n_bytes;
        if (n_bytes >= 3 && memcmp(r->text.data + n_bytes - 3, "\xEF\xBF\xBD", 3) == 0) n_bytes -= 3;
        REQUIRE(n_bytes == 0 || strncmp("scripted \xC3\xA9nd", r->text.data, n_bytes) == 0);
    } else if (!l->poisoned) {
        int32_t *history = malloc((size_t)(l->n_prompt + n) * sizeof *history);
        memcpy(history, l->prompt, (size_t)l->n_prompt * sizeof *history);
        if (n) memcpy(history + l->n_prompt, r->tokens.data, (size_t)n * sizeof *history);
        /* The hash is of the whole history: checking a few places keeps this linear. */
        for (int32_t i = 0; i < n; i += 1 + n / 20) REQUIRE(history[l->n_prompt + i] == fake_next(history, l->n_prompt + i));
        free(history);
    }
    if (r->end.type != WEIR_EVENT_END) return;
    REQUIRE(!(l->poisoned));
    if (r->end.stop_reason == WEIR_STOP_LENGTH && !l->scripted) {
        REQUIRE(n == l->max_tokens);
        REQUIRE(r->end.timings.n_output == l->max_tokens);
    }
    if (r->end.stop_reason == WEIR_STOP_EOS) REQUIRE(l->scripted);
}

static void read_some(client *c, live *l, uint32_t n_events, int64_t timeout_ms) {
    weir_event ev;
    for (uint32_t i = 0; i < n_events && !l->ended; i++) {
        int got = timeout_ms ? weir_job_wait(l->job, &ev, timeout_ms) : weir_job_poll(l->job, &ev);
        if (!got) return;
        if (!add_event(&l->r, &ev)) {
            l->ended = true;
            c->n_terminal++;
            REQUIRE(weir_job_poll(l->job, &ev) == 0);
            check_answer(l);
        }
    }
}

static void release(client *c, live *l) {
    if (!l->ended) c->n_released_early++;
    weir_job_release(&l->job);
    REQUIRE(l->job == NULL);
    reply_free(&l->r);
}

static void operate(client *c) {
    live *l = &c->jobs[below(c, MAX_LIVE)];
    if (l->job == NULL) {
        submit_random(c, l);
        return;
    }
    switch (below(c, 12)) {
    case 0:
        weir_job_cancel(l->job);
        break;
    case 1:
        release(c, l);
        break;
    case 2:
        read_some(c, l, 5, 1);
        break;
    case 3:
        read_some(c, l, 100000, 2);
        break;
    case 4:
        REQUIRE(weir_job_queue_position(l->job) >= -1);
        break;
    case 5:
        REQUIRE(weir_job_n_output(l->job) >= 0);
        break;
    default:
        read_some(c, l, 1 + below(c, 50), 0);
        break;
    }
    if (l->job && l->ended && below(c, 3)) release(c, l);
}

static void *client_main(void *arg) {
    client *c = arg;
    for (int i = 0; i < N_OPERATIONS; i++) {
        operate(c);
        fake *b = &c->f->backend;
        if (below(c, 60) == 0) fake_advance(b, below(c, 20000));
        if (below(c, 300) == 0) atomic_store(&b->fail_steps, (int)below(c, 3));
        if (below(c, 300) == 0) atomic_store(&b->fail_batches, (int)below(c, 3));
        if (below(c, 400) == 0) fake_gate(b, below(c, 3) ? -1 : (int64_t)below(c, 5));
        if (below(c, 50) == 0) fake_gate(b, -1);
        if (below(c, 300) == 0) atomic_store(&b->open_error, below(c, 2) ? WEIR_E_NOMEM : WEIR_E_LIMIT);
        if (below(c, 20) == 0) atomic_store(&b->open_error, 0);
    }
    return NULL;
}

/* Reads all jobs to their ends, each a little at a time: one that is parked may have the place that another waits for. */
static void drain(client *clients) {
    int64_t give_up_us = clock_now_us() + 20 * 1000000;
    for (bool some = true; some;) {
        some = false;
        assert_true(clock_now_us() < give_up_us);
        for (int i = 0; i < N_THREADS * MAX_LIVE; i++) {
            live *l = &clients[i / MAX_LIVE].jobs[i % MAX_LIVE];
            if (l->job == NULL) continue;
            read_some(&clients[i / MAX_LIVE], l, 1000000, 1);
            if (l->ended)
                release(&clients[i / MAX_LIVE], l);
            else
                some = true;
        }
    }
}

static void run_round(uint64_t seed, int32_t n_parallel, int32_t n_batch, int32_t max_queue, int64_t kv_tokens,
                      bool close_early) {
    fixture f;
    client *clients = calloc(N_THREADS, sizeof *clients);
    fixture_init(&f);
    f.backend.n_ctx = 7000;
    f.backend.kv_tokens_total = kv_tokens;
    f.backend.decode_cost_us = 300;
    f.backend.prefill_cost_us = 20;
    fake_script(&f.backend, 0, (const char *const[]){"script", "ed", " \xC3", "\xA9n", "d"}, 5);
    fixture_open(&f, n_parallel, n_batch, max_queue);
    for (int i = 0; i < N_THREADS; i++) {
        clients[i] = (client){.f = &f, .random = seed * 1000 + (uint64_t)i};
        assert_int_equal(pthread_create(&clients[i].thread, NULL, client_main, &clients[i]), 0);
    }
    for (int i = 0; i < N_THREADS; i++) pthread_join(clients[i].thread, NULL);
    fake_gate(&f.backend, -1);
    atomic_store(&f.backend.open_error, 0);
    sched_wake(f.engine);
    if (close_early) {
        fake_gate(&f.backend, 0);
    } else {
        drain(clients);
        /* Those released early may still be on their way out. */
        WAIT_UNTIL(stats_of(&f).n_running + stats_of(&f).n_waiting == 0);
    }
    weir_stats s = stats_of(&f);
    fixture_close(&f);
    drain(clients);
    uint64_t n_accepted = 0, n_refused = 0, n_terminal = 0, n_released = 0;
    for (int i = 0; i < N_THREADS; i++) {
        n_accepted += clients[i].n_accepted;
        n_refused += clients[i].n_refused;
        n_terminal += clients[i].n_terminal;
        n_released += clients[i].n_released_early;
    }
    assert_int_equal(s.n_submitted, n_accepted);
    assert_int_equal(s.n_refused, n_refused);
    assert_int_equal(s.n_submitted, s.n_finished + s.n_cancelled + s.n_failed + s.n_running + s.n_waiting);
    if (!close_early) assert_int_equal(s.kv_tokens_used, 0);
    assert_int_equal(n_accepted, n_terminal + n_released);
    assert_true(n_accepted > 500);
    free(clients);
}

static void random_interleavings(void **state) {
    (void)state;
    static const struct {
        int32_t n_parallel, n_batch, max_queue;
        int64_t kv_tokens;
    } shapes[] = {{1, 16, 50, 7000}, {4, 32, 8, 9000}, {8, 64, 4, 20000}, {32, 40, 0, 1 << 20}, {3, 3, -1, 12000}};
    const char *more = getenv("WEIR_TEST_ROUNDS");
    int n_rounds = more ? atoi(more) : 1;
    for (int round = 0; round < n_rounds; round++)
        for (size_t i = 0; i < 5; i++)
            for (int close_early = 0; close_early < 2; close_early++)
                run_round((uint64_t)round * 100 + i * 2 + (uint64_t)close_early, shapes[i].n_parallel, shapes[i].n_batch,
                          shapes[i].max_queue, shapes[i].kv_tokens, close_early);
}

/* ---- a reader that sleeps until it is notified, as an event loop does ---- */

enum { N_NOTIFIED = 24, N_GENERATIONS = 60 };

typedef struct mailbox {
    sem_t wake;
    atomic_bool flagged[N_NOTIFIED];
} mailbox;

typedef struct address {
    mailbox *box;
    int index;
} address;

static void post(void *user, weir_job *job) {
    const address *a = user;
    (void)job;
    atomic_store(&a->box->flagged[a->index], true);
    sem_post(&a->box->wake);
}

static weir_job *submit_notified(fixture *f, address *a, int generation) {
    int32_t token = 'a' + (a->index + generation) % 26;
    weir_request q = plain_request(&token, 1);
    q.max_tokens = 1 + (a->index * 7 + generation) % 50;
    q.notify = post;
    q.notify_user = a;
    return submit(f, &q);
}

static void nothing_is_missed_by_a_reader_that_is_notified(void **state) {
    (void)state;
    fixture f;
    mailbox box = {0};
    address addresses[N_NOTIFIED];
    weir_job *jobs[N_NOTIFIED];
    int generations[N_NOTIFIED] = {0}, n_ended = 0;
    assert_int_equal(sem_init(&box.wake, 0, 0), 0);
    fixture_init(&f);
    fixture_open(&f, 8, 64, 0);
    for (int i = 0; i < N_NOTIFIED; i++) {
        addresses[i] = (address){&box, i};
        jobs[i] = submit_notified(&f, &addresses[i], 0);
    }
    while (n_ended < N_NOTIFIED * N_GENERATIONS) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += 10;
        assert_int_equal(sem_timedwait(&box.wake, &until), 0);
        for (int i = 0; i < N_NOTIFIED; i++) {
            weir_event ev = {0};
            if (!atomic_exchange(&box.flagged[i], false) || jobs[i] == NULL) continue;
            while (weir_job_poll(jobs[i], &ev) && ev.type == WEIR_EVENT_TOKEN) {
            }
            if (ev.type != WEIR_EVENT_END) continue;
            n_ended++;
            weir_job_release(&jobs[i]);
            if (++generations[i] < N_GENERATIONS) jobs[i] = submit_notified(&f, &addresses[i], generations[i]);
        }
    }
    fixture_close(&f);
    sem_destroy(&box.wake);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_missed_by_a_reader_that_is_notified),
        cmocka_unit_test(random_interleavings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
