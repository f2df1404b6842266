/* What shape the answer must have: response_format, llama-server's json_schema and grammar, vLLM's guided_* and structured_outputs.
 * Each becomes a compiled grammar of the job. See openai_decode.h. */
#include <stdlib.h>
#include <string.h>

#include "api/openai_decode.h"
#include "api/openai_request.h"
#include "base/error.h"

enum { MAX_GRAMMAR_BYTES = 1 << 20, MAX_CHOICES_GIVEN = 4096 };

/* One way to ask for a shape. */
typedef enum shape { SHAPE_SCHEMA, SHAPE_REGEX, SHAPE_CHOICE, SHAPE_GBNF, SHAPE_OBJECT } shape;

typedef struct wanted {
    shape shape;
    const json_t *value; /* NULL for SHAPE_OBJECT */
    char param[96];
    size_t n; /* how many ways were used */
} wanted;

static void want(wanted *w, shape s, const json_t *value, const char *param) {
    w->n++;
    w->shape = s;
    w->value = value;
    snprintf(w->param, sizeof w->param, "%s", param);
}

/* ---- where it is asked for -------------------------------------------------------------------------------------------- */

static void read_response_format(const openai_request *request, wanted *w, openai_error *error) {
    const json_t *format = openai_get_object(request->body, "response_format", error);
    const json_t *type_value = openai_member(format, "type");
    const char *type = json_string_value(type_value);
    if (!format || (type && strcmp(type, "text") == 0)) return;
    const json_t *outer = openai_member(format, "json_schema"), *schema = openai_member(outer, "schema");
    if (type && strcmp(type, "json_object") == 0) {
        const json_t *own = openai_member(format, "schema"); /* llama-server takes one here */
        want(w, own ? SHAPE_SCHEMA : SHAPE_OBJECT, own, own ? "response_format.schema" : "response_format");
    } else if (!type || strcmp(type, "json_schema") != 0) {
        openai_error_add(error, 400, "invalid_value", "response_format.type",
                         "'response_format.type' must be 'text', 'json_object' or 'json_schema'");
    } else if (!json_is_object(outer)) {
        openai_error_add(error, 400, outer ? "invalid_type" : "missing_required_parameter", "response_format.json_schema",
                         "'response_format.json_schema' must be an object with 'name' and 'schema'");
    } else if (!schema) {
        openai_error_add(error, 400, "missing_required_parameter", "response_format.json_schema.schema",
                         "'response_format.json_schema.schema' is required");
    } else {
        const json_t *strict = openai_member(outer, "strict");
        if (strict && !json_is_boolean(strict))
            openai_error_add(error, 400, "invalid_type", "response_format.json_schema.strict",
                             "'response_format.json_schema.strict' must be true or false, not %s", openai_type_name(strict));
        want(w, SHAPE_SCHEMA, schema, "response_format.json_schema.schema");
    }
}

typedef struct member {
    const char *name;
    shape shape;
} member;

/* Members of the body itself, and of structured_outputs. */
static const member plain_members[] = {{"json_schema", SHAPE_SCHEMA},   {"grammar", SHAPE_GBNF},        {"guided_json", SHAPE_SCHEMA},
                                       {"guided_regex", SHAPE_REGEX},   {"guided_choice", SHAPE_CHOICE}, {"guided_grammar", SHAPE_GBNF}, {0}};
static const member nested_members[] = {{"json", SHAPE_SCHEMA}, {"regex", SHAPE_REGEX}, {"choice", SHAPE_CHOICE}, {"grammar", SHAPE_GBNF}, {0}};

static void read_members(const json_t *object, const member *members, const char *prefix, wanted *w) {
    for (const member *m = members; m->name; m++) {
        const json_t *value = openai_member(object, m->name);
        char param[96];
        snprintf(param, sizeof param, "%s%s", prefix, m->name);
        /* "" asks for nothing: clients send it. */
        if (value && !(json_is_string(value) && json_string_length(value) == 0)) want(w, m->shape, value, param);
    }
}

/* ---- compiling -------------------------------------------------------------------------------------------------------- */

/* A GBNF literal. */
static void write_literal(buf *out, const char *text, size_t n_bytes) {
    buf_putc(out, '"');
    for (size_t i = 0; i < n_bytes; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '"' || c == '\\')
            buf_printf(out, "\\%c", c);
        else if (c < ' ')
            buf_printf(out, "\\x%02X", c);
        else
            buf_putc(out, (char)c);
    }
    buf_putc(out, '"');
}

static bool write_choices(buf *out, const wanted *w, openai_error *error) {
    size_t count = json_array_size(w->value);
    if (count == 0 || count > MAX_CHOICES_GIVEN) {
        openai_error_add(error, 400, json_is_array(w->value) ? "invalid_value" : "invalid_type", w->param,
                         "'%s' must be an array of 1 to %d strings", w->param, MAX_CHOICES_GIVEN);
        return false;
    }
    buf_puts(out, "root ::= ");
    for (size_t i = 0; i < count; i++) {
        const json_t *item = json_array_get(w->value, i);
        if (!json_is_string(item)) {
            openai_error_add(error, 400, "invalid_type", w->param, "'%s[%zu]' must be a string, not %s", w->param, i, openai_type_name(item));
            return false;
        }
        if (i) buf_puts(out, " | ");
        write_literal(out, json_string_value(item), json_string_length(item));
    }
    return true;
}

/* The text to compile; false, with the problem added, when the value is of the wrong kind. */
static bool write_text(buf *out, const wanted *w, openai_error *error) {
    bool text = json_is_string(w->value);
    if (w->shape == SHAPE_OBJECT) return true;
    if (w->shape == SHAPE_CHOICE) return write_choices(out, w, error);
    if (w->shape == SHAPE_SCHEMA && (json_is_object(w->value) || json_is_boolean(w->value))) {
        char *dumped = json_dumps(w->value, JSON_COMPACT | JSON_ENCODE_ANY);
        if (dumped)
            buf_puts(out, dumped);
        else
            out->failed = true;
        free(dumped);
        return true;
    }
    if (text) {
        buf_append(out, json_string_value(w->value), json_string_length(w->value));
        return true;
    }
    openai_error_add(error, 400, "invalid_type", w->param, "'%s' must be %s, not %s", w->param,
                     w->shape == SHAPE_SCHEMA ? "a JSON Schema" : "a string", openai_type_name(w->value));
    return false;
}

int openai_compile_grammar(openai_request *out, const openai_context *context, weir_grammar_kind kind, const char *text, size_t n_bytes,
                           const char *param, openai_error *error) {
    weir_error cause = {0};
    if (!context->grammars) {
        openai_error_add(error, 400, "not_supported", param, "'%s' is not supported here", param);
        return 0;
    }
    int code = weir_grammar_open(&out->job.grammar, context->grammars, kind, text, n_bytes, &cause);
    if (code == WEIR_E_NOMEM) return code;
    if (code < 0)
        openai_error_add(error, 400, code == WEIR_E_UNSUPPORTED ? "not_supported" : "invalid_value", param, "'%s'%s%s: %s", param,
                         cause.place[0] ? " at " : "", cause.place, cause.message);
    return 0;
}

static int compile(openai_request *out, const openai_context *context, const wanted *w, openai_error *error) {
    static const weir_grammar_kind kinds[] = {
        [SHAPE_SCHEMA] = WEIR_GRAMMAR_JSON_SCHEMA, [SHAPE_REGEX] = WEIR_GRAMMAR_REGEX, [SHAPE_CHOICE] = WEIR_GRAMMAR_GBNF,
        [SHAPE_GBNF] = WEIR_GRAMMAR_GBNF,          [SHAPE_OBJECT] = WEIR_GRAMMAR_JSON_OBJECT,
    };
    buf text = BUF_INIT;
    int code = 0;
    bool good = write_text(&text, w, error);
    if (text.failed)
        code = WEIR_E_NOMEM;
    else if (good && text.n_bytes > MAX_GRAMMAR_BYTES)
        openai_error_add(error, 400, "invalid_value", w->param, "'%s' has %zu bytes; at most %d are possible", w->param, text.n_bytes,
                         MAX_GRAMMAR_BYTES);
    else if (good)
        code = openai_compile_grammar(out, context, kinds[w->shape], text.data ? text.data : "", text.n_bytes, w->param, error);
    buf_free(&text);
    return code;
}

int openai_format_decode(openai_request *out, const openai_context *context, openai_error *error) {
    wanted w = {0};
    read_response_format(out, &w, error);
    read_members(out->body, plain_members, "", &w);
    const json_t *outputs = openai_get_object(out->body, "structured_outputs", error);
    bool object = false;
    if (outputs) {
        read_members(outputs, nested_members, "structured_outputs.", &w);
        if (openai_get_bool(outputs, "json_object", &object, error) && object) want(&w, SHAPE_OBJECT, NULL, "structured_outputs.json_object");
        if (openai_member(outputs, "structural_tag"))
            openai_error_add(error, 400, "not_supported", "structured_outputs.structural_tag",
                             "'structured_outputs.structural_tag' is not supported");
    }
    if (w.n > 1)
        openai_error_add(error, 400, "invalid_value", w.param, "'%s' and another member both say what the answer looks like; only one may",
                         w.param);
    if (w.n != 1 || error->n_problems) return 0;
    return compile(out, context, &w, error);
}
