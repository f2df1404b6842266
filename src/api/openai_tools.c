/* Tools of a chat completion: which there are, whether one must be called, and whether reasoning is looked for; see
 * openai_decode.h. */
#include <stdlib.h>
#include <string.h>

#include "api/openai_decode.h"
#include "api/openai_request.h"
#include "base/error.h"
#include "chat/reply.h"

enum { MAX_TOOLS = 1024 };

static void problem(openai_error *error, const char *code, const char *param, const char *text) {
    openai_error_add(error, 400, code, param, "'%s' %s", param, text);
}

static void check_tools(const json_t *tools, openai_error *error) {
    if (json_array_size(tools) > MAX_TOOLS) problem(error, "invalid_value", "tools", "must have at most 1024 items");
    for (size_t i = 0; i < json_array_size(tools); i++) {
        char param[64];
        const json_t *tool = json_array_get(tools, i), *function = json_object_get(tool, "function");
        const json_t *parameters = openai_member(function, "parameters");
        const char *type = json_string_value(json_object_get(tool, "type"));
        snprintf(param, sizeof param, "tools[%zu].type", i);
        if (!type || strcmp(type, "function") != 0) {
            problem(error, "invalid_value", param, "must be 'function'");
            continue;
        }
        snprintf(param, sizeof param, "tools[%zu].function.name", i);
        const json_t *name = json_object_get(function, "name");
        if (!json_is_string(name)) problem(error, "invalid_type", param, "must be a string");
        else if (!json_string_length(name) || strlen(json_string_value(name)) != json_string_length(name))
            problem(error, "invalid_value", param, "must not be empty or contain U+0000");
        snprintf(param, sizeof param, "tools[%zu].function.parameters", i);
        if (parameters && !json_is_object(parameters)) problem(error, "invalid_type", param, "must be a JSON Schema, an object");
    }
}

typedef enum choice { CHOICE_AUTO, CHOICE_NONE, CHOICE_REQUIRED, CHOICE_NAMED } choice;

/* *name gets the function that must be called, if it is one. */
static choice read_choice(const openai_request *request, const json_t *tools, const char **name, openai_error *error) {
    const json_t *value = openai_member(request->body, "tool_choice");
    const char *word = json_string_value(value);
    if (!value || (word && strcmp(word, "auto") == 0)) return CHOICE_AUTO;
    if (word && strcmp(word, "none") == 0) return CHOICE_NONE;
    if (word && strcmp(word, "required") == 0) {
        if (!json_array_size(tools)) problem(error, "invalid_value", "tool_choice", "is 'required', but there are no tools");
        return CHOICE_REQUIRED;
    }
    const char *type = json_string_value(json_object_get(value, "type"));
    *name = json_string_value(json_object_get(json_object_get(value, "function"), "name"));
    if (!json_is_object(value) || !type || strcmp(type, "function") != 0 || !*name) {
        problem(error, "invalid_value", "tool_choice",
                "must be 'auto', 'none', 'required' or {\"type\": \"function\", \"function\": {\"name\": ...}}");
        *name = NULL;
        return CHOICE_AUTO;
    }
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const char *its = json_string_value(json_object_get(json_object_get(json_array_get(tools, i), "function"), "name"));
        if (its && strcmp(its, *name) == 0) return CHOICE_NAMED;
    }
    openai_error_add(error, 400, "invalid_value", "tool_choice.function.name", "'tool_choice.function.name' is '%.100s', which is not among the tools",
                     *name);
    return CHOICE_AUTO;
}

/* ---- a call that must be made ------------------------------------------------------------------------------------------ */

/* Definitions of a tool's parameters, which its references name from the root, go to the root of the whole schema. */
static int hoist(json_t *root, json_t *parameters) {
    static const char *const keys[] = {"$defs", "definitions"};
    for (size_t i = 0; i < 2; i++) {
        json_t *defs = json_object_get(parameters, keys[i]), *at_root = json_object_get(root, keys[i]);
        if (!json_is_object(defs)) continue;
        int result = at_root ? json_object_update_missing(at_root, defs) : json_object_set(root, keys[i], defs);
        if (result < 0 || json_object_del(parameters, keys[i]) < 0) return WEIR_E_NOMEM;
    }
    return 0;
}

/* {"anyOf": [{"name": const, "arguments": its parameters}, ...]} for all tools, or the one that is named. */
static json_t *call_schema(const json_t *tools, const char *name) {
    json_t *any = json_array(), *root = json_pack("{s:O?}", "anyOf", any);
    bool good = any && root;
    for (size_t i = 0; i < json_array_size(tools) && good; i++) {
        const json_t *function = json_object_get(json_array_get(tools, i), "function"), *parameters = openai_member(function, "parameters");
        if (name && strcmp(json_string_value(json_object_get(function, "name")), name) != 0) continue;
        json_t *copy = parameters ? json_deep_copy(parameters) : json_pack("{s:s}", "type", "object");
        good = copy && hoist(root, copy) == 0;
        json_t *call = good ? json_pack("{s:s, s:{s:{s:O}, s:O}, s:[s, s], s:b}", "type", "object", "properties", "name", "const",
                                        json_object_get(function, "name"), "arguments", copy, "required", "name", "arguments",
                                        "additionalProperties", 0)
                            : NULL;
        good = call && json_array_append_new(any, call) == 0;
        json_decref(copy);
    }
    json_decref(any);
    if (good) return root;
    json_decref(root);
    return NULL;
}

/* Whether the template's calls are JSON between <tool_call> and </tool_call>. */
static bool has_tagged_json(const char *source) {
    return source && strstr(source, "<tool_call>") && strstr(source, "</tool_call>") && !strstr(source, "<function=") && !strstr(source, "<arg_key>");
}

/* A call of free will follows the schemas from its opening tag on. Where they cannot be kept it is free, as it was not asked for. */
static int guide_calls(openai_request *out, const openai_context *context) {
    json_t *schema = call_schema(out->tools, NULL);
    char *dumped = schema ? json_dumps(schema, JSON_COMPACT) : NULL;
    buf text = BUF_INIT;
    weir_error cause = {0};
    json_decref(schema);
    buf_puts(&text, out->parallel_calls ? "<tool_call>\n</tool_call>\n" : "\n</tool_call>\n");
    buf_puts(&text, dumped ? dumped : "");
    int result = dumped && !text.failed ? 0 : WEIR_E_NOMEM;
    if (result == 0) result = weir_grammar_open(&out->job.grammar, context->grammars, WEIR_GRAMMAR_TAGGED, text.data, text.n_bytes, &cause);
    if (out->job.grammar) out->job.grammar_after = "<tool_call>";
    free(dumped);
    buf_free(&text);
    return result == WEIR_E_NOMEM ? result : 0;
}

static int force_call(openai_request *out, const openai_context *context, const char *name, openai_error *error) {
    if (out->job.grammar) {
        problem(error, "invalid_value", "tool_choice", "asks for a call, but the answer has another shape already (response_format or the like)");
        return 0;
    }
    json_t *schema = call_schema(out->tools, name);
    char *text = schema ? json_dumps(schema, JSON_COMPACT) : NULL;
    json_decref(schema);
    if (!text) return WEIR_E_NOMEM;
    int result = openai_compile_grammar(out, context, WEIR_GRAMMAR_JSON_SCHEMA, text, strlen(text), "tools", error);
    free(text);
    out->must_call = true;
    return result;
}

int openai_tools_decode(openai_request *out, const openai_context *context, openai_error *error) {
    const json_t *tools = openai_get_array(out->body, "tools", error), *format = openai_get_string(out->body, "reasoning_format", error);
    const char *name = NULL;
    check_tools(tools, error);
    choice chosen = read_choice(out, tools, &name, error);
    out->parallel_calls = true;
    openai_get_bool(out->body, "parallel_tool_calls", &out->parallel_calls, error);
    const char *source = context->chat ? weir_chat_source(context->chat) : NULL;
    bool separate = !format || strcmp(json_string_value(format), "none") != 0;
    if (chosen != CHOICE_NONE && json_array_size(tools)) out->tools = tools;
    out->reasoning = separate && reply_knows_reasoning(source);
    /* Markers may be control tokens: they must be seen. */
    if (out->tools || out->reasoning) out->job.special = true;
    if (error->n_problems || !out->tools) return 0;
    if (chosen == CHOICE_AUTO) return context->grammars && !out->job.grammar && has_tagged_json(source) ? guide_calls(out, context) : 0;
    return force_call(out, context, name, error);
}
