/* How many guessed tokens are worth their place in the next step. Learns how often guesses hold, by the length of the match that
 * they come from, and what a step costs by its number of rows. Pure arithmetic: knows no jobs, no tokens, no clock. Owned by the
 * engine thread.
 *
 * A step of N decoding sequences without guesses takes T(N) for N tokens. Guesses make it T(R) for E_i >= 1 expected tokens of
 * each sequence i. What is maximised is the product of the sequences' speeds, that is sum(log E_i) - N log T(R): a stream that
 * repeats itself may not slow others down by more than it gains. */
#ifndef WEIR_SCHED_DRAFT_H
#define WEIR_SCHED_DRAFT_H

#include <stdbool.h>
#include <stdint.h>

enum {
    DRAFT_MOST = 32,     /* guesses for a sequence in one step, at most */
    DRAFT_DEFAULT = 16,
    DRAFT_CLASSES = 10,  /* of match lengths */
    DRAFT_MAX_ROWS = 96, /* larger steps are never given guesses */
    DRAFT_MAX_SHARES = 32,
    DRAFT_PROBE_STEPS = 512, /* guesses that look likely but not worth it are tried after so many steps, as costs change */
};

/* Guesses that held, of those that could be compared; old ones fade. */
typedef struct draft_odds {
    float tried[DRAFT_CLASSES], held[DRAFT_CLASSES];
} draft_odds;

/* A guess from a match of `match_length` tokens did or did not hold. `memory`: how many guesses are remembered. */
void draft_odds_learn(draft_odds *o, int32_t match_length, bool held, float memory);
/* The probability that the next guess holds, from the job's own guesses and those of all jobs. */
double draft_odds_of(const draft_odds *own, const draft_odds *all, int32_t match_length);

typedef struct draft_costs {
    double us[DRAFT_MAX_ROWS + 1]; /* of a step with so many rows; 0 = not known */
    int32_t n_declined;            /* steps in a row that could have been given likely guesses, but were not */
} draft_costs;

/* Learns from a step that held nothing but `n_rows` rows of decoding sequences. */
void draft_costs_learn(draft_costs *c, int32_t n_rows, int64_t us);
/* What a step of n_rows rows should take: measured, between measurements, or by a slope beyond them. 0 = nothing is known. */
double draft_costs_of(const draft_costs *c, int32_t n_rows);

/* What could be guessed for one sequence, and (filled in) how much of it should. */
typedef struct draft_share {
    double reach[DRAFT_MOST]; /* [n_most] the probability that guesses 0..i all hold */
    int32_t n_most, n;
} draft_share;

/* Sets n of shares[n_shares] for a step that decodes n_rows sequences and has room for `room` rows more. */
void draft_choose(draft_costs *c, draft_share *shares, int32_t n_shares, int32_t n_rows, int32_t room);

#endif
