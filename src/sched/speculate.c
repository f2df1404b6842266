/* Speculation: which guessed tokens go into the next step behind a sequence's own, and what is learnt from them. The guesses
 * come from the sequence's past (lookup.h), how many from draft.h. Verification is sched.c's: it samples row after row as it
 * would without guesses, so they cannot change an answer (Leviathan et al. 2023, here with the sampler's own draws in place of
 * rejection sampling, as a step gives the same bits whatever is in it). */
#include <stdlib.h>

#include "base/error.h"
#include "sched/job.h"

/* Guesses that are remembered, of a job and of all jobs, in each class of match lengths. */
static const float own_memory = 32, common_memory = 256;
/* What is less likely than this is not looked at. */
static const double least_reach = 0.02;

int speculator_open(speculator **out, const int32_t *prompt, int32_t n_prompt, int32_t max_output, weir_error *err) {
    speculator *s = calloc(1, sizeof *s);
    *out = NULL;
    if (s == NULL || lookup_open(&s->past, n_prompt + max_output) < 0) {
        free(s);
        FAIL(err, WEIR_E_NOMEM, NULL, "no memory to look up the past of %d tokens", n_prompt + max_output);
    }
    for (int32_t i = 0; i < n_prompt; i++) lookup_append(&s->past, prompt[i]);
    *out = s;
    return 0;
}

void speculator_close(speculator **sp) {
    speculator *s = *sp;
    if (s == NULL) return;
    lookup_close(&s->past);
    free(s);
    *sp = NULL;
}

void speculator_saw(weir_engine *e, speculator *s, int32_t token) {
    int32_t guess;
    /* Every token tells what a guess would have been worth, made or not. */
    if (lookup_guess(&s->past, &guess, 1)) {
        draft_odds_learn(&s->odds, s->past.length, guess == token, own_memory);
        draft_odds_learn(&e->odds, s->past.length, guess == token, common_memory);
    }
    lookup_append(&s->past, token);
}

/* What may be guessed behind the next token of a decoding job; false = nothing. */
static bool offer(weir_engine *e, weir_job *job, draft_share *share) {
    speculator *s = job->speculator;
    if (s == NULL) return false;
    lookup_search(&s->past);
    int32_t n_held = job->n_fed, n_left = job->max_output - atomic_load(&job->n_output) - 1;
    int32_t n_most = n_left < e->n_draft ? n_left : e->n_draft;
    if (s->past.length == 0 || n_most < 1 || n_held < 2) return false;
    if (!e->backend.seq_can_truncate(e->backend.context, job->seq, n_held - 1)) return false;
    double reach = 1;
    share->n_most = 0;
    while (share->n_most < n_most) {
        reach *= draft_odds_of(&s->odds, &e->odds, s->past.length + share->n_most);
        if (reach < least_reach) break;
        share->reach[share->n_most++] = reach;
    }
    return share->n_most > 0;
}

/* Puts n guesses behind the item's token; none behind one that would end the generation. */
static void add_guesses(weir_engine *e, int32_t index, int32_t n) {
    weir_job *job = e->step_jobs[index];
    speculator *s = job->speculator;
    s->feed[0] = job->tokens[job->n_fed];
    n = lookup_guess(&s->past, s->feed + 1, n);
    for (int32_t i = 1; i <= n; i++)
        if (e->backend.is_eog(e->backend.context, s->feed[i])) n = i - 1;
    /* Nobody is preempted for a guess. */
    if (e->backend.seq_reserve(e->backend.context, job->seq, job->n_fed + 1 + n, NULL) < 0) return;
    e->items[index].tokens = s->feed;
    e->items[index].n_tok = e->items[index].n_logits = 1 + n;
}

void speculate(weir_engine *e, int32_t n_prefill) {
    draft_share shares[DRAFT_MAX_SHARES];
    int32_t owners[DRAFT_MAX_SHARES], n_shares = 0;
    int32_t room = e->n_batch - e->n_decode_items - n_prefill, n_logits = e->backend.n_logits - e->n_items;
    if (n_logits < room) room = n_logits;
    if (e->n_draft < 1 || room < 1 || e->n_decode_items >= DRAFT_MAX_ROWS) return;
    for (int32_t i = 0; i < e->n_decode_items && n_shares < DRAFT_MAX_SHARES; i++)
        if (offer(e, e->step_jobs[i], &shares[n_shares])) owners[n_shares++] = i;
    draft_choose(&e->costs, shares, n_shares, e->n_decode_items, room);
    for (int32_t i = 0; i < n_shares; i++)
        if (shares[i].n > 0) add_guesses(e, owners[i], shares[i].n);
}

void speculate_learn(weir_engine *e, int32_t n_prefill, int64_t step_us) {
    int32_t n_rows = 0;
    if (n_prefill > 0) return;
    for (int32_t i = 0; i < e->n_items; i++) n_rows += e->items[i].n_tok;
    draft_costs_learn(&e->costs, n_rows, step_us);
}
