/* See retry.h. */
#include "api/retry.h"

#include <math.h>

void retry_sample(retry_rate *r, uint64_t n_ended, int64_t now_us) {
    r->samples[r->next].at_us = now_us;
    r->samples[r->next].n_ended = n_ended;
    r->next = (r->next + 1) % (RETRY_WINDOW_S + 1);
    if (r->n <= RETRY_WINDOW_S) r->n++;
}

int32_t retry_after_s(const retry_rate *r, uint64_t n_waiting, uint64_t n_ended, int64_t now_us) {
    if (r->n == 0) return RETRY_LEAST_S;
    const uint32_t oldest = r->n <= RETRY_WINDOW_S ? 0 : r->next;
    const double seconds = (double)(now_us - r->samples[oldest].at_us) * 1e-6;
    const double ended = (double)(n_ended - r->samples[oldest].n_ended);
    const double wait = ended > 0 ? ceil((double)n_waiting * seconds / ended) : ceil(seconds);
    return wait < RETRY_LEAST_S ? RETRY_LEAST_S : wait > RETRY_MOST_S ? RETRY_MOST_S : (int32_t)wait;
}
