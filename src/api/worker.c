/* See worker.h. */
#include "api/worker.h"

#include <stdlib.h>
#include <string.h>

#include "api/worker_request.h"
#include "api/worker_wire.h"
#include "base/clock.h"
#include "base/error.h"
#include "weir/weir_version.h"

#define JSON_TYPE "application/json"
#define TEXT_TYPE "text/plain; charset=utf-8"
#define STREAM_TYPE "text/event-stream"

enum { MAX_BODY = 2 * 1024 * 1024, COMMENT_US = 10 * 1000000 };

/* One generation. From its submission until a stream is opened this owns the weir_job; then the HTTP request does. */
struct worker_job {
    worker *owner;
    worker_job *next, *previous;
    char *id;
    weir_job *job;      /* NULL once it has ended */
    void *ticket;       /* of the HTTP core; NULL once a request has it */
    http_request *reader; /* the stream, or NULL */
    int64_t created_us;
    bool ended;         /* the terminal frame is written */
    buf backlog;        /* frames taken from the job before it had a reader */
    /* /v1/infer */
    bool streams;
    buf text;
};

/* ---- answers ---------------------------------------------------------------------------------------------------------- */

static void reply_text(http_request *r, int status, const char *text) { http_reply(r, status, TEXT_TYPE, text, strlen(text)); }

static void reply_buf(http_request *r, int status, const char *type, buf *body) {
    if (body->failed) reply_text(r, 503, "out of memory");
    else http_reply(r, status, type, body->data, body->n_bytes);
    buf_free(body);
}

static void reply_textf(http_request *r, int status, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void reply_textf(http_request *r, int status, const char *format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    reply_text(r, status, text);
}

/* ---- jobs ------------------------------------------------------------------------------------------------------------- */

static worker_job *find_job(worker *w, const char *id) {
    worker_job *j = w->jobs;
    while (j && strcmp(j->id, id) != 0) j = j->next;
    return j;
}

/* Frees the job; it must not be a request's. */
static void drop_job(worker_job *j) {
    if (j->previous) j->previous->next = j->next;
    else j->owner->jobs = j->next;
    if (j->next) j->next->previous = j->previous;
    if (j->ticket) {
        weir_job_release(&j->job);
        http_ticket_free(j->ticket);
    }
    buf_free(&j->backlog);
    buf_free(&j->text);
    free(j->id);
    free(j);
}

/* `id` NULL = a fresh one. NULL when out of memory. */
static worker_job *new_job(worker *w, const char *id) {
    char fresh[8 + WORKER_UUID_BYTES] = "job-";
    if (id == NULL && !worker_uuid(fresh + strlen(fresh))) return NULL;
    worker_job *j = calloc(1, sizeof *j);
    if (j == NULL) return NULL;
    j->owner = w;
    j->id = strdup(id ? id : fresh);
    j->created_us = clock_now_us();
    if (j->id == NULL) {
        free(j);
        return NULL;
    }
    j->next = w->jobs;
    if (j->next) j->next->previous = j;
    w->jobs = j;
    return j;
}

/* The prompt as it is, with the tokeniser's own special tokens and no chat template. */
static int submit(const http_request *r, worker_job *j, worker_request *request, weir_error *err) {
    worker *w = j->owner;
    int64_t n = weir_tokenize(w->model, request->prompt, request->prompt_bytes, true, true, NULL, 0);
    FAIL_IF(n < 0, err, (int)n, "prompt", "%s", weir_code_text((int)n));
    int32_t *tokens = malloc(n > 0 ? (size_t)n * sizeof *tokens : sizeof *tokens);
    void *ticket = http_job_prepare(w->http, &request->job.notify);
    int code = tokens && ticket ? 0 : error_set(err, WEIR_E_NOMEM, "prompt", "no memory for %lld tokens", (long long)n);
    if (code == 0) {
        weir_tokenize(w->model, request->prompt, request->prompt_bytes, true, true, tokens, (size_t)n);
        request->job.tokens = tokens;
        request->job.n_tokens = (size_t)n;
        request->job.notify_user = ticket;
        request->job.request_id = j->id;
        request->job.timeout_ms = w->options->timeout_ms;
        http_claim(r, &request->job);
        code = weir_job_submit(w->engine, &request->job, &j->job, err);
    }
    free(tokens);
    if (code == 0) j->ticket = ticket;
    else http_ticket_free(ticket);
    return code;
}

/* Takes what an unread job has so far, to know whether it has ended. */
static void take_events(worker_job *j) {
    weir_event event;
    while (!j->ended && j->job && !j->backlog.failed && weir_job_poll(j->job, &event) == 1) {
        j->ended = event.type != WEIR_EVENT_TOKEN;
        worker_write_event(&j->backlog, &event);
    }
}

void worker_sweep(worker *w) {
    int64_t ttl_us = (w->options->job_ttl_ms > 0 ? w->options->job_ttl_ms : 600 * 1000) * 1000, now = clock_now_us();
    for (worker_job *j = w->jobs, *next; j; j = next) {
        next = j->next;
        if (j->reader == NULL && now - j->created_us > ttl_us) drop_job(j);
    }
}

void worker_cancel_unread(worker *w) {
    for (worker_job *j = w->jobs; j; j = j->next)
        if (j->reader == NULL && j->job) weir_job_cancel(j->job);
}

void worker_free(worker *w) {
    for (worker_job *j = w->jobs, *next; j; j = next) {
        next = j->next;
        if (j->reader == NULL) drop_job(j);
    }
    buf_free(&w->scratch);
}

/* ---- streams ---------------------------------------------------------------------------------------------------------- */

static void on_stream_close(void *state) {
    worker_job *j = state;
    j->job = NULL; /* the request has released it */
    drop_job(j);
}

static void end_stream(http_request *r) {
    http_stream_write(r, WORKER_DONE, strlen(WORKER_DONE));
    http_stream_end(r);
}

/* A gap would not be noticed: the stream ends with an error instead. */
static void end_without_memory(http_request *r) {
    static const char frame[] = "data: {\"type\":\"error\",\"code\":\"VRAM_OOM\",\"message\":\"out of memory\"}\n\n";
    http_stream_write(r, frame, strlen(frame));
    end_stream(r);
}

static void on_stream_event(http_request *r, void *state, int32_t index, const weir_event *event) {
    worker_job *j = state;
    buf *out = &j->owner->scratch;
    (void)index;
    buf_clear(out);
    worker_write_event(out, event);
    if (out->failed) {
        end_without_memory(r);
        return;
    }
    j->ended = event->type != WEIR_EVENT_TOKEN;
    http_stream_write(r, out->data, out->n_bytes);
    if (j->ended) end_stream(r);
}

static const http_job_handler stream_handler = {.on_event = on_stream_event, .on_close = on_stream_close};

/* Opens the stream of a job. From here on the job goes with the request. */
static void open_stream(http_request *r, worker_job *j, bool started) {
    worker *w = j->owner;
    weir_error err = {0};
    buf *out = &w->scratch;
    j->reader = r;
    http_set_request_id(r, j->id);
    http_hold(r, &stream_handler, j);
    http_set_header(r, "Cache-Control", "no-cache");
    http_stream_begin(r, 200, STREAM_TYPE);
    buf_clear(out);
    if (started) worker_write_started(out, j->id, w->options->model_alias);
    buf_append(out, j->backlog.data, j->backlog.n_bytes);
    if (out->failed || j->backlog.failed) {
        end_without_memory(r);
        return;
    }
    http_stream_write(r, out->data, out->n_bytes);
    if (j->ended) {
        end_stream(r);
        return;
    }
    void *ticket = j->ticket;
    j->ticket = NULL;
    http_job_adopt(r, j->job, ticket, 0, &err);
}

static void handle_stream(http_request *r, void *context) {
    worker *w = context;
    worker_job *j = find_job(w, http_id(r));
    if (j == NULL) reply_textf(r, 404, "Job %.900s not found", http_id(r));
    else if (j->reader) reply_textf(r, 500, "Job %.900s has no token receiver", http_id(r));
    else if (strcmp(http_method(r), "HEAD") == 0) http_reply(r, 200, STREAM_TYPE, NULL, 0); /* the one reader comes with GET */
    else open_stream(r, j, true);
}

/* ---- submitting ------------------------------------------------------------------------------------------------------- */

static void refuse(http_request *r, worker_refusal *refusal) {
    if (refusal->status == 503) reply_text(r, 503, "out of memory");
    else reply_buf(r, refusal->status, refusal->json ? JSON_TYPE : TEXT_TYPE, &refusal->body);
}

/* Refused before a job existed, in the way of each form. */
static void refuse_submission(http_request *r, worker_request *request, worker_job *j, const weir_error *err) {
    static const char queue_failed[] =
        "{\"errors\":[{\"field\":\"queue\",\"constraint\":\"validation_failed\",\"message\":\"Failed to queue job\"}]}";
    const bool prompt = err->code == WEIR_E_CONTEXT || err->code == WEIR_E_INVALID;
    if (request->form == WORKER_SINGLE) {
        worker_write_error(&j->backlog, prompt ? "INVALID_REQUEST" : "QUEUE_FAILED", err->message);
        j->ended = true;
        open_stream(r, j, false);
        return;
    }
    drop_job(j);
    if (request->form == WORKER_OPERATION) reply_textf(r, 500, "Failed to queue request: %s", err->message);
    else http_reply(r, 400, JSON_TYPE, queue_failed, strlen(queue_failed));
}

static void answer_dual(http_request *r, const worker_job *j, const char *prefix) {
    buf body = BUF_INIT;
    http_set_request_id(r, j->id);
    buf_printf(&body, "{\"job_id\":\"%s\",\"sse_url\":\"%s/%s/stream\"}", j->id, prefix, j->id);
    reply_buf(r, 200, JSON_TYPE, &body);
}

static void handle_submit(http_request *r, void *context) {
    worker *w = context;
    worker_request request;
    worker_refusal refusal;
    weir_error err = {0};
    size_t n_bytes;
    const char *body = http_body(r, &n_bytes), *accept = http_header(r, "Accept");
    int code = worker_request_decode(&request, body, n_bytes, false, accept && strstr(accept, JSON_TYPE), &refusal);
    if (code < 0) {
        refuse(r, &refusal);
        worker_request_free(&request);
        return;
    }
    worker_job *j = new_job(w, request.job_id);
    if (j == NULL) {
        reply_text(r, 503, "out of memory");
        worker_request_free(&request);
        return;
    }
    code = submit(r, j, &request, &err);
    /* A prompt that does not fit is the stream's to tell, once the job has an id. */
    if (code < 0 && request.form != WORKER_SINGLE && (code == WEIR_E_CONTEXT || code == WEIR_E_INVALID)) {
        worker_write_error(&j->backlog, "INVALID_REQUEST", err.message);
        j->ended = true;
        code = 0;
    }
    if (code < 0) refuse_submission(r, &request, j, &err);
    else if (request.form == WORKER_SINGLE) open_stream(r, j, true);
    else answer_dual(r, j, request.form == WORKER_OPERATION ? "/v1/jobs" : http_path(r));
    worker_request_free(&request);
}

/* ---- cancelling ------------------------------------------------------------------------------------------------------- */

/* Whether a running or queued job was there to cancel. */
static bool cancel(worker *w, const char *id) {
    worker_job *j = find_job(w, id);
    if (j == NULL) return false;
    if (j->reader == NULL) take_events(j);
    if (j->ended || j->job == NULL) return false;
    weir_job_cancel(j->job);
    return true;
}

static void handle_delete_job(http_request *r, void *context) {
    buf body = BUF_INIT;
    const char *id = http_id(r);
    if (!cancel(context, id)) {
        reply_textf(r, 404, "Job %.900s not found or cannot be cancelled (already completed/failed)", id);
        return;
    }
    buf_puts(&body, "{\"job_id\":");
    worker_write_string(&body, id, strlen(id));
    buf_puts(&body, ",\"status\":\"cancelled\"}");
    reply_buf(r, 200, JSON_TYPE, &body);
}

static void handle_delete_inference(http_request *r, void *context) {
    cancel(context, http_id(r));
    http_reply(r, 204, NULL, NULL, 0);
}

/* ---- /v1/infer -------------------------------------------------------------------------------------------------------- */

static void infer_answer(http_request *r, worker_job *j, const weir_event *event) {
    buf body = BUF_INIT;
    if (event->type == WEIR_EVENT_ERROR) {
        reply_textf(r, weir_code_http_status(event->code), "Inference failed: %s", event->message ? event->message : "");
        return;
    }
    buf_puts(&body, "{\"text\":");
    worker_write_string(&body, j->text.data ? j->text.data : "", j->text.n_bytes);
    buf_printf(&body, ",\"tokens_generated\":%d,\"duration_ms\":%lld}", event->timings.n_output,
               (long long)((clock_now_us() - j->created_us) / 1000));
    body.failed |= j->text.failed;
    reply_buf(r, 200, JSON_TYPE, &body);
}

static void on_infer_event(http_request *r, void *state, int32_t index, const weir_event *event) {
    worker_job *j = state;
    buf *out = &j->owner->scratch;
    (void)index;
    if (!j->streams) {
        if (event->type == WEIR_EVENT_TOKEN) buf_append(&j->text, event->text, event->text_bytes);
        else infer_answer(r, j, event);
        return;
    }
    buf_clear(out);
    if (event->type == WEIR_EVENT_TOKEN) {
        buf_puts(out, "data: {\"token\":");
        worker_write_string(out, event->text, event->text_bytes);
        buf_puts(out, "}\n\n");
    } else if (event->type == WEIR_EVENT_ERROR) {
        worker_write_event(out, event);
    }
    if (out->n_bytes > 0 && !out->failed) http_stream_write(r, out->data, out->n_bytes);
    if (event->type != WEIR_EVENT_TOKEN || out->failed) end_stream(r);
}

static const http_job_handler infer_handler = {.on_event = on_infer_event, .on_close = on_stream_close};

static void handle_infer(http_request *r, void *context) {
    worker *w = context;
    worker_request request;
    worker_refusal refusal;
    weir_error err = {0};
    size_t n_bytes;
    const char *body = http_body(r, &n_bytes);
    worker_job *j = NULL;
    int code = worker_request_decode(&request, body, n_bytes, true, false, &refusal);
    if (code < 0) {
        refuse(r, &refusal);
        worker_request_free(&request);
        return;
    }
    j = new_job(w, NULL);
    code = j ? submit(r, j, &request, &err) : error_set(&err, WEIR_E_NOMEM, NULL, "out of memory");
    if (code < 0) {
        if (j) drop_job(j);
        reply_textf(r, weir_code_http_status(code), "Failed to queue request: %s", err.message);
        worker_request_free(&request);
        return;
    }
    j->streams = request.stream;
    j->reader = r;
    http_set_request_id(r, j->id);
    worker_request_free(&request);
    http_hold(r, &infer_handler, j);
    if (j->streams) {
        http_set_header(r, "Cache-Control", "no-cache");
        http_stream_begin(r, 200, STREAM_TYPE);
    }
    void *ticket = j->ticket;
    j->ticket = NULL;
    http_job_adopt(r, j->job, ticket, 0, &err);
}

/* ---- state of the worker ---------------------------------------------------------------------------------------------- */

static void handle_health(http_request *r, void *context) {
    const worker *w = context;
    static const char *const bodies[2][2] = {
        {"{\"error\":{\"message\":\"Loading model\",\"type\":\"unavailable_error\",\"code\":503}}", "{\"status\":\"ok\"}"},
        {"{\"status\":\"unhealthy\"}", "{\"status\":\"healthy\",\"vram_bytes\":0}"},
    };
    static const char ending[] = "{\"error\":{\"message\":\"Shutting down\",\"type\":\"unavailable_error\",\"code\":503}}";
    const bool ready = w->engine && !w->draining;
    const char *body = w->draining && !w->options->worker ? ending : bodies[w->options->worker][ready];
    http_reply(r, ready ? 200 : 503, JSON_TYPE, body, strlen(body));
}

static void handle_ready(http_request *r, void *context) {
    const worker *w = context;
    static const char ready[] = "{\"ready\":true,\"state\":\"idle\",\"model_loaded\":true}";
    static const char loading[] = "{\"ready\":false,\"state\":\"loading\",\"progress_url\":\"/v1/loading/progress\"}";
    static const char draining[] = "{\"ready\":false,\"state\":\"draining\",\"model_loaded\":true}";
    const char *body = w->draining ? draining : w->engine ? ready : loading;
    http_reply(r, 200, JSON_TYPE, body, strlen(body));
}

/* The loader tells bytes, not layers: the contract's layers are shares of a hundred. */
static void write_progress(const worker *w, buf *out) {
    uint64_t total = w->total_bytes ? w->total_bytes : 1, done = w->done_bytes < total ? w->done_bytes : total;
    buf_printf(out, "data: {\"stage\":\"loading_to_vram\",\"layers_loaded\":%u,\"layers_total\":100,\"vram_mb\":%llu}\n\n",
               (unsigned)((double)done / (double)total * 100), (unsigned long long)(w->done_bytes >> 20));
}

typedef struct watcher {
    worker *owner;
    size_t slot;
} watcher;

static void on_watcher_gone(void *state) {
    watcher *watch = state;
    watch->owner->watchers[watch->slot] = NULL;
    free(watch);
}

static void handle_progress(http_request *r, void *context) {
    static const http_job_handler handler = {.on_close = on_watcher_gone};
    worker *w = context;
    size_t slot = 0;
    while (slot < sizeof w->watchers / sizeof w->watchers[0] && w->watchers[slot]) slot++;
    watcher *watch = w->engine || slot == sizeof w->watchers / sizeof w->watchers[0] ? NULL : malloc(sizeof *watch);
    if (watch == NULL) {
        reply_text(r, 503, w->engine ? "Model not loading" : "Too many clients watch the loading");
        return;
    }
    *watch = (watcher){w, slot};
    w->watchers[slot] = r;
    http_hold(r, &handler, watch);
    http_set_header(r, "Cache-Control", "no-cache");
    http_stream_begin(r, 200, STREAM_TYPE);
    buf_clear(&w->scratch);
    write_progress(w, &w->scratch);
    http_stream_write(r, w->scratch.data, w->scratch.n_bytes);
}

void worker_tell_progress(worker *w) {
    static const char ready[] = "data: {\"stage\":\"ready\"}\n\n";
    bool changed = w->told_bytes != w->done_bytes, comment = clock_now_us() - w->last_comment_us > COMMENT_US;
    w->told_bytes = w->done_bytes;
    if (comment) w->last_comment_us = clock_now_us();
    for (size_t i = 0; i < sizeof w->watchers / sizeof w->watchers[0]; i++) {
        http_request *r = w->watchers[i];
        if (r == NULL) continue;
        if (w->engine) {
            http_stream_write(r, ready, strlen(ready));
            end_stream(r);
            continue;
        }
        buf_clear(&w->scratch);
        if (changed) write_progress(w, &w->scratch);
        else if (comment) buf_puts(&w->scratch, ":\n\n");
        http_stream_write(r, w->scratch.data, w->scratch.n_bytes);
    }
}

void worker_write_identity(buf *out, const api_server_options *o, uint16_t port, const char *status) {
    buf_puts(out, "{\"id\":");
    worker_write_string(out, o->worker_id, strlen(o->worker_id));
    buf_puts(out, ",\"model_id\":");
    worker_write_string(out, o->model_alias, strlen(o->model_alias));
    buf device = BUF_INIT;
    buf_printf(&device, "%s:%d", o->backend, o->device);
    buf_puts(out, ",\"device\":");
    worker_write_string(out, device.data ? device.data : "", device.n_bytes);
    buf_free(&device);
    buf_printf(out, ",\"port\":%u,\"status\":\"%s\",\"implementation\":\"llm-worker-rbee\",\"version\":\"%s\"}", port, status, WEIR_VERSION);
}

static void handle_info(http_request *r, void *context) {
    const worker *w = context;
    weir_stats stats = {0};
    buf body = BUF_INIT;
    if (w->engine) weir_engine_get_stats(w->engine, &stats);
    worker_write_identity(&body, w->options, http_port(w->http),
                          w->engine == NULL ? "starting" : stats.n_running + stats.n_waiting > 0 ? "busy" : "ready");
    reply_buf(r, 200, JSON_TYPE, &body);
}

static void handle_root(http_request *r, void *context) {
    static const char body[] = "{\"name\":\"weir\",\"version\":\"" WEIR_VERSION "\"}";
    (void)context;
    http_reply(r, 200, JSON_TYPE, body, strlen(body));
}

static void handle_shutdown(http_request *r, void *context) {
    static const char body[] = "{\"status\":\"shutting_down\"}";
    worker *w = context;
    http_reply(r, 200, JSON_TYPE, body, strlen(body));
    api_server_stop(w->server);
}

/* ---- routes ----------------------------------------------------------------------------------------------------------- */

const http_route worker_routes[] = {
    {"GET", "/", HTTP_PUBLIC | HTTP_EARLY, 0, handle_root},
    {"GET", "/health", HTTP_PUBLIC | HTTP_EARLY, 0, handle_health},
    {"GET", "/v1/health", HTTP_PUBLIC | HTTP_EARLY, 0, handle_health},
    {"GET", "/v1/ready", HTTP_EARLY, 0, handle_ready},
    {"GET", "/v1/loading/progress", HTTP_EARLY, 0, handle_progress},
    {"GET", "/info", HTTP_EARLY, 0, handle_info},
    {"POST", "/v1/inference", HTTP_JSON, MAX_BODY, handle_submit},
    {"POST", "/v1/jobs", HTTP_JSON, MAX_BODY, handle_submit},
    {"GET", "/v1/inference/{id}/stream", 0, 0, handle_stream},
    {"GET", "/v1/jobs/{id}/stream", 0, 0, handle_stream},
    {"DELETE", "/v1/inference/{id}", 0, 0, handle_delete_inference},
    {"DELETE", "/v1/jobs/{id}", 0, 0, handle_delete_job},
    {"POST", "/v1/infer", HTTP_JSON, MAX_BODY, handle_infer},
    {"POST", "/v1/shutdown", HTTP_EARLY, 0, handle_shutdown},
    {"POST", "/v1/admin/shutdown", HTTP_EARLY, 0, handle_shutdown},
    {NULL, NULL, 0, 0, NULL},
};

bool worker_owns_route(const http_route *route) {
    return route >= worker_routes && route < worker_routes + sizeof worker_routes / sizeof worker_routes[0];
}
