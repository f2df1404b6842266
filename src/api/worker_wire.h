/* The worker contract's bytes: SSE frames, JSON strings and numbers as its reference writes them, ids and stamps.
 * Pure functions over buffers; any thread. */
#ifndef WEIR_API_WORKER_WIRE_H
#define WEIR_API_WORKER_WIRE_H

#include "base/buf.h"
#include "weir/weir.h"

#define WORKER_DONE "data: [DONE]\n\n"

enum { WORKER_UUID_BYTES = 37, WORKER_FLOAT_BYTES = 64 };

/* A JSON string, quotes included: only `"`, `\` and C0 controls are escaped, and the bracket of "[DONE]", "[CANCELLED]" and "[ERROR]",
 * at which a known client stops reading wherever it sees them. `text` is well-formed UTF-8. */
void worker_write_string(buf *out, const char *text, size_t n_bytes);
/* The shortest decimal that reads back as the same float32, never with an exponent; integral values without a fraction. */
void worker_format_float(char out[WORKER_FLOAT_BYTES], float value);
/* A random UUID, version 4, lower case. False when the system gives no random numbers. */
bool worker_uuid(char out[WORKER_UUID_BYTES]);

/* Each appends one whole frame. */
void worker_write_started(buf *out, const char *job_id, const char *model);
void worker_write_error(buf *out, const char *code, const char *message);
/* TOKEN, END or ERROR; not the [DONE] that follows the last two. */
void worker_write_event(buf *out, const weir_event *event);
/* The contract's code for a weir_code, for example "CANCELLED". Static storage. */
const char *worker_error_code(int code);

#endif
