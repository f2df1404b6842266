/* Filling in weir_error objects, and the two macros that every module uses to fail and to forward a failure.
 * Owns: nothing. Knows nothing of what fails. Any thread. */
#ifndef WEIR_BASE_ERROR_H
#define WEIR_BASE_ERROR_H

#include <stdarg.h>

#include "weir/weir_error.h"

/* Describes a failure in *err (NULL allowed) and returns `code`. `place` (NULL or "" for none) says where: a file, key, tensor,
 * byte offset or field; the message says what was wrong and what would be right. Too long text is cut at a code point. */
int error_set(weir_error *err, int code, const char *place, const char *format, ...) __attribute__((format(printf, 4, 5)));
int error_setv(weir_error *err, int code, const char *place, const char *format, va_list args);

/* Returns from the calling function with the failure described. */
#define FAIL(err, code, place, ...) return error_set((err), (code), (place), __VA_ARGS__)
#define FAIL_IF(condition, err, code, place, ...)                                                                                \
    do {                                                                                                                         \
        if (condition) return error_set((err), (code), (place), __VA_ARGS__);                                                    \
    } while (0)

/* Forwards a negative result of `expression` to the caller; the callee has described it. */
#define TRY(expression)                                                                                                          \
    do {                                                                                                                         \
        int try_result_ = (expression);                                                                                          \
        if (try_result_ < 0) return try_result_;                                                                                 \
    } while (0)

#endif
