/* Chat completions, completions and models; see openai_routes.h. */
#include "api/openai_routes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"
#include "base/error.h"

#define JSON_TYPE "application/json; charset=utf-8"

static const char no_memory_body[] =
    "{\"error\":{\"message\":\"out of memory\",\"type\":\"unavailable_error\",\"param\":null,\"code\":\"out_of_memory\"}}";

/* ---- what all routes share ----------------------------------------------------------------------------------------------- */

int openai_api_open(openai_api **out, const char *alias, weir_error *err) {
    *out = NULL;
    openai_api *api = calloc(1, sizeof *api);
    char *copy = strdup(alias);
    if (!api || !copy) {
        free(api);
        free(copy);
        FAIL(err, WEIR_E_NOMEM, NULL, "out of memory for the routes");
    }
    api->alias = copy;
    api->service = (openai_service){.context = &api->context, .metrics = &api->metrics, .alias = copy};
    api->info = (native_info){.context = &api->context, .alias = copy, .started = clock_unix_us() / 1000000};
    *out = api;
    return 0;
}

int openai_api_start(openai_api *api, const weir_model *model, const weir_chat *chat, weir_engine *engine, int32_t n_slots) {
    TRY(openai_context_init(&api->context, model, chat, weir_engine_n_ctx(engine)));
    TRY(weir_grammars_open(&api->context.grammars, model, NULL));
    api->info.n_slots = n_slots;
    api->engine = engine;
    return 0;
}

void openai_api_close(openai_api **api) {
    if (!*api) return;
    buf_free(&(*api)->scratch);
    weir_grammars_close(&(*api)->context.grammars);
    free((*api)->alias);
    free(*api);
    *api = NULL;
}

static bool id_is_fit(const char *id) {
    size_t length = id ? strlen(id) : 0;
    for (size_t i = 0; i < length; i++)
        if (id[i] <= ' ' || id[i] > '~') return false;
    return length > 0 && length < 64;
}

void openai_request_id(http_request *r) {
    const char *given = http_header(r, "X-Request-Id");
    char fresh[32] = "req-";
    unsigned char random[12] = {0};
    if (!id_is_fit(given)) {
        int length = (int)strlen(fresh);
        if (getrandom(random, sizeof random, GRND_NONBLOCK) < 0) memcpy(random, &(int64_t){clock_unix_us()}, sizeof(int64_t));
        for (size_t i = 0; i < sizeof random; i++)
            length += snprintf(fresh + length, sizeof fresh - (size_t)length, "%02x", random[i]);
        given = fresh;
    }
    http_set_request_id(r, given);
    http_set_header(r, "X-Request-Id", given);
}

static uint64_t n_ended(const weir_stats *s) { return s->n_finished + s->n_cancelled + s->n_failed; }

void openai_api_tick(openai_api *api) {
    weir_stats stats;
    if (!api->engine) return;
    weir_engine_get_stats(api->engine, &stats);
    retry_sample(&api->rate, n_ended(&stats), clock_now_us());
}

static void set_retry_after(http_request *r, const openai_api *api) {
    weir_stats stats;
    char text[16];
    weir_engine_get_stats(api->engine, &stats);
    snprintf(text, sizeof text, "%d", retry_after_s(&api->rate, stats.n_waiting, n_ended(&stats), clock_now_us()));
    http_set_header(r, "Retry-After", text);
}

void openai_reply_error(http_request *r, const openai_error *error) {
    buf body = BUF_INIT;
    openai_error_write(&body, error);
    if (body.failed)
        http_reply(r, 503, JSON_TYPE, no_memory_body, strlen(no_memory_body));
    else
        http_reply(r, error->status ? error->status : 500, JSON_TYPE, body.data, body.n_bytes);
    buf_free(&body);
}

void openai_reply_json(http_request *r, const buf *body) {
    if (body->failed)
        http_reply(r, 503, JSON_TYPE, no_memory_body, strlen(no_memory_body));
    else
        http_reply(r, 200, JSON_TYPE, body->data, body->n_bytes);
}

bool openai_ready(http_request *r, const openai_api *api) {
    if (api->engine) return true;
    openai_error error = {0};
    openai_error_add(&error, 503, "loading", NULL, "Loading model");
    openai_reply_error(r, &error);
    return false;
}

/* ---- completions --------------------------------------------------------------------------------------------------------- */

typedef struct completion {
    openai_api *api;
    openai_session *session;
} completion;

/* Sends what the session wrote to api->scratch. `status` is what the session returned; the request is gone if it is not 0. */
static void send_written(http_request *r, const completion *c, int status) {
    const buf *written = &c->api->scratch;
    if (!openai_session_streams(c->session)) {
        if (written->failed)
            http_reply(r, 503, JSON_TYPE, no_memory_body, strlen(no_memory_body));
        else if (status)
            http_reply(r, status, JSON_TYPE, written->data, written->n_bytes);
        return;
    }
    if (written->failed) { /* a gap in the text would not be noticed: end with an error instead */
        static const char begin[] = "data: ", end[] = "\n\ndata: [DONE]\n\n";
        http_stream_write(r, begin, strlen(begin));
        http_stream_write(r, no_memory_body, strlen(no_memory_body));
        http_stream_write(r, end, strlen(end));
        http_stream_end(r);
        return;
    }
    if (written->n_bytes) http_stream_write(r, written->data, written->n_bytes);
    if (status) http_stream_end(r);
}

static void on_event(http_request *r, void *state, int32_t index, const weir_event *event) {
    completion *c = state;
    buf_clear(&c->api->scratch);
    int status = openai_session_event(c->session, (size_t)index, event, &c->api->scratch);
    send_written(r, c, status);
}

static void on_close(void *state) {
    completion *c = state;
    openai_session_close(&c->session);
    free(c);
}

static const http_job_handler completion_handler = {.on_event = on_event, .on_close = on_close};

/* Submits the session's jobs; false, with *error filled, when one is refused. */
static bool submit_jobs(http_request *r, const completion *c, openai_error *error) {
    for (size_t i = 0; i < openai_session_n_jobs(c->session); i++) {
        weir_request job;
        weir_error cause = {0};
        openai_session_job(c->session, i, &job);
        job.request_id = http_request_id(r);
        int result = http_job_submit(r, c->api->engine, &job, (int32_t)i, &cause);
        if (result >= 0) continue;
        cause.code = result;
        openai_session_refused(c->session, i, &cause, error);
        return false;
    }
    return true;
}

static void complete(http_request *r, openai_api *api, openai_endpoint endpoint) {
    openai_error error = {0};
    size_t n_bytes;
    if (!openai_ready(r, api)) return;
    const char *body = http_body(r, &n_bytes);
    completion *c = calloc(1, sizeof *c);
    if (!c) {
        http_reply(r, 503, JSON_TYPE, no_memory_body, strlen(no_memory_body));
        return;
    }
    c->api = api;
    if (openai_session_open(&c->session, &api->service, endpoint, body, n_bytes, http_arrived_us(r), &error) < 0) {
        free(c);
        openai_reply_error(r, &error);
        return;
    }
    http_hold(r, &completion_handler, c); /* from here on the request owns c */
    if (!submit_jobs(r, c, &error)) {
        if (error.status == 429) set_retry_after(r, api);
        openai_reply_error(r, &error);
        return;
    }
    if (openai_session_streams(c->session)) {
        http_set_header(r, "Cache-Control", "no-cache");
        http_set_header(r, "X-Accel-Buffering", "no"); /* asks proxies not to hold frames back */
        http_stream_begin(r, 200, "text/event-stream");
    }
    buf_clear(&api->scratch);
    int status = openai_session_start(c->session, &api->scratch);
    send_written(r, c, status);
}

static void handle_chat(http_request *r, void *context) {
    complete(r, context, OPENAI_CHAT);
}
static void handle_completion(http_request *r, void *context) {
    complete(r, context, OPENAI_COMPLETION);
}

/* ---- models -------------------------------------------------------------------------------------------------------------- */

static void handle_models(http_request *r, void *context) {
    openai_api *api = context;
    if (!openai_ready(r, api)) return;
    buf body = BUF_INIT;
    native_write_models(&body, &api->info);
    openai_reply_json(r, &body);
    buf_free(&body);
}

static void handle_model(http_request *r, void *context) {
    openai_api *api = context;
    if (!openai_ready(r, api)) return;
    if (strcmp(http_id(r), api->alias) != 0) {
        openai_error error = {0};
        openai_error_add(&error, 404, "model_not_found", "model", "the model '%.200s' does not exist; '%.100s' is served",
                         http_id(r), api->alias);
        openai_reply_error(r, &error);
        return;
    }
    buf body = BUF_INIT;
    native_write_model(&body, &api->info);
    openai_reply_json(r, &body);
    buf_free(&body);
}

const http_route openai_routes[] = {
    {"POST", "/v1/chat/completions", 0, 0, handle_chat},
    {"POST", "/chat/completions", 0, 0, handle_chat},
    {"POST", "/v1/completions", 0, 0, handle_completion},
    {"POST", "/completions", 0, 0, handle_completion},
    {"GET", "/v1/models", 0, 0, handle_models},
    {"GET", "/models", 0, 0, handle_models},
    {"GET", "/v1/models/{id}", 0, 0, handle_model},
    {"GET", "/models/{id}", 0, 0, handle_model},
    {NULL, NULL, 0, 0, NULL},
};
