/* JSON text and OpenAI's error shape; see openai_json.h. */
#include "api/openai_json.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/utf8.h"

void openai_write_string(buf *out, const char *text, size_t n_bytes) {
    static const char replacement[] = "\xEF\xBF\xBD";
    size_t plain = 0; /* start of the run that is copied as it is */
    buf_putc(out, '"');
    for (size_t i = 0; i < n_bytes;) {
        unsigned char c = (unsigned char)text[i];
        uint32_t code_point = c;
        size_t length = c < 0x80 ? 1 : utf8_decode(text + i, n_bytes - i, &code_point);
        bool ill_formed = code_point == UTF8_REPLACEMENT && !(length == 3 && memcmp(text + i, replacement, 3) == 0);
        bool escaped = c < 0x20 || c == 0x7F || c == '"' || c == '\\';
        if (!ill_formed && !escaped) {
            i += length;
            continue;
        }
        buf_append(out, text + plain, i - plain);
        switch (ill_formed ? 0x100 : c) {
        case 0x100:
            buf_puts(out, replacement);
            break;
        case '"':
            buf_puts(out, "\\\"");
            break;
        case '\\':
            buf_puts(out, "\\\\");
            break;
        case '\n':
            buf_puts(out, "\\n");
            break;
        case '\r':
            buf_puts(out, "\\r");
            break;
        case '\t':
            buf_puts(out, "\\t");
            break;
        case '\b':
            buf_puts(out, "\\b");
            break;
        case '\f':
            buf_puts(out, "\\f");
            break;
        default:
            buf_printf(out, "\\u%04x", c);
        }
        i += length;
        plain = i;
    }
    buf_append(out, text + plain, n_bytes - plain);
    buf_putc(out, '"');
}

void openai_write_text(buf *out, const char *text) {
    if (text)
        openai_write_string(out, text, strlen(text));
    else
        buf_puts(out, "null");
}

void openai_write_number(buf *out, double value, int digits) {
    buf_printf(out, "%.*f", digits, isfinite(value) ? value : 0.0);
}

void openai_write_logprob(buf *out, float logprob) {
    if (!(logprob > -9999.0f)) logprob = -9999.0f;
    if (logprob > 0.0f) logprob = 0.0f; /* a rounding error over certainty */
    buf_printf(out, "%.6g", (double)logprob);
}

static const struct {
    int status;
    const char *type;
} error_types[] = {
    {400, "invalid_request_error"}, {401, "authentication_error"}, {403, "permission_error"},    {404, "not_found_error"},
    {429, "rate_limit_error"},      {500, "server_error"},         {501, "not_supported_error"}, {503, "unavailable_error"},
};

const char *openai_error_type(int status) {
    for (size_t i = 0; i < sizeof error_types / sizeof error_types[0]; i++)
        if (error_types[i].status == status) return error_types[i].type;
    return status >= 500 ? "server_error" : "invalid_request_error";
}

static const struct {
    int weir_code;
    const char *code;
} error_codes[] = {
    {WEIR_E_NOMEM, "out_of_memory"},   {WEIR_E_UNSUPPORTED, "not_supported"},
    {WEIR_E_INVALID, "invalid_value"}, {WEIR_E_CONTEXT, "context_length_exceeded"},
    {WEIR_E_QUEUE_FULL, "queue_full"}, {WEIR_E_CANCELLED, "cancelled"},
    {WEIR_E_TIMEOUT, "timeout"},       {WEIR_E_CLOSED, "shutting_down"},
    {WEIR_E_LIMIT, "limit_exceeded"},
};

const char *openai_error_code(int code) {
    for (size_t i = 0; i < sizeof error_codes / sizeof error_codes[0]; i++)
        if (error_codes[i].weir_code == code) return error_codes[i].code;
    return "internal_error";
}

void openai_error_add(openai_error *error, int status, const char *code, const char *param, const char *format, ...) {
    if (!error->status) {
        error->status = status;
        error->type = openai_error_type(status);
    }
    if (error->n_problems == OPENAI_MAX_PROBLEMS) return;
    openai_problem *problem = &error->problems[error->n_problems++];
    problem->code = code;
    snprintf(problem->param, sizeof problem->param, "%s", param ? param : "");
    va_list args;
    va_start(args, format);
    vsnprintf(problem->message, sizeof problem->message, format, args);
    va_end(args);
    problem->message[utf8_complete_prefix(problem->message, strlen(problem->message))] = 0;
}

void openai_error_add_weir(openai_error *error, const weir_error *cause) {
    openai_error_add(error, weir_code_http_status(cause->code), openai_error_code(cause->code), NULL, "%s", cause->message);
    if (cause->code == WEIR_E_CONTEXT) error->type = "exceed_context_size_error";
}

static void write_member(buf *out, const char *name, const char *text) {
    buf_printf(out, "\"%s\":", name);
    openai_write_text(out, text);
}

static const char *or_null(const char *text) {
    return text[0] ? text : NULL;
}

void openai_error_write(buf *out, const openai_error *error) {
    static const openai_problem unknown = {.code = "internal_error", .message = "internal error"};
    const openai_problem *first = error->n_problems ? &error->problems[0] : &unknown;
    char message[sizeof first->message * OPENAI_MAX_PROBLEMS + 2 * OPENAI_MAX_PROBLEMS];
    size_t length = 0;
    for (size_t i = 0; i < error->n_problems; i++)
        length +=
            (size_t)snprintf(message + length, sizeof message - length, "%s%s", i ? "; " : "", error->problems[i].message);
    buf_puts(out, "{\"error\":{");
    write_member(out, "message", error->n_problems ? message : unknown.message);
    buf_putc(out, ',');
    write_member(out, "type", error->type ? error->type : "server_error");
    buf_putc(out, ',');
    write_member(out, "param", or_null(first->param));
    buf_putc(out, ',');
    write_member(out, "code", first->code);
    if (error->n_ctx > 0)
        buf_printf(out, ",\"n_prompt_tokens\":%lld,\"n_ctx\":%lld", (long long)error->n_prompt_tokens, (long long)error->n_ctx);
    for (size_t i = 0; error->n_problems > 1 && i < error->n_problems; i++) {
        buf_puts(out, i ? "},{" : ",\"errors\":[{");
        write_member(out, "message", error->problems[i].message);
        buf_putc(out, ',');
        write_member(out, "param", or_null(error->problems[i].param));
        buf_putc(out, ',');
        write_member(out, "code", error->problems[i].code);
    }
    buf_puts(out, error->n_problems > 1 ? "}]}}" : "}}");
}

void openai_error_write_weir(buf *out, int code, const char *message) {
    buf_puts(out, "{\"error\":{");
    write_member(out, "message", message ? message : weir_code_text(code));
    buf_putc(out, ',');
    write_member(out, "type", openai_error_type(weir_code_http_status(code)));
    buf_puts(out, ",\"param\":null,");
    write_member(out, "code", openai_error_code(code));
    buf_puts(out, "}}");
}
