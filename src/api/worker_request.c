/* See worker_request.h. Two stages: the types of the members (422; 500 for operations), then the ranges of the values, reported all
 * together (400). */
#include "api/worker_request.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "api/worker_wire.h"
#include "base/utf8.h"

enum { MAX_PROMPT_CHARACTERS = 32768, MAX_STOP_BYTES = 100, MAX_TOKENS_PLAIN = 2048, MAX_TOKENS_OPERATION = 4096, INFER_MAX_TOKENS = 256 };

/* What the first stage yields besides the request. */
typedef struct values {
    uint32_t max_tokens, top_k;
    float temperature, top_p, repetition_penalty, min_p;
    uint64_t seed;
    const json_t *stop; /* array of strings, or NULL */
} values;

typedef struct decoder {
    worker_request *request;
    worker_refusal *refusal;
    values v;
    bool has_big_seed; /* a seed that jansson's signed integers cannot hold */
    uint64_t big_seed;
} decoder;

/* ---- refusals --------------------------------------------------------------------------------------------------------- */

static int refuse(decoder *d, int status, const char *beginning, const char *format, ...) __attribute__((format(printf, 4, 5)));
static int refuse(decoder *d, int status, const char *beginning, const char *format, ...) {
    char detail[512];
    va_list args;
    va_start(args, format);
    vsnprintf(detail, sizeof detail, format, args);
    va_end(args);
    d->refusal->status = status;
    buf_printf(&d->refusal->body, "%s: ", beginning);
    /* The parser quotes what it saw, which may be cut or not be UTF-8 at all. */
    for (size_t i = 0, n = utf8_complete_prefix(detail, strlen(detail)); i < n;) {
        uint32_t code_point;
        char bytes[4];
        i += utf8_decode(detail + i, n - i, &code_point);
        buf_append(&d->refusal->body, bytes, utf8_encode(code_point, bytes));
    }
    return WEIR_E_INVALID;
}

#define REFUSE_TYPE(d, ...)                                                                                                      \
    ((d)->request->form == WORKER_OPERATION                                                                                      \
         ? refuse((d), 500, "Failed to parse operation", __VA_ARGS__)                                                            \
         : refuse((d), 422, "Failed to deserialize the JSON body into the target type", __VA_ARGS__))

/* ---- stage 1: types --------------------------------------------------------------------------------------------------- */

static const char *type_name(const json_t *v) {
    switch (json_typeof(v)) {
    case JSON_OBJECT: return "map";
    case JSON_ARRAY: return "sequence";
    case JSON_STRING: return "string";
    case JSON_INTEGER: return "integer";
    case JSON_REAL: return "floating point number";
    case JSON_TRUE:
    case JSON_FALSE: return "boolean";
    default: return "null";
    }
}

typedef enum member_type { MEMBER_U32, MEMBER_U64, MEMBER_F32, MEMBER_STRINGS, MEMBER_BOOL } member_type;

enum { NULLABLE = 1, REQUIRED = 2 };

static int read_member(decoder *d, const char *name, const json_t *v, member_type type, void *out) {
    json_int_t whole = json_integer_value(v);
    switch (type) {
    case MEMBER_U32:
        if (!json_is_integer(v)) return REFUSE_TYPE(d, "%s: invalid type: %s, expected u32", name, type_name(v));
        if (whole < 0 || whole > (json_int_t)UINT32_MAX)
            return REFUSE_TYPE(d, "%s: invalid value: integer `%" JSON_INTEGER_FORMAT "`, expected u32", name, whole);
        *(uint32_t *)out = (uint32_t)whole;
        return 0;
    case MEMBER_U64:
        if (d->has_big_seed) {
            *(uint64_t *)out = d->big_seed;
            return 0;
        }
        if (!json_is_integer(v)) return REFUSE_TYPE(d, "%s: invalid type: %s, expected u64", name, type_name(v));
        if (whole < 0) return REFUSE_TYPE(d, "%s: invalid value: integer `%" JSON_INTEGER_FORMAT "`, expected u64", name, whole);
        *(uint64_t *)out = (uint64_t)whole;
        return 0;
    case MEMBER_F32:
        if (!json_is_number(v)) return REFUSE_TYPE(d, "%s: invalid type: %s, expected f32", name, type_name(v));
        *(float *)out = (float)json_number_value(v);
        return 0;
    case MEMBER_BOOL:
        if (!json_is_boolean(v)) return REFUSE_TYPE(d, "%s: invalid type: %s, expected a boolean", name, type_name(v));
        *(bool *)out = json_is_true(v);
        return 0;
    case MEMBER_STRINGS:
        if (!json_is_array(v)) return REFUSE_TYPE(d, "%s: invalid type: %s, expected a sequence", name, type_name(v));
        for (size_t i = 0; i < json_array_size(v); i++) {
            const json_t *item = json_array_get(v, i);
            if (!json_is_string(item))
                return REFUSE_TYPE(d, "%s[%zu]: invalid type: %s, expected a string", name, i, type_name(item));
            if (strlen(json_string_value(item)) != json_string_length(item))
                return REFUSE_TYPE(d, "%s[%zu]: invalid value: a string with U+0000", name, i);
        }
        *(const json_t **)out = v;
        return 0;
    }
    return 0;
}

static int read_string(decoder *d, const char *name, bool required, const char **text, size_t *n_bytes) {
    const json_t *v = json_object_get(d->request->body, name);
    if (v == NULL) return required ? REFUSE_TYPE(d, "missing field `%s`", name) : 0;
    if (!json_is_string(v)) return REFUSE_TYPE(d, "%s: invalid type: %s, expected a string", name, type_name(v));
    *text = json_string_value(v);
    if (n_bytes) *n_bytes = json_string_length(v);
    return 0;
}

static int read_members(decoder *d) {
    worker_request *r = d->request;
    const bool operation = r->form == WORKER_OPERATION, infer = r->form == WORKER_INFER;
    const struct {
        const char *name;
        member_type type;
        unsigned rules;
        void *out;
    } members[] = {
        {"max_tokens", MEMBER_U32, infer ? 0 : REQUIRED, &d->v.max_tokens},
        {"temperature", MEMBER_F32, operation ? REQUIRED : 0, &d->v.temperature},
        {"top_p", MEMBER_F32, operation ? NULLABLE : 0, &d->v.top_p},
        {"repetition_penalty", MEMBER_F32, 0, &d->v.repetition_penalty},
        {"stop", MEMBER_STRINGS, 0, &d->v.stop},
        {"min_p", MEMBER_F32, 0, &d->v.min_p},
        {"top_k", MEMBER_U32, operation ? NULLABLE : 0, &d->v.top_k},
        {"seed", MEMBER_U64, NULLABLE, &d->v.seed},
        {infer ? "stream" : NULL, MEMBER_BOOL, 0, &r->stream},
    };
    if (r->form == WORKER_SINGLE && read_string(d, "job_id", true, &r->job_id, NULL) < 0) return WEIR_E_INVALID;
    if (read_string(d, "prompt", true, &r->prompt, &r->prompt_bytes) < 0) return WEIR_E_INVALID;
    for (size_t i = 0; i < sizeof members / sizeof members[0]; i++) {
        const json_t *v = members[i].name ? json_object_get(r->body, members[i].name) : NULL;
        if (v == NULL || (json_is_null(v) && (members[i].rules & NULLABLE))) {
            if (v == NULL && (members[i].rules & REQUIRED)) return REFUSE_TYPE(d, "missing field `%s`", members[i].name);
            continue;
        }
        if (read_member(d, members[i].name, v, members[i].type, members[i].out) < 0) return WEIR_E_INVALID;
    }
    return 0;
}

/* ---- stage 2: ranges -------------------------------------------------------------------------------------------------- */

static void report(decoder *d, const char *field, const char *constraint, const char *value, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
static void report(decoder *d, const char *field, const char *constraint, const char *value, const char *format, ...) {
    char message[256];
    buf *out = &d->refusal->body;
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    buf_puts(out, out->n_bytes == 0 ? "{\"errors\":[" : ",");
    buf_printf(out, "{\"field\":\"%s\",\"constraint\":\"%s\",\"message\":\"%s\"", field, constraint, message);
    if (value) buf_printf(out, ",\"value\":\"%s\"", value);
    buf_putc(out, '}');
    d->refusal->status = 400;
    d->refusal->json = true;
}

static void check_float(decoder *d, const char *field, float value, int most) {
    char constraint[32], text[WORKER_FLOAT_BYTES];
    snprintf(constraint, sizeof constraint, "range(0.0..=%d.0)", most);
    worker_format_float(text, value);
    if (value < 0) report(d, field, constraint, text, "%s must be at least 0.0 (got %s)", field, text);
    else if (!(value <= (float)most)) report(d, field, constraint, text, "%s must be at most %d.0 (got %s)", field, most, text);
}

static void check_stops(decoder *d) {
    char text[32];
    size_t n = json_array_size(d->v.stop);
    snprintf(text, sizeof text, "%zu", n);
    if (n > WORKER_MAX_STOPS) report(d, "stop", "max_count(4)", text, "stop must have at most 4 sequences (got %zu)", n);
    for (size_t i = 0; i < n; i++) {
        size_t n_bytes = json_string_length(json_array_get(d->v.stop, i));
        if (n_bytes == 0) report(d, "stop", "non_empty", NULL, "stop sequence %zu must not be empty", i);
        else if (n_bytes > MAX_STOP_BYTES)
            report(d, "stop", "max_length(100)", NULL, "stop sequence %zu must be at most 100 characters (got %zu)", i, n_bytes);
    }
}

static void check_ranges(decoder *d) {
    const worker_request *r = d->request;
    const unsigned most_tokens = r->form == WORKER_OPERATION ? MAX_TOKENS_OPERATION : MAX_TOKENS_PLAIN;
    char constraint[32], text[32];
    if (r->job_id && *r->job_id == '\0') report(d, "job_id", "non_empty", "", "job_id must not be empty");
    size_t n = utf8_count(r->prompt, r->prompt_bytes);
    if (n == 0) report(d, "prompt", "length(1..=32768)", NULL, "prompt must not be empty");
    if (n > MAX_PROMPT_CHARACTERS)
        report(d, "prompt", "length(1..=32768)", NULL, "prompt must be at most 32768 characters (got %zu)", n);
    snprintf(constraint, sizeof constraint, "range(1..=%u)", most_tokens);
    snprintf(text, sizeof text, "%" PRIu32, d->v.max_tokens);
    if (d->v.max_tokens < 1) report(d, "max_tokens", constraint, text, "max_tokens must be at least 1");
    if (d->v.max_tokens > most_tokens) report(d, "max_tokens", constraint, text, "max_tokens must be at most %u (got %s)", most_tokens, text);
    check_float(d, "temperature", d->v.temperature, 2);
    check_float(d, "top_p", d->v.top_p, 1);
    check_float(d, "repetition_penalty", d->v.repetition_penalty, 2);
    check_stops(d);
    check_float(d, "min_p", d->v.min_p, 1);
    if (d->refusal->body.n_bytes > 0) buf_puts(&d->refusal->body, "]}");
}

/* ---- JSON ------------------------------------------------------------------------------------------------------------- */

/* jansson refuses integers beyond 2^63 - 1, the contract knows seeds up to 2^64 - 1 and lets unknown members be anything: writes the
 * text again with such integers as reals, and the one that is the seed of the outermost object as 0, its value kept in the decoder. */
static void write_without_big_integers(decoder *d, const char *text, size_t n_bytes, buf *out) {
    int depth = 0;
    size_t key_at = 0, key_bytes = 0; /* the last string */
    for (size_t i = 0; i < n_bytes;) {
        size_t from = i;
        if (text[i] == '"') {
            for (i++; i < n_bytes && text[i] != '"'; i++)
                if (text[i] == '\\') i++;
            if (i < n_bytes) i++;
            if (i > n_bytes) i = n_bytes;
            key_at = from, key_bytes = i - from;
        } else if (isdigit((unsigned char)text[i])) {
            bool whole = true, negative = from > 0 && text[from - 1] == '-';
            for (; i < n_bytes && (isdigit((unsigned char)text[i]) || memchr(".eE+-", text[i], 5)); i++) whole &= isdigit((unsigned char)text[i]) != 0;
            char digits[24];
            if (whole && i - from >= 19) {
                bool seed = depth == 1 && !negative && i - from <= 20 && key_bytes == 6 && memcmp(text + key_at, "\"seed\"", 6) == 0;
                snprintf(digits, sizeof digits, "%.*s", (int)(i - from < 20 ? i - from : 20), text + from);
                errno = 0;
                uint64_t value = strtoull(digits, NULL, 10);
                if (seed && errno == 0) {
                    d->has_big_seed = true;
                    d->big_seed = value;
                    buf_putc(out, '0');
                } else {
                    buf_append(out, text + from, i - from);
                    buf_puts(out, "e0");
                }
                continue;
            }
        } else {
            depth += (text[i] == '{' || text[i] == '[') - (text[i] == '}' || text[i] == ']');
            if (text[i] == ',' || text[i] == '{' || text[i] == '[') key_bytes = 0;
            i++;
        }
        buf_append(out, text + from, i - from);
    }
}

static int parse(decoder *d, const char *body, size_t n_bytes) {
    const size_t flags = JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DECODE_ANY;
    json_error_t error;
    json_t *v = json_loadb(body, n_bytes, flags, &error);
    if (v == NULL && json_error_code(&error) == json_error_numeric_overflow) {
        buf again = BUF_INIT;
        write_without_big_integers(d, body, n_bytes, &again);
        if (!again.failed) v = json_loadb(again.data, again.n_bytes, flags, &error);
        buf_free(&again);
    }
    d->request->body = v;
    if (v == NULL && json_error_code(&error) == json_error_out_of_memory) {
        d->refusal->status = 503;
        return WEIR_E_INVALID;
    }
    if (v == NULL && json_error_code(&error) == json_error_duplicate_key)
        return refuse(d, 422, "Failed to deserialize the JSON body into the target type", "%s at line %d column %d", error.text, error.line, error.column);
    if (v == NULL)
        return refuse(d, 400, "Failed to parse the request body as JSON", "%s at line %d column %d", error.text, error.line, error.column);
    if (!json_is_object(v))
        return refuse(d, 422, "Failed to deserialize the JSON body into the target type", "invalid type: %s, expected an object", type_name(v));
    return 0;
}

/* ---- forms ------------------------------------------------------------------------------------------------------------ */

/* `operation` says what the body is; the worker serves one. */
static int check_operation(decoder *d) {
    static const char *const others[] = {
        "status", "hive_list", "hive_get", "hive_status", "hive_start", "hive_stop", "hive_install", "hive_uninstall", "hive_refresh_capabilities",
        "hive_check", "worker_spawn", "worker_list", "worker_get", "worker_delete", "worker_process_list", "worker_process_get",
        "worker_process_delete", "active_worker_list", "active_worker_get", "active_worker_retire", "model_download", "model_list", "model_get",
        "model_delete", "model_load", "model_unload",
    };
    const char *name = NULL;
    size_t n_bytes = 0;
    if (read_string(d, "operation", true, &name, &n_bytes) < 0) return WEIR_E_INVALID;
    if (strcmp(name, "infer") == 0) return 0;
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        if (strcmp(name, others[i]) == 0) return refuse(d, 500, "Unsupported operation for worker", "%s", name);
    int shown = (int)utf8_complete_prefix(name, n_bytes < 100 ? n_bytes : 100);
    return REFUSE_TYPE(d, "unknown variant `%.*s`, expected `infer`", shown, name);
}

static void fill_job(decoder *d) {
    worker_request *r = d->request;
    weir_request_init(&r->job);
    r->job.max_tokens = (int32_t)d->v.max_tokens;
    r->job.sampling.temperature = d->v.temperature;
    r->job.sampling.top_k = d->v.top_k > INT32_MAX ? INT32_MAX : (int32_t)d->v.top_k;
    r->job.sampling.top_p = d->v.top_p;
    r->job.sampling.min_p = d->v.min_p;
    r->job.sampling.repetition_penalty = d->v.repetition_penalty > 0 ? d->v.repetition_penalty : 1; /* nothing can be divided by 0: off */
    r->job.sampling.seed = d->v.seed;
    for (size_t i = 0; i < json_array_size(d->v.stop); i++) r->stop[i] = json_string_value(json_array_get(d->v.stop, i));
    r->job.stop = r->stop;
    r->job.n_stop = json_array_size(d->v.stop);
}

int worker_request_decode(worker_request *out, const char *body, size_t n_bytes, bool infer, bool dual, worker_refusal *refusal) {
    decoder d = {.request = out, .refusal = refusal};
    *out = (worker_request){0};
    *refusal = (worker_refusal){0};
    if (parse(&d, body, n_bytes) < 0) return WEIR_E_INVALID;
    if (infer) out->form = WORKER_INFER;
    else if (json_object_get(out->body, "operation")) out->form = WORKER_OPERATION;
    else out->form = json_object_get(out->body, "job_id") && !dual ? WORKER_SINGLE : WORKER_DUAL;
    d.v = (values){.max_tokens = INFER_MAX_TOKENS, .temperature = 1, .top_p = 1, .repetition_penalty = 1, .seed = 42};
    if (out->form == WORKER_INFER) d.v.temperature = 0.7f;
    if (out->form == WORKER_OPERATION) {
        d.v.top_p = 0.9f;
        d.v.top_k = 50;
        if (check_operation(&d) < 0) return WEIR_E_INVALID;
    }
    if (read_members(&d) < 0) return WEIR_E_INVALID;
    check_ranges(&d);
    if (refusal->status) return WEIR_E_INVALID;
    fill_job(&d);
    return 0;
}

void worker_request_free(worker_request *request) {
    json_decref(request->body);
    request->body = NULL;
}
