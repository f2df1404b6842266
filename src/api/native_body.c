/* llama-server's small endpoints; see native_body.h. */
#include "api/native_body.h"

#include <stdlib.h>
#include <string.h>

#include "api/openai_decode.h"
#include "api/openai_reply.h"
#include "base/error.h"
#include "base/utf8.h"

static int fail_memory(openai_error *error) {
    openai_error_add(error, 503, "out_of_memory", NULL, "out of memory while answering the request");
    return WEIR_E_NOMEM;
}

/* ---- tokens -------------------------------------------------------------------------------------------------------------- */

static bool check_id(const openai_context *context, const json_t *item, const char *param, int32_t *id, openai_error *error) {
    int64_t value;
    if (!openai_to_integer(item, &value))
        openai_error_add(error, 400, "invalid_type", param, "'%s' must be a token id, not %s", param, openai_type_name(item));
    else if (value < 0 || value >= context->n_vocab)
        openai_error_add(error, 400, "invalid_value", param, "token %lld in '%s' is not in the vocabulary (0 to %d)",
                         (long long)value, param, context->n_vocab - 1);
    else {
        *id = (int32_t)value;
        return true;
    }
    return false;
}

/* A piece as a string, or as its bytes where it is not whole code points. */
static void write_piece(buf *out, const openai_context *context, int32_t token) {
    size_t n_bytes = 0;
    const char *bytes = weir_token_bytes(context->model, token, true, &n_bytes);
    if (utf8_valid(bytes ? bytes : "", n_bytes)) {
        openai_write_string(out, bytes ? bytes : "", n_bytes);
        return;
    }
    for (size_t i = 0; i < n_bytes; i++) buf_printf(out, i ? ",%u" : "[%u", (unsigned char)bytes[i]);
    buf_putc(out, ']');
}

typedef struct token_writer {
    buf *out;
    const openai_context *context;
    bool add_special, parse_special, with_pieces;
    size_t n_written;
} token_writer;

static void write_tokens(token_writer *writer, const int32_t *tokens, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (writer->n_written++) buf_putc(writer->out, ',');
        if (writer->with_pieces) {
            buf_printf(writer->out, "{\"id\":%d,\"piece\":", tokens[i]);
            write_piece(writer->out, writer->context, tokens[i]);
            buf_putc(writer->out, '}');
        } else {
            buf_printf(writer->out, "%d", tokens[i]);
        }
    }
}

static int write_text_tokens(token_writer *writer, const json_t *text) {
    int32_t *tokens = NULL;
    size_t n = 0;
    TRY(openai_tokenize(writer->context, json_string_value(text), json_string_length(text),
                        writer->add_special && writer->n_written == 0, writer->parse_special, &tokens, &n));
    write_tokens(writer, tokens, n);
    free(tokens);
    return 0;
}

static int write_content_tokens(token_writer *writer, const json_t *content, openai_error *error) {
    if (json_is_string(content)) return write_text_tokens(writer, content);
    for (size_t i = 0; i < json_array_size(content); i++) {
        const json_t *item = json_array_get(content, i);
        char param[32];
        int32_t id;
        snprintf(param, sizeof param, "content[%zu]", i);
        if (json_is_string(item))
            TRY(write_text_tokens(writer, item));
        else if (check_id(writer->context, item, param, &id, error))
            write_tokens(writer, &id, 1);
    }
    return 0;
}

int native_tokenize(buf *out, const openai_context *context, const char *body, size_t n_bytes, openai_error *error) {
    buf tokens = BUF_INIT;
    token_writer writer = {.out = &tokens, .context = context, .parse_special = true};
    int result = 0;
    json_t *request = openai_parse_body(body, n_bytes, error);
    if (!request) return WEIR_E_INVALID;
    openai_get_bool(request, "add_special", &writer.add_special, error);
    openai_get_bool(request, "parse_special", &writer.parse_special, error);
    openai_get_bool(request, "with_pieces", &writer.with_pieces, error);
    const json_t *content = openai_member(request, "content");
    if (!content)
        openai_error_add(error, 400, "missing_required_parameter", "content", "'content' is required");
    else if (!json_is_string(content) && !json_is_array(content))
        openai_error_add(error, 400, "invalid_type", "content", "'content' must be a string or an array, not %s",
                         openai_type_name(content));
    else
        result = write_content_tokens(&writer, content, error);
    json_decref(request);
    if (result < 0 || tokens.failed) result = fail_memory(error);
    if (result == 0 && error->n_problems) result = WEIR_E_INVALID;
    if (result == 0) {
        buf_puts(out, "{\"tokens\":[");
        if (tokens.n_bytes) buf_append(out, tokens.data, tokens.n_bytes);
        buf_puts(out, "]}");
    }
    buf_free(&tokens);
    return result;
}

static int decode_ids(const openai_context *context, const json_t *request, int32_t **ids, size_t *n, openai_error *error) {
    const json_t *list = openai_get_array(request, "tokens", error);
    if (!list) {
        if (!error->n_problems) openai_error_add(error, 400, "missing_required_parameter", "tokens", "'tokens' is required");
        return WEIR_E_INVALID;
    }
    *n = json_array_size(list);
    *ids = malloc((*n + 1) * sizeof **ids);
    if (!*ids) return fail_memory(error);
    for (size_t i = 0; i < *n; i++) {
        char param[32];
        snprintf(param, sizeof param, "tokens[%zu]", i);
        check_id(context, json_array_get(list, i), param, &(*ids)[i], error);
    }
    return error->n_problems ? WEIR_E_INVALID : 0;
}

int native_detokenize(buf *out, const openai_context *context, const char *body, size_t n_bytes, openai_error *error) {
    int32_t *ids = NULL;
    size_t n = 0, text_bytes = 0;
    char *text = NULL;
    json_t *request = openai_parse_body(body, n_bytes, error);
    if (!request) return WEIR_E_INVALID;
    int result = decode_ids(context, request, &ids, &n, error);
    if (result == 0 && weir_detokenize(context->model, ids, n, true, &text, &text_bytes, NULL) < 0) result = fail_memory(error);
    if (result == 0) {
        buf_puts(out, "{\"content\":");
        openai_write_string(out, text, text_bytes);
        buf_putc(out, '}');
    }
    free(text);
    free(ids);
    json_decref(request);
    return result;
}

int native_apply_template(buf *out, const openai_context *context, const char *body, size_t n_bytes, openai_error *error) {
    openai_request request;
    char *text = NULL;
    size_t text_bytes = 0;
    int result = openai_request_decode(&request, context, OPENAI_CHAT, body, n_bytes, error);
    if (result == 0) result = openai_request_render(&request, context, &text, &text_bytes, error);
    if (result < 0 && !error->n_problems) fail_memory(error);
    if (result == 0) {
        buf_puts(out, "{\"prompt\":");
        openai_write_string(out, text, text_bytes);
        buf_putc(out, '}');
    }
    free(text);
    openai_request_free(&request);
    return result;
}

/* ---- information --------------------------------------------------------------------------------------------------------- */

static void write_token(buf *out, const char *name, const openai_context *context, int32_t token) {
    size_t n_bytes = 0;
    const char *bytes = weir_token_bytes(context->model, token, true, &n_bytes);
    buf_printf(out, ",\"%s\":", name);
    openai_write_string(out, bytes ? bytes : "", n_bytes);
}

static void write_defaults(buf *out) {
    weir_request defaults;
    weir_request_init(&defaults);
    const weir_sampling *s = &defaults.sampling;
    buf_printf(out,
               "{\"n_predict\":%d,\"temperature\":%.6g,\"top_k\":%d,\"top_p\":%.6g,\"min_p\":%.6g,\"repeat_penalty\":%.6g,"
               "\"repeat_last_n\":%d,\"frequency_penalty\":%.6g,\"presence_penalty\":%.6g,\"seed\":-1,\"stop\":[]}",
               defaults.max_tokens, (double)s->temperature, s->top_k, (double)s->top_p, (double)s->min_p,
               (double)s->repetition_penalty, s->penalty_last_n, (double)s->frequency_penalty, (double)s->presence_penalty);
}

void native_write_props(buf *out, const native_info *info) {
    const openai_context *context = info->context;
    const weir_model_info *model = weir_model_get_info(context->model);
    buf_printf(out, "{\"default_generation_settings\":{\"n_ctx\":%d,\"params\":", context->n_ctx);
    write_defaults(out);
    buf_printf(out, "},\"total_slots\":%d,\"model_alias\":", info->n_slots);
    openai_write_text(out, info->alias);
    buf_puts(out, ",\"model_path\":");
    openai_write_text(out, model->path);
    buf_puts(out, ",\"modalities\":{\"vision\":false,\"audio\":false},\"chat_template\":");
    openai_write_text(out, model->chat_template ? model->chat_template : "");
    write_token(out, "bos_token", context, weir_token_bos(context->model));
    write_token(out, "eos_token", context, weir_token_eos(context->model));
    buf_puts(out, ",\"build_info\":\"" OPENAI_FINGERPRINT "\",\"cpu_level\":");
    openai_write_text(out, model->cpu_level);
    buf_putc(out, '}');
}

static void write_slot(buf *out, const native_slot *s) {
    const int32_t n_left = s->progress.max_output - s->progress.n_output;
    buf_printf(out, ",\"id_task\":%llu,\"request_id\":", (unsigned long long)s->number);
    openai_write_text(out, s->request_id);
    buf_printf(out, ",\"seconds\":%.3f,\"n_prompt_tokens\":%d,\"next_token\":[{\"has_next_token\":%s,\"n_remain\":%d,\"n_decoded\":%d}]",
               s->seconds, s->progress.n_prompt, n_left > 0 ? "true" : "false", n_left, s->progress.n_output);
}

void native_write_slots(buf *out, const native_info *info, const native_slot *slots, size_t n, uint64_t n_running) {
    buf_putc(out, '[');
    for (int32_t i = 0; i < info->n_slots; i++) {
        const bool known = (size_t)i < n;
        buf_printf(out, "%s{\"id\":%d,\"n_ctx\":%d,\"is_processing\":%s", i ? "," : "", i, info->context->n_ctx,
                   known || (uint64_t)i < n_running ? "true" : "false");
        if (known) write_slot(out, &slots[n - 1 - (size_t)i]);
        buf_putc(out, '}');
    }
    buf_putc(out, ']');
}

void native_write_model(buf *out, const native_info *info) {
    const weir_model_info *model = weir_model_get_info(info->context->model);
    buf_puts(out, "{\"id\":");
    openai_write_text(out, info->alias);
    buf_printf(out,
               ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"weir\",\"max_model_len\":%d,\"meta\":{\"n_vocab\":%d,"
               "\"n_ctx\":%d,\"n_ctx_train\":%d,\"n_embd\":%d,\"n_params\":%llu,\"size\":%llu,\"architecture\":",
               (long long)info->started, info->context->n_ctx, model->n_vocab, info->context->n_ctx, model->n_ctx_train,
               model->d_model, (unsigned long long)model->n_params, (unsigned long long)model->weight_bytes);
    openai_write_text(out, model->architecture);
    buf_puts(out, ",\"ftype\":");
    openai_write_text(out, model->file_type);
    buf_puts(out, "}}");
}

void native_write_models(buf *out, const native_info *info) {
    buf_puts(out, "{\"object\":\"list\",\"data\":[");
    native_write_model(out, info);
    buf_puts(out, "]}");
}
