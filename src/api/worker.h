/* The routes of the worker contract and its jobs: submitted by one call, read by another. On the loop's thread.
 * server.c owns the rest of the server; what these routes need of it is here. */
#ifndef WEIR_API_WORKER_H
#define WEIR_API_WORKER_H

#include "api/http.h"
#include "api/server.h"
#include "base/buf.h"

typedef struct worker_job worker_job;

typedef struct worker {
    const api_server_options *options;
    http_server *http;
    api_server *server;   /* for shutdown requests */
    weir_model *model;    /* NULL while it loads, as is the engine */
    weir_engine *engine;
    bool draining;        /* not ready any more: the server is about to end */
    worker_job *jobs;     /* those whose stream has not ended */
    uint64_t done_bytes, total_bytes, told_bytes; /* of loading */
    http_request *watchers[16];       /* streams of loading progress */
    size_t n_watchers;
    int64_t last_comment_us;
    buf scratch;
} worker;

/* Ends in a row with method NULL; the context is a worker. */
extern const http_route worker_routes[];
/* Whose texts a refusal uses. */
bool worker_owns_route(const http_route *route);
/* Drops the jobs whose stream nobody opened in time; call now and then. */
void worker_sweep(worker *w);
/* Tells the watchers of the loading progress; call now and then, and once the model is loaded. */
void worker_tell_progress(worker *w);
/* Cancels the jobs that no request reads yet; those of requests are the server's to cancel. */
void worker_cancel_unread(worker *w);
/* Releases the jobs that no request reads; those of requests go with them, in http_close. */
void worker_free(worker *w);
/* The contract's `worker` object. Any thread. */
void worker_write_identity(buf *out, const api_server_options *options, uint16_t port, const char *status);

#endif
