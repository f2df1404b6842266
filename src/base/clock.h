/* Time: a monotonic clock and UTC stamps for logs and the wire. Any thread. */
#ifndef WEIR_BASE_CLOCK_H
#define WEIR_BASE_CLOCK_H

#include <stddef.h>
#include <stdint.h>

int64_t clock_now_us(void);  /* CLOCK_MONOTONIC */
int64_t clock_now_ns(void);  /* the same in nanoseconds */
int64_t clock_unix_us(void); /* CLOCK_REALTIME */
void clock_sleep_us(int64_t us);

/* RFC 3339 UTC with `digits` (0..9) fractional digits of a second and the given suffix ("Z" or "+00:00"), for the present
 * moment. Writes at most `capacity` bytes with the NUL; 48 are always enough. */
void clock_rfc3339(char *out, size_t capacity, int digits, const char *suffix);

#endif
