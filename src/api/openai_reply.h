/* What the OpenAI surface answers: events of jobs turned into chunks of a stream or into one final object.
 * Pure functions over buffers: they write JSON without SSE framing, and know neither connections nor when they are called.
 * A reply and its choices are owned by one thread. */
#ifndef WEIR_API_OPENAI_REPLY_H
#define WEIR_API_OPENAI_REPLY_H

#include "api/openai_json.h"
#include "api/openai_request.h"
#include "weir/weir.h"

#define OPENAI_FINGERPRINT "weir-" WEIR_VERSION

/* What all chunks of a reply share. */
typedef struct openai_reply {
    openai_endpoint endpoint;
    char id[48];               /* "chatcmpl-..." or "cmpl-..." */
    int64_t created;           /* Unix seconds */
    const char *model;         /* the name shown to clients; outlives the reply */
    const weir_model *weights; /* for the bytes of tokens */
    int32_t n_top;             /* alternatives with each token; -1 = no log probabilities */
    bool include_usage;        /* a stream then has "usage":null in every chunk but the last */
} openai_reply;

/* Log probabilities as JSON array items: chat uses `items` alone, completions all four. */
typedef struct openai_logprobs {
    buf items;   /* chat: objects; completions: the tokens' texts */
    buf values;  /* completions: token_logprobs */
    buf tops;    /* completions: top_logprobs */
    buf offsets; /* completions: text_offset */
} openai_logprobs;

typedef struct openai_choice {
    buf text;                  /* answer so far; not used when streaming */
    buf reasoning;             /* chat: as `text` */
    buf calls;                 /* chat: tool calls as JSON array items; not used when streaming */
    size_t n_calls;
    openai_logprobs logprobs;  /* as `text`; when streaming those of one chunk */
    size_t n_code_points;      /* of the text so far, echoed prompt included: where the next token starts */
    const char *finish_reason; /* static; NULL until the end */
    weir_timings timings;
} openai_choice;

typedef struct openai_usage {
    int64_t prompt_tokens, completion_tokens, cached_tokens;
} openai_usage;

/* A fresh id, the present time. WEIR_E_INTERNAL when the system gives no random numbers. */
int openai_reply_init(openai_reply *reply, const openai_request *request, const weir_model *weights, const char *model);
void openai_choice_free(openai_choice *choice);

/* Streaming; each appends one JSON object to `out`. */
void openai_write_role_chunk(buf *out, const openai_reply *reply, size_t index);
/* An echoed prompt (completions). */
void openai_write_echo_chunk(buf *out, const openai_reply *reply, openai_choice *choice, size_t index, const char *text,
                             size_t n_bytes);
void openai_write_token_chunk(buf *out, const openai_reply *reply, openai_choice *choice, size_t index,
                              const weir_event *event);
/* Chat: a piece of `member`, "content" or "reasoning_content"; with the log probabilities that openai_choice_logprobs collected. */
void openai_write_part_chunk(buf *out, const openai_reply *reply, openai_choice *choice, size_t index, const char *member,
                             const char *text, size_t n_bytes);
/* Chat: a whole tool call; counts it. */
void openai_write_call_chunk(buf *out, const openai_reply *reply, openai_choice *choice, size_t index, const char *name,
                             const char *arguments, size_t n_bytes);
/* The choice must have ended (openai_choice_end). */
void openai_write_final_chunk(buf *out, const openai_reply *reply, const openai_choice *choice, size_t index);
void openai_write_usage_chunk(buf *out, const openai_reply *reply, const openai_usage *usage);

/* Not streaming: collect, then write all at once. */
void openai_choice_echo(openai_choice *choice, const char *text, size_t n_bytes);
void openai_choice_add(openai_choice *choice, const openai_reply *reply, const weir_event *event);
void openai_write_body(buf *out, const openai_reply *reply, const openai_choice *choices, size_t n_choices,
                       const openai_usage *usage);

/* Chat: adds a tool call. */
void openai_choice_call(openai_choice *choice, const openai_reply *reply, size_t index, const char *name, const char *arguments,
                        size_t n_bytes);

/* Both: collects the log probabilities of a token event whose text goes its own way. */
void openai_choice_logprobs(openai_choice *choice, const openai_reply *reply, const weir_event *event);
/* Both: takes finish_reason and timings from an END event. */
void openai_choice_end(openai_choice *choice, const weir_event *event);
/* False when memory ran out while collecting. */
bool openai_choice_complete(const openai_choice *choice);

#endif
