/* See selftest_client.h. */
#include "cli/selftest_client.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"

enum { CHUNK_SIZE, CHUNK_DATA, CHUNK_END }; /* what comes next of a chunked body */

void client_close(client *c) {
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    buf_free(&c->raw);
    buf_free(&c->body);
}

/* One read into c->raw. 1, 0 at the end of the connection, or a failure. */
static int receive(client *c, int64_t timeout_ms, weir_error *err) {
    struct pollfd waiting = {.fd = c->fd, .events = POLLIN};
    int ready = poll(&waiting, 1, (int)timeout_ms);
    FAIL_IF(ready == 0, err, WEIR_E_TIMEOUT, "", "nothing came within %lld ms", (long long)timeout_ms);
    char bytes[16384];
    ssize_t n = ready < 0 ? -1 : recv(c->fd, bytes, sizeof bytes, 0);
    FAIL_IF(n < 0, err, WEIR_E_IO, "", "reading failed: %s", strerror(errno));
    c->arrived_us = clock_now_us();
    buf_append(&c->raw, bytes, (size_t)n);
    FAIL_IF(c->raw.failed, err, WEIR_E_NOMEM, "", "no memory for the response");
    return n > 0;
}

/* Moves body bytes that have come from c->raw to c->body. */
static int decode(client *c, weir_error *err) {
    while (!c->ended && c->raw.n_bytes) {
        if (c->chunked && c->chunk_state != CHUNK_DATA) {
            char *end = memchr(c->raw.data, '\n', c->raw.n_bytes);
            if (end == NULL) return 0;
            if (c->chunk_state == CHUNK_SIZE) {
                char *stop;
                c->remaining = strtoll(c->raw.data, &stop, 16);
                FAIL_IF(stop == c->raw.data || c->remaining < 0, err, WEIR_E_FORMAT, "", "a chunk has no size");
                c->ended = c->remaining == 0;
            }
            c->chunk_state = c->chunk_state == CHUNK_SIZE ? CHUNK_DATA : CHUNK_SIZE;
            buf_consume(&c->raw, (size_t)(end - c->raw.data) + 1);
            continue;
        }
        size_t n = c->raw.n_bytes;
        if (c->remaining >= 0 && n > (size_t)c->remaining) n = (size_t)c->remaining;
        buf_append(&c->body, c->raw.data, n);
        buf_consume(&c->raw, n);
        if (c->remaining >= 0) c->remaining -= (int64_t)n;
        if (c->remaining == 0) {
            c->ended = !c->chunked;
            c->chunk_state = CHUNK_END;
        }
    }
    FAIL_IF(c->body.failed, err, WEIR_E_NOMEM, "", "no memory for the response");
    return 0;
}

int client_read(client *c, int64_t timeout_ms, weir_error *err) {
    if (c->ended) return 0;
    int n = receive(c, timeout_ms, err);
    if (n < 0) return n;
    if (n == 0) {
        FAIL_IF(c->remaining >= 0 || c->chunked, err, WEIR_E_IO, "", "the connection ended within the body");
        c->ended = true;
        return 0;
    }
    c->n_reads++;
    TRY(decode(c, err));
    return 1;
}

static int read_head(client *c, int64_t timeout_ms, weir_error *err) {
    char *end;
    while (c->raw.n_bytes == 0 || (end = strstr(c->raw.data, "\r\n\r\n")) == NULL) {
        int n = receive(c, timeout_ms, err);
        if (n < 0) return n;
        FAIL_IF(n == 0, err, WEIR_E_IO, "", "the connection ended before the response");
    }
    c->headers_us = c->arrived_us;
    *end = '\0';
    FAIL_IF(sscanf(c->raw.data, "HTTP/1.%*d %d", &c->status) != 1, err, WEIR_E_FORMAT, "", "no HTTP status line");
    c->remaining = -1;
    for (char *line = strstr(c->raw.data, "\r\n"); line; line = strstr(line + 2, "\r\n")) {
        if (strncasecmp(line + 2, "Content-Length:", 15) == 0) c->remaining = strtoll(line + 17, NULL, 10);
        if (strncasecmp(line + 2, "Transfer-Encoding: chunked", 26) == 0) c->chunked = true;
    }
    if (!c->chunked && c->remaining == 0) c->ended = true;
    buf_consume(&c->raw, (size_t)(end - c->raw.data) + 4);
    return decode(c, err);
}

static int connect_to(client *c, int port, weir_error *err) {
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int one = 1;
    if (c->fd >= 0) setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    FAIL_IF(c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address) != 0, err, WEIR_E_IO, "",
            "cannot connect to port %d: %s", port, strerror(errno));
    return 0;
}

int client_start(client *c, int port, const char *method, const char *path, const char *body, int64_t timeout_ms,
                 weir_error *err) {
    memset(c, 0, sizeof *c);
    c->fd = -1;
    buf request = BUF_INIT;
    buf_printf(&request, "%s %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: close\r\n", method, path, port);
    if (body) buf_printf(&request, "Content-Type: application/json\r\nContent-Length: %zu\r\n", strlen(body));
    buf_printf(&request, "\r\n%s", body ? body : "");
    int result = request.failed ? error_set(err, WEIR_E_NOMEM, "", "no memory for the request") : connect_to(c, port, err);
    c->sent_us = clock_now_us(); /* before, not after: the answer may come while send returns */
    if (result >= 0 && send(c->fd, request.data, request.n_bytes, MSG_NOSIGNAL) != (ssize_t)request.n_bytes) {
        result = error_set(err, WEIR_E_IO, "", "sending failed: %s", strerror(errno));
    }
    if (result >= 0) result = read_head(c, timeout_ms, err);
    buf_free(&request);
    if (result < 0) client_close(c);
    return result;
}

int client_finish(client *c, int64_t timeout_ms, weir_error *err) {
    int n;
    while ((n = client_read(c, timeout_ms, err)) > 0) continue;
    return n;
}

int client_next_event(client *c, int64_t timeout_ms, weir_error *err) {
    for (;;) {
        char *end = c->body.n_bytes ? strstr(c->body.data, "\n\n") : NULL;
        if (end) {
            size_t n = (size_t)(end - c->body.data);
            FAIL_IF(n < 6 || memcmp(c->body.data, "data: ", 6) != 0 || n - 6 >= sizeof c->event, err, WEIR_E_FORMAT, "",
                    "an event does not begin with \"data: \"");
            memcpy(c->event, c->body.data + 6, n - 6);
            c->event[n - 6] = '\0';
            buf_consume(&c->body, n + 2);
            return 1;
        }
        int more = client_read(c, timeout_ms, err);
        if (more <= 0) return more;
    }
}
