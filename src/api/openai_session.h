/* One request of the OpenAI surface between its body and its answer: the jobs it needs, and their events turned into bytes.
 * Owns what was decoded and collected; does not own the jobs and knows nothing of connections: the caller submits the jobs,
 * hands in their events, sends what was appended. Owned by one thread. */
#ifndef WEIR_API_OPENAI_SESSION_H
#define WEIR_API_OPENAI_SESSION_H

#include "api/metrics.h"
#include "api/openai_reply.h"
#include "api/openai_request.h"

typedef struct openai_session openai_session;

/* What every session shares. */
typedef struct openai_service {
    const openai_context *context;
    metrics *metrics;  /* may be NULL */
    const char *alias; /* the model's name in answers */
    int64_t timeout_ms; /* of requests that name none; 0 = unlimited */
} openai_service;

/* Decodes and tokenises body[n_bytes], which arrived at `arrived_us` (clock_now_us). On success *out is owned by the caller. On
 * failure *out is NULL and *error says what to answer. */
int openai_session_open(openai_session **out, const openai_service *service, openai_endpoint endpoint, const char *body,
                        size_t n_bytes, int64_t arrived_us, openai_error *error);
/* Jobs whose end was not seen count as aborted once openai_session_start was called. NULL and closed ones are accepted. */
void openai_session_close(openai_session **session);
bool openai_session_streams(const openai_session *session);
/* How many jobs the answer needs; 0 when nothing is to be generated. */
size_t openai_session_n_jobs(const openai_session *session);
/* The i-th job. What it points to is valid until the session is closed; request_id and notify are the caller's to set. */
void openai_session_job(const openai_session *session, size_t i, weir_request *job);
/* Describes why job i was refused. */
void openai_session_refused(const openai_session *session, size_t i, const weir_error *cause, openai_error *error);

/* The two below append what can be sent: for a stream whole SSE frames, "data: [DONE]" last; otherwise nothing until the body,
 * at the end. They return 0 = more will come, otherwise the HTTP status of the finished answer: 200, or that of the failure
 * (when streaming the last frames tell it, as the headers are gone). */
/* Call once, when all jobs were accepted. */
int openai_session_start(openai_session *session, buf *out);
/* An event of job i. Events after the end are ignored. */
int openai_session_event(openai_session *session, size_t i, const weir_event *event, buf *out);

#endif
