/* The routes of the OpenAI surface, of llama-server's small endpoints and of /metrics, and what they share.
 * Joins the HTTP core to sessions; all of it on the event loop thread, except openai_api_open and _close. */
#ifndef WEIR_API_OPENAI_ROUTES_H
#define WEIR_API_OPENAI_ROUTES_H

#include "api/http.h"
#include "api/metrics.h"
#include "api/native_body.h"
#include "api/openai_session.h"
#include "api/retry.h"

/* The context of both tables. */
typedef struct openai_api {
    openai_context context;
    openai_service service;
    native_info info;
    metrics metrics;     /* other routes' jobs may be observed here too */
    retry_rate rate;
    weir_engine *engine; /* NULL while the model loads */
    char *alias;
    buf scratch; /* what one event or answer writes */
} openai_api;

/* Each ends in a row with method NULL; the context is an openai_api. */
extern const http_route openai_routes[]; /* chat completions, completions, models */
extern const http_route native_routes[]; /* tokenize, detokenize, apply-template, props, slots, metrics */

/* `alias` is the model's name for clients (copied). Until openai_api_start the routes answer 503. WEIR_E_NOMEM. */
int openai_api_open(openai_api **out, const char *alias, weir_error *err);
/* From now on requests are served. `chat` may be NULL; n_slots is how many requests run at once. Before http_run, or on the
 * loop thread. The model, the chat and the engine must outlive the requests. */
int openai_api_start(openai_api *api, const weir_model *model, const weir_chat *chat, weir_engine *engine, int32_t n_slots);
/* After http_close: sessions refer to it. */
void openai_api_close(openai_api **api);

/* Gives the request an id, the client's X-Request-Id or a fresh one, and the answer a header with it. */
void openai_request_id(http_request *r);
/* Call about once a second. */
void openai_api_tick(openai_api *api);
/* False, and a 503 was sent, while the model loads. */
bool openai_ready(http_request *r, const openai_api *api);
/* Answers with *error in OpenAI's shape. */
void openai_reply_error(http_request *r, const openai_error *error);
/* Answers 200 with the JSON in `body`, or 503 when memory ran out while it was written. */
void openai_reply_json(http_request *r, const buf *body);

#endif
