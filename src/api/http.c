/* See http.h.
 *
 * evhttp stops reading from a connection while its request is answered, so it would not notice a client that went away. Held
 * requests therefore keep reading enabled, with a read callback of our own: evhttp's must not see bytes in that state (it ends
 * the process), so a pipelined request waits in the input buffer until the response is complete.
 *
 * Wake-ups: the engine thread pushes a job's ticket on a lock-free stack and writes to an eventfd; the loop takes the whole stack
 * and reads each job's channel. */
#include "api/http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/http.h>
#include <event2/keyvalq_struct.h>
#include <event2/listener.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/eventfd.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"

enum { DEFAULT_MAX_BODY = 32 << 20, DEFAULT_MAX_HEADER = 32 << 10, DEFAULT_IDLE_S = 60, DEFAULT_STREAM_BUFFER = 256 << 10 };
enum { MAX_PIPELINED = 64 << 10 }; /* bytes a client may send ahead while a request of its is held */

/* A job's door into the loop. Owned by a request, or (before that) by whoever prepared it. */
typedef struct ticket {
    http_server *server;
    http_request *request;       /* NULL: nobody reads the job yet, or no longer */
    weir_job *job;
    int32_t index;
    struct ticket *next_of_request;
    /* Set by the engine thread when it pushes, cleared by the loop when it takes. */
    atomic_bool queued;
    _Atomic(struct ticket *) next; /* in the stack */
    bool dead;                   /* loop only: free it when it comes off the stack */
    bool ended;                  /* its terminal event was taken */
} ticket;

typedef struct posted {
    void (*fn)(void *arg);
    void *arg;
    struct posted *next;
} posted;

typedef struct periodic {
    struct event *timer;
    void (*fn)(void *arg);
    void *arg;
    struct periodic *next;
} periodic;

struct http_server {
    http_options options;
    struct event_base *base;
    struct evhttp *http;
    struct evhttp_bound_socket *bound;
    struct event *wake_event;
    int wake_fd;
    uint16_t port;
    atomic_bool stopping;
    _Atomic(ticket *) woken;     /* stack */
    _Atomic(posted *) posts;     /* stack */
    periodic *periodics;
    http_request *requests;      /* held or streaming */
    size_t n_requests;
    uint64_t n_seen;             /* requests since the start */
};

struct http_request {
    http_server *server;
    struct evhttp_request *raw;
    struct evhttp_connection *connection;
    const http_route *route;
    const char *method;
    char *path, *id;
    struct evkeyvalq query;
    char *body;
    size_t body_bytes;
    uint64_t number;
    access_record record;
    bool held, begun, stalled, in_handler, finished;
    const http_job_handler *handler;
    const http_tenant *tenant; /* or NULL */
    void *state;
    ticket *tickets;
    bufferevent_data_cb saved_read, saved_write;
    bufferevent_event_cb saved_event;
    void *saved_arg;
    http_request *prev, *next;
};

/* ---- tickets ---------------------------------------------------------------------------------------------------------- */

/* Engine thread. */
static void on_notify(void *user, weir_job *job) {
    ticket *t = user;
    http_server *s = t->server;
    (void)job;
    if (atomic_exchange(&t->queued, true)) return;
    ticket *head = atomic_load(&s->woken);
    do {
        atomic_store(&t->next, head);
    } while (!atomic_compare_exchange_weak(&s->woken, &head, t));
    if (head == NULL) {
        uint64_t one = 1;
        ssize_t ignored = write(s->wake_fd, &one, sizeof one); /* can only fail when the counter is full: then the loop wakes anyway */
        (void)ignored;
    }
}

void *http_job_prepare(http_server *s, weir_notify_fn *notify) {
    ticket *t = calloc(1, sizeof *t);
    if (t == NULL) return NULL;
    t->server = s;
    *notify = on_notify;
    return t;
}

/* The job must be released: then nothing pushes the ticket any more, but it may still be on the stack. */
void http_ticket_free(void *handle) {
    ticket *t = handle;
    if (t == NULL) return;
    t->request = NULL;
    if (atomic_load(&t->queued)) t->dead = true;
    else free(t);
}

/* ---- the life of a request -------------------------------------------------------------------------------------------- */

static void on_read_while_held(struct bufferevent *bev, void *arg) {
    (void)arg;
    if (evbuffer_get_length(bufferevent_get_input(bev)) > MAX_PIPELINED) bufferevent_disable(bev, EV_READ);
}

static void restore_connection(http_request *r) {
    if (!r->held || r->connection == NULL) return;
    struct bufferevent *bev = evhttp_connection_get_bufferevent(r->connection);
    evhttp_connection_set_closecb(r->connection, NULL, NULL);
    if (bev == NULL) return;
    const struct timeval idle = {.tv_sec = r->server->options.idle_timeout_s};
    bufferevent_setcb(bev, r->saved_read, r->saved_write, r->saved_event, r->saved_arg);
    bufferevent_set_timeouts(bev, &idle, &idle);
}

/* Lets go of everything but the evhttp request, which evhttp frees itself. */
static void request_free(http_request *r) {
    for (ticket *t = r->tickets, *next; t; t = next) {
        next = t->next_of_request;
        if (!t->ended) access_lost(&r->record, t->job);
        weir_job_release(&t->job);
        http_ticket_free(t);
    }
    r->tickets = NULL;
    if (r->handler && r->handler->on_close) r->handler->on_close(r->state);
    if (r->prev) r->prev->next = r->next;
    else if (r->server->requests == r) r->server->requests = r->next;
    if (r->next) r->next->prev = r->prev;
    r->server->n_requests--;
    access_log(&r->record, r->method, r->path ? r->path : "", clock_now_us());
    evhttp_clear_headers(&r->query);
    free(r->path);
    free(r->id);
    free(r->body);
    free(r);
}

/* After the response was handed over, or the client went away. A handler further up the stack may still hold the pointer, so
 * the memory goes when it returns. */
static void request_finish(http_request *r) {
    r->finished = true;
    if (!r->in_handler) request_free(r);
}

static void on_connection_closed(struct evhttp_connection *connection, void *arg) {
    http_request *r = arg;
    evhttp_connection_set_closecb(connection, NULL, NULL);
    r->connection = NULL;
    r->record.client_gone = true;
    if (r->raw) evhttp_request_free(r->raw); /* ours since http_hold: evhttp only lets go of it */
    r->raw = NULL;
    if (!r->finished) request_finish(r);
}

void http_hold(http_request *r, const http_job_handler *handler, void *state) {
    r->handler = handler;
    r->state = state;
    if (r->connection == NULL || r->held) return;
    struct bufferevent *bev = evhttp_connection_get_bufferevent(r->connection);
    r->held = true;
    evhttp_request_own(r->raw);
    bufferevent_getcb(bev, &r->saved_read, &r->saved_write, &r->saved_event, &r->saved_arg);
    bufferevent_setcb(bev, on_read_while_held, r->saved_write, r->saved_event, r->saved_arg);
    evhttp_connection_set_closecb(r->connection, on_connection_closed, r);
    bufferevent_set_timeouts(bev, NULL, NULL); /* an answer may take as long as it takes */
    bufferevent_enable(bev, EV_READ);
}

static bool plain_text(const char *s) {
    for (; *s; s++)
        if ((unsigned char)*s < 0x20 || *s == 0x7F) return false;
    return true;
}

void http_set_header(http_request *r, const char *name, const char *value) {
    if (r->raw == NULL || !plain_text(name) || !plain_text(value)) return;
    struct evkeyvalq *headers = evhttp_request_get_output_headers(r->raw);
    evhttp_remove_header(headers, name);
    evhttp_add_header(headers, name, value);
}

static const char *reason_of(int status) {
    static const struct {
        int status;
        const char *reason;
    } reasons[] = {{200, "OK"}, {201, "Created"}, {204, "No Content"}, {400, "Bad Request"}, {401, "Unauthorized"}, {403, "Forbidden"},
                   {404, "Not Found"}, {405, "Method Not Allowed"}, {408, "Request Timeout"}, {409, "Conflict"},
                   {413, "Payload Too Large"}, {415, "Unsupported Media Type"}, {422, "Unprocessable Entity"},
                   {429, "Too Many Requests"}, {499, "Client Closed Request"}, {500, "Internal Server Error"},
                   {501, "Not Implemented"}, {503, "Service Unavailable"}, {504, "Gateway Timeout"}};
    for (size_t i = 0; i < sizeof reasons / sizeof reasons[0]; i++)
        if (reasons[i].status == status) return reasons[i].reason;
    return "Status";
}

static void note_answer(http_request *r, int status) {
    r->record.status = status;
    r->record.headers_us = clock_now_us();
}

void http_reply(http_request *r, int status, const char *content_type, const char *body, size_t n_bytes) {
    if (r->finished) return;
    if (r->raw == NULL) {
        request_finish(r);
        return;
    }
    note_answer(r, status);
    r->record.body_bytes = n_bytes;
    struct evbuffer *out = evbuffer_new();
    /* evhttp would send the body of an answer to HEAD. */
    if (out && n_bytes && evhttp_request_get_command(r->raw) != EVHTTP_REQ_HEAD) evbuffer_add(out, body, n_bytes);
    if (content_type) http_set_header(r, "Content-Type", content_type);
    char length[32];
    snprintf(length, sizeof length, "%zu", n_bytes);
    if (status != 204) http_set_header(r, "Content-Length", length);
    restore_connection(r);
    struct evhttp_request *raw = r->raw;
    r->raw = NULL;
    r->connection = NULL;
    evhttp_send_reply(raw, status, reason_of(status), out);
    if (out) evbuffer_free(out);
    request_finish(r);
}

bool http_stream_begun(const http_request *r) { return r->begun; }

void http_stream_begin(http_request *r, int status, const char *content_type) {
    if (r->finished || r->raw == NULL || r->begun) return;
    http_set_header(r, "Content-Type", content_type);
    http_set_header(r, "Cache-Control", "no-cache");
    r->begun = true;
    note_answer(r, status);
    if (!r->held) http_hold(r, r->handler, r->state);
    evhttp_send_reply_start(r->raw, status, reason_of(status));
}

static void request_pump(http_request *r);

/* All that was written has left: a stalled stream may go on. */
static void on_drained(struct evhttp_connection *connection, void *arg) {
    http_server *s = arg;
    for (http_request *r = s->requests; r; r = r->next) {
        if (r->connection != connection) continue;
        if (r->stalled && !r->finished) {
            r->stalled = false;
            request_pump(r);
        }
        return;
    }
}

void http_stream_write(http_request *r, const char *bytes, size_t n_bytes) {
    if (r->finished || r->raw == NULL || n_bytes == 0) return;
    struct evbuffer *out = evbuffer_new();
    if (out == NULL) return;
    evbuffer_add(out, bytes, n_bytes);
    r->record.body_bytes += n_bytes;
    evhttp_send_reply_chunk_with_cb(r->raw, out, on_drained, r->server);
    evbuffer_free(out);
    struct bufferevent *bev = r->connection ? evhttp_connection_get_bufferevent(r->connection) : NULL;
    if (bev && evbuffer_get_length(bufferevent_get_output(bev)) > r->server->options.stream_buffer) r->stalled = true;
}

void http_stream_end(http_request *r) {
    if (r->finished) return;
    if (r->raw) {
        restore_connection(r);
        struct evhttp_request *raw = r->raw;
        r->raw = NULL;
        r->connection = NULL;
        evhttp_send_reply_end(raw);
    }
    request_finish(r);
}

/* ---- jobs ------------------------------------------------------------------------------------------------------------- */

/* Takes what the request's jobs have, as long as the client keeps up. */
static void request_pump(http_request *r) {
    const bool outermost = !r->in_handler;
    r->in_handler = true;
    for (ticket *t = r->tickets; t && !r->finished; t = t->next_of_request) {
        weir_event event;
        while (!r->finished && !r->stalled && t->job && !t->ended && weir_job_poll(t->job, &event) == 1) {
            t->ended = event.type != WEIR_EVENT_TOKEN;
            access_event(&r->record, &event, clock_now_us());
            r->handler->on_event(r, r->state, t->index, &event);
        }
    }
    if (!outermost) return;
    r->in_handler = false;
    if (r->finished) request_free(r);
}

static void attach(http_request *r, ticket *t, weir_job *job, int32_t index) {
    t->request = r;
    t->job = job;
    t->index = index;
    ticket **end = &r->tickets;
    while (*end) end = &(*end)->next_of_request;
    *end = t;
}

void http_set_tenant(http_request *r, const http_tenant *tenant) { r->tenant = tenant; }

void http_claim(const http_request *r, weir_request *job) {
    if (r->tenant == NULL) return;
    job->tenant = r->tenant->name;
    job->tenant_weight = r->tenant->weight;
    if (job->priority < r->tenant->priority) job->priority = r->tenant->priority;
}

int http_job_submit(http_request *r, weir_engine *engine, const weir_request *request, int32_t index, weir_error *err) {
    weir_request copy = *request;
    weir_job *job = NULL;
    http_claim(r, &copy);
    ticket *t = http_job_prepare(r->server, &copy.notify);
    FAIL_IF(t == NULL, err, WEIR_E_NOMEM, NULL, "no memory for a job");
    copy.notify_user = t;
    int rc = weir_job_submit(engine, &copy, &job, err);
    if (rc < 0) {
        http_ticket_free(t);
        return rc;
    }
    attach(r, t, job, index);
    return 0;
}

int http_job_adopt(http_request *r, weir_job *job, void *handle, int32_t index, weir_error *err) {
    FAIL_IF(r->handler == NULL, err, WEIR_E_INTERNAL, NULL, "the request is not held");
    attach(r, handle, job, index);
    /* What came before nobody read; the notification for it is past. */
    request_pump(r);
    return 0;
}

static void on_wake(evutil_socket_t fd, short what, void *arg) {
    http_server *s = arg;
    uint64_t count;
    (void)what;
    ssize_t ignored = read((int)fd, &count, sizeof count);
    (void)ignored;
    if (atomic_load(&s->stopping)) event_base_loopbreak(s->base);
    for (posted *p = atomic_exchange(&s->posts, NULL), *in_order = NULL, *next;;) {
        for (; p; p = next) { /* the stack is newest first */
            next = p->next;
            p->next = in_order;
            in_order = p;
        }
        for (p = in_order; p; p = next) {
            next = p->next;
            p->fn(p->arg);
            free(p);
        }
        break;
    }
    for (ticket *t = atomic_exchange(&s->woken, NULL), *next; t; t = next) {
        next = atomic_load(&t->next);
        if (t->dead) {
            free(t);
            continue;
        }
        /* Cleared before reading the channel: an event after the last read pushes the ticket again. */
        atomic_store(&t->queued, false);
        http_request *r = t->request;
        if (r && !r->finished && !r->in_handler) request_pump(r);
    }
}

static void wake(http_server *s) {
    uint64_t one = 1;
    ssize_t ignored = write(s->wake_fd, &one, sizeof one);
    (void)ignored;
}

bool http_post(http_server *s, void (*fn)(void *arg), void *arg) {
    posted *p = malloc(sizeof *p);
    if (p == NULL) return false;
    *p = (posted){.fn = fn, .arg = arg};
    posted *head = atomic_load(&s->posts);
    do {
        p->next = head;
    } while (!atomic_compare_exchange_weak(&s->posts, &head, p));
    wake(s);
    return true;
}

static void on_period(evutil_socket_t fd, short what, void *arg) {
    periodic *p = arg;
    (void)fd;
    (void)what;
    p->fn(p->arg);
}

int http_every(http_server *s, int64_t period_ms, void (*fn)(void *arg), void *arg, weir_error *err) {
    periodic *p = calloc(1, sizeof *p);
    FAIL_IF(p == NULL, err, WEIR_E_NOMEM, NULL, "no memory for a timer");
    *p = (periodic){.fn = fn, .arg = arg, .next = s->periodics};
    p->timer = event_new(s->base, -1, EV_PERSIST, on_period, p);
    const struct timeval period = {.tv_sec = period_ms / 1000, .tv_usec = period_ms % 1000 * 1000};
    if (p->timer == NULL || event_add(p->timer, &period) != 0) {
        if (p->timer) event_free(p->timer);
        free(p);
        FAIL(err, WEIR_E_NOMEM, NULL, "no memory for a timer");
    }
    s->periodics = p;
    return 0;
}

/* ---- routing ---------------------------------------------------------------------------------------------------------- */

/* Whether `path` matches `pattern`; what {id} stands for in *id (to be freed), else NULL. */
static bool path_matches(const char *pattern, const char *path, char **id) {
    const char *open = strstr(pattern, "{id}");
    *id = NULL;
    if (open == NULL) return strcmp(pattern, path) == 0;
    const size_t before = (size_t)(open - pattern);
    if (strncmp(pattern, path, before) != 0) return false;
    const char *value = path + before, *after = open + 4;
    const size_t rest = strlen(value), after_bytes = strlen(after);
    if (rest <= after_bytes || strcmp(value + rest - after_bytes, after) != 0) return false;
    const size_t n = rest - after_bytes;
    if (memchr(value, '/', n)) return false;
    *id = strndup(value, n);
    return *id != NULL;
}

static const char *method_name(enum evhttp_cmd_type type) {
    static const struct {
        enum evhttp_cmd_type type;
        const char *name;
    } names[] = {{EVHTTP_REQ_GET, "GET"}, {EVHTTP_REQ_POST, "POST"}, {EVHTTP_REQ_HEAD, "HEAD"}, {EVHTTP_REQ_PUT, "PUT"},
                 {EVHTTP_REQ_DELETE, "DELETE"}, {EVHTTP_REQ_OPTIONS, "OPTIONS"}, {EVHTTP_REQ_PATCH, "PATCH"},
                 {EVHTTP_REQ_TRACE, "TRACE"}, {EVHTTP_REQ_CONNECT, "CONNECT"}};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (names[i].type == type) return names[i].name;
    return "?";
}

const char *http_method(const http_request *r) { return r->method; }

/* The route for the request; else NULL with *problem 404, or 405 and the methods that the path has in `allow`. */
static const http_route *find_route(http_request *r, int *problem, void **context, char allow[128]) {
    const char *method = http_method(r);
    size_t n = 0;
    if (strcmp(method, "HEAD") == 0) method = "GET";
    allow[0] = '\0';
    for (size_t t = 0; t < r->server->options.n_tables; t++) {
        for (const http_route *route = r->server->options.tables[t]; route->method; route++) {
            char *id;
            if (!path_matches(route->path, r->path, &id)) continue;
            if (strcmp(route->method, method) == 0) {
                r->id = id;
                *context = r->server->options.contexts[t];
                *problem = 0;
                return route;
            }
            free(id);
            const char *more = strcmp(route->method, "GET") == 0 ? "GET,HEAD" : route->method;
            if (!strstr(allow, more)) n += (size_t)snprintf(allow + n, 128 - n, "%s%s", n ? "," : "", more);
            if (n > 100) n = 100;
        }
    }
    *problem = allow[0] ? 405 : 404;
    return NULL;
}

static bool is_json_type(const char *type) {
    if (type == NULL) return false;
    const size_t n = strcspn(type, ";");
    size_t end = n;
    while (end && (type[end - 1] == ' ' || type[end - 1] == '\t')) end--;
    if (end == strlen("application/json") && strncasecmp(type, "application/json", end) == 0) return true;
    return end > strlen("application/+json") && strncasecmp(type, "application/", 12) == 0 && strncasecmp(type + end - 5, "+json", 5) == 0;
}

static int body_problem(const http_request *r, const http_route *route) {
    if (route->max_body && r->body_bytes > route->max_body) return 413;
    if ((route->flags & HTTP_JSON) && !is_json_type(http_header(r, "Content-Type"))) return 415;
    return 0;
}

static bool request_read(http_request *r) {
    struct evbuffer *input = evhttp_request_get_input_buffer(r->raw);
    const struct evhttp_uri *uri = evhttp_request_get_evhttp_uri(r->raw);
    const char *path = uri ? evhttp_uri_get_path(uri) : NULL, *query = uri ? evhttp_uri_get_query(uri) : NULL;
    r->path = evhttp_uridecode(path && *path ? path : "/", 0, NULL);
    if (query) evhttp_parse_query_str(query, &r->query);
    r->body_bytes = evbuffer_get_length(input);
    r->body = malloc(r->body_bytes + 1);
    if (r->path == NULL || r->body == NULL) return false;
    evbuffer_remove(input, r->body, r->body_bytes);
    r->body[r->body_bytes] = '\0';
    return true;
}

static void on_request(struct evhttp_request *raw, void *arg) {
    http_server *s = arg;
    http_request *r = calloc(1, sizeof *r);
    if (r == NULL) {
        evhttp_send_error(raw, 503, NULL);
        return;
    }
    *r = (http_request){.server = s, .raw = raw, .connection = evhttp_request_get_connection(raw),
                        .method = method_name(evhttp_request_get_command(raw)), .record = {.arrived_us = clock_now_us()}, .next = s->requests};
    TAILQ_INIT(&r->query);
    if (s->requests) s->requests->prev = r;
    s->requests = r;
    s->n_requests++;
    r->number = ++s->n_seen;
    r->in_handler = true;
    int problem;
    void *context = NULL;
    char allow[128] = "";
    access_set_trace(&r->record, http_header(r, "traceparent"));
    if (!request_read(r)) {
        http_reply(r, 503, NULL, NULL, 0);
    } else {
        r->route = find_route(r, &problem, &context, allow);
        if (r->route && problem == 0) problem = body_problem(r, r->route);
        if (allow[0] && problem == 405) http_set_header(r, "Allow", allow);
        const bool go_on = s->options.hook == NULL || s->options.hook(r, r->route, problem, s->options.hook_context);
        if (go_on && !r->finished) {
            if (problem) http_reply(r, problem, NULL, NULL, 0);
            else r->route->handle(r, context);
        }
    }
    r->in_handler = false;
    if (r->finished) request_free(r);
    else if (r->tickets) request_pump(r); /* events may have come while the handler ran */
}

const char *http_path(const http_request *r) { return r->path; }
const char *http_id(const http_request *r) { return r->id ? r->id : ""; }
const char *http_query(const http_request *r, const char *name) { return evhttp_find_header(&r->query, name); }
const char *http_header(const http_request *r, const char *name) {
    return r->raw ? evhttp_find_header(evhttp_request_get_input_headers(r->raw), name) : NULL;
}
const char *http_body(const http_request *r, size_t *n_bytes) {
    if (n_bytes) *n_bytes = r->body_bytes;
    return r->body;
}
http_server *http_server_of(const http_request *r) { return r->server; }
int64_t http_arrived_us(const http_request *r) { return r->record.arrived_us; }
const char *http_request_id(const http_request *r) { return r->record.id; }
uint64_t http_number(const http_request *r) { return r->number; }
void http_set_request_id(http_request *r, const char *id) { snprintf(r->record.id, sizeof r->record.id, "%s", id); }

void http_each_job(const http_server *s, void (*fn)(const http_request *r, const weir_job *job, void *user), void *user) {
    for (const http_request *r = s->requests; r; r = r->next)
        for (const ticket *t = r->tickets; t; t = t->next_of_request)
            if (t->job && !t->ended) fn(r, t->job, user);
}

const char *http_peer(const http_request *r) {
    char *address = NULL;
    ev_uint16_t port;
    if (r->connection) evhttp_connection_get_peer(r->connection, &address, &port);
    return address ? address : "";
}

/* ---- the server ------------------------------------------------------------------------------------------------------- */

static int bind_one(const struct addrinfo *a) {
    const int on = 1, fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, a->ai_protocol);
    if (fd < 0) return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); /* accepted sockets inherit it */
    if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, SOMAXCONN) == 0) return fd;
    const int saved = errno;
    close(fd);
    errno = saved;
    return -1;
}

static int bind_listener(http_server *s, weir_error *err) {
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    const char *host = s->options.host && *s->options.host ? s->options.host : "127.0.0.1";
    struct addrinfo *found = NULL;
    char port[16], place[128];
    snprintf(port, sizeof port, "%u", s->options.port);
    snprintf(place, sizeof place, "%s:%s", host, port);
    int rc = getaddrinfo(host, port, &hints, &found);
    FAIL_IF(rc != 0, err, WEIR_E_IO, place, "the host cannot be resolved: %s", gai_strerror(rc));
    int fd = -1;
    for (const struct addrinfo *a = found; a && fd < 0; a = a->ai_next) fd = bind_one(a);
    const int saved = errno;
    freeaddrinfo(found);
    FAIL_IF(fd < 0, err, WEIR_E_IO, place, "cannot listen: %s", strerror(saved));
    struct sockaddr_storage own;
    socklen_t size = sizeof own;
    getsockname(fd, (struct sockaddr *)&own, &size);
    s->port = ntohs(own.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&own)->sin6_port : ((struct sockaddr_in *)&own)->sin_port);
    s->bound = evhttp_accept_socket_with_handle(s->http, fd);
    if (s->bound == NULL) close(fd);
    FAIL_IF(s->bound == NULL, err, WEIR_E_NOMEM, place, "no memory for the listener");
    return 0;
}

int http_open(http_server **out, const http_options *options, weir_error *err) {
    *out = NULL;
    http_server *s = calloc(1, sizeof *s);
    FAIL_IF(s == NULL, err, WEIR_E_NOMEM, NULL, "no memory for the server");
    s->options = *options;
    if (s->options.max_body == 0) s->options.max_body = DEFAULT_MAX_BODY;
    if (s->options.max_header == 0) s->options.max_header = DEFAULT_MAX_HEADER;
    if (s->options.idle_timeout_s == 0) s->options.idle_timeout_s = DEFAULT_IDLE_S;
    if (s->options.stream_buffer == 0) s->options.stream_buffer = DEFAULT_STREAM_BUFFER;
    s->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    s->base = event_base_new();
    s->http = s->base ? evhttp_new(s->base) : NULL;
    s->wake_event = s->base && s->wake_fd >= 0 ? event_new(s->base, s->wake_fd, EV_READ | EV_PERSIST, on_wake, s) : NULL;
    if (!s->http || !s->wake_event || event_add(s->wake_event, NULL) != 0) {
        http_close(&s);
        FAIL(err, WEIR_E_NOMEM, NULL, "no memory for the event loop");
    }
    evhttp_set_max_headers_size(s->http, (ev_ssize_t)s->options.max_header);
    evhttp_set_max_body_size(s->http, (ev_ssize_t)s->options.max_body);
    evhttp_set_timeout(s->http, s->options.idle_timeout_s);
    evhttp_set_default_content_type(s->http, NULL);
    evhttp_set_allowed_methods(s->http, EVHTTP_REQ_GET | EVHTTP_REQ_POST | EVHTTP_REQ_HEAD | EVHTTP_REQ_PUT | EVHTTP_REQ_DELETE |
                                            EVHTTP_REQ_OPTIONS | EVHTTP_REQ_PATCH);
    evhttp_set_gencb(s->http, on_request, s);
    int rc = bind_listener(s, err);
    if (rc != 0) {
        http_close(&s);
        return rc;
    }
    *out = s;
    return 0;
}

uint16_t http_port(const http_server *s) { return s->port; }
size_t http_n_requests(const http_server *s) { return s->n_requests; }

void http_run(http_server *s) {
    while (!atomic_load(&s->stopping) && event_base_loop(s->base, EVLOOP_NO_EXIT_ON_EMPTY) == 0) {
    }
}

void http_stop(http_server *s) {
    atomic_store(&s->stopping, true);
    wake(s);
}

void http_cancel_jobs(http_server *s) {
    for (http_request *r = s->requests; r; r = r->next)
        for (ticket *t = r->tickets; t; t = t->next_of_request)
            if (t->job && !t->ended) weir_job_cancel(t->job);
}

void http_drain(http_server *s, int64_t limit_ms, bool (*busy)(void *user), void *user) {
    const int64_t end_us = clock_now_us() + limit_ms * 1000;
    int64_t leave_us = INT64_MAX; /* 50 ms after the last request */
    while (clock_now_us() < end_us && clock_now_us() < leave_us) {
        const struct timeval tick = {.tv_usec = 5000};
        event_base_loopexit(s->base, &tick);
        event_base_loop(s->base, EVLOOP_NO_EXIT_ON_EMPTY);
        if (s->n_requests > 0 || (busy && busy(user))) leave_us = INT64_MAX;
        else if (leave_us == INT64_MAX) leave_us = clock_now_us() + 50 * 1000;
    }
}

void http_stop_accepting(http_server *s) {
    if (s->bound) evhttp_del_accept_socket(s->http, s->bound);
    s->bound = NULL;
}

void http_close(http_server **ss) {
    http_server *s = *ss;
    if (s == NULL) return;
    while (s->requests) {
        http_request *r = s->requests;
        if (r->connection) evhttp_connection_set_closecb(r->connection, NULL, NULL);
        r->finished = true;
        request_free(r);
    }
    for (periodic *p = s->periodics, *next; p; p = next) {
        next = p->next;
        event_free(p->timer);
        free(p);
    }
    for (posted *p = atomic_exchange(&s->posts, NULL), *next; p; p = next) {
        next = p->next;
        free(p);
    }
    for (ticket *t = atomic_exchange(&s->woken, NULL), *next; t; t = next) {
        next = atomic_load(&t->next);
        if (t->dead) free(t);
        else atomic_store(&t->queued, false); /* its owner frees it */
    }
    if (s->wake_event) event_free(s->wake_event);
    if (s->http) evhttp_free(s->http);
    if (s->base) event_base_free(s->base);
    if (s->wake_fd >= 0) close(s->wake_fd);
    free(s);
    *ss = NULL;
}
