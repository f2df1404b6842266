/* The load generator of bench/serve and bench/soak: sends the requests of a plan to any server that speaks HTTP, and says when
 * what came.
 *
 *     weir-serve-load --port P [--host 127.0.0.1] [--stop-s S] [--limit-s 600] < plan.jsonl > results.jsonl
 *
 * A line of the plan is a JSON object. All members may be left out.
 *     at       seconds from the start of the run before which the request does not start (open loop: each request a client of
 * its own) client   number; the requests of one client run one after the other, in the plan's order (closed loop) method, path,
 * headers (an object) body     text, sent as it is, or anything else, sent as JSON raw      text that is sent instead of an
 * HTTP request keep     true: the response's body is in the result rate     bytes a second that the client reads; 0 = it never
 * reads leave_s, leave_tokens    the client closes its connection so long after the start, or after so many events with text
 *
 * A result has the request's number in the plan (i), times in seconds since the start of the run (start, connected, headers,
 * first, end), the time of each event with text (tokens), status, retry_after, bytes, usage, and an outcome: done (a whole
 * response), left, cut (the server closed the connection early), refused (no connection), stuck (more than --limit-s). `ended`
 * says how a stream ended: done
 * ([DONE] was seen), error (an error event was seen), or "". Requests that --stop-s kept from starting have no result.
 *
 * One thread and epoll, so that it takes little of the machine that the server runs on. Nothing is printed before the end. */
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"

enum { MAX_CLIENTS = 1 << 20, READ_BYTES = 1 << 16, SLOW_RECEIVE_BUFFER = 4096 };

typedef enum outcome { PLANNED, RUNNING, DONE, LEFT, CUT, REFUSED, STUCK } outcome;
static const char *const outcome_names[] = {"planned", "running", "done", "left", "cut", "refused", "stuck"};

typedef enum body_form { TO_THE_END, BY_LENGTH, CHUNKED } body_form;

typedef struct request {
    /* The plan. */
    char *bytes; /* what is sent */
    size_t n_bytes;
    double at, rate /* negative = as it comes */, leave_s;
    long leave_tokens;
    int32_t client, next; /* the client's next request, -1 = none */
    bool keep;
    /* The run. */
    int fd;
    outcome outcome;
    size_t n_sent;
    int64_t start_us, connected_us, headers_us, first_us, end_us, read_again_us;
    int status;
    body_form form;
    uint64_t length_left; /* of the body or the chunk */
    bool in_chunk, ended_body;
    bool saw_done, saw_error;
    buf head, line, body; /* headers so far; what is not split into lines or chunks yet; body to keep */
    buf chunk_line;
    json_t *usage;
    char *retry_after;
    uint64_t n_received;
    int64_t *tokens_us;
    size_t n_tokens, capacity;
} request;

static struct {
    struct sockaddr_in address;
    double stop_s, limit_s;
} options = {.stop_s = INFINITY, .limit_s = 600};

static request *requests;
static size_t n_requests;
static int32_t *client_heads, *client_tails; /* the next request of each client to start, -1 = none; the last one */
static bool *client_busy;
static int32_t n_clients;
static int epoll_fd;
static int64_t begin_us;
static size_t n_running;

static void die(const char *text) {
    fprintf(stderr, "weir-serve-load: %s\n", text);
    exit(2);
}

/* ---- the plan ---------------------------------------------------------------------------------------------------------- */

static void append_http(buf *out, const json_t *line) {
    const json_t *body = json_object_get(line, "body");
    const char *method = json_string_value(json_object_get(line, "method")),
               *path = json_string_value(json_object_get(line, "path"));
    char *text = json_is_string(body) ? strndup(json_string_value(body), json_string_length(body))
                 : body               ? json_dumps(body, JSON_COMPACT)
                                      : NULL;
    const size_t n = json_is_string(body) ? json_string_length(body) : text ? strlen(text) : 0;
    const char *name;
    json_t *value;
    buf_printf(out, "%s %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n",
               method ? method
               : text ? "POST"
                      : "GET",
               path ? path : "/");
    if (text) buf_printf(out, "Content-Type: application/json\r\nContent-Length: %zu\r\n", n);
    json_object_foreach(json_object_get(line, "headers"), name, value)
        buf_printf(out, "%s: %s\r\n", name, json_string_value(value));
    buf_puts(out, "\r\n");
    if (text) buf_append(out, text, n);
    free(text);
}

static double number_of(const json_t *line, const char *name, double missing) {
    const json_t *value = json_object_get(line, name);
    return json_is_number(value) ? json_number_value(value) : missing;
}

static void add_to_client(int32_t client, int32_t number) {
    if (client < 0 || client >= MAX_CLIENTS) die("a client's number is out of range");
    if (client >= n_clients) {
        client_heads = realloc(client_heads, (size_t)(client + 1) * sizeof *client_heads);
        client_tails = realloc(client_tails, (size_t)(client + 1) * sizeof *client_tails);
        if (client_heads == NULL || client_tails == NULL) die("no memory");
        for (int32_t i = n_clients; i <= client; i++) client_heads[i] = client_tails[i] = -1;
        n_clients = client + 1;
    }
    if (client_heads[client] < 0)
        client_heads[client] = number;
    else
        requests[client_tails[client]].next = number;
    client_tails[client] = number;
}

static void read_plan(void) {
    size_t capacity = 0, size = 0;
    char *text = NULL;
    ssize_t n;
    while ((n = getline(&text, &size, stdin)) > 0) {
        json_error_t error;
        json_t *line = json_loadb(text, (size_t)n, JSON_ALLOW_NUL, &error);
        if (!json_is_object(line)) die("a line of the plan is no JSON object");
        if (n_requests == capacity) {
            capacity = capacity ? 2 * capacity : 64;
            requests = realloc(requests, capacity * sizeof *requests);
            if (requests == NULL) die("no memory");
        }
        const json_t *raw = json_object_get(line, "raw");
        buf bytes = BUF_INIT;
        if (json_is_string(raw))
            buf_append(&bytes, json_string_value(raw), json_string_length(raw));
        else
            append_http(&bytes, line);
        request r = {.at = number_of(line, "at", 0),
                     .rate = number_of(line, "rate", -1),
                     .leave_s = number_of(line, "leave_s", INFINITY),
                     .leave_tokens = (long)number_of(line, "leave_tokens", 0),
                     .next = -1,
                     .fd = -1,
                     .client = (int32_t)number_of(line, "client", (double)n_requests),
                     .keep = json_is_true(json_object_get(line, "keep"))};
        r.bytes = buf_take(&bytes, &r.n_bytes);
        requests[n_requests] = r;
        add_to_client(r.client, (int32_t)n_requests++);
        json_decref(line);
    }
    free(text);
    client_busy = calloc((size_t)n_clients + 1, sizeof *client_busy);
    if (client_busy == NULL) die("no memory");
}

/* ---- responses --------------------------------------------------------------------------------------------------------- */

/* Whether the event carries text: "text" or "content" that is not empty. */
static bool has_text(const char *event) {
    static const char *const members[] = {"\"text\":", "\"content\":", "\"reasoning_content\":"};
    for (size_t i = 0; i < sizeof members / sizeof members[0]; i++) {
        const char *p = strstr(event, members[i]);
        if (p == NULL) continue;
        p += strlen(members[i]);
        while (*p == ' ') p++;
        if (p[0] == '"' && p[1] != '"') return true;
    }
    return false;
}

static void keep_usage(request *r, const char *event) {
    json_t *root = json_loads(event, 0, NULL), *usage = json_object_get(root, "usage");
    if (json_is_object(usage)) {
        json_decref(r->usage);
        r->usage = json_incref(usage);
    }
    json_decref(root);
}

static void on_line(request *r, const char *line, int64_t now) {
    if (strncmp(line, "event: error", 12) == 0) r->saw_error = true;
    if (strncmp(line, "data:", 5) != 0) return;
    const char *event = line + 5 + (line[5] == ' ');
    if (strcmp(event, "[DONE]") == 0) r->saw_done = true;
    if (strncmp(event, "{\"error\"", 8) == 0) r->saw_error = true;
    if (strstr(event, "\"usage\":{")) keep_usage(r, event);
    if (!has_text(event)) return;
    if (r->n_tokens == r->capacity) {
        r->capacity = r->capacity ? 2 * r->capacity : 256;
        r->tokens_us = realloc(r->tokens_us, r->capacity * sizeof *r->tokens_us);
        if (r->tokens_us == NULL) die("no memory");
    }
    r->tokens_us[r->n_tokens++] = now;
    if (r->first_us == 0) r->first_us = now;
}

static void on_body(request *r, const char *bytes, size_t n, int64_t now) {
    if (r->keep) buf_append(&r->body, bytes, n);
    for (const char *end = bytes + n, *newline; bytes < end; bytes = newline + 1) {
        newline = memchr(bytes, '\n', (size_t)(end - bytes));
        buf_append(&r->line, bytes, (size_t)((newline ? newline : end) - bytes));
        if (newline == NULL) return;
        if (r->line.n_bytes && r->line.data[r->line.n_bytes - 1] == '\r') r->line.data[r->line.n_bytes - 1] = '\0';
        on_line(r, r->line.data ? r->line.data : "", now);
        buf_clear(&r->line);
        if (r->line.data) r->line.data[0] = '\0';
    }
}

/* Takes chunks apart; what comes after the last one is ignored. */
static void on_chunked(request *r, const char *p, size_t n, int64_t now) {
    for (const char *end = p + n; p < end && !r->ended_body;) {
        if (r->in_chunk && r->length_left) {
            const size_t take = (uint64_t)(end - p) < r->length_left ? (size_t)(end - p) : (size_t)r->length_left;
            on_body(r, p, take, now);
            p += take;
            r->length_left -= take;
            continue;
        }
        if (*p != '\n') {
            if (*p != '\r') buf_putc(&r->chunk_line, *p);
            p++;
            continue;
        }
        p++;
        if (r->in_chunk) { /* the line end behind a chunk */
            r->in_chunk = false;
        } else {
            r->length_left = strtoull(r->chunk_line.data ? r->chunk_line.data : "0", NULL, 16);
            r->in_chunk = true;
            r->ended_body = r->length_left == 0;
        }
        buf_clear(&r->chunk_line);
        if (r->chunk_line.data) r->chunk_line.data[0] = '\0';
    }
}

static void on_content(request *r, const char *bytes, size_t n, int64_t now) {
    if (r->form == CHUNKED) {
        on_chunked(r, bytes, n, now);
        return;
    }
    if (r->form == BY_LENGTH && n > r->length_left) n = (size_t)r->length_left;
    on_body(r, bytes, n, now);
    if (r->form == BY_LENGTH) r->length_left -= n;
    r->ended_body = r->form == BY_LENGTH && r->length_left == 0;
}

static void on_head(request *r) {
    char *value;
    r->status = atoi(r->head.data + strcspn(r->head.data, " "));
    if ((value = strcasestr(r->head.data, "\r\nretry-after:")) != NULL) {
        value += strlen("\r\nretry-after:");
        r->retry_after = strndup(value, strcspn(value, "\r"));
    }
    if (strcasestr(r->head.data, "\r\ntransfer-encoding: chunked"))
        r->form = CHUNKED;
    else if ((value = strcasestr(r->head.data, "\r\ncontent-length:")) != NULL) {
        r->form = BY_LENGTH;
        r->length_left = strtoull(value + strlen("\r\ncontent-length:"), NULL, 10);
        r->ended_body = r->length_left == 0;
    }
}

static void on_bytes(request *r, const char *bytes, size_t n, int64_t now) {
    r->n_received += n;
    if (r->headers_us) {
        on_content(r, bytes, n, now);
        return;
    }
    buf_append(&r->head, bytes, n);
    char *end = memmem(r->head.data, r->head.n_bytes, "\r\n\r\n", 4);
    if (end == NULL) return;
    const size_t n_head = (size_t)(end + 4 - r->head.data);
    r->headers_us = now;
    end[2] = '\0';
    on_head(r);
    if (r->head.n_bytes > n_head) on_content(r, r->head.data + n_head, r->head.n_bytes - n_head, now);
}

/* ---- running ----------------------------------------------------------------------------------------------------------- */

static double since_begin(int64_t us) {
    return (double)(us - begin_us) * 1e-6;
}

static void finish(request *r, outcome how, int64_t now) {
    if (r->fd >= 0) {
        if (how == LEFT) { /* with a reset, as a process that was killed with unread bytes does */
            const struct linger gone = {.l_onoff = 1};
            setsockopt(r->fd, SOL_SOCKET, SO_LINGER, &gone, sizeof gone);
        }
        close(r->fd);
    }
    r->fd = -1;
    r->outcome = how;
    r->end_us = now;
    client_busy[r->client] = false;
    n_running--;
}

static void watch(const request *r, int operation, uint32_t events) {
    struct epoll_event e = {.events = events, .data.u64 = (uint64_t)(r - requests)};
    epoll_ctl(epoll_fd, operation, r->fd, &e);
}

static void start(request *r, int64_t now) {
    const int on = 1, small = SLOW_RECEIVE_BUFFER;
    r->start_us = now;
    r->outcome = RUNNING;
    client_busy[r->client] = true;
    client_heads[r->client] = r->next;
    n_running++;
    r->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (r->fd < 0) {
        finish(r, REFUSED, now);
        return;
    }
    if (r->rate >= 0) setsockopt(r->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    setsockopt(r->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(r->fd, (const struct sockaddr *)&options.address, sizeof options.address) != 0 && errno != EINPROGRESS) {
        finish(r, REFUSED, now);
        return;
    }
    watch(r, EPOLL_CTL_ADD, EPOLLOUT);
}

static void send_some(request *r, int64_t now) {
    if (r->connected_us == 0) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(r->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) {
            finish(r, REFUSED, now);
            return;
        }
        r->connected_us = now;
    }
    const ssize_t n = send(r->fd, r->bytes + r->n_sent, r->n_bytes - r->n_sent, MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN && errno != EINTR) { /* it may have answered already and closed its end */
        watch(r, EPOLL_CTL_MOD, EPOLLIN);
        return;
    }
    if (n > 0) r->n_sent += (size_t)n;
    if (r->n_sent == r->n_bytes) watch(r, EPOLL_CTL_MOD, r->rate >= 0 ? 0 : EPOLLIN);
}

static void read_some(request *r, size_t most, int64_t now) {
    static char bytes[READ_BYTES];
    const ssize_t n = read(r->fd, bytes, most < sizeof bytes ? most : sizeof bytes);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n > 0) on_bytes(r, bytes, (size_t)n, now);
    const bool whole = r->headers_us && (r->ended_body || (n == 0 && r->form == TO_THE_END));
    if (whole || n <= 0)
        finish(r, whole ? DONE : CUT, now);
    else if (r->leave_tokens && r->n_tokens >= (size_t)r->leave_tokens)
        finish(r, LEFT, now);
}

/* What only time brings; returns when to look again. */
static int64_t look(request *r, int64_t now) {
    if (r->rate > 0 && r->n_sent == r->n_bytes && now >= r->read_again_us) {
        r->read_again_us = now + 100000;
        read_some(r, 1 + (size_t)(r->rate * 0.1), now);
        if (r->outcome != RUNNING) return INT64_MAX;
    }
    const double seconds = (double)(now - r->start_us) * 1e-6;
    if (seconds >= r->leave_s)
        finish(r, LEFT, now);
    else if (seconds >= options.limit_s)
        finish(r, STUCK, now);
    if (r->outcome != RUNNING) return INT64_MAX;
    const double end = r->leave_s < options.limit_s ? r->leave_s : options.limit_s;
    const int64_t end_us = r->start_us + (int64_t)(end * 1e6) + 1;
    return r->rate > 0 && r->read_again_us < end_us ? r->read_again_us : end_us;
}

/* Starts what is due and looks at the clocks of what runs; returns when to look again, INT64_MAX = all is over. */
static int64_t advance(int64_t now) {
    int64_t again = INT64_MAX;
    for (int32_t c = 0; c < n_clients; c++) {
        const int32_t head = client_heads[c];
        if (client_busy[c] || head < 0) continue;
        const double at = requests[head].at;
        if (since_begin(now) >= options.stop_s || at >= options.stop_s) {
            client_heads[c] = -1;
            continue;
        }
        const int64_t at_us = begin_us + (int64_t)(at * 1e6);
        if (at_us <= now)
            start(&requests[head], now);
        else if (at_us < again)
            again = at_us;
    }
    for (size_t i = 0; n_running && i < n_requests; i++) {
        if (requests[i].outcome != RUNNING) continue;
        const int64_t next = look(&requests[i], now);
        if (next < again) again = next;
        if (next == INT64_MAX) again = now; /* its client's next request */
    }
    return again;
}

static void run(void) {
    struct epoll_event events[256];
    begin_us = clock_now_us();
    for (bool changed = true;;) {
        static int64_t again;
        int64_t now = clock_now_us();
        if (changed || now >= again) again = advance(now);
        if (again == INT64_MAX && n_running == 0) return;
        now = clock_now_us();
        const int64_t wait_ms = again <= now ? 0 : (again - now + 999) / 1000;
        const int n = epoll_wait(epoll_fd, events, 256, (int)(wait_ms > 1000 ? 1000 : wait_ms));
        now = clock_now_us();
        changed = false;
        for (int i = 0; i < n; i++) {
            request *r = &requests[events[i].data.u64];
            if (r->outcome != RUNNING) continue;
            if (events[i].events & EPOLLOUT)
                send_some(r, now);
            else if (r->rate >= 0)
                finish(r, CUT, now); /* only closing is reported of those that read by the clock */
            else
                read_some(r, READ_BYTES, now);
            changed = changed || r->outcome != RUNNING;
        }
    }
}

/* ---- results ----------------------------------------------------------------------------------------------------------- */

static void set_time(json_t *o, const char *name, int64_t us) {
    if (us) json_object_set_new(o, name, json_real(since_begin(us)));
}

static void print_result(size_t i) {
    request *r = &requests[i];
    json_t *o = json_object(), *tokens = json_array();
    json_object_set_new(o, "i", json_integer((json_int_t)i));
    json_object_set_new(o, "client", json_integer(r->client));
    json_object_set_new(o, "outcome", json_string(outcome_names[r->outcome]));
    json_object_set_new(o, "ended", json_string(r->saw_error ? "error" : r->saw_done ? "done" : ""));
    json_object_set_new(o, "status", json_integer(r->status));
    json_object_set_new(o, "bytes", json_integer((json_int_t)r->n_received));
    set_time(o, "start", r->start_us);
    set_time(o, "connected", r->connected_us);
    set_time(o, "headers", r->headers_us);
    set_time(o, "first", r->first_us);
    set_time(o, "end", r->end_us);
    if (r->retry_after) json_object_set_new(o, "retry_after", json_string(r->retry_after));
    if (r->usage) json_object_set(o, "usage", r->usage);
    if (r->keep) {
        json_t *text = json_stringn(r->body.data ? r->body.data : "", r->body.n_bytes);
        json_object_set_new(o, "body", text ? text : json_string("(not UTF-8)"));
    }
    for (size_t t = 0; t < r->n_tokens; t++) json_array_append_new(tokens, json_real(since_begin(r->tokens_us[t])));
    json_object_set_new(o, "tokens", tokens);
    json_dumpf(o, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
    putchar('\n');
    json_decref(o);
}

static void read_options(int argc, char **argv) {
    static const struct option known[] = {
        {"port", 1, 0, 'p'}, {"host", 1, 0, 'h'}, {"stop-s", 1, 0, 's'}, {"limit-s", 1, 0, 'l'}, {0, 0, 0, 0}};
    options.address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (int o; (o = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (o) {
        case 'p':
            options.address.sin_port = htons((uint16_t)atoi(optarg));
            break;
        case 'h':
            if (inet_pton(AF_INET, optarg, &options.address.sin_addr) != 1) die("--host takes an IPv4 address");
            break;
        case 's':
            options.stop_s = atof(optarg);
            break;
        case 'l':
            options.limit_s = atof(optarg);
            break;
        default:
            exit(2);
        }
    }
    if (options.address.sin_port == 0)
        die("usage: weir-serve-load --port P [--host A.B.C.D] [--stop-s S] [--limit-s S] < plan > results");
}

int main(int argc, char **argv) {
    struct rlimit files;
    read_options(argc, argv);
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    read_plan();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0) die("no epoll");
    run();
    for (size_t i = 0; i < n_requests; i++)
        if (requests[i].outcome != PLANNED) print_result(i);
    return 0;
}
