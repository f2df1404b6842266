/* Overflow-checked size arithmetic. Each returns false, leaving *out untouched, when the result does not fit. Any thread. */
#ifndef WEIR_BASE_CHECKED_H
#define WEIR_BASE_CHECKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline bool checked_add(size_t a, size_t b, size_t *out) {
    size_t result;
    if (__builtin_add_overflow(a, b, &result)) return false;
    *out = result;
    return true;
}

static inline bool checked_mul(size_t a, size_t b, size_t *out) {
    size_t result;
    if (__builtin_mul_overflow(a, b, &result)) return false;
    *out = result;
    return true;
}

/* *out = a rounded up to a multiple of `unit`, a power of two. */
static inline bool checked_round_up(size_t a, size_t unit, size_t *out) {
    size_t sum;
    if (!checked_add(a, unit - 1, &sum)) return false;
    *out = sum & ~(unit - 1);
    return true;
}

#endif
