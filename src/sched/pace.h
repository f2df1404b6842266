/* How much prefill one step may carry: learns what a step and a prompt token cost, so that a long prompt does not freeze the
 * streams that decode beside it. Pure arithmetic; owned by the engine thread. */
#ifndef WEIR_SCHED_PACE_H
#define WEIR_SCHED_PACE_H

#include <stdint.h>

enum {
    PACE_STEP_US = 50 * 1000, /* how long a step with decoding sequences in it should take */
    PACE_FIRST_TOKENS = 64,   /* prefill beside decoding before anything was measured */
    PACE_LEAST_TOKENS = 4,    /* a prompt always goes on by this much */
};

typedef struct pace {
    double decode_us;  /* of a step without prefill; 0 = not known */
    double prefill_us; /* of one prompt token; 0 = not known */
} pace;

/* Prompt tokens for the next step, which decodes n_decode sequences and holds at most n_batch tokens. */
int32_t pace_prefill_tokens(const pace *p, int32_t n_decode, int32_t n_batch);
/* Learns from a step. Returns the share of step_us that went to the prefill. */
int64_t pace_learn(pace *p, int32_t n_decode, int32_t n_prefill, int64_t step_us);

#endif
