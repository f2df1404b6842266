/* The engine thread and its life: what it does between two sleeps (admit.c, step.c), how running jobs end, opening and closing. See
 * sched.h and job.h. */
#include "sched/sched.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/checked.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "sched/job.h"

enum { DEFAULT_PARALLEL = 64, DEFAULT_BATCH = 512, DEFAULT_QUEUE = 4096, DEFAULT_QUEUE_TOKENS = 1 << 22, MAX_BATCH = 1 << 24 };

/* ---- ending jobs that run --------------------------------------------------------------------------------------------- */

/* Takes the job out of the engine and ends it; its error and terminal event are set already. */
static void finish(weir_engine *e, weir_job *job, int64_t now_us) {
    int32_t at = 0;
    while (e->running[at] != job) at++;
    memmove(&e->running[at], &e->running[at + 1], (size_t)(e->n_running - at - 1) * sizeof *e->running);
    e->n_running--;
    release_sequence(e, job, job->error.code != WEIR_E_INTERNAL);
    e->again = true;
    atomic_fetch_sub(job_get_state(job) == JOB_WAITING ? &e->n_waiting : &e->n_active, 1);
    job_end(job, now_us);
}

void finish_stopped(weir_engine *e, weir_job *job, weir_stop_reason reason, int64_t now_us) {
    job->terminal.stop_reason = reason;
    if (reason == WEIR_STOP_SEQUENCE) job->terminal.stop_text = job->stops.strings[job->text.stop_index].text;
    finish(e, job, now_us);
}

void finish_failed(weir_engine *e, weir_job *job, int code, const char *message, int64_t now_us) {
    error_set(&job->error, code, NULL, "%s", message);
    finish(e, job, now_us);
}

void finish_without_memory(weir_engine *e, weir_job *job, int64_t now_us) {
    finish_failed(e, job, WEIR_E_NOMEM, "no memory for the text of the answer", now_us);
}

/* ---- queue and running jobs between steps ----------------------------------------------------------------------------- */

static void end_list(weir_job *job, int code, const char *message, int64_t now_us) {
    for (weir_job *next; job != NULL; job = next) {
        next = job->next;
        error_set(&job->error, code, NULL, "%s", message);
        job_end(job, now_us);
    }
}

static void expire_queued(weir_engine *e, int64_t now_us) {
    pthread_mutex_lock(&e->lock);
    weir_job *expired = queue_remove_expired(e, now_us, false);
    pthread_mutex_unlock(&e->lock);
    end_list(expired, WEIR_E_TIMEOUT, "the time limit of the request passed while it waited", now_us);
}

static void finish_abandoned(weir_engine *e, weir_job *job, int64_t now_us) {
    const log_field fields[] = {LOG_TEXT("request_id", job->request_id), LOG_NUMBER("limit_s", SCHED_PARK_LIMIT_MS / 1000)};
    log_event(LOG_WARN, "request cancelled: its reader took nothing for too long", fields, 2);
    finish_failed(e, job, WEIR_E_CANCELLED, "the reader left the channel full for too long", now_us);
}

/* Ends what was cancelled or is too late. */
static void sweep_running(weir_engine *e, int64_t now_us) {
    for (int32_t i = e->n_running - 1; i >= 0; i--) {
        weir_job *job = e->running[i];
        bool parked = job_get_state(job) == JOB_PARKED;
        if (atomic_load(&job->cancelled)) {
            finish_failed(e, job, WEIR_E_CANCELLED, "the request was cancelled", now_us);
        } else if (job->deadline_us <= now_us) {
            finish_failed(e, job, WEIR_E_TIMEOUT, "the time limit of the request passed", now_us);
        } else if (parked && !may_resume(job) && now_us - job->parked_us >= (int64_t)SCHED_PARK_LIMIT_MS * 1000) {
            finish_abandoned(e, job, now_us);
        }
    }
}

/* ---- sleeping --------------------------------------------------------------------------------------------------------- */

static bool can_step(const weir_engine *e) {
    for (int32_t i = 0; i < e->n_running; i++)
        if (may_resume(e->running[i])) return true;
    return n_stepping(e) > 0;
}

/* The earliest time at which something is to do although nobody asks for it. Under the lock. */
static int64_t next_deadline(const weir_engine *e) {
    int64_t earliest = e->queue_deadline_us;
    for (int32_t i = 0; i < e->n_running; i++) {
        const weir_job *job = e->running[i];
        int64_t limit_us = job->parked_us + (int64_t)SCHED_PARK_LIMIT_MS * 1000;
        if (job->deadline_us < earliest) earliest = job->deadline_us;
        if (job_get_state(job) == JOB_PARKED && limit_us < earliest) earliest = limit_us;
    }
    return earliest;
}

/* Sleeps until there is something to do. */
static void wait_for_work(weir_engine *e) {
    if (e->again || can_step(e)) return;
    pthread_mutex_lock(&e->lock);
    while (!e->wake && !atomic_load(&e->closing)) {
        int64_t deadline_us = next_deadline(e);
        if (deadline_us == INT64_MAX) {
            pthread_cond_wait(&e->change, &e->lock);
            continue;
        }
        /* At least a millisecond, so that a clock which stands still cannot make this spin. */
        int64_t left_us = deadline_us - now_of(e);
        int64_t until_us = clock_now_us() + (left_us < 1000 ? 1000 : left_us);
        struct timespec until = {.tv_sec = until_us / 1000000, .tv_nsec = until_us % 1000000 * 1000};
        if (pthread_cond_timedwait(&e->change, &e->lock, &until) == ETIMEDOUT) break;
    }
    e->wake = false;
    pthread_mutex_unlock(&e->lock);
}

void sched_wake(weir_engine *e) {
    pthread_mutex_lock(&e->lock);
    e->wake = true;
    pthread_cond_signal(&e->change);
    pthread_mutex_unlock(&e->lock);
}

/* ---- the thread ------------------------------------------------------------------------------------------------------- */

static void end_all(weir_engine *e) {
    static const char message[] = "the engine was shut down";
    int64_t now_us = now_of(e);
    pthread_mutex_lock(&e->lock);
    weir_job *queued = queue_remove_expired(e, now_us, true);
    pthread_mutex_unlock(&e->lock);
    while (e->n_running > 0) finish_failed(e, e->running[e->n_running - 1], WEIR_E_CLOSED, message, now_us);
    end_list(queued, WEIR_E_CLOSED, message, now_us);
}

bool sched_turn(weir_engine *e) {
    int64_t now_us = now_of(e);
    e->again = false;
    expire_queued(e, now_us);
    sweep_running(e, now_us);
    admit(e);
    return step(e);
}

static void *engine_main(void *arg) {
    weir_engine *e = arg;
    while (!atomic_load(&e->closing)) {
        wait_for_work(e);
        sched_turn(e);
    }
    end_all(e);
    return NULL;
}

/* Signals are for the threads of the program, not for ours. */
static int start_thread(weir_engine *e, weir_error *err) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(&e->thread, NULL, engine_main, e);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    FAIL_IF(code != 0, err, WEIR_E_INTERNAL, NULL, "the engine thread could not be started (error %d)", code);
    pthread_setname_np(e->thread, "weir-engine");
    e->threaded = true;
    return 0;
}

static int find_eog(weir_engine *e) {
    size_t n = 0;
    for (int32_t i = 0; i < e->backend.n_vocab; i++) n += e->backend.is_eog(e->backend.context, i);
    e->eog = calloc(n ? n : 1, sizeof *e->eog);
    if (e->eog == NULL) return WEIR_E_NOMEM;
    for (int32_t i = 0; i < e->backend.n_vocab; i++)
        if (e->backend.is_eog(e->backend.context, i)) e->eog[e->n_eog++] = i;
    return 0;
}

static int make_engine(weir_engine **out, const sched_backend *backend, const weir_engine_options *options, weir_error *err) {
    weir_engine_options o = options ? *options : (weir_engine_options){0};
    weir_engine *e = calloc(1, sizeof *e);
    FAIL_IF(e == NULL, err, WEIR_E_NOMEM, NULL, "no memory for an engine");
    e->backend = *backend;
    if (e->backend.page_tokens < 1) e->backend.page_tokens = 1;
    atomic_init(&e->n_references, 1);
    pthread_condattr_t attributes;
    pthread_mutex_init(&e->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&e->change, &attributes);
    pthread_condattr_destroy(&attributes);
    e->queue_deadline_us = INT64_MAX;
    *out = e;

    FAIL_IF(o.n_batch < 0 || o.n_batch > MAX_BATCH || o.n_parallel < 0, err, WEIR_E_INVALID, "options",
            "a batch of %d tokens for %d sequences; at most %d tokens are possible, and neither may be negative", o.n_batch,
            o.n_parallel, MAX_BATCH);
    e->n_batch = o.n_batch > 0 ? o.n_batch : DEFAULT_BATCH;
    e->n_parallel = o.n_parallel > 0 ? o.n_parallel : DEFAULT_PARALLEL;
    /* Each decoding sequence has its token in every step. */
    if (e->n_parallel > e->n_batch) e->n_parallel = e->n_batch;
    e->n_draft = o.n_draft == 0 ? DRAFT_DEFAULT : o.n_draft < DRAFT_MOST ? o.n_draft : DRAFT_MOST;
    if (backend->seq_truncate == NULL) e->n_draft = -1;
    int64_t max_queue = o.max_queue ? o.max_queue : DEFAULT_QUEUE;
    e->max_jobs = max_queue < 0 ? INT64_MAX : max_queue + e->n_parallel;
    e->max_waiting_tokens = o.max_queue_tokens < 0 ? INT64_MAX : o.max_queue_tokens > 0 ? o.max_queue_tokens : DEFAULT_QUEUE_TOKENS;
    e->shares_prefixes = !o.no_prefix_cache && backend->seq_adopt;
    e->max_running = 2 * e->n_parallel;
    e->running = calloc((size_t)e->max_running, sizeof *e->running);
    e->items = calloc((size_t)e->n_parallel, sizeof *e->items);
    e->step_jobs = calloc((size_t)e->n_parallel, sizeof *e->step_jobs);
    if (e->running == NULL || e->items == NULL || e->step_jobs == NULL || find_eog(e) < 0)
        FAIL(err, WEIR_E_NOMEM, NULL, "no memory for an engine of %d sequences", e->n_parallel);
    return 0;
}

void sched_unref(weir_engine *e) {
    if (e == NULL || atomic_fetch_sub(&e->n_references, 1) != 1) return;
    pthread_cond_destroy(&e->change);
    pthread_mutex_destroy(&e->lock);
    free(e->running);
    free(e->items);
    free(e->step_jobs);
    free(e->eog);
    tenants_free(e);
    free(e);
}

static int open_engine(weir_engine **out, const sched_backend *backend, const weir_engine_options *options, bool threaded, weir_error *err) {
    weir_engine *e = NULL;
    *out = NULL;
    int code = make_engine(&e, backend, options, err);
    if (code == 0 && threaded) code = start_thread(e, err);
    if (code < 0) {
        sched_unref(e);
        backend->close(backend->context);
        return code;
    }
    *out = e;
    return 0;
}

int sched_open(weir_engine **out, const sched_backend *backend, const weir_engine_options *options, weir_error *err) {
    return open_engine(out, backend, options, true, err);
}

int sched_open_unthreaded(weir_engine **out, const sched_backend *backend, const weir_engine_options *options, weir_error *err) {
    return open_engine(out, backend, options, false, err);
}

void weir_engine_close(weir_engine **handle) {
    weir_engine *e = *handle;
    if (e == NULL) return;
    *handle = NULL;
    pthread_mutex_lock(&e->lock);
    e->draining = true;
    atomic_store(&e->closing, true);
    pthread_cond_signal(&e->change);
    pthread_mutex_unlock(&e->lock);
    if (e->threaded)
        pthread_join(e->thread, NULL);
    else
        end_all(e);
    e->backend.close(e->backend.context);
    sched_unref(e);
}

void weir_engine_drain(weir_engine *e) {
    pthread_mutex_lock(&e->lock);
    e->draining = true;
    pthread_mutex_unlock(&e->lock);
}

void weir_engine_get_stats(const weir_engine *e, weir_stats *stats) {
    *stats = (weir_stats){
        .n_running = atomic_load(&e->n_active),
        .n_waiting = atomic_load(&e->n_waiting),
        .n_submitted = atomic_load(&e->n_submitted),
        .n_finished = atomic_load(&e->n_finished),
        .n_cancelled = atomic_load(&e->n_cancelled),
        .n_failed = atomic_load(&e->n_failed),
        .n_refused = atomic_load(&e->n_refused),
        .prompt_tokens = atomic_load(&e->prompt_tokens),
        .cached_tokens = atomic_load(&e->cached_tokens),
        .output_tokens = atomic_load(&e->output_tokens),
        .n_steps = atomic_load(&e->n_steps),
        .prompt_us = atomic_load(&e->prompt_us),
        .output_us = atomic_load(&e->output_us),
        .n_drafts = atomic_load(&e->n_drafts),
        .draft_tokens = atomic_load(&e->draft_tokens),
        .draft_accepted = atomic_load(&e->draft_accepted),
        .kv_tokens_used = atomic_load(&e->kv_used),
        .kv_tokens_total = (uint64_t)e->backend.kv_tokens_total,
        .kv_tokens_kept = atomic_load(&e->kv_kept),
        .waiting_tokens = atomic_load(&e->waiting_tokens),
        .queried_tokens = atomic_load(&e->queried_tokens),
        .n_preemptions = atomic_load(&e->n_preemptions),
        .recomputed_tokens = atomic_load(&e->recomputed_tokens),
        .cache_type_k = e->backend.cache_type_k,
        .cache_type_v = e->backend.cache_type_v,
        .kv_page_tokens = (uint32_t)e->backend.page_tokens,
    };
}

int32_t weir_engine_n_ctx(const weir_engine *e) {
    return e->backend.n_ctx;
}
