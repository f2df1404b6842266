/* llama-server's small endpoints and the list of models: a request's body in, the answer's JSON out.
 * Pure functions; they know neither connections nor jobs. Any thread. */
#ifndef WEIR_API_NATIVE_BODY_H
#define WEIR_API_NATIVE_BODY_H

#include "api/openai_request.h"

/* What the information endpoints tell of the server; constant while it runs. */
typedef struct native_info {
    const openai_context *context;
    const char *alias; /* the model's name for clients */
    int64_t started;   /* Unix seconds */
    int32_t n_slots;   /* requests that run at once */
} native_info;

/* A job that runs. */
typedef struct native_slot {
    const char *request_id;
    uint64_t number; /* of the request, as they came */
    weir_job_progress progress;
    double seconds;  /* since its request came */
} native_slot;

/* Each appends one JSON object to `out` and returns 0; or a negative code with *error filled and `out` untouched. */

/* {"content": string or array of strings and ids, "add_special", "parse_special", "with_pieces"} -> {"tokens": [...]} */
int native_tokenize(buf *out, const openai_context *context, const char *body, size_t n_bytes, openai_error *error);
/* {"tokens": [ids]} -> {"content": string}, control tokens shown; bytes that are not UTF-8 become U+FFFD. */
int native_detokenize(buf *out, const openai_context *context, const char *body, size_t n_bytes, openai_error *error);
/* A chat completion's body -> {"prompt": the conversation as the model sees it}. */
int native_apply_template(buf *out, const openai_context *context, const char *body, size_t n_bytes, openai_error *error);

void native_write_props(buf *out, const native_info *info);
/* Slots are numbers only: `n_running` of them are shown as busy, the first n with what is known of slots[n] (the newest first). */
void native_write_slots(buf *out, const native_info *info, const native_slot *slots, size_t n, uint64_t n_running);
void native_write_models(buf *out, const native_info *info);
void native_write_model(buf *out, const native_info *info);

#endif
