/* Speculation: the answers are those without it, whatever is guessed; repeating text takes fewer steps; text that does not repeat
 * loses nothing worth mentioning; how much is guessed follows from odds and costs. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support.h"

static uint64_t random_state;

static uint32_t below(uint32_t n) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % n;
}

static void open_with(fixture *f, int32_t n_draft, int32_t n_parallel, int32_t n_batch) {
    weir_error err = {0};
    sched_backend backend = fake_backend(&f->backend);
    weir_engine_options options = {.n_parallel = n_parallel, .n_batch = n_batch, .n_draft = n_draft};
    assert_int_equal(sched_open(&f->engine, &backend, &options, &err), 0);
}

/* ---- the past --------------------------------------------------------------------------------------------------------- */

/* The longest suffix of tokens[n] that occurs before, ending at least one token before the end, as far as 64 tokens. */
static int32_t longest(const int32_t *tokens, int32_t n) {
    int32_t best = 0;
    for (int32_t at = 1; at < n; at++) {
        int32_t m = 0;
        while (m < at && m < 64 && tokens[at - 1 - m] == tokens[n - 1 - m]) m++;
        if (m > best) best = m;
    }
    return best;
}

static void the_longest_match_is_found(void **state) {
    (void)state;
    enum { N = 400 };
    for (uint64_t seed = 0; seed < 60; seed++) {
        lookup l;
        int32_t n_letters = 2 + (int32_t)seed % 30, n_best = 0, n_there = 0, guess[40];
        random_state = seed;
        assert_int_equal(lookup_open(&l, N), 0);
        for (int32_t n = 1; n <= N; n++) {
            /* Random letters, and now and then a piece of what was there. */
            int32_t copied = n > 20 && below(30) ? l.tokens[n - 1 - (int32_t)seed % 17 - 1] : (int32_t)below((uint32_t)n_letters);
            lookup_append(&l, copied);
            lookup_search(&l);
            int32_t wanted = longest(l.tokens, n);
            if (wanted < LOOKUP_SHORT) wanted = 0;
            assert_true(l.length == 0 || (l.length >= LOOKUP_SHORT && l.at >= l.length && l.at < n));
            if (l.length) assert_memory_equal(l.tokens + l.at - l.length, l.tokens + n - l.length, (size_t)l.length * sizeof(int32_t));
            n_there += wanted > 0;
            n_best += wanted > 0 && l.length >= wanted;
            /* Guesses follow the match, past the end of the sequence as a period. */
            assert_int_equal(lookup_guess(&l, guess, 40), l.length ? 40 : 0);
            for (int32_t i = 0; i < 40 && l.length; i++)
                assert_int_equal(guess[i], l.at + i < n ? l.tokens[l.at + i] : guess[l.at + i - n]);
        }
        /* Only the latest places of an n-gram are compared, so not every match is the longest. */
        assert_true(n_there > 100);
        assert_true(n_best >= n_there * 8 / 10);
        lookup_close(&l);
    }
}

/* ---- choice ----------------------------------------------------------------------------------------------------------- */

static draft_share share_of(double odds, int32_t n_most) {
    draft_share s = {.n_most = n_most};
    double reach = 1;
    for (int32_t i = 0; i < n_most; i++) s.reach[i] = reach *= odds;
    return s;
}

/* The guesses that are chosen for one sequence among n_rows, when a row beyond the first costs `slope` of it. */
static int32_t chosen(double odds, double slope, int32_t n_rows, int32_t room) {
    draft_costs costs = {0};
    draft_share share = share_of(odds, 16);
    for (int32_t r = 1; r <= DRAFT_MAX_ROWS; r++) costs.us[r] = 10000 * (1 + slope * (r - 1));
    draft_choose(&costs, &share, 1, n_rows, room);
    return share.n;
}

static void guesses_must_be_worth_their_rows(void **state) {
    (void)state;
    assert_int_equal(chosen(0.99, 0.05, 1, 32), 16);
    assert_int_equal(chosen(0.99, 0.05, 1, 5), 5);
    assert_int_equal(chosen(0.99, 0.05, 1, 0), 0);
    assert_int_equal(chosen(0.10, 0.20, 1, 32), 0);
    assert_int_equal(chosen(0.50, 1.00, 1, 32), 0);
    /* One is worth while; a row whose odds are below what it costs in the meantime is not. */
    int32_t n = chosen(0.6, 0.25, 1, 32);
    assert_true(n >= 1 && n <= 3);
    /* A stream that repeats itself may not hold up many others. */
    assert_true(chosen(0.95, 0.2, 2, 32) < chosen(0.95, 0.2, 1, 32));
    assert_int_equal(chosen(0.95, 0.2, 32, 32), 0);
    /* Nothing is measured yet. */
    draft_costs unknown = {0};
    draft_share share = share_of(1, 16);
    draft_choose(&unknown, &share, 1, 1, 32);
    assert_int_equal(share.n, 0);
    /* All sequences repeat themselves: the room is shared. */
    draft_costs cheap = {0};
    for (int32_t r = 1; r <= DRAFT_MAX_ROWS; r++) cheap.us[r] = 10000 + r;
    draft_share shares[4] = {share_of(0.9, 16), share_of(0.9, 16), share_of(0.9, 16), share_of(0.9, 2)};
    draft_choose(&cheap, shares, 4, 4, 20);
    assert_int_equal(shares[0].n + shares[1].n + shares[2].n + shares[3].n, 20);
    assert_true(shares[0].n >= 5 && shares[1].n >= 5 && shares[2].n >= 5);
    assert_int_equal(shares[3].n, 2);
}

static void what_seemed_too_dear_is_tried_again(void **state) {
    (void)state;
    draft_costs costs = {.us = {[1] = 1000, [3] = 3000}};
    int32_t n_tried = 0;
    for (int32_t i = 0; i < 4 * DRAFT_PROBE_STEPS; i++) {
        draft_share share = share_of(0.8, 16);
        draft_choose(&costs, &share, 1, 1, 32);
        n_tried += share.n > 0;
    }
    assert_int_equal(n_tried, 4);
    /* What looks unlikely is not. */
    for (int32_t i = 0; i < 4 * DRAFT_PROBE_STEPS; i++) {
        draft_share share = share_of(0.3, 16);
        draft_choose(&costs, &share, 1, 1, 32);
        assert_int_equal(share.n, 0);
    }
}

static void costs_are_learnt(void **state) {
    (void)state;
    draft_costs c = {0};
    assert_true(draft_costs_of(&c, 1) == 0);
    for (int i = 0; i < 50; i++) draft_costs_learn(&c, 1, i % 10 ? 10000 : 30000); /* a neighbour now and then */
    assert_true(draft_costs_of(&c, 1) > 9900 && draft_costs_of(&c, 1) < 13000);
    assert_true(draft_costs_of(&c, 9) > draft_costs_of(&c, 1));
    for (int i = 0; i < 50; i++) {
        draft_costs_learn(&c, 1, 10000);
        draft_costs_learn(&c, 9, 12000);
    }
    assert_true(fabs(draft_costs_of(&c, 1) - 10000) < 300 && fabs(draft_costs_of(&c, 9) - 12000) < 300);
    double between = draft_costs_of(&c, 5), beyond = draft_costs_of(&c, 17);
    assert_true(between > 10500 && between < 11500 && beyond > 13000 && beyond < 15000);
    /* Contexts that grow make all steps slower, those that are not measured, too. */
    for (int i = 0; i < 200; i++) draft_costs_learn(&c, 9, 24000);
    assert_true(draft_costs_of(&c, 1) > 13000);
    draft_costs_learn(&c, 0, 1);
    draft_costs_learn(&c, DRAFT_MAX_ROWS + 1, 1);
    draft_costs_learn(&c, 4, 0);
    assert_true(draft_costs_of(&c, DRAFT_MAX_ROWS) > 0);
}

static void odds_are_learnt(void **state) {
    (void)state;
    draft_odds all = {0}, own = {0};
    assert_true(draft_odds_of(&own, &all, 40) > draft_odds_of(&own, &all, 2));
    for (int i = 0; i < 300; i++) draft_odds_learn(&all, 5, i % 4 == 0, 256);
    assert_true(draft_odds_of(&own, &all, 6) > 0.13 && draft_odds_of(&own, &all, 6) < 0.25);
    assert_true(draft_odds_of(&own, &all, 3) > 0.25 && draft_odds_of(&own, &all, 3) < 0.4); /* another class */
    for (int i = 0; i < 30; i++) draft_odds_learn(&own, 6, true, 32);
    assert_true(draft_odds_of(&own, &all, 6) > 0.8);
    for (int i = 0; i < 100; i++) draft_odds_learn(&own, 6, false, 32);
    assert_true(draft_odds_of(&own, &all, 6) < 0.1);
}

/* ---- the same answers ------------------------------------------------------------------------------------------------- */

enum { N_CASES = 3000, N_TOGETHER = 8, MAX_PROMPT = 60 };

typedef struct request_case {
    int32_t prompt[MAX_PROMPT];
    char stop_texts[3][4];
    const char *stops[3];
    weir_request r;
} request_case;

static void make_case(request_case *c, uint64_t seed) {
    random_state = seed * 77 + 5;
    int32_t n = 1 + (int32_t)below(MAX_PROMPT - 1), period = 1 + (int32_t)below(9);
    for (int32_t i = 0; i < n; i++) c->prompt[i] = 'a' + (i < period || below(20) == 0 ? (int32_t)below(6) : c->prompt[i - period] - 'a');
    uint32_t kind = below(6);
    if (kind == 0 && n > 6) { /* a script that the prompt quotes, so that its pieces and its end are guessed */
        for (int32_t i = 0; i < 5; i++) c->prompt[n - 6 + i] = FAKE_PIECE + i;
        if (below(2)) c->prompt[n - 1] = FAKE_EOG;
        c->prompt[0] = FAKE_SCRIPT;
        c->prompt[n - 1] = FAKE_SCRIPT;
    }
    c->r = plain_request(c->prompt, (size_t)n);
    c->r.max_tokens = 1 + (int32_t)below(120);
    c->r.sampling.seed = seed;
    c->r.sampling.temperature = below(3) == 0 ? (float)(2 + below(6)) : 0;
    c->r.sampling.top_k = (int32_t)below(3) * 20;
    if (below(4) == 0) c->r.sampling.repetition_penalty = 1.2f;
    if (below(5) == 0) c->r.sampling.presence_penalty = 3;
    c->r.ignore_eos = below(6) == 0;
    c->r.special = below(4) == 0;
    c->r.n_top_logprobs = (int32_t)below(5) - 1;
    c->r.stop = c->stops;
    c->r.n_stop = below(3) ? 0 : 1 + below(3);
    for (size_t i = 0; i < 3; i++) {
        size_t length = 2 + below(2);
        for (size_t j = 0; j < 4; j++) c->stop_texts[i][j] = j < length ? (char)('a' + below(26)) : 0;
        c->stops[i] = c->stop_texts[i];
    }
}

/* Everything that a reader sees, as bytes; `top` is n_top_logprobs. Returns false after the terminal event. */
static bool record(buf *out, const weir_event *ev, int32_t top) {
    if (ev->type == WEIR_EVENT_TOKEN) {
        buf_printf(out, "%u:%u:%u:", ev->index, (unsigned)ev->text_bytes, ev->n_tokens);
        buf_append(out, ev->text, ev->text_bytes);
        buf_append(out, ev->tokens, ev->n_tokens * sizeof *ev->tokens);
        if (ev->logprobs) buf_append(out, ev->logprobs, ev->n_tokens * sizeof *ev->logprobs);
        for (uint32_t i = 0; ev->top_logprobs && i < ev->n_tokens * (uint32_t)(top > 0 ? top : 0); i++)
            buf_append(out, &ev->top_logprobs[i], sizeof *ev->top_logprobs);
        return true;
    }
    buf_printf(out, "end %d %d %d '%s'", ev->type, ev->stop_reason, ev->timings.n_output, ev->stop_text ? ev->stop_text : "");
    assert_true(ev->timings.n_draft_accepted <= ev->timings.n_draft);
    assert_true(ev->timings.n_draft_accepted <= ev->timings.n_output);
    return false;
}

static buf read_record(weir_job *job, int32_t top) {
    buf out = BUF_INIT;
    weir_event ev;
    do {
        if (weir_job_wait(job, &ev, 10000) != 1) fail_msg("no event within 10 s");
    } while (record(&out, &ev, top));
    assert_false(out.failed);
    return out;
}

static void prepare(fixture *f, uint64_t seed) {
    fixture_init(f);
    random_state = seed;
    f->backend.decode_cost_us = 10000;
    f->backend.row_cost_us = (int64_t)below(3) * 500;
    f->backend.prefill_cost_us = 100;
    f->backend.period = 1 + (int32_t)below(12);
    f->backend.surprise = (int32_t)below(4) * 7;
    fake_script(&f->backend, 0, (const char *const[]){"on", "ce \xC3", "\xA9t", "\xF0\x9F", "\x98\x80!"}, 5);
}

static void answers_are_the_same_with_and_without(void **state) {
    (void)state;
    uint64_t n_guessed = 0, n_held = 0;
    for (uint64_t group = 0; group < N_CASES / N_TOGETHER; group++) {
        buf answers[2][N_TOGETHER];
        for (int with = 0; with < 2; with++) {
            fixture f;
            request_case cases[N_TOGETHER];
            weir_job *jobs[N_TOGETHER];
            prepare(&f, group);
            int32_t n_draft = group % 3 ? 1 + (int32_t)below(32) : 0, n_parallel = 1 + (int32_t)below(8);
            open_with(&f, with ? n_draft : -1, n_parallel, n_parallel + (int32_t)below(64));
            for (int i = 0; i < N_TOGETHER; i++) {
                make_case(&cases[i], group * N_TOGETHER + (uint64_t)i);
                jobs[i] = submit(&f, &cases[i].r);
            }
            for (int i = 0; i < N_TOGETHER; i++) {
                answers[with][i] = read_record(jobs[i], cases[i].r.n_top_logprobs);
                weir_job_release(&jobs[i]);
            }
            weir_stats s = stats_of(&f);
            if (!with) assert_int_equal(s.n_drafts + s.draft_tokens + s.draft_accepted, 0);
            assert_true(s.draft_accepted <= s.draft_tokens && s.n_drafts <= s.draft_tokens);
            n_guessed += s.draft_tokens;
            n_held += s.draft_accepted;
            fixture_close(&f);
        }
        for (int i = 0; i < N_TOGETHER; i++) {
            assert_int_equal(answers[0][i].n_bytes, answers[1][i].n_bytes);
            assert_memory_equal(answers[0][i].data, answers[1][i].data, answers[0][i].n_bytes);
            buf_free(&answers[0][i]);
            buf_free(&answers[1][i]);
        }
    }
    /* Many guesses took part, good ones and bad ones. */
    assert_true(n_guessed > 20000 && n_held > 10000 && n_held < n_guessed * 95 / 100);
}

/* A reader that stops reading parks the job, also in the middle of a run of guesses that hold, and misses nothing. */
static void a_parked_reader_misses_nothing(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 6; seed++) {
        buf answers[2] = {BUF_INIT, BUF_INIT};
        for (int with = 0; with < 2; with++) {
            fixture f;
            fixture_init(&f);
            f.backend.n_ctx = 20000;
            f.backend.decode_cost_us = 10000;
            f.backend.period = 5 + (int32_t)seed;
            f.backend.surprise = seed % 2 ? 50 : 0;
            open_with(&f, with ? 0 : -1, 2, 64);
            int32_t prompt[] = {'a', 'b', 'c'};
            weir_request q = plain_request(prompt, 3);
            q.max_tokens = 9000 + (int32_t)seed;
            weir_job *job = submit(&f, &q);
            WAIT_UNTIL(job_get_state(job) == JOB_PARKED);
            assert_int_equal(weir_job_n_output(job), CHANNEL_MAX_EVENTS);
            answers[with] = read_record(job, -1);
            if (with) assert_true(stats_of(&f).draft_accepted > 4000);
            weir_job_release(&job);
            fixture_close(&f);
        }
        assert_int_equal(answers[0].n_bytes, answers[1].n_bytes);
        assert_memory_equal(answers[0].data, answers[1].data, answers[0].n_bytes);
        buf_free(&answers[0]);
        buf_free(&answers[1]);
    }
}

/* What came before a cancellation or a time limit is the beginning of the answer, and other streams go on. */
static void cancelled_and_late_jobs_end(void **state) {
    (void)state;
    fixture f;
    fixture_init(&f);
    f.backend.decode_cost_us = 10000;
    f.backend.period = 6;
    open_with(&f, 0, 4, 64);
    int32_t prompt[] = {'q', 'r'};
    weir_request q = plain_request(prompt, 2);
    q.max_tokens = 1000;
    weir_job *whole = submit(&f, &q), *cancelled = submit(&f, &q);
    q.timeout_ms = 300;
    weir_job *late = submit(&f, &q);
    reply first = finish_reply(&late);
    WAIT_UNTIL(weir_job_n_output(cancelled) > 5);
    weir_job_cancel(cancelled);
    reply r[2] = {finish_reply(&cancelled), first}, all = finish_reply(&whole);
    assert_int_equal(all.end.stop_reason, WEIR_STOP_LENGTH);
    assert_int_equal(all.tokens.n_bytes, 1000 * sizeof(int32_t));
    for (int i = 0; i < 2; i++) {
        if (r[i].end.type == WEIR_EVENT_ERROR) assert_int_equal(r[i].end.code, i ? WEIR_E_TIMEOUT : WEIR_E_CANCELLED);
        assert_true(r[i].tokens.n_bytes <= all.tokens.n_bytes);
        assert_memory_equal(r[i].tokens.data, all.tokens.data, r[i].tokens.n_bytes);
        reply_free(&r[i]);
    }
    assert_int_equal(first.end.code, WEIR_E_TIMEOUT);
    reply_free(&all);
    fixture_close(&f);
}

/* A step that fails with guesses in it is tried again without them. */
static void guesses_never_fail_a_job(void **state) {
    (void)state;
    fixture f;
    fixture_init(&f);
    f.backend.decode_cost_us = 10000;
    f.backend.period = 4;
    open_with(&f, 0, 2, 64);
    weir_job *job = hold(&f, 200);
    pass_steps(&f, 12);
    uint64_t before = stats_of(&f).n_drafts;
    assert_true(before > 0);
    atomic_store(&f.backend.fail_steps, 1);
    fake_gate(&f.backend, -1);
    reply r = finish_reply(&job);
    assert_int_equal(r.end.stop_reason, WEIR_STOP_LENGTH);
    assert_int_equal(r.tokens.n_bytes, 200 * sizeof(int32_t));
    reply_free(&r);
    fixture_close(&f);
}

/* ---- how fast --------------------------------------------------------------------------------------------------------- */

/* Time of the fake clock for one answer of n tokens, and the guesses made. */
static int64_t time_of(int32_t n_draft, int32_t period, int32_t surprise, int64_t row_cost_us, bool keeps_all, int32_t n,
                       uint64_t *n_guessed) {
    fixture f;
    fixture_init(&f);
    f.backend.decode_cost_us = 10000;
    f.backend.row_cost_us = row_cost_us;
    f.backend.period = period;
    f.backend.surprise = surprise;
    f.backend.keeps_all = keeps_all;
    open_with(&f, n_draft, 4, 512);
    weir_job *job = submit_one(&f, 'x', n);
    reply r = finish_reply(&job);
    int64_t us = r.end.timings.decode_us;
    *n_guessed = stats_of(&f).draft_tokens;
    assert_int_equal(r.end.timings.n_draft, *n_guessed);
    assert_int_equal(r.end.timings.n_draft_accepted, stats_of(&f).draft_accepted);
    reply_free(&r);
    fixture_close(&f);
    return us;
}

static void repeating_text_is_fast(void **state) {
    (void)state;
    uint64_t n_guessed;
    int64_t without = time_of(-1, 9, 0, 2000, false, 600, &n_guessed), with = time_of(0, 9, 0, 2000, false, 600, &n_guessed);
    assert_true(with * 2 < without);
    /* With a surprise every 20 tokens or so. */
    without = time_of(-1, 30, 20, 1000, false, 600, &n_guessed);
    with = time_of(0, 30, 20, 1000, false, 600, &n_guessed);
    assert_true(with * 3 < without * 2);
    assert_true(n_guessed > 100);
}

static void nothing_is_lost_where_nothing_is_won(void **state) {
    (void)state;
    static const struct {
        int32_t period, surprise;
        int64_t row_cost_us;
    } cases[] = {{0, 0, 2000}, {0, 0, 200}, {25, 2, 2000}, {25, 3, 4000}, {9, 0, 10000}, {9, 5, 9000}, {25, 4, 6000}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint64_t n_guessed;
        int64_t without = time_of(-1, cases[i].period, cases[i].surprise, cases[i].row_cost_us, false, 800, &n_guessed);
        int64_t with = time_of(0, cases[i].period, cases[i].surprise, cases[i].row_cost_us, false, 800, &n_guessed);
        if ((double)with * 0.97 > (double)without) fail_msg("case %zu: %lld us instead of %lld", i, (long long)with, (long long)without);
    }
}

static void what_cannot_go_back_is_not_given_guesses(void **state) {
    (void)state;
    uint64_t n_guessed;
    int64_t without = time_of(-1, 9, 0, 0, true, 100, &n_guessed), with = time_of(0, 9, 0, 0, true, 100, &n_guessed);
    assert_int_equal(n_guessed, 0);
    assert_int_equal(with, without);
}

/* The step with its guesses keeps to the batch, and the prompts beside it get what they would have got. */
static void guesses_leave_the_prompts_their_room(void **state) {
    (void)state;
    for (int with = 0; with < 2; with++) {
        fixture f;
        fixture_init(&f);
        f.backend.decode_cost_us = 2000;
        f.backend.prefill_cost_us = 100;
        f.backend.period = 5;
        f.backend.page_tokens = 1;
        open_with(&f, with ? 0 : -1, 2, 40);
        weir_job *stream = hold(&f, 2000);
        pass_steps(&f, 30);
        int32_t first = fake_n_steps(&f.backend), tokens[400];
        for (int32_t i = 0; i < 400; i++) tokens[i] = 'a' + i % 26;
        weir_request q = plain_request(tokens, 400);
        q.max_tokens = 1;
        weir_job *prompt = submit(&f, &q);
        fake_gate(&f.backend, -1);
        reply r = finish_reply(&prompt), s = finish_reply(&stream);
        int32_t n_steps = 0;
        for (int32_t i = first; i < fake_n_steps(&f.backend); i++) {
            fake_step step = fake_step_at(&f.backend, i);
            assert_true(step.n_decode + step.n_guessed + step.n_prefill <= 40);
            n_steps += step.n_prefill > 0;
        }
        assert_int_equal(n_steps, 11); /* 39 tokens in each */
        reply_free(&r);
        reply_free(&s);
        fixture_close(&f);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_longest_match_is_found),
        cmocka_unit_test(guesses_must_be_worth_their_rows),
        cmocka_unit_test(what_seemed_too_dear_is_tried_again),
        cmocka_unit_test(costs_are_learnt),
        cmocka_unit_test(odds_are_learnt),
        cmocka_unit_test(answers_are_the_same_with_and_without),
        cmocka_unit_test(a_parked_reader_misses_nothing),
        cmocka_unit_test(cancelled_and_late_jobs_end),
        cmocka_unit_test(guesses_never_fail_a_job),
        cmocka_unit_test(repeating_text_is_fast),
        cmocka_unit_test(nothing_is_lost_where_nothing_is_won),
        cmocka_unit_test(what_cannot_go_back_is_not_given_guesses),
        cmocka_unit_test(guesses_leave_the_prompts_their_room),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
