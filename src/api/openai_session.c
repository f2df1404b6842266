/* From a request's body to its answer; see openai_session.h. */
#include "api/openai_session.h"

#include <stdlib.h>

#include "base/clock.h"
#include "base/error.h"
#include "chat/reply.h"

typedef struct session_choice {
    openai_choice answer;
    reply_parser *parser; /* chat with tools or reasoning: finds them in the text; NULL = all is text */
    openai_session *session;
    buf *out; /* while the parser runs: where frames go */
    metrics_job clock;
    bool ended; /* its terminal event was seen */
} session_choice;

struct openai_session {
    const openai_service *service;
    openai_request request;
    openai_reply reply;
    session_choice *choices;
    size_t n_choices, n_open; /* n_open: choices that have not ended */
    bool started, finished;
    buf scratch; /* one frame */
};

static void take_part(void *user, const reply_event *part);

/* ---- opening ------------------------------------------------------------------------------------------------------------- */

static int open_parsers(openai_session *session) {
    const openai_request *request = &session->request;
    const weir_chat *chat = session->service->context->chat;
    if (request->endpoint != OPENAI_CHAT || !(request->tools || request->reasoning)) return 0;
    const reply_options options = {.chat_template = chat ? weir_chat_source(chat) : NULL,
                                   .tools = request->tools,
                                   .reasoning = request->reasoning,
                                   .in_reasoning = request->in_reasoning,
                                   .only_json = request->must_call};
    for (size_t i = 0; i < session->n_choices; i++) {
        session->choices[i].session = session;
        session->choices[i].parser = reply_open(&options, take_part, &session->choices[i]);
        if (!session->choices[i].parser) return WEIR_E_NOMEM;
    }
    return 0;
}

static int prepare(openai_session *session, openai_endpoint endpoint, const char *body, size_t n_bytes, openai_error *error) {
    const openai_service *service = session->service;
    TRY(openai_request_decode(&session->request, service->context, endpoint, body, n_bytes, error));
    if (session->request.job.timeout_ms == 0) session->request.job.timeout_ms = service->timeout_ms;
    TRY(openai_request_tokenize(&session->request, service->context, error));
    TRY(openai_reply_init(&session->reply, &session->request, service->context->model, service->alias));
    size_t n_choices = session->request.n_prompts * (size_t)session->request.n;
    session->choices = calloc(n_choices, sizeof *session->choices);
    if (!session->choices) return WEIR_E_NOMEM;
    session->n_choices = session->n_open = n_choices;
    return open_parsers(session);
}

int openai_session_open(openai_session **out, const openai_service *service, openai_endpoint endpoint, const char *body,
                        size_t n_bytes, int64_t arrived_us, openai_error *error) {
    *out = NULL;
    openai_session *session = calloc(1, sizeof *session);
    int result = session ? 0 : WEIR_E_NOMEM;
    if (session) {
        session->service = service;
        result = prepare(session, endpoint, body, n_bytes, error);
    }
    if (result < 0) {
        weir_error cause = {0};
        error_set(&cause, result, NULL, "the request cannot be started: %s", weir_code_text(result));
        if (!error->n_problems) openai_error_add_weir(error, &cause);
        openai_session_close(&session);
        return result;
    }
    for (size_t i = 0; i < session->n_choices; i++) session->choices[i].clock.arrived_us = arrived_us;
    *out = session;
    return 0;
}

void openai_session_close(openai_session **address) {
    openai_session *session = *address;
    if (!session) return;
    for (size_t i = 0; i < session->n_choices; i++) {
        if (session->started && !session->choices[i].ended) metrics_abort(session->service->metrics);
        reply_close(&session->choices[i].parser);
        openai_choice_free(&session->choices[i].answer);
    }
    free(session->choices);
    openai_request_free(&session->request);
    buf_free(&session->scratch);
    free(session);
    *address = NULL;
}

bool openai_session_streams(const openai_session *session) {
    return session->request.stream;
}

/* ---- jobs ---------------------------------------------------------------------------------------------------------------- */

static const openai_prompt *prompt_of(const openai_session *session, size_t i) {
    return &session->request.prompts[i / (size_t)session->request.n];
}

size_t openai_session_n_jobs(const openai_session *session) {
    return session->request.job.max_tokens == 0 ? 0 : session->n_choices;
}

void openai_session_job(const openai_session *session, size_t i, weir_request *job) {
    const openai_request *request = &session->request;
    *job = request->job;
    job->tokens = prompt_of(session, i)->tokens;
    job->n_tokens = prompt_of(session, i)->n_tokens;
    job->sampling.seed += request->seeded ? i % (size_t)request->n : i;
}

void openai_session_refused(const openai_session *session, size_t i, const weir_error *cause, openai_error *error) {
    weir_error described = *cause;
    if (!described.message[0]) error_set(&described, cause->code, NULL, "%s", weir_code_text(cause->code));
    openai_error_add_weir(error, &described);
    if (cause->code != WEIR_E_CONTEXT) return;
    snprintf(error->problems[0].param, sizeof error->problems[0].param, "%s",
             session->request.endpoint == OPENAI_CHAT ? "messages" : "prompt");
    error->n_prompt_tokens = (int64_t)prompt_of(session, i)->n_tokens;
    error->n_ctx = session->service->context->n_ctx;
}

/* ---- frames -------------------------------------------------------------------------------------------------------------- */

/* Moves the JSON in session->scratch to `out` as one frame. */
static void put_frame(openai_session *session, buf *out) {
    if (session->scratch.failed) out->failed = true;
    buf_puts(out, "data: ");
    buf_append(out, session->scratch.data ? session->scratch.data : "", session->scratch.n_bytes);
    buf_puts(out, "\n\n");
    buf_clear(&session->scratch);
}

/* The role of each chat message, or the prompt that a completion echoes. */
static void write_start(openai_session *session, buf *out) {
    const openai_request *request = &session->request;
    for (size_t i = 0; i < session->n_choices; i++) {
        const openai_prompt *prompt = prompt_of(session, i);
        openai_choice *answer = &session->choices[i].answer;
        bool echo = request->echo && prompt->text_bytes > 0;
        if (echo && !request->stream) openai_choice_echo(answer, prompt->text, prompt->text_bytes);
        if (!request->stream) continue;
        if (request->endpoint == OPENAI_CHAT)
            openai_write_role_chunk(&session->scratch, &session->reply, i);
        else if (echo)
            openai_write_echo_chunk(&session->scratch, &session->reply, answer, i, prompt->text, prompt->text_bytes);
        else
            continue;
        put_frame(session, out);
    }
}

static openai_usage count_usage(const openai_session *session) {
    const openai_request *request = &session->request;
    openai_usage usage = {0};
    for (size_t i = 0; i < request->n_prompts; i++) {
        usage.prompt_tokens += (int64_t)request->prompts[i].n_tokens;
        /* The first choice read the prompt; the others found it in the cache. */
        usage.cached_tokens += session->choices[i * (size_t)request->n].answer.timings.n_cached;
    }
    for (size_t i = 0; i < session->n_choices; i++) usage.completion_tokens += session->choices[i].answer.timings.n_output;
    return usage;
}

/* ---- ends ---------------------------------------------------------------------------------------------------------------- */

static int finish_failed(openai_session *session, buf *out, int code, const char *message) {
    session->finished = true;
    buf_clear(&session->scratch);
    openai_error_write_weir(&session->scratch, code, message);
    if (session->request.stream) {
        put_frame(session, out);
        buf_puts(out, "data: [DONE]\n\n");
    } else {
        buf_append(out, session->scratch.data ? session->scratch.data : "", session->scratch.n_bytes);
    }
    return weir_code_http_status(code);
}

static int finish_well(openai_session *session, buf *out) {
    openai_usage usage = count_usage(session);
    if (session->request.stream) {
        if (session->request.include_usage) {
            openai_write_usage_chunk(&session->scratch, &session->reply, &usage);
            put_frame(session, out);
        }
        buf_puts(out, "data: [DONE]\n\n");
        session->finished = true;
        return 200;
    }
    openai_choice *answers = calloc(session->n_choices, sizeof *answers);
    bool complete = answers != NULL;
    for (size_t i = 0; i < session->n_choices && complete; i++) {
        answers[i] = session->choices[i].answer; /* borrowed */
        complete = openai_choice_complete(&answers[i]);
    }
    if (complete) openai_write_body(out, &session->reply, answers, session->n_choices, &usage);
    free(answers);
    if (!complete) return finish_failed(session, out, WEIR_E_NOMEM, "out of memory while collecting the answer");
    session->finished = true;
    return 200;
}

/* ---- the parts of an answer ---------------------------------------------------------------------------------------------- */

static void take_part(void *user, const reply_event *part) {
    session_choice *choice = user;
    openai_session *session = choice->session;
    openai_choice *answer = &choice->answer;
    size_t index = (size_t)(choice - session->choices);
    bool call = part->kind == REPLY_CALL, reasoning = part->kind == REPLY_REASONING;
    if (call && answer->n_calls && !session->request.parallel_calls) return; /* one was asked for */
    if (!session->request.stream) {
        if (call)
            openai_choice_call(answer, &session->reply, index, part->name, part->text, part->n_bytes);
        else
            buf_append(reasoning ? &answer->reasoning : &answer->text, part->text, part->n_bytes);
        return;
    }
    if (call)
        openai_write_call_chunk(&session->scratch, &session->reply, answer, index, part->name, part->text, part->n_bytes);
    else
        openai_write_part_chunk(&session->scratch, &session->reply, answer, index, reasoning ? "reasoning_content" : "content", part->text,
                                part->n_bytes);
    put_frame(session, choice->out);
}

/* Text of the answer goes through the parser; NULL = the answer has ended. False = out of memory. */
static bool parse_part(session_choice *choice, const weir_event *event, buf *out) {
    openai_session *session = choice->session;
    choice->out = out;
    if (!event) return reply_finish(choice->parser);
    openai_choice_logprobs(&choice->answer, &session->reply, event);
    bool good = reply_push(choice->parser, event->text, event->text_bytes);
    if (session->request.stream && choice->answer.logprobs.items.n_bytes) { /* of a token whose text is held back, or is a call's */
        openai_write_part_chunk(&session->scratch, &session->reply, &choice->answer, (size_t)(choice - session->choices), "content", "", 0);
        put_frame(session, out);
    }
    return good;
}

/* ---- events -------------------------------------------------------------------------------------------------------------- */

static int end_choice(openai_session *session, size_t i, const weir_event *event, buf *out) {
    session_choice *choice = &session->choices[i];
    if (choice->parser && !parse_part(choice, NULL, out)) return finish_failed(session, out, WEIR_E_NOMEM, "out of memory while reading the answer");
    openai_choice_end(&choice->answer, event);
    choice->ended = true;
    session->n_open--;
    if (session->request.stream) {
        openai_write_final_chunk(&session->scratch, &session->reply, &choice->answer, i);
        put_frame(session, out);
    }
    return session->n_open == 0 ? finish_well(session, out) : 0;
}

int openai_session_start(openai_session *session, buf *out) {
    int status = 0;
    session->started = true;
    write_start(session, out);
    if (session->request.job.max_tokens != 0) return 0;
    for (size_t i = 0; i < session->n_choices; i++) { /* nothing to sample: every answer is complete as it is */
        weir_event end = {.type = WEIR_EVENT_END,
                          .stop_reason = WEIR_STOP_LENGTH,
                          .timings = {.n_prompt = (int32_t)prompt_of(session, i)->n_tokens}};
        status = end_choice(session, i, &end, out);
    }
    return status;
}

int openai_session_event(openai_session *session, size_t i, const weir_event *event, buf *out) {
    session_choice *choice = &session->choices[i];
    if (session->finished || choice->ended) return session->finished ? 200 : 0;
    metrics_event(session->service->metrics, &choice->clock, event, clock_now_us());
    switch (event->type) {
    case WEIR_EVENT_TOKEN:
        if (choice->parser) {
            if (!parse_part(choice, event, out)) return finish_failed(session, out, WEIR_E_NOMEM, "out of memory while reading the answer");
        } else if (session->request.stream) {
            openai_write_token_chunk(&session->scratch, &session->reply, &choice->answer, i, event);
            put_frame(session, out);
        } else {
            openai_choice_add(&choice->answer, &session->reply, event);
        }
        return 0;
    case WEIR_EVENT_END:
        return end_choice(session, i, event, out);
    case WEIR_EVENT_ERROR:
        break;
    }
    choice->ended = true;
    /* Nobody but the server itself cancels a job whose client is still there: it is about to end. */
    if (event->code == WEIR_E_CANCELLED) return finish_failed(session, out, WEIR_E_CLOSED, "the server is shutting down");
    return finish_failed(session, out, event->code, event->message);
}
