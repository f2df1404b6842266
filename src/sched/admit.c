/* Who may run: from the queue to a place in the step and pages of the KV cache, and back when others need them more. Engine thread.
 * See job.h.
 *
 * e->running is ordered by importance: priority, then who was taken first. A job that needs pages takes them from those behind it,
 * the last first; the first always fits, so something always goes on. What a job gives up is kept by the prefix tree as long as
 * nobody needs it, and computed again otherwise, with the same bits. */
#include <string.h>

#include "base/error.h"
#include "sched/job.h"

int32_t n_stepping(const weir_engine *e) {
    int32_t n = 0;
    for (int32_t i = 0; i < e->n_running; i++) {
        const job_state state = job_get_state(e->running[i]);
        n += state == JOB_PREFILL || state == JOB_DECODE;
    }
    return n;
}

bool may_resume(const weir_job *job) {
    return job_get_state(job) == JOB_PARKED && channel_drained(&job->events);
}

void job_charge(weir_engine *e, weir_job *job, double work) {
    pthread_mutex_lock(&e->lock);
    tenant_charge(job->tenant, work);
    pthread_mutex_unlock(&e->lock);
}

/* ---- sequences -------------------------------------------------------------------------------------------------------- */

static void update_gauges(weir_engine *e) {
    atomic_store(&e->kv_used, (uint64_t)e->backend.kv_tokens_used(e->backend.context));
    if (e->backend.kv_tokens_kept) atomic_store(&e->kv_kept, (uint64_t)e->backend.kv_tokens_kept(e->backend.context));
}

void release_sequence(weir_engine *e, weir_job *job, bool keep) {
    if (job->seq == NULL) return;
    if (keep && job->shares_prefix) e->backend.seq_keep(e->backend.context, job->seq, job->tokens, job->n_fed, true);
    e->backend.seq_close(e->backend.context, job->seq);
    job->seq = NULL;
    if (job->n_computed < job->n_fed) job->n_computed = job->n_fed;
    job->n_fed = job->n_kept_at = 0;
    job->tenant->n_running--;
    update_gauges(e);
}

/* The job, which has no sequence any more, waits for one as those do that come from the queue. */
static void wait_again(weir_engine *e, weir_job *job) {
    job_set_state(job, JOB_WAITING);
    atomic_fetch_sub(&e->n_active, 1);
    atomic_fetch_add(&e->n_waiting, 1);
}

/* A parked job stays parked: it needs no sequence before its reader has caught up. */
static void preempt(weir_engine *e, weir_job *job) {
    release_sequence(e, job, true);
    e->again = true;
    atomic_fetch_add(&e->n_preemptions, 1);
    if (job_get_state(job) != JOB_PARKED) wait_again(e, job);
}

/* The job that loses its pages first: a parked one, which does nothing with them, else the last in importance, but none before
 * e->running[after]. NULL = there is none. */
static weir_job *last_behind(const weir_engine *e, int32_t after) {
    for (int32_t i = e->n_running - 1; i >= 0; i--)
        if (e->running[i]->seq && job_get_state(e->running[i]) == JOB_PARKED && i != after) return e->running[i];
    for (int32_t i = e->n_running - 1; i > after; i--)
        if (e->running[i]->seq) return e->running[i];
    return NULL;
}

static int32_t index_of(const weir_engine *e, const weir_job *job) {
    int32_t i = 0;
    while (e->running[i] != job) i++;
    return i;
}

bool reserve_or_preempt(weir_engine *e, weir_job *job, int32_t n_tokens) {
    while (e->backend.seq_reserve(e->backend.context, job->seq, n_tokens, NULL) < 0) {
        weir_job *victim = last_behind(e, index_of(e, job));
        preempt(e, victim ? victim : job);
        if (victim == NULL) return false;
    }
    update_gauges(e);
    return true;
}

/* ---- who yields to a job that has nothing ------------------------------------------------------------------------------- */

/* A more important one may take the place of a less important one; and of equals, a tenant for whom nothing runs that of one for
 * whom several do. */
static bool yields(const weir_job *running, const weir_job *job) {
    if (running->priority != job->priority) return running->priority > job->priority;
    return running->tenant != job->tenant && job->tenant->n_running == 0 && running->tenant->n_running > 1;
}

/* Who would yield a place in the step or, if `pages`, pages, which parked jobs do, too. NULL = nobody. */
static weir_job *who_yields(const weir_engine *e, const weir_job *job, bool pages) {
    for (int32_t i = e->n_running - 1; i >= 0; i--) {
        weir_job *other = e->running[i];
        if (other->seq && (job_get_state(other) == JOB_PARKED ? pages : yields(other, job))) return other;
    }
    return NULL;
}

static bool make_room(weir_engine *e, const weir_job *job, bool pages) {
    weir_job *other = who_yields(e, job, pages);
    if (other) preempt(e, other);
    return other != NULL;
}

static bool has_place_for(const weir_engine *e, const weir_job *job) {
    return n_stepping(e) < e->n_parallel || who_yields(e, job, false);
}

/* ---- taking up -------------------------------------------------------------------------------------------------------- */

/* Pages beyond the job's own that should be free, so that those which decode do not preempt it at once. */
static int64_t headroom(const weir_engine *e) {
    int64_t n = 0;
    for (int32_t i = 0; i < e->n_running; i++) n += e->running[i]->seq != NULL;
    return n * e->backend.page_tokens;
}

/* A sequence with what is kept of the job's text, and room for the rest of it. WEIR_E_LIMIT = not now. */
static int open_sequence(weir_engine *e, weir_job *job, weir_error *err) {
    const sched_backend *b = &e->backend;
    const int64_t spare = headroom(e);
    int32_t n_adopted = 0;
    TRY(b->seq_open(b->context, job->salt, &job->seq, err));
    if (job->shares_prefix) n_adopted = b->seq_adopt(b->context, job->seq, job->tokens, job->n_tokens - 1);
    int code = spare && b->kv_tokens_total - b->kv_tokens_used(b->context) < job->n_tokens - n_adopted + spare ? WEIR_E_LIMIT : 0;
    if (code == 0) code = b->seq_reserve(b->context, job->seq, job->n_tokens, err);
    if (code < 0) {
        b->seq_close(b->context, job->seq);
        job->seq = NULL;
        return code;
    }
    job->n_fed = job->n_kept_at = n_adopted;
    return 0;
}

static void count_adopted(weir_engine *e, weir_job *job) {
    if (job->n_cached >= 0) return;
    job->n_cached = job->n_fed;
    if (job->shares_prefix) atomic_fetch_add(&e->queried_tokens, (uint64_t)job->n_prompt);
    atomic_fetch_add(&e->cached_tokens, (uint64_t)job->n_cached);
    job_charge(e, job, -job->n_cached); /* it was charged for the whole prompt */
}

/* What is made once for a job, whatever becomes of its sequences. */
static int open_tools(weir_engine *e, weir_job *job, weir_error *err) {
    if (job->sampler) return 0;
    const sampler_vocab vocab = {e->backend.n_vocab, job->n_prompt + job->max_output, e->backend.piece, e->backend.context};
    TRY(sampler_open(&job->sampler, &job->sampling, &vocab, err));
    if (job->grammar) TRY(constraint_open(&job->constraint, job->grammar, job->grammar_after, e->eog, e->n_eog, err));
    if (e->n_draft > 0 && job->max_output > 2) TRY(speculator_open(&job->speculator, job->tokens, job->n_prompt, job->max_output, err));
    for (int32_t i = 0; i < job->n_prompt; i++) sampler_accept(job->sampler, job->tokens[i]);
    return 0;
}

/* 1 = it runs; 0 = there is no room now; negative = it cannot run, and has ended. */
static int take_up(weir_engine *e, weir_job *job) {
    weir_error err = {0};
    int code = open_tools(e, job, &err);
    while (code == 0 && n_stepping(e) >= e->n_parallel)
        if (!make_room(e, job, false)) return 0;
    while (code == 0 && (code = open_sequence(e, job, &err)) == WEIR_E_LIMIT) {
        code = 0;
        /* Alone there is nothing to wait for. */
        if (!make_room(e, job, true)) {
            if (headroom(e) > 0) return 0;
            code = WEIR_E_LIMIT;
        }
    }
    if (code < 0) {
        finish_failed(e, job, code, err.message[0] ? err.message : weir_code_text(code), now_of(e));
        return code;
    }
    job->tenant->n_running++;
    if (job->admit_us == 0) job->admit_us = now_of(e);
    job_set_state(job, JOB_PREFILL);
    atomic_fetch_sub(&e->n_waiting, 1);
    atomic_fetch_add(&e->n_active, 1);
    count_adopted(e, job);
    update_gauges(e);
    return 1;
}

/* Lets parked jobs go on, the most important first, as far as there are places in the step. One that lost its sequence waits for another
 * like a new one. */
static void resume_parked(weir_engine *e) {
    int32_t room = e->n_parallel - n_stepping(e);
    for (int32_t i = 0; i < e->n_running; i++) {
        weir_job *job = e->running[i];
        if (!may_resume(job)) continue;
        if (job->seq == NULL) {
            wait_again(e, job);
        } else if (room > 0) {
            job_set_state(job, JOB_DECODE);
            room--;
        }
    }
}

static void insert_running(weir_engine *e, weir_job *job) {
    int32_t at = e->n_running;
    while (at > 0 && e->running[at - 1]->priority > job->priority) at--;
    memmove(&e->running[at + 1], &e->running[at], (size_t)(e->n_running - at) * sizeof *e->running);
    e->running[at] = job;
    e->n_running++;
}

/* Whether the job goes before one that waits for room already: a more important one, or a tenant's for whom nothing runs. */
static bool overtakes(const weir_job *job, const weir_job *waiting) {
    if (job->priority != waiting->priority) return job->priority < waiting->priority;
    return job->tenant != waiting->tenant && job->tenant->n_running == 0 && waiting->tenant->n_running > 0;
}

/* Takes the next job from the queue if it could have a place and does not have to wait behind `waiting` (may be NULL). */
static bool take_next(weir_engine *e, const weir_job *waiting) {
    pthread_mutex_lock(&e->lock);
    weir_job *job = queue_next(e);
    const bool taken = job && e->n_running < e->max_running && (waiting == NULL || overtakes(job, waiting)) && has_place_for(e, job);
    if (taken) queue_remove(e, job, JOB_WAITING);
    pthread_mutex_unlock(&e->lock);
    if (taken) insert_running(e, job);
    return taken;
}

static weir_job *first_waiting(const weir_engine *e) {
    weir_job *first = NULL;
    for (int32_t i = 0; i < e->n_running; i++)
        if (job_get_state(e->running[i]) == JOB_WAITING && (first == NULL || overtakes(e->running[i], first))) first = e->running[i];
    return first;
}

/* One that finds no room keeps those behind it waiting, or a stream of small ones would starve it. */
void admit(weir_engine *e) {
    resume_parked(e);
    while (!atomic_load(&e->closing)) {
        weir_job *waiting = first_waiting(e);
        if (take_next(e, waiting)) continue;
        if (waiting == NULL || take_up(e, waiting) == 0) return;
    }
}
