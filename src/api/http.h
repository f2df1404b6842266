/* The HTTP server core: one event loop thread, one route table, held requests, streams, and weir jobs whose events are pumped to
 * them. Owns: sockets, HTTP/1.1 (libevent's evhttp), wake-ups from the engine thread, disconnects, slow readers; one log line a request.
 * Must not know: what any route means, JSON, models. Everything here runs on the loop thread unless said otherwise. */
#ifndef WEIR_API_HTTP_H
#define WEIR_API_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api/access.h"
#include "weir/weir.h"

typedef struct http_server http_server;
typedef struct http_request http_request; /* from its arrival until its response has been handed over or its client is gone */

typedef enum http_route_flags {
    HTTP_PUBLIC = 1, /* answered without authentication */
    HTTP_JSON = 2,   /* needs a JSON content type */
    HTTP_EARLY = 4,  /* answered while the model is still loading */
} http_route_flags;

/* One row of the route table. A GET route answers HEAD too. `path` may hold one "{id}" segment. */
typedef struct http_route {
    const char *method, *path;
    unsigned flags;
    size_t max_body; /* bytes; 0 = the server's limit */
    void (*handle)(http_request *r, void *context);
} http_route;

/* Called before a route's handler, and for unknown paths (route NULL). Returns true to go on; false after it has replied.
 * `problem` is 0, or the HTTP status that the core would answer with: 401 never, 404, 405, 413, 415; the hook may answer it in
 * its own shape. */
typedef bool (*http_hook)(http_request *r, const http_route *route, int problem, void *context);

typedef struct http_options {
    const char *host;       /* "127.0.0.1", "0.0.0.0", "::" or a name */
    uint16_t port;          /* 0 = any free one */
    size_t max_body;        /* bytes of a request body; 0 = 32 MiB */
    size_t max_header;      /* bytes of all headers; 0 = 32 KiB */
    int idle_timeout_s;     /* of a connection with no request under way; 0 = 60 */
    size_t stream_buffer;   /* unsent bytes of a stream above which its jobs' events wait; 0 = 256 KiB */
    const http_route *const *tables; /* [n_tables], each ended by a row with method NULL */
    size_t n_tables;
    void *const *contexts;  /* [n_tables] passed to the handlers of that table */
    http_hook hook;         /* may be NULL */
    void *hook_context;
} http_options;

/* Binds at once; answers once http_run is called. WEIR_E_IO: the address cannot be bound (place = host:port). */
int http_open(http_server **out, const http_options *options, weir_error *err);
/* Ends all requests (their jobs are cancelled) and frees. Not while http_run runs. */
void http_close(http_server **s);
uint16_t http_port(const http_server *s);
/* Serves until http_stop. */
void http_run(http_server *s);
/* Ends http_run soon. Any thread. Safe in a signal handler. */
void http_stop(http_server *s);
/* Closes the listening socket; what is under way goes on. */
void http_stop_accepting(http_server *s);
size_t http_n_requests(const http_server *s); /* held or streaming */
/* Calls fn for every job of every request that has not ended, the newest request first. */
void http_each_job(const http_server *s, void (*fn)(const http_request *r, const weir_job *job, void *user), void *user);
/* Asks every job of every request to stop: each answer then ends with its terminal event. Loop thread. */
void http_cancel_jobs(http_server *s);
/* After http_run has returned: goes on serving until no request is under way, `busy` (may be NULL) says false and answers have had 50 ms
 * to leave; limit_ms at most. */
void http_drain(http_server *s, int64_t limit_ms, bool (*busy)(void *user), void *user);

/* Runs fn(arg) on the loop thread soon. Any thread. False when out of memory. */
bool http_post(http_server *s, void (*fn)(void *arg), void *arg);
/* Runs fn(arg) every period_ms on the loop thread until the server closes. */
int http_every(http_server *s, int64_t period_ms, void (*fn)(void *arg), void *arg, weir_error *err);

/* ---- requests --------------------------------------------------------------------------------------------------------- */

const char *http_method(const http_request *r);
const char *http_path(const http_request *r);                      /* decoded, without the query */
const char *http_id(const http_request *r);                        /* what {id} stands for; "" if the route has none */
const char *http_query(const http_request *r, const char *name);   /* decoded; NULL if absent */
const char *http_header(const http_request *r, const char *name);  /* NULL if absent */
const char *http_body(const http_request *r, size_t *n_bytes);     /* NUL-terminated; valid as long as the request */
const char *http_peer(const http_request *r);                      /* address of the client */
http_server *http_server_of(const http_request *r);
int64_t http_arrived_us(const http_request *r);                    /* clock_now_us() when the request was complete */
/* What the log calls the request; "" until it is set. Copied, cut to 63 bytes. */
const char *http_request_id(const http_request *r);
void http_set_request_id(http_request *r, const char *id);
uint64_t http_number(const http_request *r);                       /* 1, 2, ... as they came */

/* ---- responses: exactly one of http_reply or http_stream_begin..end for each request ------------------------------------ */

/* For the response to come; both are copied. Names and values with control characters are ignored. */
void http_set_header(http_request *r, const char *name, const char *value);
/* The whole response; the request is gone afterwards. `content_type` may be NULL when there is no body. */
void http_reply(http_request *r, int status, const char *content_type, const char *body, size_t n_bytes);
/* Sends status and headers now; the body follows in chunks. */
void http_stream_begin(http_request *r, int status, const char *content_type);
void http_stream_write(http_request *r, const char *bytes, size_t n_bytes);
/* Ends the body; the request is gone afterwards. */
void http_stream_end(http_request *r);
bool http_stream_begun(const http_request *r);

/* ---- jobs ------------------------------------------------------------------------------------------------------------- */

/* Events of a request's jobs, taken as they come (streams: while the client reads). */
typedef struct http_job_handler {
    /* One event of job number `index`. May write, and may end the request (then no further event comes). */
    void (*on_event)(http_request *r, void *state, int32_t index, const weir_event *event);
    /* The request is going away, answered or not: free `state`. Called exactly once, after the last event. May be NULL. */
    void (*on_close)(void *state);
} http_job_handler;

/* Whose requests share the machine with others'. Its jobs may not be more important than `priority` (weir_request.priority). */
typedef struct http_tenant {
    const char *name;
    float weight; /* 0 = 1 */
    int32_t priority;
} http_tenant;
/* The request is the tenant's, which must outlive it and its jobs. */
void http_set_tenant(http_request *r, const http_tenant *tenant);
/* Makes a job that is to be submitted for the request its tenant's. http_job_submit does it by itself. */
void http_claim(const http_request *r, weir_request *job);
/* Holds the request: a client that disconnects ends it at once, its jobs cancelled. Call once, before http_job_submit. */
void http_hold(http_request *r, const http_job_handler *handler, void *state);
/* Submits a job whose events go to the handler as number `index` (0, 1, ...). Sets the request's notify fields itself.
 * Errors as weir_job_submit. */
int http_job_submit(http_request *r, weir_engine *engine, const weir_request *request, int32_t index, weir_error *err);
/* Hands over a job that was submitted before with http_job_prepare's notify; the request then owns it. */
int http_job_adopt(http_request *r, weir_job *job, void *ticket, int32_t index, weir_error *err);
/* A job without a request yet (submitted now, read later): gives the notify function and user to submit it with. The ticket is
 * either adopted or dropped with http_ticket_free after the job was released. NULL when out of memory. */
void *http_job_prepare(http_server *s, weir_notify_fn *notify);
void http_ticket_free(void *ticket);

#endif
