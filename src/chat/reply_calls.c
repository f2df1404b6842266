/* The notations of tool calls; see reply_internal.h. */
#include <stdlib.h>
#include <string.h>

#include "chat/reply_internal.h"

/* ---- a place in a text -------------------------------------------------------------------------------------------------- */

typedef struct span {
    const char *at, *end;
} span;

static span trimmed(span s) {
    while (s.at < s.end && reply_is_space(*s.at)) s.at++;
    while (s.end > s.at && reply_is_space(s.end[-1])) s.end--;
    return s;
}

static void skip_space(span *s) {
    while (s->at < s->end && reply_is_space(*s->at)) s->at++;
}

static bool take(span *s, const char *word) {
    size_t n = strlen(word);
    if ((size_t)(s->end - s->at) < n || memcmp(s->at, word, n) != 0) return false;
    s->at += n;
    return true;
}

/* What comes before the word, which is passed over, too; false when it is not there. */
static bool take_until(span *s, const char *word, span *before) {
    const char *found = memmem(s->at, (size_t)(s->end - s->at), word, strlen(word));
    if (found == NULL) return false;
    *before = (span){s->at, found};
    s->at = found + strlen(word);
    return true;
}

/* A JSON value, by its brackets or as one word; false when it does not end. */
static bool take_value(span *s, span *value) {
    size_t depth = 0;
    bool in_string = false;
    value->at = s->at;
    for (; s->at < s->end; s->at++) {
        char c = *s->at;
        if (in_string && c == '\\') {
            if (++s->at == s->end) return false;
        } else if (c == '"') {
            in_string = !in_string;
        } else if (!in_string && (c == '{' || c == '[')) {
            depth++;
        } else if (!in_string && (c == '}' || c == ']' || c == ',') && depth == 0) {
            break; /* after a number or a word */
        } else if (!in_string && (c == '}' || c == ']')) {
            depth--;
        }
        if (depth == 0 && !in_string && (c == '}' || c == ']' || c == '"')) {
            s->at++;
            break;
        }
    }
    value->end = s->at;
    *value = trimmed(*value);
    return !in_string && depth == 0 && value->end > value->at;
}

static json_t *parse(span s) {
    return json_loadb(s.at, (size_t)(s.end - s.at), JSON_ALLOW_NUL | JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL, NULL);
}

static bool is_object(span s) {
    json_t *value = parse(s);
    bool object = json_is_object(value);
    json_decref(value);
    return object;
}

/* ---- results ------------------------------------------------------------------------------------------------------------ */

static const json_t *tool_named(const json_t *tools, span name) {
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const json_t *function = json_object_get(json_array_get(tools, i), "function");
        const char *its = json_string_value(json_object_get(function, "name"));
        if (its && strlen(its) == (size_t)(name.end - name.at) && memcmp(its, name.at, strlen(its)) == 0) return function;
    }
    return NULL;
}

static bool add(call_list *out, span name, span arguments, const json_t *tools) {
    if (!tool_named(tools, name)) return false;
    buf_append(&out->bytes, name.at, (size_t)(name.end - name.at));
    buf_putc(&out->bytes, '\0');
    buf_append(&out->bytes, arguments.at, (size_t)(arguments.end - arguments.at));
    buf_putc(&out->bytes, '\0');
    out->n++;
    return true;
}

static bool add_checked(call_list *out, span name, span arguments, const json_t *tools) {
    name = trimmed(name);
    arguments = trimmed(arguments);
    return is_object(arguments) && add(out, name, arguments, tools);
}

/* ---- JSON --------------------------------------------------------------------------------------------------------------- */

/* {"name": ..., "arguments": {...}}: valid JSON already. The arguments are handed on as they were written. */
static bool read_object(call_list *out, span object, bool nested, const json_t *tools) {
    json_t *parsed = parse(object);
    const char *name = NULL;
    static const char *const name_keys[] = {"name", "tool_name", "function"};
    for (size_t i = 0; i < 3 && !name; i++) name = json_string_value(json_object_get(parsed, name_keys[i]));
    const json_t *inner = json_object_get(parsed, "function");
    bool good = name || (!nested && json_is_object(inner)), done = false;
    static const char none[] = "{}";
    span arguments = {none, none + 2}, key, value;
    object = trimmed(object);
    object.end--;
    if (good) take(&object, "{");
    while (good) {
        skip_space(&object);
        if (object.at == object.end) break;
        good = take_value(&object, &key);
        skip_space(&object);
        good = good && take(&object, ":");
        skip_space(&object);
        good = good && take_value(&object, &value);
        skip_space(&object);
        take(&object, ",");
        size_t n = good ? (size_t)(key.end - key.at) : 0;
        if (good && !name && !nested && n == 10 && memcmp(key.at, "\"function\"", 10) == 0) {
            good = done = read_object(out, value, true, tools); /* {"function": {"name", "arguments"}} */
        } else if (good && ((n == 11 && memcmp(key.at, "\"arguments\"", 11) == 0) || (n == 12 && memcmp(key.at, "\"parameters\"", 12) == 0))) {
            arguments = value;
        }
    }
    if (good && !done && name) {
        json_t *text = *arguments.at == '"' ? parse(arguments) : NULL; /* an object within a string */
        if (text) arguments = (span){json_string_value(text), json_string_value(text) + json_string_length(text)};
        good = is_object(arguments) && add(out, (span){name, name + strlen(name)}, arguments, tools);
        json_decref(text);
    }
    json_decref(parsed);
    return good && (done || name);
}

static bool read_json(call_list *out, span text, const json_t *tools) {
    span value;
    text = trimmed(text);
    json_t *parsed = parse(text);
    bool object = json_is_object(parsed), array = json_is_array(parsed) && json_array_size(parsed) > 0;
    bool listed = object && json_is_array(json_object_get(parsed, "tool_calls"));
    for (size_t i = 0; array && i < json_array_size(parsed); i++) array = json_is_object(json_array_get(parsed, i));
    json_decref(parsed);
    if (listed) { /* {"tool_calls": [...]} */
        span before;
        text.end--;
        if (!take_until(&text, "[", &before)) return false;
        text.at--;
        return take_value(&text, &value) && read_json(out, value, tools);
    }
    if (object) return read_object(out, text, false, tools);
    if (!array) return false;
    text.at++, text.end--;
    while (skip_space(&text), text.at < text.end) {
        if (!take_value(&text, &value) || !read_object(out, value, false, tools)) return false;
        skip_space(&text);
        take(&text, ",");
    }
    return true;
}

/* ---- tags ---------------------------------------------------------------------------------------------------------------- */

typedef struct tag_arguments {
    buf json;
    const json_t *properties; /* of the function's parameters */
} tag_arguments;

static void write_string(buf *out, span s) {
    json_t *text = json_stringn(s.at, (size_t)(s.end - s.at));
    char *dumped = text ? json_dumps(text, JSON_ENCODE_ANY) : NULL;
    buf_puts(out, dumped ? dumped : "\"\"");
    free(dumped);
    json_decref(text);
}

/* A value between tags: as the schema says, a string or JSON; without a word of the schema JSON if it is. */
static void write_argument(tag_arguments *a, span key, span value) {
    key = trimmed(key);
    const json_t *schema = NULL;
    const char *name;
    json_t *property;
    json_object_foreach((json_t *)a->properties, name, property)
        if (strlen(name) == (size_t)(key.end - key.at) && memcmp(name, key.at, strlen(name)) == 0) schema = property;
    const char *type = json_string_value(json_object_get(schema, "type"));
    json_t *parsed = type && strcmp(type, "string") == 0 ? NULL : parse(trimmed(value));
    buf_putc(&a->json, a->json.n_bytes ? ',' : '{');
    write_string(&a->json, key);
    buf_putc(&a->json, ':');
    if (parsed) {
        value = trimmed(value);
        buf_append(&a->json, value.at, (size_t)(value.end - value.at));
    } else { /* the line ends next to the tags are not the value's */
        if (value.at < value.end && *value.at == '\n') value.at++;
        if (value.at < value.end && value.end[-1] == '\n') value.end--;
        write_string(&a->json, value);
    }
    json_decref(parsed);
}

static const json_t *properties_of(const json_t *tools, span name) {
    return json_object_get(json_object_get(tool_named(tools, name), "parameters"), "properties");
}

static bool add_tagged(call_list *out, span name, tag_arguments *a, const json_t *tools) {
    buf_puts(&a->json, a->json.n_bytes ? "}" : "{}");
    bool good = !a->json.failed && add(out, name, (span){a->json.data, a->json.data + a->json.n_bytes}, tools);
    buf_free(&a->json);
    return good;
}

/* NAME>...: what follows "<function=". */
static bool read_function(call_list *out, span text, const json_t *tools) {
    span name, key, value;
    if (!take_until(&text, ">", &name)) return false;
    name = trimmed(name);
    text = trimmed(text);
    if (text.at < text.end && *text.at == '{') return add_checked(out, name, text, tools);
    tag_arguments a = {.properties = properties_of(tools, name)};
    while (skip_space(&text), text.at < text.end) {
        if (!take(&text, "<parameter=") || !take_until(&text, ">", &key) || !take_until(&text, "</parameter>", &value)) {
            buf_free(&a.json);
            return false;
        }
        write_argument(&a, key, value);
    }
    return add_tagged(out, name, &a, tools);
}

/* NAME, then <arg_key>KEY</arg_key><arg_value>VALUE</arg_value>... */
static bool read_glm(call_list *out, span text, const json_t *tools) {
    const char *tag = memchr(text.at, '<', (size_t)(text.end - text.at));
    span name = trimmed((span){text.at, tag ? tag : text.end}), key, value, between;
    tag_arguments a = {.properties = properties_of(tools, name)};
    text.at = tag ? tag : text.end;
    while (skip_space(&text), text.at < text.end) {
        if (!take(&text, "<arg_key>") || !take_until(&text, "</arg_key>", &key) || !take_until(&text, "<arg_value>", &between) ||
            !take_until(&text, "</arg_value>", &value)) {
            buf_free(&a.json);
            return false;
        }
        write_argument(&a, key, value);
    }
    return add_tagged(out, name, &a, tools);
}

static bool read_tagged(call_list *out, span text, const json_t *tools) {
    span body;
    text = trimmed(text);
    if (text.at == text.end) return false;
    if (*text.at == '{' || *text.at == '[') return read_json(out, text, tools);
    if (take(&text, "<function=")) return take_until(&text, "</function>", &body) && read_function(out, body, tools);
    return read_glm(out, text, tools);
}

/* The attribute name="..." up to the end of its tag. */
static bool take_name(span *text, span *name) {
    span tag, skipped;
    return take_until(text, ">", &tag) && take_until(&tag, "name=\"", &skipped) && take_until(&tag, "\"", name);
}

/* MiniMax's <invoke>; DeepSeek 3.2 has the same with a prefix, and says of each value whether it is a string. */
static bool read_invoke(call_list *out, span text, const json_t *tools) {
    static const char dsml[] = "\xEF\xBD\x9C" "DSML" "\xEF\xBD\x9C";
    bool prefixed = memmem(text.at, (size_t)(text.end - text.at), dsml, strlen(dsml)) != NULL;
    const char *begin = prefixed ? "<\xEF\xBD\x9C" "DSML\xEF\xBD\x9C" "invoke" : "<invoke",
               *end = prefixed ? "</\xEF\xBD\x9C" "DSML\xEF\xBD\x9C" "invoke>" : "</invoke>",
               *parameter = prefixed ? "<\xEF\xBD\x9C" "DSML\xEF\xBD\x9C" "parameter" : "<parameter",
               *parameter_end = prefixed ? "</\xEF\xBD\x9C" "DSML\xEF\xBD\x9C" "parameter>" : "</parameter>";
    span name, key, value;
    while (skip_space(&text), text.at < text.end) {
        if (!take(&text, begin) || !take_name(&text, &name)) return false;
        tag_arguments a = {.properties = properties_of(tools, name)};
        while (skip_space(&text), !take(&text, end)) {
            if (!take(&text, parameter) || !take_name(&text, &key) || !take_until(&text, parameter_end, &value)) {
                buf_free(&a.json);
                return false;
            }
            write_argument(&a, key, value);
        }
        if (!add_tagged(out, name, &a, tools)) return false;
    }
    return out->n > 0;
}

/* ---- markers ------------------------------------------------------------------------------------------------------------- */

static bool read_mistral(call_list *out, span text, const json_t *tools) {
    span name, id;
    text = trimmed(text);
    if (text.at < text.end && *text.at == '[') return read_json(out, text, tools);
    if (!take_until(&text, "[ARGS]", &name)) return false;
    if (take_until(&name, "[CALL_ID]", &id)) name = id; /* what came before it */
    return add_checked(out, name, text, tools);
}

#define DEEPSEEK(word) "<\xEF\xBD\x9C" "tool\xE2\x96\x81" word "\xEF\xBD\x9C>"

/* One call after another: [function] SEP NAME ```json ... ```, or NAME SEP JSON. */
static bool read_deepseek(call_list *out, span text, const json_t *tools) {
    span call, first, name;
    while (skip_space(&text), text.at < text.end) {
        if (!take(&text, DEEPSEEK("call\xE2\x96\x81" "begin"))) return false;
        if (!take_until(&text, DEEPSEEK("call\xE2\x96\x81" "end"), &call)) call = text, text.at = text.end;
        if (!take_until(&call, DEEPSEEK("sep"), &first)) return false;
        if (take_until(&call, "```json", &name)) {
            span arguments;
            if (!take_until(&call, "```", &arguments)) arguments = call;
            if (!add_checked(out, name, arguments, tools)) return false;
        } else if (!add_checked(out, first, call, tools)) {
            return false;
        }
    }
    return out->n > 0;
}

static bool read_kimi(call_list *out, span text, const json_t *tools) {
    span call, id;
    while (skip_space(&text), text.at < text.end) {
        if (!take(&text, "<|tool_call_begin|>")) return false;
        if (!take_until(&text, "<|tool_call_end|>", &call)) call = text, text.at = text.end;
        if (!take_until(&call, "<|tool_call_argument_begin|>", &id)) return false;
        id = trimmed(id); /* functions.NAME:0 */
        take(&id, "functions.");
        const char *colon = memrchr(id.at, ':', (size_t)(id.end - id.at));
        if (colon) id.end = colon;
        if (!add_checked(out, id, call, tools)) return false;
    }
    return out->n > 0;
}

bool reply_read_calls(call_list *out, reply_body body, const char *text, size_t n_bytes, const char *name, const json_t *tools) {
    const span s = {text, text + n_bytes};
    bool good = false;
    switch (body) {
    case BODY_ARGUMENTS: good = add_checked(out, (span){name, name + strlen(name)}, s, tools); break;
    case BODY_JSON: good = read_json(out, s, tools); break;
    case BODY_TAGGED: good = read_tagged(out, s, tools); break;
    case BODY_FUNCTION: good = read_function(out, s, tools); break;
    case BODY_MISTRAL: good = read_mistral(out, s, tools); break;
    case BODY_DEEPSEEK: good = read_deepseek(out, s, tools); break;
    case BODY_KIMI: good = read_kimi(out, s, tools); break;
    case BODY_INVOKE: good = read_invoke(out, s, tools); break;
    case BODY_NONE: case BODY_SKIP: case BODY_REASONING: case BODY_CHANNEL: break;
    }
    return good && out->n > 0 && !out->bytes.failed;
}
