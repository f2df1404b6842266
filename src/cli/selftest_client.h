/* A small HTTP/1.1 client for the self-test: one request a connection, plain sockets, every arrival stamped. It is not our
 * server's code on purpose. One thread a client. */
#ifndef WEIR_CLI_SELFTEST_CLIENT_H
#define WEIR_CLI_SELFTEST_CLIENT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"

typedef struct client {
    int fd; /* -1 = none */
    int status;
    int64_t sent_us, headers_us, arrived_us; /* the request is about to leave; headers were complete; last read */
    bool chunked, ended;
    int64_t remaining; /* of the body or the chunk; -1 = up to the end of the connection */
    int chunk_state;
    buf raw, body;    /* as received; decoded and not yet taken */
    size_t n_reads;   /* that brought body bytes */
    char event[4096]; /* data of the last event */
} client;

/* Connects to 127.0.0.1:port, sends the request in one write and reads the response's head. `body` NULL = none. `accept` may be
 * NULL. WEIR_E_IO, WEIR_E_TIMEOUT. The client is closed on failure. */
int client_start(client *c, int port, const char *method, const char *path, const char *body, int64_t timeout_ms,
                 weir_error *err);
/* Reads once. 1 = something came, 0 = the body has ended; WEIR_E_IO, WEIR_E_TIMEOUT, WEIR_E_FORMAT. */
int client_read(client *c, int64_t timeout_ms, weir_error *err);
/* Reads the body to its end; it is then in c->body. */
int client_finish(client *c, int64_t timeout_ms, weir_error *err);
/* The next event of a stream: its data in c->event. 1, or 0 at the end of the body. */
int client_next_event(client *c, int64_t timeout_ms, weir_error *err);
void client_close(client *c); /* may be called again; also of a client that is all zero but for fd -1 */

#endif
