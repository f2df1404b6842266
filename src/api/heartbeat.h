/* Tells other services that this worker lives: a POST at once and then every period, from a thread of its own; and the start
 * callback. Knows nothing of the server; whatever fails is logged and forgotten. */
#ifndef WEIR_API_HEARTBEAT_H
#define WEIR_API_HEARTBEAT_H

#include <stdint.h>

#include "base/buf.h"
#include "weir/weir_error.h"

typedef struct heartbeat heartbeat;

typedef struct heartbeat_options {
    const char *hive_url, *queen_url; /* or NULL */
    const char *worker_id;
    int64_t period_ms;
    /* Appends the `worker` object of the contract. Called on the heartbeat's thread. */
    void (*write_worker)(buf *out, void *user);
    void *user;
} heartbeat_options;

/* Starts the thread. The strings must outlive it. WEIR_E_NOMEM, WEIR_E_INTERNAL. */
int heartbeat_start(heartbeat **out, const heartbeat_options *options, weir_error *err);
/* Ends the thread, a transfer under way included, within a second or so. Accepts NULL. */
void heartbeat_stop(heartbeat **h);

/* One POST of `body` as application/json, 5 s at most. WEIR_E_IO: no connection, no answer, or a status that is not 2xx (the message
 * says which). Blocks. */
int heartbeat_post(const char *url, const char *body, size_t n_bytes, weir_error *err);

#endif
