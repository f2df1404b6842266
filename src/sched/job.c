/* The caller's side of a job (weir_request, weir_job) and the ending of one. See job.h. */
#include "sched/job.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"

/* ---- states ----------------------------------------------------------------------------------------------------------- */

#define TO(state) (1u << (state))
static const unsigned next_states[N_JOB_STATES] = {
    [JOB_QUEUED] = TO(JOB_WAITING) | TO(JOB_ENDED),
    [JOB_WAITING] = TO(JOB_PREFILL) | TO(JOB_ENDED),
    [JOB_PREFILL] = TO(JOB_DECODE) | TO(JOB_WAITING) | TO(JOB_ENDED),
    [JOB_DECODE] = TO(JOB_PARKED) | TO(JOB_WAITING) | TO(JOB_ENDED),
    [JOB_PARKED] = TO(JOB_DECODE) | TO(JOB_WAITING) | TO(JOB_ENDED),
    [JOB_ENDED] = 0,
};

bool job_may_move(job_state from, job_state to) {
    return next_states[from] & TO(to);
}

job_state job_get_state(const weir_job *job) {
    return (job_state)atomic_load(&job->state);
}

void job_set_state(weir_job *job, job_state to) {
    assert(job_may_move(job_get_state(job), to));
    atomic_store(&job->state, (int)to);
}

/* ---- requests --------------------------------------------------------------------------------------------------------- */

void weir_request_init(weir_request *request) {
    static const char *const breakers[] = {"\n", ":", "\"", "*"};
    *request = (weir_request){
        .max_tokens = -1,
        .n_top_logprobs = -1,
        .sampling =
            {
                .temperature = 0.8f,
                .dynatemp_exponent = 1,
                .top_k = 40,
                .top_p = 0.95f,
                .min_p = 0.05f,
                .typical_p = 1,
                .xtc_threshold = 0.1f,
                .repetition_penalty = 1,
                .penalty_last_n = 64,
                .dry_base = 1.75f,
                .dry_allowed_length = 2,
                .dry_penalty_last_n = -1,
                .dry_breakers = breakers,
                .n_dry_breakers = sizeof breakers / sizeof breakers[0],
                .mirostat_tau = 5,
                .mirostat_eta = 0.1f,
            },
    };
}

static int check_prompt(const weir_engine *e, const weir_request *r, weir_error *err) {
    int32_t n_vocab = e->backend.n_vocab, n_ctx = e->backend.n_ctx;
    FAIL_IF(r->tokens == NULL || r->n_tokens == 0, err, WEIR_E_INVALID, "tokens",
            "the prompt has no tokens; at least one is needed");
    FAIL_IF(r->max_tokens < -1, err, WEIR_E_INVALID, "max_tokens", "max_tokens is %d; it must be -1 (no limit) or more",
            r->max_tokens);
    /* The prompt must leave room for one token, unless none is wanted. */
    size_t most = (size_t)n_ctx - (r->max_tokens != 0);
    FAIL_IF(r->n_tokens > most, err, WEIR_E_CONTEXT, "tokens", "the prompt has %zu tokens; the context of %d has room for %zu",
            r->n_tokens, n_ctx, most);
    for (size_t i = 0; i < r->n_tokens; i++)
        FAIL_IF(r->tokens[i] < 0 || r->tokens[i] >= n_vocab, err, WEIR_E_INVALID, "tokens",
                "token %zu of the prompt is %d; ids go from 0 to %d", i, r->tokens[i], n_vocab - 1);
    return 0;
}

static int check_chain(const weir_sampling *s, weir_error *err) {
    FAIL_IF(s->dry_multiplier > 0 && s->dry_base < 1, err, WEIR_E_INVALID, "dry_base", "dry_base is %g; it must be at least 1",
            (double)s->dry_base);
    FAIL_IF(s->dry_penalty_last_n < -1, err, WEIR_E_INVALID, "dry_penalty_last_n",
            "dry_penalty_last_n is %d; it must be -1 (all) or more", s->dry_penalty_last_n);
    FAIL_IF(s->n_dry_breakers > WEIR_MAX_DRY_BREAKERS, err, WEIR_E_INVALID, "dry_sequence_breakers",
            "%zu sequence breakers; at most %d are possible", s->n_dry_breakers, WEIR_MAX_DRY_BREAKERS);
    for (size_t i = 0; i < s->n_dry_breakers; i++)
        FAIL_IF(s->dry_breakers == NULL || s->dry_breakers[i] == NULL || strlen(s->dry_breakers[i]) > WEIR_MAX_BREAKER_BYTES, err,
                WEIR_E_INVALID, "dry_sequence_breakers", "sequence breaker %zu is not a text of at most %d bytes", i,
                WEIR_MAX_BREAKER_BYTES);
    FAIL_IF(s->mirostat < 0 || s->mirostat > 2, err, WEIR_E_INVALID, "mirostat", "mirostat is %d; it must be 0, 1 or 2", s->mirostat);
    FAIL_IF(s->n_chain < 0 || s->n_chain > WEIR_MAX_CHAIN, err, WEIR_E_INVALID, "samplers", "%d samplers; at most %d are possible",
            s->n_chain, WEIR_MAX_CHAIN);
    for (int32_t i = 0; i < s->n_chain; i++)
        FAIL_IF(s->chain[i] >= WEIR_N_SAMPLERS, err, WEIR_E_INVALID, "samplers", "sampler %d is number %d; they go from 0 to %d", i,
                s->chain[i], WEIR_N_SAMPLERS - 1);
    return 0;
}

static int check_sampling(const weir_engine *e, const weir_sampling *s, weir_error *err) {
    const struct {
        const char *name;
        float value;
    } values[] = {
        {"temperature", s->temperature},
        {"top_p", s->top_p},
        {"min_p", s->min_p},
        {"repetition_penalty", s->repetition_penalty},
        {"frequency_penalty", s->frequency_penalty},
        {"presence_penalty", s->presence_penalty},
        {"dynatemp_range", s->dynatemp_range},
        {"dynatemp_exponent", s->dynatemp_exponent},
        {"typical_p", s->typical_p},
        {"top_n_sigma", s->top_n_sigma},
        {"xtc_probability", s->xtc_probability},
        {"xtc_threshold", s->xtc_threshold},
        {"dry_multiplier", s->dry_multiplier},
        {"dry_base", s->dry_base},
        {"mirostat_tau", s->mirostat_tau},
        {"mirostat_eta", s->mirostat_eta},
    };
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++)
        FAIL_IF(!isfinite(values[i].value), err, WEIR_E_INVALID, values[i].name, "%s is not a finite number", values[i].name);
    FAIL_IF(s->repetition_penalty <= 0, err, WEIR_E_INVALID, "repetition_penalty",
            "repetition_penalty is %g; it must be above 0", (double)s->repetition_penalty);
    FAIL_IF(s->penalty_last_n < -1, err, WEIR_E_INVALID, "penalty_last_n", "penalty_last_n is %d; it must be -1 (all) or more",
            s->penalty_last_n);
    TRY(check_chain(s, err));
    FAIL_IF(s->n_logit_bias > 0 && s->logit_bias == NULL, err, WEIR_E_INVALID, "logit_bias",
            "%zu biases are announced, but the list is NULL", s->n_logit_bias);
    for (size_t i = 0; i < s->n_logit_bias; i++) {
        weir_logit_bias b = s->logit_bias[i];
        FAIL_IF(b.token < 0 || b.token >= e->backend.n_vocab, err, WEIR_E_INVALID, "logit_bias",
                "the bias is for token %d; ids go from 0 to %d", b.token, e->backend.n_vocab - 1);
        FAIL_IF(isnan(b.bias) || b.bias == INFINITY, err, WEIR_E_INVALID, "logit_bias",
                "the bias of token %d is %g; it must be finite, or -infinity to ban the token", b.token, (double)b.bias);
    }
    return 0;
}

static int check_request(const weir_engine *e, const weir_request *r, weir_error *err) {
    TRY(check_prompt(e, r, err));
    TRY(check_sampling(e, &r->sampling, err));
    FAIL_IF(r->n_top_logprobs < -1 || r->n_top_logprobs > 20, err, WEIR_E_INVALID, "n_top_logprobs",
            "n_top_logprobs is %d; it must be -1 (none) to 20", r->n_top_logprobs);
    FAIL_IF(r->grammar && weir_grammar_n_tokens(r->grammar) != (size_t)e->backend.n_vocab, err, WEIR_E_INVALID, "grammar",
            "the grammar is for a vocabulary of %zu tokens; the model has %d", weir_grammar_n_tokens(r->grammar), e->backend.n_vocab);
    FAIL_IF(!isfinite(r->tenant_weight) || r->tenant_weight < 0, err, WEIR_E_INVALID, "tenant_weight",
            "tenant_weight is %g; it must be 0 (the usual) or more", (double)r->tenant_weight);
    FAIL_IF(r->timeout_ms < 0, err, WEIR_E_INVALID, "timeout_ms", "timeout_ms is %lld; it must be 0 (none) or more",
            (long long)r->timeout_ms);
    return 0;
}

/* The caller's biases, and a ban of every end-of-generation token if asked for. */
static bool copy_biases(weir_job *job, const weir_request *r) {
    const weir_engine *e = job->engine;
    size_t n_given = r->sampling.n_logit_bias, n = n_given + (r->ignore_eos ? e->n_eog : 0);
    job->sampling.n_logit_bias = n;
    job->sampling.logit_bias = NULL;
    if (n == 0) return true;
    weir_logit_bias *bias = arena_array(&job->memory, n, sizeof *bias);
    if (bias == NULL) return false;
    if (n_given > 0) memcpy(bias, r->sampling.logit_bias, n_given * sizeof *bias);
    for (size_t i = n_given; i < n; i++) bias[i] = (weir_logit_bias){e->eog[i - n_given], -INFINITY};
    job->sampling.logit_bias = bias;
    return true;
}

/* FNV-1a; never 0, which is the salt of texts without one. */
static uint64_t hash_text(const char *text) {
    uint64_t h = 14695981039346656037u;
    for (; *text; text++) h = (h ^ (unsigned char)*text) * 1099511628211u;
    return h ? h : 1;
}

static bool copy_breakers(weir_job *job, const weir_sampling *s) {
    const char **copies = arena_array(&job->memory, s->n_dry_breakers, sizeof *copies);
    if (copies == NULL) return false;
    for (size_t i = 0; i < s->n_dry_breakers; i++)
        if ((copies[i] = arena_strndup(&job->memory, s->dry_breakers[i], strlen(s->dry_breakers[i]))) == NULL) return false;
    job->sampling.dry_breakers = copies;
    return true;
}

static int copy_request(weir_job *job, const weir_request *r, weir_error *err) {
    const weir_engine *e = job->engine;
    int32_t room = e->backend.n_ctx - (int32_t)r->n_tokens;
    job->capacity = job->n_tokens = job->n_prompt = (int32_t)r->n_tokens;
    job->tokens = malloc(r->n_tokens * sizeof *job->tokens);
    job->n_cached = -1;
    job->priority = r->priority;
    job->salt = r->cache_salt ? hash_text(r->cache_salt) : 0;
    job->shares_prefix = e->shares_prefixes && !r->no_prefix_cache;
    job->max_output = r->max_tokens < 0 || r->max_tokens > room ? room : r->max_tokens;
    job->special = r->special;
    job->n_top_logprobs = r->n_top_logprobs < e->backend.n_vocab ? r->n_top_logprobs : e->backend.n_vocab;
    job->notify = r->notify;
    job->notify_user = r->notify_user;
    job->sampling = r->sampling;
    /* No sequence is longer than the context, so a larger window is all of it. */
    if (job->sampling.penalty_last_n >= e->backend.n_ctx) job->sampling.penalty_last_n = -1;
    if (r->request_id) job->request_id = arena_strndup(&job->memory, r->request_id, strlen(r->request_id));
    job->sampling.dry_breakers = NULL;
    if (!(job->sampling.dry_multiplier > 0)) job->sampling.n_dry_breakers = 0;
    bool copied = job->sampling.n_dry_breakers == 0 || copy_breakers(job, &r->sampling);
    if (r->grammar && r->grammar_after) {
        job->grammar_after = arena_strndup(&job->memory, r->grammar_after, strlen(r->grammar_after));
        copied = copied && job->grammar_after;
    }
    if (r->grammar) job->grammar = weir_grammar_ref(r->grammar);
    if (job->tokens == NULL || !copied || !copy_biases(job, r) || (r->request_id && job->request_id == NULL))
        FAIL(err, WEIR_E_NOMEM, "tokens", "no memory for a request of %zu tokens", r->n_tokens);
    memcpy(job->tokens, r->tokens, r->n_tokens * sizeof *job->tokens);
    TRY(stop_init(&job->stops, r->stop, r->n_stop, &job->memory, err));
    answer_init(&job->text, &job->stops, job->n_top_logprobs);
    job->submit_us = e->backend.now_us(e->backend.context);
    job->deadline_us = INT64_MAX;
    if (r->timeout_ms > 0 && r->timeout_ms < (INT64_MAX - job->submit_us) / 1000)
        job->deadline_us = job->submit_us + r->timeout_ms * 1000;
    return 0;
}

/* ---- life ------------------------------------------------------------------------------------------------------------- */

static weir_job *make_job(weir_engine *e) {
    pthread_condattr_t attributes;
    weir_job *job = aligned_alloc(alignof(weir_job), sizeof *job);
    if (job == NULL) return NULL;
    memset(job, 0, sizeof *job);
    job->engine = e;
    atomic_fetch_add(&e->n_references, 1);
    atomic_init(&job->n_references, 1);
    atomic_init(&job->state, JOB_QUEUED);
    channel_init(&job->events);
    pthread_mutex_init(&job->wait_lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&job->wait_change, &attributes);
    pthread_condattr_destroy(&attributes);
    return job;
}

int job_append_token(weir_job *job, int32_t token) {
    if (job->n_tokens == job->capacity) {
        int32_t most = job->n_prompt + job->max_output, capacity = job->capacity > most / 2 ? most : job->capacity * 2 + 32;
        if (capacity > most) capacity = most;
        int32_t *tokens = realloc(job->tokens, (size_t)capacity * sizeof *tokens);
        if (tokens == NULL) return WEIR_E_NOMEM;
        job->tokens = tokens;
        job->capacity = capacity;
    }
    job->tokens[job->n_tokens++] = token;
    return 0;
}

void job_unref(weir_job *job) {
    if (atomic_fetch_sub(&job->n_references, 1) != 1) return;
    weir_engine *e = job->engine;
    free(job->tokens);
    answer_free(&job->text);
    channel_free(&job->events);
    pthread_cond_destroy(&job->wait_change);
    pthread_mutex_destroy(&job->wait_lock);
    weir_grammar_close(&job->grammar);
    arena_free(&job->memory);
    free(job);
    sched_unref(e);
}

typedef enum admittance { ADMITTED, REFUSED_CLOSED, REFUSED_JOBS, REFUSED_TOKENS, REFUSED_MEMORY } admittance;

static int refuse(weir_engine *e, admittance why, weir_error *err) {
    FAIL_IF(why == REFUSED_MEMORY, err, WEIR_E_NOMEM, NULL, "no memory for a request");
    atomic_fetch_add(&e->n_refused, 1);
    if (why == REFUSED_CLOSED) FAIL(err, WEIR_E_CLOSED, NULL, "the engine takes no more requests: it is shutting down");
    if (why == REFUSED_JOBS)
        FAIL(err, WEIR_E_QUEUE_FULL, NULL, "%lld requests run or wait already; try again later", (long long)e->max_jobs);
    FAIL(err, WEIR_E_QUEUE_FULL, NULL, "requests with %llu prompt tokens wait already; at most %lld may; try again later",
         (unsigned long long)atomic_load(&e->waiting_tokens), (long long)e->max_waiting_tokens);
}

/* Whether a request may come in now. One that finds the queue empty may be of any length. Under the lock. */
static admittance may_come(const weir_engine *e, size_t n_tokens) {
    const int64_t waiting_tokens = (int64_t)atomic_load(&e->waiting_tokens);
    if (e->draining) return REFUSED_CLOSED;
    if ((int64_t)(atomic_load(&e->n_waiting) + atomic_load(&e->n_active)) >= e->max_jobs) return REFUSED_JOBS;
    return waiting_tokens > 0 && waiting_tokens + (int64_t)n_tokens > e->max_waiting_tokens ? REFUSED_TOKENS : ADMITTED;
}

int weir_job_submit(weir_engine *e, const weir_request *request, weir_job **out, weir_error *err) {
    *out = NULL;
    /* An overload is answered before anything is copied. */
    pthread_mutex_lock(&e->lock);
    admittance admitted = may_come(e, request->n_tokens);
    pthread_mutex_unlock(&e->lock);
    if (admitted != ADMITTED) return refuse(e, admitted, err);
    TRY(check_request(e, request, err));
    weir_job *job = make_job(e);
    FAIL_IF(job == NULL, err, WEIR_E_NOMEM, NULL, "no memory for a request");
    int code = copy_request(job, request, err);
    if (code < 0) {
        job_unref(job);
        return code;
    }
    pthread_mutex_lock(&e->lock);
    admitted = may_come(e, request->n_tokens);
    if (admitted == ADMITTED && (job->tenant = tenant_join(e, request->tenant ? request->tenant : "", request->tenant_weight)) == NULL)
        admitted = REFUSED_MEMORY;
    if (admitted == ADMITTED) {
        atomic_fetch_add(&job->n_references, 1); /* the producer's */
        atomic_fetch_add(&e->n_submitted, 1);
        queue_append(e, job);
        e->wake = true;
        pthread_cond_signal(&e->change);
    }
    pthread_mutex_unlock(&e->lock);
    if (admitted != ADMITTED) {
        job_unref(job);
        return refuse(e, admitted, err);
    }
    *out = job;
    return 0;
}

void weir_job_cancel(weir_job *job) {
    weir_engine *e = job->engine;
    int64_t now_us = 0;
    atomic_store(&job->cancelled, true);
    if (job_get_state(job) == JOB_ENDED) return;
    pthread_mutex_lock(&e->lock);
    bool was_queued = job_get_state(job) == JOB_QUEUED;
    if (was_queued) {
        now_us = e->backend.now_us(e->backend.context); /* the backend lives while the queue has a job */
        queue_remove(e, job, JOB_ENDED);
    } else {
        e->wake = true;
        pthread_cond_signal(&e->change);
    }
    pthread_mutex_unlock(&e->lock);
    if (!was_queued) return;
    error_set(&job->error, WEIR_E_CANCELLED, NULL, "the request was cancelled while it waited");
    job_end(job, now_us);
}

void weir_job_release(weir_job **handle) {
    weir_job *job = *handle;
    if (job == NULL) return;
    *handle = NULL;
    /* Sequentially consistent, as notify_reader: either it sees `released` and does not call, or this sees that it is calling.
     */
    atomic_store(&job->released, true);
    while (atomic_load(&job->notifying)) sched_yield();
    weir_job_cancel(job);
    job_unref(job);
}

/* ---- producing -------------------------------------------------------------------------------------------------------- */

/* Tells the reader that there is something to take. `was_empty` is from channel_push or channel_end. */
static void notify_reader(weir_job *job, bool was_empty) {
    /* Sequentially consistent, as weir_job_wait: either it sees the event, or this sees that it waits. */
    if (atomic_load(&job->waiting)) {
        pthread_mutex_lock(&job->wait_lock);
        pthread_cond_broadcast(&job->wait_change);
        pthread_mutex_unlock(&job->wait_lock);
    }
    if (!was_empty || job->notify == NULL) return;
    atomic_store(&job->notifying, true);
    if (!atomic_load(&job->released)) job->notify(job->notify_user, job);
    atomic_store(&job->notifying, false);
}

int job_send_text(weir_job *job, bool all) {
    channel_record record;
    if (!answer_take(&job->text, all, &record)) return 0;
    int was_empty = channel_push(&job->events, &record);
    if (was_empty < 0) return was_empty;
    answer_sent(&job->text, &record);
    notify_reader(job, was_empty);
    return 0;
}

static void log_end(const weir_job *job) {
    const weir_timings *t = &job->terminal.timings;
    bool failed = job->error.code != 0;
    const log_field fields[] = {
        LOG_TEXT("request_id", job->request_id),
        LOG_NUMBER("n_prompt", t->n_prompt),
        LOG_NUMBER("n_cached", t->n_cached),
        LOG_NUMBER("n_output", t->n_output),
        LOG_NUMBER("n_draft", t->n_draft),
        LOG_NUMBER("n_draft_accepted", t->n_draft_accepted),
        LOG_NUMBER("queue_ms", (double)t->queue_us / 1e3),
        LOG_NUMBER("prefill_ms", (double)t->prefill_us / 1e3),
        LOG_NUMBER("decode_ms", (double)t->decode_us / 1e3),
        failed ? LOG_TEXT("error", weir_code_name(job->error.code)) : LOG_TEXT("stop", weir_stop_name(job->terminal.stop_reason)),
        LOG_TEXT("message", job->error.message),
    };
    /* Who serves the job has a line of its own for it. */
    log_event(LOG_DEBUG, failed ? "job failed" : "job finished", fields, 10 + (failed ? 1 : 0));
}

static void count_end(weir_engine *e, int code) {
    if (code == 0)
        atomic_fetch_add(&e->n_finished, 1);
    else if (code == WEIR_E_CANCELLED || code == WEIR_E_CLOSED)
        atomic_fetch_add(&e->n_cancelled, 1);
    else
        atomic_fetch_add(&e->n_failed, 1);
}

void job_end(weir_job *job, int64_t now_us) {
    int64_t admit_us = job->admit_us ? job->admit_us : now_us;
    int64_t first_token_us = job->first_token_us ? job->first_token_us : now_us;
    job->terminal.timings = (weir_timings){
        .n_prompt = job->n_prompt,
        .n_cached = job->n_cached > 0 ? job->n_cached : 0,
        .n_output = atomic_load(&job->n_output),
        .n_draft = job->n_draft,
        .n_draft_accepted = job->n_draft_accepted,
        .queue_us = admit_us - job->submit_us,
        .prefill_us = first_token_us - admit_us,
        .decode_us = now_us - first_token_us,
    };
    job->terminal.type = job->error.code ? WEIR_EVENT_ERROR : WEIR_EVENT_END;
    job->terminal.code = job->error.code;
    job->terminal.message = job->error.code ? job->error.message : NULL;
    sampler_close(&job->sampler);
    constraint_close(&job->constraint);
    speculator_close(&job->speculator);
    answer_free(&job->text);
    if (job_get_state(job) != JOB_ENDED) job_set_state(job, JOB_ENDED);
    count_end(job->engine, job->error.code);
    pthread_mutex_lock(&job->engine->lock);
    tenant_leave(job->engine, job->tenant);
    pthread_mutex_unlock(&job->engine->lock);
    log_end(job);
    notify_reader(job, channel_end(&job->events));
    job_unref(job);
}

/* ---- reading ---------------------------------------------------------------------------------------------------------- */

int weir_job_poll(weir_job *job, weir_event *event) {
    channel_record r;
    channel_taken taken = channel_take(&job->events, &r);
    /* The engine marks a job as parked and then looks at the channel once more; this took from the channel and then looks at
     * the mark, all sequentially consistent: one of them sees that there is room again. */
    if (job_get_state(job) == JOB_PARKED && channel_drained(&job->events)) sched_wake(job->engine);
    if (taken == CHANNEL_NONE) return 0;
    if (taken == CHANNEL_END) {
        job->terminal_taken = true;
        *event = job->terminal;
        return 1;
    }
    *event = (weir_event){
        .type = WEIR_EVENT_TOKEN,
        .index = r.index,
        .text = r.text,
        .text_bytes = r.text_bytes,
        .n_tokens = r.n_tokens,
        .tokens = r.tokens,
        .logprobs = r.logprobs,
        .top_logprobs = r.top,
    };
    return 1;
}

int weir_job_wait(weir_job *job, weir_event *event, int64_t timeout_ms) {
    if (weir_job_poll(job, event)) return 1;
    if (job->terminal_taken || timeout_ms == 0) return 0;
    /* A year is forever, and cannot overflow. */
    int64_t most_ms = INT64_C(365) * 24 * 3600 * 1000;
    if (timeout_ms < 0 || timeout_ms > most_ms) timeout_ms = most_ms;
    int64_t until_us = clock_now_us() + timeout_ms * 1000;
    struct timespec until = {.tv_sec = until_us / 1000000, .tv_nsec = until_us % 1000000 * 1000};
    pthread_mutex_lock(&job->wait_lock);
    atomic_store(&job->waiting, true);
    while (!channel_ready(&job->events))
        if (pthread_cond_timedwait(&job->wait_change, &job->wait_lock, &until) == ETIMEDOUT) break;
    atomic_store(&job->waiting, false);
    pthread_mutex_unlock(&job->wait_lock);
    return weir_job_poll(job, event);
}

int64_t weir_job_queue_position(const weir_job *job) {
    weir_engine *e = job->engine;
    if (job_get_state(job) == JOB_WAITING) return 0;
    pthread_mutex_lock(&e->lock);
    int64_t position = job_get_state(job) == JOB_QUEUED ? queue_position(e, job) : -1;
    pthread_mutex_unlock(&e->lock);
    return position;
}

/* Relaxed: a number to look at, which orders nothing. */
int32_t weir_job_n_output(const weir_job *job) {
    return atomic_load_explicit(&job->n_output, memory_order_relaxed);
}

void weir_job_get_progress(const weir_job *job, weir_job_progress *progress) {
    job_state state = job_get_state(job);
    *progress = (weir_job_progress){.running = state != JOB_QUEUED && state != JOB_ENDED,
                                    .n_prompt = job->n_prompt,
                                    .n_output = weir_job_n_output(job),
                                    .max_output = job->max_output};
}
