/* A step: which tokens of which jobs go into it, running it, and what its logits say. Engine thread. See job.h. */
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "sched/job.h"

/* What an output token counts for in the sharing between tenants; a prompt token counts 1. (As in "Fairness in Serving Large Language
 * Models", Sheng et al. 2024.) */
static const double OUTPUT_WORK = 2;

/* ---- what goes into it ------------------------------------------------------------------------------------------------ */

static void add_item(weir_engine *e, weir_job *job, const int32_t *tokens, int32_t n_tok, int32_t n_logits) {
    e->items[e->n_items] = (sched_item){.seq = job->seq, .tokens = tokens, .n_tok = n_tok, .n_logits = n_logits};
    e->step_jobs[e->n_items++] = job;
}

/* Page that the token at position n_tokens belongs to, from 0. */
static int32_t page_of(const weir_engine *e, int32_t n_tokens) {
    return n_tokens / e->backend.page_tokens;
}

/* Another prompt in this step computes the next page of this one's text: better to have it from there in the next step. */
static bool waits_for_twin(const weir_engine *e, const weir_job *job) {
    const int32_t page_tokens = e->backend.page_tokens, end = (page_of(e, job->n_fed) + 1) * page_tokens;
    if (!job->shares_prefix || page_tokens < 2 || end >= job->n_tokens) return false;
    for (int32_t i = e->n_decode_items; i < e->n_items; i++) {
        const weir_job *other = e->step_jobs[i];
        if (other->shares_prefix && other->salt == job->salt && other->n_fed + e->items[i].n_tok >= end &&
            memcmp(other->tokens, job->tokens, (size_t)end * sizeof *job->tokens) == 0)
            return true;
    }
    return false;
}

/* How many tokens of a prompt go into a step that has room for so many. A chunk of pages that is not the last ends with one, as pages
 * are what the prefix tree keeps; where that can only be asked for what ended with a chunk, one ends with the last whole page. */
static int32_t chunk_of(const weir_engine *e, const weir_job *job, int32_t room) {
    const int32_t page_tokens = e->backend.page_tokens;
    const int32_t left = job->n_tokens - job->n_fed, whole = page_of(e, job->n_tokens - 1) * page_tokens;
    int32_t end = job->n_fed + (left < room ? left : room);
    if (e->backend.adopts_at_ends && job->shares_prefix && job->n_fed < whole && end > whole) end = whole;
    if (end < job->n_tokens && end - job->n_fed >= 2 * page_tokens) end -= end % page_tokens;
    return end - job->n_fed;
}

/* What others have computed of the prompt since. */
static void adopt(weir_engine *e, weir_job *job) {
    if (!job->shares_prefix || job->n_fed + 1 >= job->n_tokens) return;
    const int32_t n = e->backend.seq_adopt(e->backend.context, job->seq, job->tokens, job->n_tokens - 1);
    if (n <= 0) return;
    job->n_fed += n;
    job->n_kept_at = job->n_fed;
    if (job->n_fed <= job->n_computed || job->n_computed >= job->n_prompt) return;
    job->n_cached += n;
    atomic_fetch_add(&e->cached_tokens, (uint64_t)n);
}

/* Fills in the items of the next step: decoding sequences, then prompt chunks, the most important first. Returns the prompt tokens. */
static int32_t compose(weir_engine *e) {
    e->n_items = 0;
    for (int32_t i = 0; i < e->n_running; i++) {
        weir_job *job = e->running[i];
        if (job_get_state(job) == JOB_DECODE && reserve_or_preempt(e, job, job->n_fed + 1)) add_item(e, job, &job->tokens[job->n_fed], 1, 1);
    }
    e->n_decode_items = e->n_items;
    int32_t n_prefill = 0, room = pace_prefill_tokens(&e->pace, e->n_items, e->n_batch);
    for (int32_t i = 0; i < e->n_running && n_prefill < room; i++) {
        weir_job *job = e->running[i];
        if (job_get_state(job) != JOB_PREFILL) continue;
        adopt(e, job);
        if (waits_for_twin(e, job)) continue;
        int32_t n = chunk_of(e, job, room - n_prefill);
        add_item(e, job, job->tokens + job->n_fed, n, job->n_fed + n == job->n_tokens && job->max_output > 0);
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
    weir_error err = {0};
    int followed = constraint_accept(job->constraint, bytes, n_bytes, &err);
    if (followed < 0) {
        finish_failed(e, job, followed, err.message, now_us);
        return JOB_ENDED;
    }
    if (job->n_top_logprobs >= 0) sampler_logprobs(logits, e->backend.n_vocab, token, &logprob, top, job->n_top_logprobs);
    sampler_accept(job->sampler, token);
    if (job->speculator) speculator_saw(e, job->speculator, token);
    if (job_append_token(job, token) < 0) {
        finish_without_memory(e, job, now_us);
        return JOB_ENDED;
    }
    int32_t n_output = atomic_fetch_add(&job->n_output, 1) + 1;
    job_charge(e, job, OUTPUT_WORK);
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
    weir_error err = {0};
    const uint32_t *mask = NULL;
    const int allowed = constraint_mask(job->constraint, &mask, &err);
    int32_t token = allowed < 0 || allowed == CONSTRAINT_COMPLETE ? SAMPLER_NO_TOKEN : sampler_draw(job->sampler, logits, mask);
    if (job->first_token_us == 0) job->first_token_us = now_us;
    if (allowed < 0) {
        finish_failed(e, job, allowed, err.message, now_us);
    } else if (allowed == CONSTRAINT_COMPLETE || (token >= 0 && e->backend.is_eog(e->backend.context, token))) {
        take_end(e, job, now_us);
    } else if (token == SAMPLER_NO_MEMORY) {
        finish_without_memory(e, job, now_us);
    } else if (token < 0) {
        finish_failed(e, job, WEIR_E_INTERNAL, "no token can be sampled: each is banned or has no finite logit", now_us);
    } else {
        return take_token(e, job, token, logits, now_us);
    }
    return JOB_ENDED;
}

/* Gives to the prefix tree what the sequence holds since the last time, once there is a page more of it. Where only ends of chunks can
 * be adopted, an answer is kept at its end alone. */
static void keep(weir_engine *e, weir_job *job) {
    if (!job->shares_prefix || page_of(e, job->n_fed) == page_of(e, job->n_kept_at)) return;
    if (e->backend.adopts_at_ends && job_get_state(job) != JOB_PREFILL) return;
    job->n_kept_at = job->n_fed;
    e->backend.seq_keep(e->backend.context, job->seq, job->tokens, job->n_fed, false);
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
        if (row + 1 == item->n_logits) break;
        if (state != JOB_DECODE || job->tokens[job->n_tokens - 1] != item->tokens[row + 1]) {
            e->backend.seq_truncate(e->backend.context, job->seq, job->n_fed);
            break;
        }
        job->n_fed++; /* the guess is in the sequence already */
        job->n_draft_accepted++;
        atomic_fetch_add(&e->draft_accepted, 1);
    }
    keep(e, job);
}

/* `n` more tokens of a prompt, or of what a job said before it was preempted, are computed. */
static void count_prefill(weir_engine *e, weir_job *job, int32_t n) {
    const int32_t begin = job->n_fed, end = begin + n, computed = job->n_computed < end ? job->n_computed : end;
    const int32_t first_new = computed > begin ? computed : begin, prompt_end = job->n_prompt < end ? job->n_prompt : end;
    job->n_fed = end;
    atomic_fetch_add(&e->recomputed_tokens, (uint64_t)(first_new - begin));
    if (prompt_end > first_new) atomic_fetch_add(&e->prompt_tokens, (uint64_t)(prompt_end - first_new));
}

/* Item `i` of the step was computed; its logits are number `logits_index` of the backend's last step. */
static void advance(weir_engine *e, int32_t i, int32_t logits_index, int64_t now_us) {
    weir_job *job = e->step_jobs[i];
    if (job_get_state(job) == JOB_PREFILL) {
        count_prefill(e, job, e->items[i].n_tok);
        keep(e, job);
        if (job->n_fed < job->n_tokens) return;
        job_set_state(job, JOB_DECODE);
        if (job->max_output == 0) {
            finish_stopped(e, job, WEIR_STOP_LENGTH, now_us);
            return;
        }
    } else {
        job->n_fed++; /* the token itself; guesses count as they hold */
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

bool step(weir_engine *e) {
    weir_error err = {0};
    int32_t n_prefill = compose(e);
    if (e->n_items == 0) return false;
    speculate(e, n_prefill);
    int64_t start_us = now_of(e);
    int done = run_items(e, 0, e->n_items, &err);
    if (done == 0) return true;
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
    return true;
}
