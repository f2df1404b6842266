/* One request of the OpenAI surface, decoded and validated: chat completions and completions.
 * Owns the parsed body and everything made from it. Knows the model's vocabulary and chat template, but neither connections nor
 * jobs. A request is owned by one thread; decoding is a pure function of the body and the context. */
#ifndef WEIR_API_OPENAI_REQUEST_H
#define WEIR_API_OPENAI_REQUEST_H

#include <jansson.h>

#include "api/openai_json.h"
#include "base/arena.h"
#include "weir/weir.h"

typedef enum openai_endpoint { OPENAI_CHAT, OPENAI_COMPLETION } openai_endpoint;

/* How the chat template wants a message's text; found out once by openai_context_init. */
typedef enum openai_content_form {
    OPENAI_CONTENT_TEXT,   /* a string; lists of parts are joined */
    OPENAI_CONTENT_EITHER, /* as it came */
    OPENAI_CONTENT_PARTS,  /* a list of parts; strings are wrapped */
} openai_content_form;

/* What decoding must know of the model; constant after openai_context_init. */
typedef struct openai_context {
    const weir_model *model;
    const weir_chat *chat; /* NULL when the model has no chat template */
    const char *bos;       /* text of the BOS token, or "" */
    size_t bos_bytes;
    int32_t n_vocab, n_ctx;
    size_t longest_token; /* bytes of the vocabulary's longest token, at least 1 */
    openai_content_form content_form;
    weir_grammars *grammars; /* set by the owner, who closes it; NULL = answers cannot be given a shape */
    bool knows_developer; /* the template mentions the role; otherwise it is given as "system" */
} openai_context;

/* Tries the template with both forms of content. `chat` may be NULL. WEIR_E_NOMEM. */
int openai_context_init(openai_context *context, const weir_model *model, const weir_chat *chat, int32_t n_ctx);

typedef struct openai_prompt {
    const json_t *source; /* string, or array of ids and strings; NULL for chat */
    char *text;           /* what was tokenised; NULL for token arrays unless echoed */
    size_t text_bytes;
    int32_t *tokens;
    size_t n_tokens;
} openai_prompt;

typedef struct openai_request {
    openai_endpoint endpoint;
    arena memory;     /* prompts' array, stop strings, logit biases */
    json_t *body;     /* the parsed body; strings below point into it */
    json_t *messages; /* chat: as the template wants them; NULL otherwise */
    char *prefill;    /* chat: text of a trailing assistant message that the answer continues, or NULL; malloc */
    weir_request job; /* tokens, notify and request_id are not set */
    openai_prompt *prompts;
    size_t n_prompts; /* 1 for chat */
    int32_t n;        /* choices for each prompt */
    int32_t n_top;    /* alternatives to show with each token; -1 = no log probabilities */
    bool stream, include_usage, echo;
    /* chat: what is looked for in the answer */
    const json_t *tools;       /* within body; NULL = no calls */
    bool must_call;            /* the answer is one call, as plain JSON (job.grammar) */
    bool parallel_calls;
    bool reasoning, in_reasoning; /* reasoning is separated; the prompt has opened it */
    bool seeded; /* the client gave a seed: equal prompts then get equal answers */
} openai_request;

/* Most choices (prompts x n) that one request may ask for. */
#define OPENAI_MAX_CHOICES 512

/* Decodes body[n_bytes]. Unknown members are ignored and null stands for absent. On failure returns a negative code, and *error
 * holds all that is wrong. In both cases the caller calls openai_request_free. */
int openai_request_decode(openai_request *out, const openai_context *context, openai_endpoint endpoint, const char *body,
                          size_t n_bytes, openai_error *error);
/* Renders the conversation and tokenises the prompts; refuses those that do not fit in the context. Same results. */
int openai_request_tokenize(openai_request *request, const openai_context *context, openai_error *error);
/* The conversation as text, for openai_request_tokenize and /apply-template. The caller frees *text with free(). */
int openai_request_render(const openai_request *request, const openai_context *context, char **text, size_t *n_bytes,
                          openai_error *error);
void openai_request_free(openai_request *request);

/* Parses body[n_bytes] into an object; NULL, with *error filled, when it is none. The caller owns the reference. */
json_t *openai_parse_body(const char *body, size_t n_bytes, openai_error *error);
/* Token ids of text[n_bytes], a malloc'ed array; WEIR_E_NOMEM. A text that begins with the BOS token's own text gets no second.
 */
int openai_tokenize(const openai_context *context, const char *text, size_t n_bytes, bool add_special, bool parse_special,
                    int32_t **tokens, size_t *n_tokens);

#endif
