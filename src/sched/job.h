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
#include "engine/constraint.h"
#include "engine/sampler.h"
#include "sched/answer.h"
#include "sched/channel.h"
#include "sched/draft.h"
#include "sched/lookup.h"
#include "sched/pace.h"
#include "sched/sched.h"
#include "sched/stop.h"

enum { SCHED_PARK_LIMIT_MS = 10 * 60 * 1000 }; /* a reader that takes nothing for so long loses its job */

/* WAITING: taken from the queue, or preempted, and without a sequence until there is room for one. A PARKED job may be without one,
 * too. */
typedef enum job_state { JOB_QUEUED, JOB_WAITING, JOB_PREFILL, JOB_DECODE, JOB_PARKED, JOB_ENDED, N_JOB_STATES } job_state;

/* What a job needs for guessing ahead. Engine thread's. */
typedef struct speculator {
    lookup past;                    /* prompt and output */
    draft_odds odds;                /* of this job's guesses */
    int32_t feed[1 + DRAFT_MOST];   /* next_token and the guesses behind it, of the step */
} speculator;

/* Whose requests share fairly with others' (queue.c). Under the engine's lock, but for n_running. */
typedef struct tenant {
    struct tenant *next;
    char *name; /* "" = nobody's */
    double weight;
    double served;           /* work done for it, by its weight */
    weir_job *first, *last;  /* its queue, by priority, then arrival */
    int32_t n_jobs;          /* queued or taken, not ended */
    int32_t n_running;       /* with a sequence; engine thread's */
} tenant;

struct weir_job {
    weir_engine *engine; /* holds a reference */
    /* Fixed at submission. */
    arena memory; /* of the copies below */
    int32_t n_prompt, max_output; /* max_output fits the context */
    int32_t priority;
    uint64_t salt;
    bool shares_prefix;
    tenant *tenant;
    int32_t n_top_logprobs;
    bool special;
    weir_grammar *grammar; /* a reference, or NULL */
    const char *grammar_after;
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
    /* The prompt and what was sampled. The sequence holds the first n_fed of them, and will go on holding them. */
    int32_t *tokens; /* [n_tokens of capacity]; malloc */
    int32_t n_tokens, capacity, n_fed;
    void *seq;           /* NULL = it has none now */
    int32_t n_kept_at;   /* n_fed when the prefix tree was last given what the sequence holds */
    int32_t n_computed;  /* the longest that sequences were that the job lost */
    int32_t n_cached;    /* prompt tokens that need not be computed; -1 = not looked for yet */
    sampler *sampler;    /* NULL = not yet */
    constraint *constraint; /* NULL = every token may come */
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
    int64_t max_waiting_tokens;
    bool shares_prefixes;
    int32_t *eog;     /* all end-of-generation tokens, for ignore_eos */
    size_t n_eog;
    atomic_int n_references; /* the handle and each job */
    pthread_t thread;
    atomic_bool closing;
    /* Under the lock. */
    pthread_mutex_t lock;
    pthread_cond_t change; /* the engine thread waits for `wake` */
    tenant *tenants;
    double virtual_time; /* `served` of the tenant that was chosen last: what newcomers begin with */
    bool wake, draining;
    int64_t queue_deadline_us; /* not later than the earliest deadline in the queue */
    /* Engine thread's. */
    weir_job **running; /* [max_running] by priority, then in the order in which they were taken; at most n_parallel step */
    int32_t n_running, max_running;
    bool again;  /* something ended: whether others may go on is to be looked at before the thread sleeps */
    bool threaded;
    sched_item *items;      /* [n_parallel], of the step */
    weir_job **step_jobs;   /* [n_parallel], of the items */
    int32_t n_items, n_decode_items;
    pace pace;
    draft_costs costs;
    draft_odds odds; /* of all jobs */
    /* Counters for weir_stats, written by several threads. */
    atomic_uint_fast64_t n_active, n_waiting, n_submitted, n_finished, n_cancelled, n_failed, n_refused;
    atomic_uint_fast64_t prompt_tokens, cached_tokens, output_tokens, n_steps, prompt_us, output_us, kv_used, kv_kept;
    atomic_uint_fast64_t waiting_tokens, queried_tokens, n_preemptions, recomputed_tokens;
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
/* Appends to tokens. WEIR_E_NOMEM. Producer. */
int job_append_token(weir_job *job, int32_t token);
/* Sends the record of `text` that can leave (all of it if `all`). WEIR_E_NOMEM. Producer. */
int job_send_text(weir_job *job, bool all);
/* Ends the job: frees what only the producer needs (the sequence must be closed), counts, logs, sends the terminal event (END
 * when job->error.code is 0, with terminal.stop_reason and stop_text as they are set) and drops the producer's reference. The
 * job must be out of the queue. Producer. */
void job_end(weir_job *job, int64_t now_us);

/* ---- queue.c: the caller holds the engine's lock ---- */
/* The tenant of that name, made if there is none; the job counts as its own from here on. NULL when out of memory. */
tenant *tenant_join(weir_engine *e, const char *name, float weight);
/* A job of the tenant has ended. Frees a tenant that nothing would be remembered of. */
void tenant_leave(weir_engine *e, tenant *t);
/* Work was done for the tenant: tokens, by what they cost. */
void tenant_charge(tenant *t, double work);
void tenants_free(weir_engine *e);
void queue_append(weir_engine *e, weir_job *job);
/* Takes the job out and moves it on to `to` (JOB_WAITING or JOB_ENDED): the caller is its producer from here on. */
void queue_remove(weir_engine *e, weir_job *job, job_state to);
/* Who is next: of the lowest priority value, the first of the tenant that was served least. NULL = nobody waits. */
weir_job *queue_next(const weir_engine *e);
/* Takes out all jobs whose deadline has passed (or all jobs, if `all`), linked by `next`; those of a tenant in their order. */
weir_job *queue_remove_expired(weir_engine *e, int64_t now_us, bool all);
/* How many jobs should be taken before this one. */
int64_t queue_position(const weir_engine *e, const weir_job *job);

/* ---- admit.c: engine thread ---- */
/* Jobs that have a part in the next step; at most n_parallel. */
int32_t n_stepping(const weir_engine *e);
/* A parked job whose reader has caught up. */
bool may_resume(const weir_job *job);
/* Lets parked jobs go on, takes jobs from the queue and gives them sequences, as far as there is room. */
void admit(weir_engine *e);
/* Charges the job's tenant (tenant_charge), under the lock that this takes. */
void job_charge(weir_engine *e, weir_job *job, double work);
/* Makes room for n_tokens in the job's sequence, at the cost of jobs that are less important, or of the job itself: false, and it has
 * no sequence any more. */
bool reserve_or_preempt(weir_engine *e, weir_job *job, int32_t n_tokens);
/* Gives the job's sequence back; `keep` = what it holds may be of use to others. */
void release_sequence(weir_engine *e, weir_job *job, bool keep);

/* ---- step.c: engine thread ---- */
/* Composes a step, runs it, samples. False = there was nothing to run. */
bool step(weir_engine *e);

/* ---- running jobs that end (sched.c), engine thread ---- */
/* Takes the job out of the engine and ends it; stop_reason as it is given. */
void finish_stopped(weir_engine *e, weir_job *job, weir_stop_reason reason, int64_t now_us);
void finish_failed(weir_engine *e, weir_job *job, int code, const char *message, int64_t now_us);
void finish_without_memory(weir_engine *e, weir_job *job, int64_t now_us);

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
static inline int64_t now_of(weir_engine *e) { return e->backend.now_us(e->backend.context); }
/* Makes the engine thread look at everything again (queue, cancellations, deadlines, parked jobs). Any thread. */
void sched_wake(weir_engine *e);
void sched_unref(weir_engine *e);

#endif
