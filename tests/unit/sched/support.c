/* See support.h. */
#include "support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/utf8.h"

void fixture_init(fixture *f) {
    log_setup(2, false, LOG_ERROR);
    memset(f, 0, sizeof *f);
    fake_init(&f->backend);
}

void fixture_open(fixture *f, int32_t n_parallel, int32_t n_batch, int32_t max_queue) {
    weir_error err = {0};
    sched_backend backend = fake_backend(&f->backend);
    weir_engine_options options = {.n_parallel = n_parallel, .n_batch = n_batch, .max_queue = max_queue};
    assert_int_equal(sched_open(&f->engine, &backend, &options, &err), 0);
    assert_non_null(f->engine);
}

void fixture_close(fixture *f) {
    weir_engine_close(&f->engine);
    assert_null(f->engine);
    assert_int_equal(atomic_load(&f->backend.n_open), 0);
    assert_int_equal(atomic_load(&f->backend.kv_used), 0);
    assert_int_equal(atomic_load(&f->backend.n_closes), 1);
    assert_false(atomic_load(&f->backend.wrong_thread));
    fake_free(&f->backend);
}

weir_request plain_request(const int32_t *tokens, size_t n_tokens) {
    weir_request r;
    weir_request_init(&r);
    r.tokens = tokens;
    r.n_tokens = n_tokens;
    r.sampling.temperature = 0;
    return r;
}

weir_job *submit(fixture *f, const weir_request *r) {
    weir_job *job = NULL;
    weir_error err = {0};
    int code = weir_job_submit(f->engine, r, &job, &err);
    if (code != 0) fail_msg("submit: %s", err.message);
    assert_non_null(job);
    return job;
}

weir_job *submit_one(fixture *f, int32_t token, int32_t max_tokens) {
    weir_request r = plain_request(&token, 1);
    r.max_tokens = max_tokens;
    return submit(f, &r);
}

weir_job *hold(fixture *f, int32_t max_tokens) {
    fake_gate(&f->backend, 0);
    weir_job *job = submit_one(f, 'h', max_tokens);
    WAIT_UNTIL(atomic_load(&f->backend.at_gate));
    return job;
}

void pass_steps(fixture *f, int32_t n) {
    fake_gate(&f->backend, n);
    WAIT_UNTIL(atomic_load(&f->backend.at_gate));
}

const char *trace_name;

void require_failed(const char *condition, const char *file, int line) {
    fprintf(stderr, "%s:%d: failed: %s%s%s\n", file, line, condition, trace_name ? ", in " : "", trace_name ? trace_name : "");
    abort();
}

bool add_event(reply *r, const weir_event *ev) {
    if (ev->type == WEIR_EVENT_TOKEN) {
        REQUIRE(r->n_terminals == 0);
        REQUIRE(ev->index == r->n_events);
        r->n_events++;
        REQUIRE(ev->text_bytes > 0);
        REQUIRE(ev->text[ev->text_bytes] == 0);
        REQUIRE(utf8_valid(ev->text, ev->text_bytes));
        buf_append(&r->text, ev->text, ev->text_bytes);
        buf_append(&r->tokens, ev->tokens, ev->n_tokens * sizeof(int32_t));
        if (ev->n_tokens > r->most_event_tokens) r->most_event_tokens = ev->n_tokens;
        return true;
    }
    r->n_terminals++;
    r->end = *ev;
    snprintf(r->message, sizeof r->message, "%s", ev->message ? ev->message : "");
    snprintf(r->stop_text, sizeof r->stop_text, "%s", ev->stop_text ? ev->stop_text : "");
    if (ev->type == WEIR_EVENT_ERROR) {
        REQUIRE(ev->code < 0);
        REQUIRE(ev->message != NULL);
        REQUIRE(ev->stop_reason == WEIR_STOP_NONE);
    } else {
        REQUIRE(ev->type == WEIR_EVENT_END);
        REQUIRE(ev->stop_reason != WEIR_STOP_NONE);
    }
    return false;
}

reply read_reply(weir_job *job) {
    reply r = {0};
    weir_event ev;
    buf_append(&r.text, "", 0);
    do {
        if (weir_job_wait(job, &ev, 10000) != 1) fail_msg("no event within 10 s after %u events", r.n_events);
    } while (add_event(&r, &ev));
    assert_int_equal(weir_job_poll(job, &ev), 0);
    assert_int_equal(weir_job_wait(job, &ev, -1), 0);
    return r;
}

void reply_free(reply *r) {
    buf_free(&r->text);
    buf_free(&r->tokens);
}

reply finish_reply(weir_job **job) {
    reply r = read_reply(*job);
    weir_job_release(job);
    assert_null(*job);
    return r;
}

weir_stats stats_of(fixture *f) {
    weir_stats s;
    weir_engine_get_stats(f->engine, &s);
    return s;
}
