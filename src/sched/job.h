/* What the queue, the engine thread and the readers know of a job and an engine: the structures behind weir_job and
 * weir_engine.
 *
 * Who may touch what. A job has one producer of events: whoever takes it out of the queue. That is the engine thread, or a
 * thread that cancels the job while it waits; both do it under the engine's lock, so exactly one of them ends the job. The lock
 * is held for a few instructions at a time, never during a step, a callback or an allocation. Lifetimes. A job is freed when
 * the caller has released it and its producer has ended it. A weir_engine's memory lives until it is closed and its last job is
 * freed (a job's reader needs the lock); its threads and its backend end with weir_engine_close. */
#ifndef WEIR_SCHED_JOB_H
#define WEIR_SCHED_JOB_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/arena.h"
#include "engine/sampler.h"
#include "sched/answer.h"
#include "sched/channel.h"
#include "sched/draft.h"
#include "sched/lookup.h"
#include "sched/pace.h"
#include "sched/sched.h"
#include "sched/stop.h"

enum { SCHED_PARK_LIMIT_MS = 10 * 60 * 1000 }; /* a reader that takes nothing for so long loses its job */

typedef enum job_state { JOB_QUEUED, JOB_PREFILL, JOB_DECODE, JOB_PARKED, JOB_ENDED, N_JOB_STATES } job_state;

/* What a job needs for guessing ahead. Engine thread's. */
typedef struct speculator {
    lookup past;                    /* prompt and output */
    draft_odds odds;                /* of this job's guesses */
    int32_t feed[1 + DRAFT_MOST];   /* next_token and the guesses behind it, of the step */
} speculator;

struct weir_job {
    weir_engine *engine; /* holds a reference */
    /* Fixed at submission. */
    arena memory; /* of the copies below */
    const int32_t *tokens;
    int32_t n_prompt, max_output; /* max_output fits the context */
    int32_t n_top_logprobs;
    bool special;
    weir_sampling sampling; /* with the bans of ignore_eos */
    const char *request_id; /* or NULL */
    weir_notify_fn notify;
    void *notify_user;
    int64_t submit_us, deadline_us; /* INT64_MAX = none */
    /* Shared. */
    atomic_int n_references; /* the caller and the producer */
    atomic_int state;        /* job_state; changed by the producer, out of JOB_QUEUED only under the engine's lock */
    atomic_bool cancelled;   /* asked for by the caller */
    atomic_bool released;    /* by the caller: no notify any more */
    atomic_bool notifying;   /* the producer is in notify */
    atomic_int n_output;
    channel events;
    /* Waiting in weir_job_wait. */
    pthread_mutex_t wait_lock;
    pthread_cond_t wait_change;
    atomic_bool waiting;
    /* Under the engine's lock, while queued. */
    weir_job *next, *previous;
    /* Producer's; `terminal` is the reader's once channel_end was called. */
    weir_event terminal;
    weir_error error; /* the message of an ERROR event */
    stop_set stops;
    answer text;
    void *seq;
    sampler *sampler;
    int32_t n_fed;                               /* prompt tokens that the sequence holds */
    int32_t next_token;                          /* sampled, to be fed in the next step */
    speculator *speculator;                      /* NULL = no guessing */
    int32_t n_draft, n_draft_accepted;
    int64_t admit_us, first_token_us, parked_us; /* 0 = not yet */
    /* Reader's. */
    bool terminal_taken;
};

struct weir_engine {
    sched_backend backend;
    int32_t n_parallel, n_batch;
    int32_t n_draft;  /* most guesses for a sequence in a step; 0 = speculation is off */
    int64_t max_jobs; /* queued and running together; INT64_MAX = no bound */
    int32_t *eog;     /* all end-of-generation tokens, for ignore_eos */
    size_t n_eog;
    atomic_int n_references; /* the handle and each job */
    pthread_t thread;
    atomic_bool closing;
    /* Under the lock. */
    pthread_mutex_t lock;
    pthread_cond_t change; /* the engine thread waits for `wake` */
    weir_job *first, *last;
    bool wake, draining;
    int64_t queue_deadline_us; /* not later than the earliest deadline in the queue */
    /* Engine thread's. */
    weir_job **running; /* [max_running], in order of admission; at most n_parallel are not parked */
    int32_t n_running, max_running;
    bool admission_blocked; /* the backend had no room; until a sequence is closed */
    sched_item *items;      /* [n_parallel], of the step */
    weir_job **step_jobs;   /* [n_parallel], of the items */
    int32_t n_items, n_decode_items;
    pace pace;
    draft_costs costs;
    draft_odds odds; /* of all jobs */
    /* Counters for weir_stats, written by several threads. */
    atomic_uint_fast64_t n_active, n_waiting, n_submitted, n_finished, n_cancelled, n_failed, n_refused;
    atomic_uint_fast64_t prompt_tokens, cached_tokens, output_tokens, n_steps, prompt_us, output_us, kv_used;
    atomic_uint_fast64_t n_drafts, draft_tokens, draft_accepted;
};

/* ---- job.c ---- */
/* Drops one of the two references. */
void job_unref(weir_job *job);
/* Whether a job in `from` may move to `to`. Any thread. */
bool job_may_move(job_state from, job_state to);
/* Moves the job to `to`; asserts that it may. Producer. */
void job_set_state(weir_job *job, job_state to);
job_state job_get_state(const weir_job *job);
/* Sends the record of `text` that can leave (all of it if `all`). WEIR_E_NOMEM. Producer. */
int job_send_text(weir_job *job, bool all);
/* Ends the job: frees what only the producer needs (the sequence must be closed), counts, logs, sends the terminal event (END
 * when job->error.code is 0, with terminal.stop_reason and stop_text as they are set) and drops the producer's reference. The
 * job must be out of the queue. Producer. */
void job_end(weir_job *job, int64_t now_us);

/* ---- queue.c: the caller holds the engine's lock ---- */
void queue_append(weir_engine *e, weir_job *job);
/* Takes the job out and moves it on to `to` (JOB_PREFILL or JOB_ENDED): the caller is its producer from here on. */
void queue_remove(weir_engine *e, weir_job *job, job_state to);
/* Takes out all jobs whose deadline has passed (or all jobs, if `all`), linked by `next` in their order. */
weir_job *queue_remove_expired(weir_engine *e, int64_t now_us, bool all);
int64_t queue_position(const weir_engine *e, const weir_job *job);

/* ---- speculate.c: engine thread ---- */
int speculator_open(speculator **out, const int32_t *prompt, int32_t n_prompt, int32_t max_output, weir_error *err);
void speculator_close(speculator **s);
/* The job's next token was sampled. */
void speculator_saw(weir_engine *e, speculator *s, int32_t token);
/* Adds guesses to the decoding items of the composed step, which holds n_prefill prompt tokens. */
void speculate(weir_engine *e, int32_t n_prefill);
/* Learns from the step that was run. */
void speculate_learn(weir_engine *e, int32_t n_prefill, int64_t step_us);

/* ---- sched.c ---- */
/* Makes the engine thread look at everything again (queue, cancellations, deadlines, parked jobs). Any thread. */
void sched_wake(weir_engine *e);
void sched_unref(weir_engine *e);

#endif
