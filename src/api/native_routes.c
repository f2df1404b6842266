/* llama-server's small endpoints and /metrics; see openai_routes.h. */
#include <stdlib.h>
#include <string.h>

#include "api/openai_routes.h"
#include "base/clock.h"

typedef int (*body_fn)(buf *out, const openai_context *context, const char *body, size_t n_bytes, openai_error *error);

static void answer(http_request *r, openai_api *api, body_fn call) {
    openai_error error = {0};
    size_t n_bytes;
    if (!openai_ready(r, api)) return;
    const char *body = http_body(r, &n_bytes);
    buf out = BUF_INIT;
    if (call(&out, &api->context, body, n_bytes, &error) < 0)
        openai_reply_error(r, &error);
    else
        openai_reply_json(r, &out);
    buf_free(&out);
}

static void handle_tokenize(http_request *r, void *context) {
    answer(r, context, native_tokenize);
}
static void handle_detokenize(http_request *r, void *context) {
    answer(r, context, native_detokenize);
}
static void handle_apply_template(http_request *r, void *context) {
    answer(r, context, native_apply_template);
}

static void handle_props(http_request *r, void *context) {
    openai_api *api = context;
    if (!openai_ready(r, api)) return;
    buf out = BUF_INIT;
    native_write_props(&out, &api->info);
    openai_reply_json(r, &out);
    buf_free(&out);
}

typedef struct slot_list {
    native_slot *slots;
    size_t n, capacity;
    int64_t now_us;
} slot_list;

static void add_slot(const http_request *r, const weir_job *job, void *user) {
    slot_list *list = user;
    weir_job_progress progress;
    weir_job_get_progress(job, &progress);
    if (!progress.running || list->n == list->capacity) return;
    list->slots[list->n++] = (native_slot){.request_id = http_request_id(r), .number = http_number(r), .progress = progress,
                                           .seconds = (double)(list->now_us - http_arrived_us(r)) * 1e-6};
}

/* With ?fail_on_no_slot=1 a load balancer gets 503 when every slot is busy. */
static void handle_slots(http_request *r, void *context) {
    openai_api *api = context;
    if (!openai_ready(r, api)) return;
    weir_stats stats;
    weir_engine_get_stats(api->engine, &stats);
    const char *fail = http_query(r, "fail_on_no_slot");
    if (fail && strcmp(fail, "0") != 0 && stats.n_running >= (uint64_t)api->info.n_slots) {
        openai_error error = {0};
        openai_error_add(&error, 503, "no_slot", NULL, "no slot available");
        openai_reply_error(r, &error);
        return;
    }
    slot_list list = {.capacity = (size_t)api->info.n_slots, .now_us = clock_now_us()};
    list.slots = calloc(list.capacity + 1, sizeof *list.slots);
    buf out = BUF_INIT;
    if (list.slots) http_each_job(http_server_of(r), add_slot, &list);
    else out.failed = true;
    native_write_slots(&out, &api->info, list.slots, list.n, stats.n_running);
    openai_reply_json(r, &out);
    buf_free(&out);
    free(list.slots);
}

static void handle_metrics(http_request *r, void *context) {
    openai_api *api = context;
    if (!openai_ready(r, api)) return;
    weir_stats stats;
    weir_engine_get_stats(api->engine, &stats);
    buf out = BUF_INIT;
    metrics_write(&out, &api->metrics, &stats, api->alias);
    if (out.failed)
        openai_reply_json(r, &out);
    else
        http_reply(r, 200, "text/plain; version=0.0.4; charset=utf-8", out.data, out.n_bytes);
    buf_free(&out);
}

const http_route native_routes[] = {
    {"POST", "/tokenize", 0, 0, handle_tokenize},
    {"POST", "/detokenize", 0, 0, handle_detokenize},
    {"POST", "/apply-template", 0, 0, handle_apply_template},
    {"GET", "/props", 0, 0, handle_props},
    {"GET", "/slots", 0, 0, handle_slots},
    {"GET", "/metrics", 0, 0, handle_metrics},
    {NULL, NULL, 0, 0, NULL},
};
