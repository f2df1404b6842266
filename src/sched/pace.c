/* See pace.h. */
#include "sched/pace.h"

/* The weight of the newest measurement: a few steps follow a change, one outlier does not. */
static const double newest_weight = 0.25;

static void average(double *value, double sample) {
    *value = *value == 0 ? sample : *value + newest_weight * (sample - *value);
}

int32_t pace_prefill_tokens(const pace *p, int32_t n_decode, int32_t n_batch) {
    int32_t room = n_batch - n_decode;
    if (n_decode == 0) return room;
    double wanted = PACE_FIRST_TOKENS;
    if (p->prefill_us > 0) {
        /* The target, or as long again as the decoding takes: many streams must not starve the prompts that wait. */
        double spare_us = PACE_STEP_US - p->decode_us;
        wanted = (spare_us > p->decode_us ? spare_us : p->decode_us) / p->prefill_us;
    }
    if (wanted < PACE_LEAST_TOKENS) wanted = PACE_LEAST_TOKENS;
    return wanted < room ? (int32_t)wanted : room;
}

int64_t pace_learn(pace *p, int32_t n_decode, int32_t n_prefill, int64_t step_us) {
    if (n_prefill == 0) {
        if (n_decode > 0) average(&p->decode_us, (double)step_us);
        return 0;
    }
    double spent = (double)step_us;
    /* What a step costs anyway is decode's; but a step that was quicker than that says nothing about decode. */
    if (n_decode > 0) spent -= p->decode_us < 0.9 * spent ? p->decode_us : 0.9 * spent;
    /* A few tokens alone cost about a whole pass over the weights, which would make every token look dear. */
    if (n_decode > 0 || n_prefill >= PACE_LEAST_TOKENS || p->prefill_us == 0) average(&p->prefill_us, spent / n_prefill);
    return (int64_t)spent;
}
