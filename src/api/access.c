/* See access.h. */
#include "api/access.h"

#include <string.h>

#include "base/log.h"

/* ---- W3C Trace Context ------------------------------------------------------------------------------------------------ */

/* Whether text[n] are lower-case hexadecimal digits; *zero: all of them are 0. */
static bool hex(const char *text, size_t n, bool *zero) {
    *zero = true;
    for (size_t i = 0; i < n; i++) {
        if (!((text[i] >= '0' && text[i] <= '9') || (text[i] >= 'a' && text[i] <= 'f'))) return false;
        if (text[i] != '0') *zero = false;
    }
    return true;
}

bool access_set_trace(access_record *record, const char *traceparent) {
    enum { TRACE_ID = 3, PARENT_ID = 36, FLAGS = 53, LENGTH = 55 };
    const size_t n = traceparent ? strlen(traceparent) : 0;
    bool zero;
    record->traceparent[0] = '\0';
    if (n < LENGTH || traceparent[TRACE_ID - 1] != '-' || traceparent[PARENT_ID - 1] != '-' || traceparent[FLAGS - 1] != '-')
        return false;
    if (!hex(traceparent, 2, &zero) || strncmp(traceparent, "ff", 2) == 0) return false;
    const bool first_version = zero;
    if (!hex(traceparent + TRACE_ID, 32, &zero) || zero) return false;
    if (!hex(traceparent + PARENT_ID, 16, &zero) || zero) return false;
    if (!hex(traceparent + FLAGS, 2, &zero)) return false;
    if (n > LENGTH && (first_version || traceparent[LENGTH] != '-')) return false;
    memcpy(record->traceparent, traceparent, LENGTH);
    record->traceparent[LENGTH] = '\0';
    return true;
}

/* ---- jobs ------------------------------------------------------------------------------------------------------------- */

static void keep_longest(int64_t *kept, int64_t us) {
    if (us > *kept) *kept = us;
}

void access_event(access_record *record, const weir_event *event, int64_t now_us) {
    if (event->type == WEIR_EVENT_TOKEN) {
        if (record->first_token_us == 0) record->first_token_us = now_us;
        return;
    }
    const weir_timings *t = &event->timings;
    record->n_jobs++;
    record->n_prompt += t->n_prompt;
    record->n_cached += t->n_cached;
    record->n_output += t->n_output;
    record->n_draft += t->n_draft;
    record->n_draft_accepted += t->n_draft_accepted;
    keep_longest(&record->queue_us, t->queue_us);
    keep_longest(&record->prefill_us, t->prefill_us);
    keep_longest(&record->decode_us, t->decode_us);
    record->end = event->type == WEIR_EVENT_ERROR ? weir_code_name(event->code) : weir_stop_name(event->stop_reason);
}

void access_lost(access_record *record, const weir_job *job) {
    weir_job_progress progress;
    weir_job_get_progress(job, &progress);
    record->n_jobs++;
    record->n_prompt += progress.n_prompt;
    record->n_output += progress.n_output;
    record->end = weir_code_name(WEIR_E_CANCELLED);
}

/* ---- the line --------------------------------------------------------------------------------------------------------- */

static double ms(int64_t us) {
    return us > 0 ? (double)us / 1e3 : 0;
}

void access_log(const access_record *r, const char *method, const char *path, int64_t now_us) {
    enum { MOST = 24, CLIENT_CLOSED_REQUEST = 499 }; /* the status that nginx logs for a client that did not wait for one */
    const int status = r->status ? r->status : CLIENT_CLOSED_REQUEST;
    log_field fields[MOST];
    size_t n = 0;
    fields[n++] = LOG_TEXT("method", method);
    fields[n++] = LOG_TEXT("path", path);
    fields[n++] = LOG_NUMBER("status", status);
    fields[n++] = LOG_TEXT("request_id", r->id);
    if (r->traceparent[0]) fields[n++] = LOG_TEXT("traceparent", r->traceparent);
    fields[n++] = LOG_NUMBER("total_ms", ms(now_us - r->arrived_us));
    if (r->headers_us) fields[n++] = LOG_NUMBER("headers_ms", ms(r->headers_us - r->arrived_us));
    fields[n++] = LOG_NUMBER("bytes", r->body_bytes);
    if (r->client_gone) fields[n++] = LOG_TEXT("client", "gone");
    if (r->n_jobs) {
        if (r->first_token_us) fields[n++] = LOG_NUMBER("first_token_ms", ms(r->first_token_us - r->arrived_us));
        fields[n++] = LOG_NUMBER("queue_ms", ms(r->queue_us));
        fields[n++] = LOG_NUMBER("prefill_ms", ms(r->prefill_us));
        fields[n++] = LOG_NUMBER("decode_ms", ms(r->decode_us));
        fields[n++] = LOG_NUMBER("n_prompt", r->n_prompt);
        fields[n++] = LOG_NUMBER("n_cached", r->n_cached);
        fields[n++] = LOG_NUMBER("n_output", r->n_output);
        if (r->n_draft) {
            fields[n++] = LOG_NUMBER("n_draft", r->n_draft);
            fields[n++] = LOG_NUMBER("n_draft_accepted", r->n_draft_accepted);
        }
        fields[n++] = LOG_TEXT("end", r->end);
    }
    log_event(r->n_jobs || status >= 400 ? LOG_INFO : LOG_DEBUG, "request", fields, n);
}
