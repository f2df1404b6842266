/* What a model's answer is made of: text, reasoning, tool calls. An incremental parser for the notations that chat templates teach
 * (Hermes and Qwen, Qwen3-Coder, GLM, Llama 3, functionary, Mistral, DeepSeek, gpt-oss, Kimi, MiniMax, Command R, Granite, plain JSON):
 * pieces of text go in, events come out, in time linear in the text. A call that is not well-formed comes out as the text that it is.
 * Pure: knows no models, jobs or wire formats. Owned by one thread. */
#ifndef WEIR_CHAT_REPLY_H
#define WEIR_CHAT_REPLY_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

typedef struct reply_parser reply_parser;

typedef enum reply_kind { REPLY_TEXT, REPLY_REASONING, REPLY_CALL } reply_kind;

typedef struct reply_event {
    reply_kind kind;
    const char *text; /* [n_bytes], not empty; of a call: its arguments, a JSON object */
    size_t n_bytes;
    const char *name; /* of the function; NULL for text */
} reply_event;

/* What is pointed to is valid during the call only. */
typedef void (*reply_fn)(void *user, const reply_event *event);

typedef struct reply_options {
    const char *chat_template; /* what it contains says which notations may occur; NULL = none but plain JSON */
    const json_t *tools;       /* OpenAI's list, kept by the caller; NULL = no calls are looked for */
    bool reasoning;            /* separate reasoning from text */
    bool in_reasoning;         /* the prompt has opened a block of reasoning */
    bool only_json;            /* the answer is one call as plain JSON: {"name", "arguments"} */
} reply_options;

/* Whether the template knows of reasoning at all. */
bool reply_knows_reasoning(const char *chat_template);
/* NULL when memory is out. */
reply_parser *reply_open(const reply_options *options, reply_fn emit, void *user);
void reply_close(reply_parser **p);
/* More of the answer. False when memory ran out: the answer is then incomplete. */
bool reply_push(reply_parser *p, const char *text, size_t n_bytes);
/* The answer has ended. */
bool reply_finish(reply_parser *p);

#endif
