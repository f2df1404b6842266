/* The engine thread: admits jobs in the order of their arrival, runs one batch per step (a token of every decoding sequence,
 * then prompt chunks of the oldest), samples, sends. See sched.h and job.h. */
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

enum { DEFAULT_PARALLEL = 64, DEFAULT_BATCH = 512, DEFAULT_QUEUE = 4096, MAX_BATCH = 1 << 24 };

static int64_t now_of(weir_engine *e) {
    return e->backend.now_us(e->backend.context);
}

/* ---- ending jobs that run --------------------------------------------------------------------------------------------- */

/* Takes the job out of the engine and ends it; its error and terminal event are set already. */
static void finish(weir_engine *e, weir_job *job, int64_t now_us) {
    int32_t at = 0;
    while (e->running[at] != job) at++;
    memmove(&e->running[at], &e->running[at + 1], (size_t)(e->n_running - at - 1) * sizeof *e->running);
    e->n_running--;
    e->backend.seq_close(e->backend.context, job->seq);
    job->seq = NULL;
    e->admission_blocked = false;
    atomic_store(&e->kv_used, (uint64_t)e->backend.kv_tokens_used(e->backend.context));
    atomic_fetch_sub(&e->n_active, 1);
    job_end(job, now_us);
}

static void finish_stopped(weir_engine *e, weir_job *job, weir_stop_reason reason, int64_t now_us) {
    job->terminal.stop_reason = reason;
    if (reason == WEIR_STOP_SEQUENCE) job->terminal.stop_text = job->stops.strings[job->text.stop_index].text;
    finish(e, job, now_us);
}

static void finish_failed(weir_engine *e, weir_job *job, int code, const char *message, int64_t now_us) {
    error_set(&job->error, code, NULL, "%s", message);
    finish(e, job, now_us);
}

static void finish_without_memory(weir_engine *e, weir_job *job, int64_t now_us) {
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

/* Jobs that have a part in the next step; at most n_parallel. */
static int32_t n_stepping(const weir_engine *e) {
    int32_t n = 0;
    for (int32_t i = 0; i < e->n_running; i++) n += job_get_state(e->running[i]) != JOB_PARKED;
    return n;
}

/* A parked job whose reader has caught up. */
static bool may_resume(const weir_job *job) {
    return job_get_state(job) == JOB_PARKED && channel_drained(&job->events);
}

/* Lets parked jobs go on, the oldest first, as far as there are places in the step. */
static void resume_parked(weir_engine *e) {
    int32_t room = e->n_parallel - n_stepping(e);
    for (int32_t i = 0; i < e->n_running && room > 0; i++) {
        if (!may_resume(e->running[i])) continue;
        job_set_state(e->running[i], JOB_DECODE);
        room--;
    }
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

/* The first job of the queue, with a reference of our own, or NULL. */
static weir_job *first_queued(weir_engine *e) {
    pthread_mutex_lock(&e->lock);
    weir_job *job = e->first;
    if (job) atomic_fetch_add(&job->n_references, 1);
    pthread_mutex_unlock(&e->lock);
    return job;
}

/* False = it was cancelled in the meantime, and ended by the one who did. */
static bool take_queued(weir_engine *e, weir_job *job, job_state to) {
    pthread_mutex_lock(&e->lock);
    bool taken = job_get_state(job) == JOB_QUEUED;
    if (taken) queue_remove(e, job, to);
    pthread_mutex_unlock(&e->lock);
    return taken;
}

/* What a job needs to run. Kept apart from the job until the job is ours: until then its canceller may be ending it. */
typedef struct resources {
    void *seq;
    sampler *sampler;
    speculator *speculator;
} resources;

static void close_resources(weir_engine *e, resources *r) {
    if (r->seq) e->backend.seq_close(e->backend.context, r->seq);
    sampler_close(&r->sampler);
    speculator_close(&r->speculator);
}

static int open_resources(weir_engine *e, const weir_job *job, resources *r, weir_error *err) {
    *r = (resources){0};
    TRY(e->backend.seq_open(e->backend.context, job->n_prompt + job->max_output, &r->seq, err));
    int code = sampler_open(&r->sampler, &job->sampling, e->backend.n_vocab, err);
    if (code == 0 && e->n_draft > 0 && job->max_output > 2)
        code = speculator_open(&r->speculator, job->tokens, job->n_prompt, job->max_output, err);
    if (code < 0) {
        close_resources(e, r);
        return code;
    }
    for (int32_t i = 0; i < job->n_prompt; i++) sampler_accept(r->sampler, job->tokens[i]);
    return 0;
}

static void start(weir_engine *e, weir_job *job, const resources *r) {
    job->seq = r->seq;
    job->sampler = r->sampler;
    job->speculator = r->speculator;
    job->admit_us = now_of(e);
    e->running[e->n_running++] = job;
    atomic_store(&e->kv_used, (uint64_t)e->backend.kv_tokens_used(e->backend.context));
}

static void refuse(weir_engine *e, weir_job *job, int code, const weir_error *err) {
    if (!take_queued(e, job, JOB_ENDED)) return;
    error_set(&job->error, code, NULL, "%s", err->message[0] ? err->message : weir_code_text(code));
    job_end(job, now_of(e));
}

/* Whether there is a place for one more. A parked job has none in the step, so that slow readers do not keep others waiting;
 * but the memory of parked jobs is bounded. */
static bool has_place(const weir_engine *e) {
    return n_stepping(e) < e->n_parallel && e->n_running < e->max_running && !e->admission_blocked;
}

/* In the order of arrival: a job that finds no room keeps those behind it waiting, or a stream of small ones would starve it.
 */
static void admit(weir_engine *e) {
    while (has_place(e) && !atomic_load(&e->closing)) {
        weir_error err = {0};
        weir_job *job = first_queued(e);
        if (job == NULL) return;
        resources r;
        int code = open_resources(e, job, &r, &err);
        if (code == WEIR_E_LIMIT && e->n_running > 0)
            e->admission_blocked = true;
        else if (code < 0)
            refuse(e, job, code, &err);
        else if (take_queued(e, job, JOB_PREFILL))
            start(e, job, &r);
        else
            close_resources(e, &r); /* cancelled, and ended by the one who did */
        job_unref(job);
    }
}

/* ---- sleeping --------------------------------------------------------------------------------------------------------- */

static bool can_step(const weir_engine *e) {
    for (int32_t i = 0; i < e->n_running; i++)
        if (job_get_state(e->running[i]) != JOB_PARKED || may_resume(e->running[i])) return true;
    return false;
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
    if (can_step(e)) return;
    pthread_mutex_lock(&e->lock);
    while (!e->wake && !(e->first && has_place(e)) && !atomic_load(&e->closing)) {
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

/* ---- a step ----------------------------------------------------------------------------------------------------------- */

static void add_item(weir_engine *e, weir_job *job, const int32_t *tokens, int32_t n_tok, int32_t n_logits) {
    e->items[e->n_items] = (sched_item){.seq = job->seq, .tokens = tokens, .n_tok = n_tok, .n_logits = n_logits};
    e->step_jobs[e->n_items++] = job;
}

/* Fills in the items of the next step: decoding sequences, then prompt chunks of the oldest. Returns the prompt tokens. */
static int32_t compose(weir_engine *e) {
    e->n_items = 0;
    for (int32_t i = 0; i < e->n_running; i++)
        if (job_get_state(e->running[i]) == JOB_DECODE) add_item(e, e->running[i], &e->running[i]->next_token, 1, 1);
    e->n_decode_items = e->n_items;
    int32_t n_prefill = 0, room = pace_prefill_tokens(&e->pace, e->n_items, e->n_batch);
    for (int32_t i = 0; i < e->n_running && n_prefill < room; i++) {
        weir_job *job = e->running[i];
        if (job_get_state(job) != JOB_PREFILL) continue;
        int32_t left = job->n_prompt - job->n_fed, n = left < room - n_prefill ? left : room - n_prefill;
        add_item(e, job, job->tokens + job->n_fed, n, n == left && job->max_output > 0);
        n_prefill += n;
    }
    return n_prefill;
}

typedef struct abort_query {
    weir_engine *engine;
    int32_t first, end; /* items of the step that prefill */
    bool aborted;
} abort_query;

/* A prompt that nobody waits for is not worth a layer more. A decoding job that was cancelled costs this step only. */
static bool should_abort(void *user) {
    abort_query *q = user;
    weir_engine *e = q->engine;
    bool abort = atomic_load(&e->closing);
    int64_t now_us = q->first < q->end ? now_of(e) : 0;
    for (int32_t i = q->first; i < q->end && !abort; i++)
        abort = atomic_load(&e->step_jobs[i]->cancelled) || e->step_jobs[i]->deadline_us <= now_us;
    if (abort) q->aborted = true;
    return abort;
}

/* Runs items [first, end) as one batch. 1 = done, 0 = given up because of a job that is to end (the next sweep sees it), or an
 * error of the backend. */
static int run_items(weir_engine *e, int32_t first, int32_t end, weir_error *err) {
    abort_query query = {.engine = e, .first = first > e->n_decode_items ? first : e->n_decode_items, .end = end};
    int code = e->backend.step(e->backend.context, e->items + first, end - first, should_abort, &query, err);
    if (code >= 0) return 1;
    if (code == WEIR_E_CANCELLED && query.aborted) return 0;
    if (err->message[0] == '\0') error_set(err, code, NULL, "%s", weir_code_text(code));
    return code;
}

/* A token was sampled: text, stop strings, limits. Returns the job's state; it may be freed already if that is JOB_ENDED. */
static job_state take_token(weir_engine *e, weir_job *job, int32_t token, const float *logits, int64_t now_us) {
    float logprob = 0;
    weir_top_logprob top[20];
    size_t n_bytes = 0;
    const char *bytes = e->backend.piece(e->backend.context, token, job->special, &n_bytes);
    if (job->n_top_logprobs >= 0) sampler_logprobs(logits, e->backend.n_vocab, token, &logprob, top, job->n_top_logprobs);
    sampler_accept(job->sampler, token);
    if (job->speculator) speculator_saw(e, job->speculator, token);
    job->next_token = token;
    int32_t n_output = atomic_fetch_add(&job->n_output, 1) + 1;
    atomic_fetch_add(&e->output_tokens, 1);

    int stopped = answer_push(&job->text, token, bytes, n_bytes, logprob, top);
    bool last = n_output == job->max_output;
    if (stopped == 0 && last) stopped = answer_finish(&job->text);
    if (stopped < 0 || job_send_text(job, stopped > 0 || last) < 0) {
        finish_without_memory(e, job, now_us);
        return JOB_ENDED;
    }
    if (stopped > 0 || last) {
        finish_stopped(e, job, stopped > 0 ? WEIR_STOP_SEQUENCE : WEIR_STOP_LENGTH, now_us);
        return JOB_ENDED;
    }
    if (channel_full(&job->events)) {
        job->parked_us = now_us;
        job_set_state(job, JOB_PARKED);
        /* The reader may have caught up before it could see the new state; see weir_job_poll. */
        if (channel_drained(&job->events)) job_set_state(job, JOB_DECODE);
    }
    return job_get_state(job);
}

static void take_end(weir_engine *e, weir_job *job, int64_t now_us) {
    int stopped = answer_finish(&job->text);
    if (stopped < 0 || job_send_text(job, true) < 0)
        finish_without_memory(e, job, now_us);
    else
        finish_stopped(e, job, stopped > 0 ? WEIR_STOP_SEQUENCE : WEIR_STOP_EOS, now_us);
}

/* Returns as take_token. */
static job_state sample(weir_engine *e, weir_job *job, const float *logits, int64_t now_us) {
    int32_t token = sampler_draw(job->sampler, logits);
    if (job->first_token_us == 0) job->first_token_us = now_us;
    if (token < 0) {
        finish_failed(e, job, WEIR_E_INTERNAL, "no token can be sampled: each is banned or has no finite logit", now_us);
    } else if (e->backend.is_eog(e->backend.context, token)) {
        take_end(e, job, now_us);
    } else {
        return take_token(e, job, token, logits, now_us);
    }
    return JOB_ENDED;
}

/* Samples the item's rows of logits as long as the guesses that they stand behind hold; what the sequence holds beyond that is
 * forgotten. (A parked job goes on from where it stands as if there had been no guess.) */
static void sample_rows(weir_engine *e, weir_job *job, const sched_item *item, int32_t logits_index, int64_t now_us) {
    if (item->n_logits > 1) {
        job->n_draft += item->n_logits - 1;
        atomic_fetch_add(&e->n_drafts, 1);
        atomic_fetch_add(&e->draft_tokens, (uint64_t)item->n_logits - 1);
    }
    for (int32_t row = 0; row < item->n_logits; row++) {
        job_state state = sample(e, job, e->backend.logits(e->backend.context, logits_index, row), now_us);
        if (state == JOB_ENDED) return;
        if (row + 1 == item->n_logits) return;
        if (state != JOB_DECODE || job->next_token != item->tokens[row + 1]) break;
        job->n_draft_accepted++;
        atomic_fetch_add(&e->draft_accepted, 1);
    }
    e->backend.seq_truncate(e->backend.context, job->seq, job->n_prompt + atomic_load(&job->n_output) - 1);
}

/* Item `i` of the step was computed; its logits are number `logits_index` of the backend's last step. */
static void advance(weir_engine *e, int32_t i, int32_t logits_index, int64_t now_us) {
    weir_job *job = e->step_jobs[i];
    if (job_get_state(job) == JOB_PREFILL) {
        job->n_fed += e->items[i].n_tok;
        atomic_fetch_add(&e->prompt_tokens, (uint64_t)e->items[i].n_tok);
        if (job->n_fed < job->n_prompt) return;
        job_set_state(job, JOB_DECODE);
        if (job->max_output == 0) {
            finish_stopped(e, job, WEIR_STOP_LENGTH, now_us);
            return;
        }
    }
    sample_rows(e, job, &e->items[i], logits_index, now_us);
}

/* The batch failed: finds out whose fault it is by running each item alone, without guesses. */
static void run_singly(weir_engine *e, const weir_error *batch_error) {
    log_write(LOG_WARN, "a step of %d sequences failed (%s); each is tried alone", e->n_items, batch_error->message);
    for (int32_t i = 0; i < e->n_items; i++) {
        weir_error err = {0};
        if (i < e->n_decode_items) e->items[i].n_tok = e->items[i].n_logits = 1;
        int done = run_items(e, i, i + 1, &err);
        if (done > 0)
            advance(e, i, 0, now_of(e));
        else if (done < 0)
            finish_failed(e, e->step_jobs[i], WEIR_E_INTERNAL, err.message, now_of(e));
    }
}

static void step(weir_engine *e) {
    weir_error err = {0};
    int32_t n_prefill = compose(e);
    if (e->n_items == 0) return;
    speculate(e, n_prefill);
    int64_t start_us = now_of(e);
    int done = run_items(e, 0, e->n_items, &err);
    if (done == 0) return;
    int64_t end_us = now_of(e);
    atomic_fetch_add(&e->n_steps, 1);
    if (done < 0 && (e->n_items > 1 || e->items[0].n_logits > 1)) {
        run_singly(e, &err);
    } else if (done < 0) {
        finish_failed(e, e->step_jobs[0], WEIR_E_INTERNAL, err.message, end_us);
    } else {
        speculate_learn(e, n_prefill, end_us - start_us);
        int64_t prompt_us = pace_learn(&e->pace, e->n_decode_items, n_prefill, end_us - start_us);
        atomic_fetch_add(&e->prompt_us, (uint64_t)prompt_us);
        atomic_fetch_add(&e->output_us, (uint64_t)(end_us - start_us - prompt_us));
        for (int32_t i = 0; i < e->n_items; i++) advance(e, i, i, end_us);
    }
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

static void *engine_main(void *arg) {
    weir_engine *e = arg;
    while (!atomic_load(&e->closing)) {
        wait_for_work(e);
        int64_t now_us = now_of(e);
        expire_queued(e, now_us);
        sweep_running(e, now_us);
        resume_parked(e);
        admit(e);
        step(e);
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
    free(e);
}

int sched_open(weir_engine **out, const sched_backend *backend, const weir_engine_options *options, weir_error *err) {
    weir_engine *e = NULL;
    *out = NULL;
    int code = make_engine(&e, backend, options, err);
    if (code == 0) code = start_thread(e, err);
    if (code < 0) {
        sched_unref(e);
        backend->close(backend->context);
        return code;
    }
    *out = e;
    return 0;
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
    pthread_join(e->thread, NULL);
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
    };
}

int32_t weir_engine_n_ctx(const weir_engine *e) {
    return e->backend.n_ctx;
}
