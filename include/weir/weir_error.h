/* Error codes and the error object of the public library.
 *
 * Every function that can fail returns 0 (or a count) on success and one of these negative codes on failure. Functions that
 * take a `weir_error *` also describe the first failure there: what was wrong, where, and what would be right. The pointer may
 * be NULL. A weir_error owns no memory; it can be copied and dropped freely. */
#ifndef WEIR_ERROR_H
#define WEIR_ERROR_H

#ifdef __cplusplus
extern "C" {
#endif

/* X(name, value, text, HTTP status) */
#define WEIR_ERROR_TABLE(X)                                                                                                      \
    X(OK, 0, "success", 200)                                                                                                     \
    X(E_NOMEM, -1, "out of memory", 503)                                                                                         \
    X(E_IO, -2, "input/output error", 500)                                                                                       \
    X(E_FORMAT, -3, "malformed data", 400)                                                                                       \
    X(E_UNSUPPORTED, -4, "not supported", 501)                                                                                   \
    X(E_INVALID, -5, "invalid argument", 400)                                                                                    \
    X(E_CONTEXT, -6, "context size exceeded", 400)                                                                               \
    X(E_QUEUE_FULL, -7, "queue is full", 429)                                                                                    \
    X(E_CANCELLED, -8, "cancelled", 499)                                                                                         \
    X(E_TIMEOUT, -9, "deadline exceeded", 504)                                                                                   \
    X(E_CLOSED, -10, "shutting down", 503)                                                                                       \
    X(E_NOT_FOUND, -11, "not found", 404)                                                                                        \
    X(E_LIMIT, -12, "resource limit exceeded", 400)                                                                              \
    X(E_INTERNAL, -13, "internal error", 500)

typedef enum weir_code {
#define WEIR_ERROR_ENUM(name, value, text, status) WEIR_##name = value,
    WEIR_ERROR_TABLE(WEIR_ERROR_ENUM)
#undef WEIR_ERROR_ENUM
} weir_code;

typedef struct weir_error {
    int code;          /* a weir_code; 0 while nothing failed */
    char place[192];   /* file, key, tensor, byte offset or request field; may be empty */
    char message[512]; /* what was wrong and what would be right; one line, no trailing period */
} weir_error;

/* The table's text for `code` ("unknown error" for a code that is not in it). Static storage. */
const char *weir_code_text(int code);
/* The symbolic name, for example "E_FORMAT". Static storage. */
const char *weir_code_name(int code);
/* The HTTP status that a request failing with `code` should get. */
int weir_code_http_status(int code);

#ifdef __cplusplus
}
#endif
#endif
