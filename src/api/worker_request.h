/* Request bodies of the worker contract: three forms of one object, decoded and validated with all errors at once.
 * Pure functions of the body; know neither connections nor models. Any thread. */
#ifndef WEIR_API_WORKER_REQUEST_H
#define WEIR_API_WORKER_REQUEST_H

#include <jansson.h>

#include "base/buf.h"
#include "weir/weir.h"

enum { WORKER_MAX_STOPS = 4 };

typedef enum worker_form {
    WORKER_SINGLE,    /* plain, with job_id: the answer is the stream */
    WORKER_DUAL,      /* plain, without */
    WORKER_OPERATION, /* tagged by `operation` */
    WORKER_INFER,     /* of /v1/infer */
} worker_form;

typedef struct worker_request {
    worker_form form;
    json_t *body;        /* strings below point into it */
    const char *job_id;  /* WORKER_SINGLE; else NULL */
    const char *prompt;
    size_t prompt_bytes;
    const char *stop[WORKER_MAX_STOPS];
    bool stream;         /* WORKER_INFER */
    weir_request job;    /* limits, sampling and stop strings (these point into this struct); no tokens */
} worker_request;

/* How a body is refused: the HTTP status and the body of the answer, JSON for 400 with errors, else text. */
typedef struct worker_refusal {
    int status;
    bool json;
    buf body;
} worker_refusal;

/* Decodes body[n_bytes]: of /v1/infer if `infer`, else by the contract's dispatch rule; `dual` makes a plain body with a job_id a
 * WORKER_DUAL one. 0, or WEIR_E_INVALID with *refusal filled (an empty body with status 503 = out of memory).
 * In both cases the caller calls worker_request_free and buf_free(&refusal->body). */
int worker_request_decode(worker_request *out, const char *body, size_t n_bytes, bool infer, bool dual, worker_refusal *refusal);
void worker_request_free(worker_request *request);

#endif
