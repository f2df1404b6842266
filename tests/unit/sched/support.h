/* What the tests of the scheduler share: an engine over a fake backend, submitting, reading an answer to its end. */
#ifndef SUPPORT_H
#define SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/clock.h"
#include "fake.h"
#include "sched/job.h"

typedef struct reply {
    buf text, tokens; /* tokens: of int32_t */
    uint32_t n_events, n_terminals, most_event_tokens;
    weir_event end;
    char message[512], stop_text[64];
} reply;

typedef struct fixture {
    fake backend;
    weir_engine *engine;
} fixture;

/* Prepare f->backend after fixture_init, then fixture_open. */
void fixture_init(fixture *f);
void fixture_open(fixture *f, int32_t n_parallel, int32_t n_batch, int32_t max_queue);
/* Closes and checks that nothing is left: no sequence open, backend closed once, all calls on one thread. */
void fixture_close(fixture *f);

/* A greedy request without limits. */
weir_request plain_request(const int32_t *tokens, size_t n_tokens);
weir_job *submit(fixture *f, const weir_request *r);
/* Greedy, prompt of one token. */
weir_job *submit_one(fixture *f, int32_t token, int32_t max_tokens);

/* Closes the gate with a job of `max_tokens` in its first step, so that what is submitted from now on is admitted together,
 * after the next step that passes. */
weir_job *hold(fixture *f, int32_t max_tokens);
/* Lets n more steps pass the closed gate and waits until the next one is there. */
void pass_steps(fixture *f, int32_t n);

/* Reads to the terminal event (10 s at most for each event) and checks each event on the way: counted indices, text that is
 * whole UTF-8 and not empty, exactly one terminal event. */
reply read_reply(weir_job *job);
/* Adds one event; false = terminal. Any thread. */
bool add_event(reply *r, const weir_event *ev);
void reply_free(reply *r);
/* read_reply, weir_job_release. */
reply finish_reply(weir_job **job);
weir_stats stats_of(fixture *f);
/* An assertion for any thread (cmocka's own jump back into the test, which only its thread may). */
#define REQUIRE(condition)                                                                                                     \
    do {                                                                                                                       \
        if (!(condition)) require_failed(#condition, __FILE__, __LINE__);                                                      \
    } while (0)
/* Told by require_failed, too: which of many cases it is. NULL = nothing. */
extern const char *trace_name;
_Noreturn void require_failed(const char *condition, const char *file, int line);
/* Waits (10 s at most) until the condition holds. */
#define WAIT_UNTIL(condition)                                                                                                  \
    do {                                                                                                                       \
        int64_t give_up_ = clock_now_us() + 10 * 1000000;                                                                      \
        while (!(condition) && clock_now_us() < give_up_) clock_sleep_us(200);                                                 \
        assert_true(condition);                                                                                                \
    } while (0)

#endif
