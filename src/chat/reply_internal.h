/* Between reply.c, which cuts an answer into blocks, and reply_calls.c, which reads the calls in a block. */
#ifndef WEIR_CHAT_REPLY_INTERNAL_H
#define WEIR_CHAT_REPLY_INTERNAL_H

#include "base/buf.h"
#include "chat/reply.h"

typedef enum reply_body {
    BODY_NONE,
    BODY_SKIP,      /* a marker without meaning for the reader */
    BODY_REASONING,
    BODY_CHANNEL,   /* gpt-oss: the header of a message */
    BODY_ARGUMENTS, /* the arguments of the call that the header named */
    BODY_JSON,      /* a call as an object, or several in an array */
    BODY_TAGGED,    /* such JSON, or Qwen3-Coder's or GLM's tags */
    BODY_FUNCTION,  /* NAME>{...}, or NAME> and <parameter=KEY>VALUE</parameter> */
    BODY_MISTRAL,   /* such an array, or NAME[CALL_ID]ID[ARGS]{...} */
    BODY_DEEPSEEK,
    BODY_KIMI,
    BODY_INVOKE,    /* <invoke name="..."><parameter name="...">VALUE</parameter></invoke> */
} reply_body;

static inline bool reply_is_space(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }

/* The calls of one block: names and arguments one after another, each with a NUL. */
typedef struct call_list {
    buf bytes;
    size_t n;
} call_list;

/* Reads the calls of a block; `name` is that of BODY_ARGUMENTS. False, and nothing of the list is to be used, when the body is not
 * well-formed or names a function that is not among the tools. */
bool reply_read_calls(call_list *out, reply_body body, const char *text, size_t n_bytes, const char *name, const json_t *tools);

#endif
