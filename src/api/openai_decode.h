/* Reading members of a JSON object with their types and ranges checked; every problem is added to the decoder's error.
 * Internal to the OpenAI surface and the native endpoints. Owned by one thread. */
#ifndef WEIR_API_OPENAI_DECODE_H
#define WEIR_API_OPENAI_DECODE_H

#include <jansson.h>
#include <stdbool.h>

#include "api/openai_json.h"
#include "weir/weir.h"

/* The member, or NULL when it is absent or null. */
const json_t *openai_member(const json_t *object, const char *name);
/* "string", "integer", "number", "array", ... with its article, for messages. */
const char *openai_type_name(const json_t *value);

/* Each leaves *out untouched and returns false when the member is absent, null or wrong; wrong ones are added to *error. */
bool openai_get_bool(const json_t *object, const char *name, bool *out, openai_error *error);
/* min <= value <= max. Integral reals such as 16.0 are accepted. */
bool openai_get_integer(const json_t *object, const char *name, int64_t min, int64_t max, int64_t *out, openai_error *error);
/* min <= value <= max, or min < value where `above` is set. */
bool openai_get_number(const json_t *object, const char *name, double min, double max, bool above, double *out,
                       openai_error *error);
/* NULL when absent, null or no string. */
const json_t *openai_get_string(const json_t *object, const char *name, openai_error *error);
const json_t *openai_get_array(const json_t *object, const char *name, openai_error *error);
const json_t *openai_get_object(const json_t *object, const char *name, openai_error *error);
/* An integer, or an integral real that an integer can hold. */
bool openai_to_integer(const json_t *value, int64_t *out);

/* chat half of openai_request_decode (openai_chat.c) */
struct openai_request;
struct openai_context;
int openai_chat_decode(struct openai_request *out, const struct openai_context *context, openai_error *error);
/* The shape of the answer: compiles job.grammar (openai_format.c). Problems are added; WEIR_E_NOMEM. */
int openai_format_decode(struct openai_request *out, const struct openai_context *context, openai_error *error);
/* Compiles job.grammar; a failure is a problem of `param`. WEIR_E_NOMEM. */
int openai_compile_grammar(struct openai_request *out, const struct openai_context *context, weir_grammar_kind kind, const char *text,
                           size_t n_bytes, const char *param, openai_error *error);
/* tools, tool_choice, parallel_tool_calls, reasoning_format (openai_tools.c); may compile job.grammar. WEIR_E_NOMEM. */
int openai_tools_decode(struct openai_request *out, const struct openai_context *context, openai_error *error);
/* dry_sequence_breakers and samplers (openai_sampling.c) */
int openai_sampling_decode(struct openai_request *out, openai_error *error);

#endif
