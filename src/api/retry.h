/* How long a client that was refused should wait: from the rate at which requests ended in the last minute.
 * Owned by the event loop thread. */
#ifndef WEIR_API_RETRY_H
#define WEIR_API_RETRY_H

#include <stdint.h>

enum { RETRY_WINDOW_S = 60, RETRY_LEAST_S = 1, RETRY_MOST_S = 600 };

typedef struct retry_rate {
    struct {
        int64_t at_us;
        uint64_t n_ended;
    } samples[RETRY_WINDOW_S + 1]; /* a ring; the oldest is samples[next] once it is full */
    uint32_t next, n;
} retry_rate; /* zero-initialised = nothing measured */

/* `n_ended` requests have ended since the start. Call about once a second. */
void retry_sample(retry_rate *r, uint64_t n_ended, int64_t now_us);
/* Seconds until those that wait now will have been served, at the measured rate; between RETRY_LEAST_S and RETRY_MOST_S. While nothing
 * has ended: as long again as nothing has. */
int32_t retry_after_s(const retry_rate *r, uint64_t n_waiting, uint64_t n_ended, int64_t now_us);

#endif
