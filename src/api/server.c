/* See server.h. Everything runs on the loop's thread but what server.h says. */
#include "api/server.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "api/auth.h"
#include "api/heartbeat.h"
#include "api/http.h"
#include "api/openai_routes.h"
#include "api/worker.h"
#include "api/worker_wire.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"

enum { TICK_MS = 1000, CANCEL_MS = 1500, DEFAULT_HEARTBEAT_MS = 30 * 1000 };

struct api_server {
    arena memory; /* of the options' strings */
    api_server_options options;
    const char **keys; /* [options.n_api_keys] */
    http_tenant *tenants; /* [options.n_api_keys] */
    http_server *http;
    openai_api *openai;
    worker worker;
    heartbeat *heartbeat;
    _Atomic(weir_engine *) engine; /* for the heartbeat's thread */
    atomic_bool stopping;
    atomic_uint_fast64_t done_bytes, total_bytes;
    /* From api_server_set_ready to the loop. */
    weir_model *model;
    weir_chat *chat;
    int32_t n_parallel;
};

/* ---- every request ---------------------------------------------------------------------------------------------------- */

static void set_correlation_id(http_request *r) {
    const char *given = http_header(r, "X-Correlation-ID");
    char fresh[WORKER_UUID_BYTES];
    bool valid = given && strlen(given) == 36;
    for (int i = 0; valid && i < 36; i++) {
        bool hyphen = i == 8 || i == 13 || i == 18 || i == 23;
        valid = hyphen ? given[i] == '-' : strchr("0123456789abcdefABCDEF", given[i]) != NULL;
    }
    if (!valid) given = worker_uuid(fresh) ? fresh : NULL;
    if (given == NULL) return;
    http_set_header(r, "X-Correlation-ID", given);
    http_set_request_id(r, given);
}

static void reply_json_text(http_request *r, int status, const char *json) { http_reply(r, status, "application/json", json, strlen(json)); }

static void reply_openai(http_request *r, int status, const char *code, const char *message) {
    openai_error error = {0};
    openai_error_add(&error, status, code, NULL, "%s", message);
    openai_reply_error(r, &error);
}

/* True = allowed. */
static bool authorize(const api_server *s, http_request *r, const http_route *route) {
    const bool contract = s->options.worker || route == NULL || worker_owns_route(route);
    if (s->options.n_api_keys == 0 || (route && (route->flags & HTTP_PUBLIC))) return true;
    size_t which = 0;
    auth_result result = auth_check(http_header(r, "Authorization"), s->keys, s->options.n_api_keys, &which);
    /* The contract knows bearer tokens only; other clients may send the key as llama-server and Anthropic's clients do. */
    if (result == AUTH_MISSING && !s->options.worker)
        result = auth_check_key(http_header(r, "X-Api-Key"), s->keys, s->options.n_api_keys, &which);
    switch (result) {
    case AUTH_OK: http_set_tenant(r, &s->tenants[which]); return true;
    case AUTH_MISSING:
        if (contract) reply_json_text(r, 401, "{\"error\":{\"code\":\"MISSING_API_KEY\",\"message\":\"Missing API key\"}}");
        else reply_openai(r, 401, "invalid_api_key", "Missing API key: send it as Authorization: Bearer <key>");
        return false;
    default:
        if (contract) reply_json_text(r, 401, "{\"error\":{\"code\":\"INVALID_API_KEY\",\"message\":\"Invalid or missing API key\"}}");
        else reply_openai(r, 401, "invalid_api_key", "Incorrect API key provided");
        return false;
    }
}

static bool on_every_request(http_request *r, const http_route *route, int problem, void *context) {
    static const char too_large[] = "Failed to buffer the request body: length limit exceeded";
    static const char wrong_type[] = "Expected request with `Content-Type: application/json`";
    api_server *s = context;
    set_correlation_id(r);
    if (route && !worker_owns_route(route)) openai_request_id(r);
    if (s->worker.draining) http_set_header(r, "Connection", "close");
    if (!authorize(s, r, route)) return false;
    const char *text = problem == 413 ? too_large : problem == 415 ? wrong_type : NULL;
    if (text && worker_owns_route(route)) {
        http_reply(r, problem, "text/plain; charset=utf-8", text, strlen(text));
        return false;
    }
    if (text) {
        reply_openai(r, problem, "invalid_request", text);
        return false;
    }
    if (!s->options.worker && (problem == 404 || problem == 405)) {
        reply_openai(r, problem, problem == 404 ? "not_found" : "method_not_allowed",
                     problem == 404 ? "There is no such path" : "The path does not have this method");
        return false;
    }
    if (problem == 0 && s->worker.engine == NULL && worker_owns_route(route) && !(route->flags & HTTP_EARLY)) {
        static const char loading[] = "Model is loading";
        http_reply(r, 503, "text/plain; charset=utf-8", loading, strlen(loading));
        return false;
    }
    return true;
}

/* ---- start-up --------------------------------------------------------------------------------------------------------- */

static const char *copy(api_server *s, const char *text, const char *missing) {
    if (text == NULL) text = missing;
    return text ? arena_strndup(&s->memory, text, strlen(text)) : NULL;
}

static int copy_keys(api_server *s, const api_server_options *o, weir_error *err) {
    s->keys = arena_array(&s->memory, o->n_api_keys + 1, sizeof *s->keys);
    s->tenants = arena_array(&s->memory, o->n_api_keys + 1, sizeof *s->tenants);
    FAIL_IF(s->keys == NULL || s->tenants == NULL, err, WEIR_E_NOMEM, NULL, "no memory for the server");
    for (size_t i = 0; i < o->n_api_keys; i++) {
        const api_key *k = &o->api_keys[i];
        char made[20] = "token:";
        FAIL_IF(k->key == NULL || *k->key == '\0', err, WEIR_E_INVALID, "api_keys", "API key %zu is empty", i);
        auth_fingerprint(made + 6, k->key);
        s->keys[i] = copy(s, k->key, NULL);
        s->tenants[i] = (http_tenant){.name = copy(s, k->name, made), .weight = k->weight, .priority = k->priority};
        FAIL_IF(s->keys[i] == NULL || s->tenants[i].name == NULL, err, WEIR_E_NOMEM, NULL, "no memory for the server");
    }
    return 0;
}

static int copy_options(api_server *s, const api_server_options *o, weir_error *err) {
    static const char *const none = NULL;
    TRY(copy_keys(s, o, err));
    s->options = *o;
    s->options.api_keys = NULL; /* they are in `keys` */
    s->options.host = copy(s, o->host, "127.0.0.1");
    s->options.model_alias = copy(s, o->model_alias, "model");
    s->options.worker_id = copy(s, o->worker_id, "weir");
    s->options.backend = copy(s, o->backend, "cpu");
    s->options.hive_url = copy(s, o->hive_url, none);
    s->options.queen_url = copy(s, o->queen_url, none);
    s->options.callback_url = copy(s, o->callback_url, none);
    const bool complete = s->options.host && s->options.model_alias && s->options.worker_id && s->options.backend &&
                          (!o->hive_url || s->options.hive_url) && (!o->queen_url || s->options.queen_url) &&
                          (!o->callback_url || s->options.callback_url);
    FAIL_IF(!complete, err, WEIR_E_NOMEM, NULL, "no memory for the server");
    if (s->options.heartbeat_ms <= 0) s->options.heartbeat_ms = DEFAULT_HEARTBEAT_MS;
    return 0;
}

static void on_tick(void *context) {
    api_server *s = context;
    s->worker.done_bytes = atomic_load(&s->done_bytes);
    s->worker.total_bytes = atomic_load(&s->total_bytes);
    worker_sweep(&s->worker);
    openai_api_tick(s->openai);
    worker_tell_progress(&s->worker);
}

static int open_server(api_server *s, const api_server_options *options, weir_error *err) {
    TRY(copy_options(s, options, err));
    TRY(openai_api_open(&s->openai, s->options.model_alias, err));
    s->openai->service.timeout_ms = s->options.timeout_ms;
    const http_route *const tables[] = {worker_routes, openai_routes, native_routes};
    void *const contexts[] = {&s->worker, s->openai, s->openai};
    const size_t n_tables = sizeof tables / sizeof tables[0];
    const http_route **kept_tables = arena_array(&s->memory, n_tables, sizeof *kept_tables);
    void **kept_contexts = arena_array(&s->memory, n_tables, sizeof *kept_contexts);
    FAIL_IF(kept_tables == NULL || kept_contexts == NULL, err, WEIR_E_NOMEM, NULL, "no memory for the server");
    memcpy(kept_tables, tables, sizeof tables);
    memcpy(kept_contexts, contexts, sizeof contexts);
    http_options http = {.host = s->options.host, .port = s->options.port, .max_body = s->options.max_body, .tables = kept_tables,
                         .n_tables = n_tables, .contexts = kept_contexts, .hook = on_every_request, .hook_context = s};
    TRY(http_open(&s->http, &http, err));
    s->worker = (worker){.options = &s->options, .http = s->http, .server = s};
    return http_every(s->http, TICK_MS, on_tick, s, err);
}

int api_server_open(api_server **out, const api_server_options *options, weir_error *err) {
    *out = NULL;
    api_server *s = calloc(1, sizeof *s);
    FAIL_IF(s == NULL, err, WEIR_E_NOMEM, NULL, "no memory for the server");
    int code = open_server(s, options, err);
    if (code < 0) {
        api_server_close(&s);
        return code;
    }
    for (size_t i = 0; i < s->options.n_api_keys; i++) {
        char fingerprint[7];
        auth_fingerprint(fingerprint, s->keys[i]);
        log_write(LOG_INFO, "requests need a bearer token (token:%s)", fingerprint);
    }
    *out = s;
    return 0;
}

/* On the heartbeat's thread. */
static void write_worker(buf *out, void *user) {
    const api_server *s = user;
    weir_engine *engine = atomic_load(&s->engine);
    weir_stats stats = {0};
    if (engine) weir_engine_get_stats(engine, &stats);
    const char *status = atomic_load(&s->stopping) ? "stopping" : stats.n_running + stats.n_waiting > 0 ? "busy" : "ready";
    worker_write_identity(out, &s->options, http_port(s->http), status);
}

/* A URL with "localhost:9999" in it means that nobody is there. */
static int call_back(const api_server *s, weir_error *err) {
    const api_server_options *o = &s->options;
    if (o->callback_url == NULL || strstr(o->callback_url, "localhost:9999")) return 0;
    buf body = BUF_INIT;
    buf_puts(&body, "{\"worker_id\":");
    worker_write_string(&body, o->worker_id, strlen(o->worker_id));
    buf_printf(&body, ",\"url\":\"http://localhost:%u\",\"model_ref\":", http_port(s->http));
    worker_write_string(&body, o->model_alias, strlen(o->model_alias));
    buf_puts(&body, ",\"backend\":");
    worker_write_string(&body, o->backend, strlen(o->backend));
    buf_printf(&body, ",\"device\":%d}", o->device);
    int code = body.failed ? error_set(err, WEIR_E_NOMEM, NULL, "no memory for the callback")
                           : heartbeat_post(o->callback_url, body.data, body.n_bytes, err);
    buf_free(&body);
    return code;
}

/* On the loop: what was loaded is there. */
static void become_ready(void *context) {
    api_server *s = context;
    weir_error err = {0};
    weir_engine *engine = atomic_load(&s->engine);
    int code = openai_api_start(s->openai, s->model, s->chat, engine, s->n_parallel);
    if (code < 0) log_write(LOG_ERROR, "the OpenAI routes cannot start: %s", weir_code_text(code));
    s->worker.model = s->model;
    s->worker.engine = engine;
    worker_tell_progress(&s->worker);
    if (!s->options.hive_url && !s->options.queen_url) return;
    const heartbeat_options heart = {.hive_url = s->options.hive_url, .queen_url = s->options.queen_url, .worker_id = s->options.worker_id,
                                     .period_ms = s->options.heartbeat_ms, .write_worker = write_worker, .user = s};
    if (heartbeat_start(&s->heartbeat, &heart, &err) < 0) log_write(LOG_ERROR, "%s", err.message);
}

int api_server_set_ready(api_server *s, weir_model *model, weir_chat *chat, weir_engine *engine, int32_t n_parallel, weir_error *err) {
    TRY(call_back(s, err));
    s->model = model;
    s->chat = chat;
    s->n_parallel = n_parallel;
    atomic_store(&s->engine, engine);
    FAIL_IF(!http_post(s->http, become_ready, s), err, WEIR_E_NOMEM, NULL, "no memory for the server");
    return 0;
}

void api_server_set_progress(api_server *s, uint64_t done_bytes, uint64_t total_bytes) {
    atomic_store(&s->total_bytes, total_bytes);
    atomic_store(&s->done_bytes, done_bytes);
}

/* ---- running ---------------------------------------------------------------------------------------------------------- */

static bool jobs_remain(void *context) {
    const api_server *s = context;
    weir_stats stats;
    weir_engine_get_stats(s->worker.engine, &stats);
    return stats.n_running + stats.n_waiting > 0;
}

/* Lets the jobs that were accepted end. */
static void drain(api_server *s) {
    const int64_t begin_us = clock_now_us();
    weir_stats stats;
    weir_engine_get_stats(s->worker.engine, &stats);
    log_field fields[] = {LOG_NUMBER("running", stats.n_running), LOG_NUMBER("waiting", stats.n_waiting),
                          LOG_NUMBER("limit_ms", s->options.drain_ms)};
    log_event(LOG_INFO, "draining", fields, 3);
    http_drain(s->http, s->options.drain_ms, jobs_remain, s);
    weir_engine_get_stats(s->worker.engine, &stats);
    log_field after[] = {LOG_NUMBER("cancelled", stats.n_running + stats.n_waiting), LOG_NUMBER("ms", (double)(clock_now_us() - begin_us) / 1e3)};
    log_event(LOG_INFO, "drained", after, 2);
}

int api_server_run(api_server *s, weir_error *err) {
    (void)err;
    http_run(s->http);
    atomic_store(&s->stopping, true);
    s->worker.draining = true;
    if (s->worker.engine) weir_engine_drain(s->worker.engine);
    if (s->worker.engine && s->options.drain_ms > 0) drain(s);
    http_stop_accepting(s->http);
    http_cancel_jobs(s->http);
    worker_cancel_unread(&s->worker);
    http_drain(s->http, CANCEL_MS, NULL, NULL);
    heartbeat_stop(&s->heartbeat);
    return 0;
}

void api_server_stop(api_server *s) { http_stop(s->http); }

uint16_t api_server_port(const api_server *s) { return http_port(s->http); }

void api_server_close(api_server **p) {
    api_server *s = *p;
    *p = NULL;
    if (s == NULL) return;
    heartbeat_stop(&s->heartbeat);
    /* The unread jobs' tickets are freed with the server that they belong to still there. */
    if (s->http) {
        worker_free(&s->worker);
        http_close(&s->http);
    }
    openai_api_close(&s->openai);
    arena_free(&s->memory);
    free(s);
}
