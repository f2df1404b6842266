/* What the log says of one request: collected while it is served, written as one line at its end.
 * Knows nothing of routes or connections. Owned by the event loop thread. */
#ifndef WEIR_API_ACCESS_H
#define WEIR_API_ACCESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "weir/weir.h"

enum { ACCESS_ID_BYTES = 64, ACCESS_TRACE_BYTES = 56 };

typedef struct access_record {
    char id[ACCESS_ID_BYTES];             /* the client's name for the request, or ours */
    char traceparent[ACCESS_TRACE_BYTES]; /* "" = none, or it was malformed */
    int64_t arrived_us, headers_us, first_token_us; /* clock_now_us(); 0 = not yet */
    int status;                           /* 0 until an answer begins */
    bool client_gone;                     /* it went away before the end of the answer */
    uint64_t body_bytes;                  /* of the answer, as far as it was handed over */
    /* Of the jobs of the request that have ended: sums, and the longest times. */
    int32_t n_jobs, n_prompt, n_cached, n_output, n_draft, n_draft_accepted;
    int64_t queue_us, prefill_us, decode_us;
    const char *end;                      /* how the last one ended: a stop reason or an error's name; NULL = none has */
} access_record;

/* Takes over the `traceparent` header (may be NULL) if it keeps to the grammar of W3C Trace Context, section 3.2: version, trace-id,
 * parent-id and flags in lower-case hexadecimal digits; version ff and ids of zeros only are invalid; what a later version adds behind
 * the flags is not kept. Returns whether it does. */
bool access_set_trace(access_record *record, const char *traceparent);
/* An event of one of the request's jobs was taken at now_us. */
void access_event(access_record *record, const weir_event *event, int64_t now_us);
/* A job was given up before its terminal event was taken. */
void access_lost(access_record *record, const weir_job *job);
/* One line: level info, but debug for requests that were answered with less than 400 and needed no job (probes, metrics). */
void access_log(const access_record *record, const char *method, const char *path, int64_t now_us);

#endif
