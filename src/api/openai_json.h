/* Writing JSON text straight into a buffer, and describing what is wrong with a request in OpenAI's error shape.
 * Owns nothing; knows nothing of HTTP connections or jobs. Any thread. */
#ifndef WEIR_API_OPENAI_JSON_H
#define WEIR_API_OPENAI_JSON_H

#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "weir/weir_error.h"

/* A JSON string, quotes included. Ill-formed UTF-8 becomes U+FFFD, one for each maximal subpart; `"`, `\`, C0 controls and DEL
 * are escaped, everything else is raw UTF-8. */
void openai_write_string(buf *out, const char *text, size_t n_bytes);
/* As openai_write_string for NUL-terminated text; NULL gives null. */
void openai_write_text(buf *out, const char *text);
/* A finite JSON number with `digits` decimals; what is not finite is written as 0. */
void openai_write_number(buf *out, double value, int digits);
/* A natural logarithm of a probability: -9999 stands for minus infinity and for what is not a number. */
void openai_write_logprob(buf *out, float logprob);

#define OPENAI_MAX_PROBLEMS 16

typedef struct openai_problem {
    const char *code;  /* static: invalid_type, invalid_value, missing_required_parameter, not_supported, ... */
    char param[128];   /* path of the field, for example "messages[2].content"; "" when no field is to blame */
    char message[320]; /* what was wrong and what would be right; whole code points */
} openai_problem;

/* Why a request is refused: all that is wrong with it, in the order found. Zero-initialised = nothing wrong. */
typedef struct openai_error {
    int status;        /* HTTP; 0 while nothing is wrong */
    const char *type;  /* static: invalid_request_error, exceed_context_size_error, ... */
    size_t n_problems; /* those beyond OPENAI_MAX_PROBLEMS are dropped */
    openai_problem problems[OPENAI_MAX_PROBLEMS];
    int64_t n_prompt_tokens, n_ctx; /* written when n_ctx > 0 */
} openai_error;

/* Adds a problem. The first one sets the status and the type that goes with it. `param` may be NULL. */
void openai_error_add(openai_error *error, int status, const char *code, const char *param, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
/* Adds the problem that a library call described. */
void openai_error_add_weir(openai_error *error, const weir_error *cause);
/* The error type that belongs to an HTTP status. Static storage. */
const char *openai_error_type(int status);
/* The code that belongs to a weir_code, for example "context_length_exceeded". Static storage. */
const char *openai_error_code(int code);
/* {"error":{"message","type","param","code"}}: message, param and code are the first problem's; when there are more, the
 * message holds all of them and a further member "errors" lists each. */
void openai_error_write(buf *out, const openai_error *error);
/* The same object for a failure that is not about the request. */
void openai_error_write_weir(buf *out, int code, const char *message);

#endif
