/* See clock.h. */
#include "base/clock.h"

#include <errno.h>
#include <stdio.h>
#include <time.h>

static int64_t read_us(clockid_t id) {
    struct timespec t;
    clock_gettime(id, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

int64_t clock_now_us(void) { return read_us(CLOCK_MONOTONIC); }

int64_t clock_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int64_t clock_unix_us(void) { return read_us(CLOCK_REALTIME); }

void clock_sleep_us(int64_t us) {
    struct timespec t = {.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000};
    while (nanosleep(&t, &t) != 0 && errno == EINTR) {
    }
}

void clock_rfc3339(char *out, size_t capacity, int digits, const char *suffix) {
    struct timespec t;
    struct tm utc;
    char date[32], fraction[16] = "";
    clock_gettime(CLOCK_REALTIME, &t);
    gmtime_r(&t.tv_sec, &utc);
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S", &utc);
    if (digits > 9) digits = 9;
    if (digits > 0) {
        snprintf(fraction, sizeof fraction, ".%09ld", t.tv_nsec);
        fraction[digits + 1] = '\0';
    }
    snprintf(out, capacity, "%s%s%s", date, fraction, suffix);
}
