/* The whole HTTP server: all routes (worker contract, OpenAI, native) over one model, with authentication, heartbeats, start-up states
 * and shutdown. The programs use only this of api.
 *
 *     api_server_open(&s, &options, &err);             binds: /health says 503 from now on, once the server runs
 *     (another thread) weir_model_open ..., api_server_set_ready(s, model, chat, engine, n_parallel, &err);
 *     api_server_run(s, &err);                         until api_server_stop
 *     api_server_close(&s); weir_engine_close, weir_chat_close, weir_model_close
 */
#ifndef WEIR_API_SERVER_H
#define WEIR_API_SERVER_H

#include "weir/weir.h"

typedef struct api_server api_server;

/* A bearer token, and whose requests come with it. */
typedef struct api_key {
    const char *key;
    const char *name;  /* keys of one name share one part of the machine; NULL = a name made from the key */
    float weight;      /* of that part; 0 = 1 */
    int32_t priority;  /* requests with it may not ask for a lower value, that is, be more important */
} api_key;

typedef struct api_server_options {
    const char *host;        /* NULL = 127.0.0.1 */
    uint16_t port;           /* 0 = any free one */
    const char *model_alias; /* the model's name for clients; of a worker its model-ref */
    const api_key *api_keys; /* accepted; none = no authentication */
    size_t n_api_keys;
    size_t max_body;         /* bytes of a body on OpenAI routes; 0 = 32 MiB */
    int64_t drain_ms;        /* how long jobs may go on after api_server_stop; 0 = they are cancelled at once */
    int64_t timeout_ms;      /* of requests that name none; 0 = unlimited */
    int64_t job_ttl_ms;      /* a job whose stream nobody opens is dropped after it; 0 = 10 minutes */
    /* The worker contract's mode: its /health, bearer on all routes but /health, identity and heartbeats. */
    bool worker;
    const char *worker_id, *backend;
    int32_t device;
    const char *hive_url, *queen_url, *callback_url; /* heartbeats to /v1/heartbeat and /v1/worker-heartbeat, start callback; or NULL */
    int64_t heartbeat_ms;    /* 0 = 30 s */
} api_server_options;

/* Everything is copied. Binds. WEIR_E_IO (address; the message has the system's reason), WEIR_E_INVALID, WEIR_E_NOMEM. */
int api_server_open(api_server **out, const api_server_options *options, weir_error *err);
/* Requests are served from now on. `chat` may be NULL; n_parallel is how many requests run at once. The objects must outlive the
 * server. Heartbeats start; the start callback, if there is one, is made first and its failure is returned (WEIR_E_IO). Any thread,
 * once. */
int api_server_set_ready(api_server *server, weir_model *model, weir_chat *chat, weir_engine *engine, int32_t n_parallel, weir_error *err);
/* While loading: what /v1/loading/progress tells. Any thread. */
void api_server_set_progress(api_server *server, uint64_t done_bytes, uint64_t total_bytes);
/* Serves until api_server_stop. Then, in this order: /health says 503, new jobs are refused (503), those that were accepted go on for
 * drain_ms at most, the port is closed, what still runs is cancelled (each stream gets its terminal event). Returns when all answers
 * have left, 1.5 s after the cancelling at the latest. */
int api_server_run(api_server *server, weir_error *err);
/* Ends api_server_run. Any thread; safe in a signal handler. */
void api_server_stop(api_server *server);
uint16_t api_server_port(const api_server *server);
/* After api_server_run has returned (or was never called), before the engine is closed. */
void api_server_close(api_server **server);

#endif
