/* The conversation of a chat completion: messages checked and brought into the form that the template reads, and rendered.
 * See openai_request.h. Knows the chat template only through weir_chat_render. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/openai_decode.h"
#include "api/openai_request.h"
#include "base/error.h"

enum { MAX_MESSAGES = 65536 };

/* ---- what the template can do -------------------------------------------------------------------------------------------- */

#define PROBE "weir-probe"

static bool renders(const weir_chat *chat, const char *content) {
    char *text = NULL;
    size_t n_bytes = 0;
    buf variables = BUF_INIT;
    buf_printf(&variables, "{\"messages\":[{\"role\":\"user\",\"content\":%s}],\"add_generation_prompt\":true}", content);
    bool shown = !variables.failed && weir_chat_render(chat, variables.data, variables.n_bytes, &text, &n_bytes, NULL) >= 0;
    /* A template that takes every content for a string shows the list itself, with its member names. */
    shown = shown && strstr(text, PROBE) && !strstr(text, "'type'") && !strstr(text, "\"type\"");
    free(text);
    buf_free(&variables);
    return shown;
}

int openai_context_init(openai_context *context, const weir_model *model, const weir_chat *chat, int32_t n_ctx) {
    const weir_model_info *info = weir_model_get_info(model);
    *context = (openai_context){.model = model, .chat = chat, .bos = "", .n_vocab = info->n_vocab, .n_ctx = n_ctx};
    size_t bos_bytes = 0;
    const char *bos = weir_token_bytes(model, weir_token_bos(model), true, &bos_bytes);
    if (bos) {
        context->bos = bos;
        context->bos_bytes = bos_bytes;
    }
    context->longest_token = 1;
    for (int32_t token = 0; token < info->n_vocab; token++) {
        size_t n_bytes = 0;
        weir_token_bytes(model, token, true, &n_bytes);
        if (n_bytes > context->longest_token) context->longest_token = n_bytes;
    }
    if (!chat) return 0;
    context->knows_developer = info->chat_template && strstr(info->chat_template, "developer");
    bool parts = renders(chat, "[{\"type\":\"text\",\"text\":\"" PROBE "\"}]");
    bool text = renders(chat, "\"" PROBE "\"");
    context->content_form = !parts ? OPENAI_CONTENT_TEXT : text ? OPENAI_CONTENT_EITHER : OPENAI_CONTENT_PARTS;
    return 0;
}

/* ---- one message --------------------------------------------------------------------------------------------------------- */

static void problem(openai_error *error, const char *code, const char *path, const char *member, const char *text) {
    char param[128];
    snprintf(param, sizeof param, "%s%s%s", path, member[0] ? "." : "", member);
    openai_error_add(error, 400, code, param, "'%s' %s", param, text);
}

/* The text of a part, or NULL with the problem reported. */
static const json_t *part_text(const json_t *part, const char *path, openai_error *error) {
    static const char *const media[] = {"image_url", "input_audio", "input_video", "video_url", "file", "image", "input_image"};
    const char *type = json_string_value(json_object_get(part, "type"));
    if (!json_is_object(part) || !type) {
        problem(error, "invalid_type", path, "", "must be an object with a string 'type'");
        return NULL;
    }
    for (size_t i = 0; i < sizeof media / sizeof media[0]; i++)
        if (strcmp(type, media[i]) == 0) {
            char text[64];
            snprintf(text, sizeof text, "is an '%s' part: this model reads text only", type);
            problem(error, "not_supported", path, "", text);
            return NULL;
        }
    const char *member = strcmp(type, "refusal") == 0 ? "refusal" : "text";
    if (strcmp(type, member) != 0) {
        problem(error, "invalid_value", path, "type", "must be 'text'");
        return NULL;
    }
    const json_t *text = json_object_get(part, member);
    if (json_is_string(text)) return text;
    problem(error, "invalid_type", path, member, "must be a string");
    return NULL;
}

/* Checks a list of parts and appends their texts, one line each, to `joined`. */
static bool join_parts(const json_t *parts, const char *path, buf *joined, openai_error *error) {
    bool good = true;
    for (size_t i = 0; i < json_array_size(parts); i++) {
        char part_path[96];
        snprintf(part_path, sizeof part_path, "%s.content[%zu]", path, i);
        const json_t *text = part_text(json_array_get(parts, i), part_path, error);
        good = good && text;
        if (!text) continue;
        if (i) buf_putc(joined, '\n');
        buf_append(joined, json_string_value(text), json_string_length(text));
    }
    return good;
}

/* Replaces the content of `message` by the form the template reads. */
static int convert_content(json_t *message, const char *path, openai_content_form form, openai_error *error) {
    json_t *content = json_object_get(message, "content");
    if (json_is_string(content)) {
        if (form != OPENAI_CONTENT_PARTS) return 0;
        json_t *wrapped = json_pack("[{s:s,s:O}]", "type", "text", "text", content);
        return wrapped && json_object_set_new(message, "content", wrapped) == 0 ? 0 : WEIR_E_NOMEM;
    }
    if (json_is_array(content)) {
        buf joined = BUF_INIT;
        bool good = join_parts(content, path, &joined, error);
        json_t *text = good && !joined.failed && form == OPENAI_CONTENT_TEXT
                           ? json_stringn(joined.data ? joined.data : "", joined.n_bytes)
                           : NULL;
        bool failed = joined.failed || (good && form == OPENAI_CONTENT_TEXT && !text);
        buf_free(&joined);
        if (text) failed = json_object_set_new(message, "content", text) < 0;
        return failed ? WEIR_E_NOMEM : 0;
    }
    if (!content || json_is_null(content)) {
        if (json_array_size(json_object_get(message, "tool_calls"))) {
            /* Templates test and print content: an empty string serves all of them. */
            return json_object_set_new(message, "content", json_string("")) == 0 ? 0 : WEIR_E_NOMEM;
        }
        problem(error, "missing_required_parameter", path, "content", "is required");
        return 0;
    }
    problem(error, "invalid_type", path, "content", "must be a string or an array of parts");
    return 0;
}

/* Checks tool calls; their arguments become objects, as templates expect, where they are JSON text of one. */
static int convert_tool_calls(json_t *message, const char *path, openai_error *error) {
    json_t *calls = json_object_get(message, "tool_calls");
    if (!calls || json_is_null(calls)) return 0;
    if (!json_is_array(calls)) {
        problem(error, "invalid_type", path, "tool_calls", "must be an array");
        return 0;
    }
    json_t *converted = json_deep_copy(calls);
    if (!converted) return WEIR_E_NOMEM;
    for (size_t i = 0; i < json_array_size(converted); i++) {
        char call_path[96];
        snprintf(call_path, sizeof call_path, "%s.tool_calls[%zu]", path, i);
        json_t *function = json_object_get(json_array_get(converted, i), "function");
        const json_t *arguments = json_object_get(function, "arguments");
        if (!json_is_string(json_object_get(function, "name"))) {
            problem(error, "invalid_type", call_path, "function.name", "must be a string");
        } else if (json_is_string(arguments)) {
            json_t *parsed = json_loadb(json_string_value(arguments), json_string_length(arguments), JSON_ALLOW_NUL, NULL);
            if (json_is_object(parsed)) json_object_set(function, "arguments", parsed); /* else the template sees the text */
            json_decref(parsed);
        } else if (arguments && !json_is_object(arguments)) {
            problem(error, "invalid_type", call_path, "function.arguments", "must be a string that holds a JSON object");
        }
    }
    return json_object_set_new(message, "tool_calls", converted) == 0 ? 0 : WEIR_E_NOMEM;
}

static int convert_message(json_t *message, const char *path, const openai_context *context, openai_error *error) {
    const char *role = json_string_value(json_object_get(message, "role"));
    if (!role || !role[0]) {
        problem(error, role ? "invalid_value" : "invalid_type", path, "role", "must be a string that is not empty");
    } else if (strcmp(role, "developer") == 0 && !context->knows_developer) {
        if (json_object_set_new(message, "role", json_string("system")) < 0) return WEIR_E_NOMEM;
    }
    TRY(convert_tool_calls(message, path, error));
    return convert_content(message, path, context->content_form, error);
}

static int convert_messages(openai_request *out, const openai_context *context, openai_error *error) {
    const json_t *messages = openai_member(out->body, "messages");
    if (!messages) {
        openai_error_add(error, 400, "missing_required_parameter", "messages", "'messages' is required");
        return 0;
    }
    size_t count = json_array_size(messages);
    if (!json_is_array(messages) || count == 0 || count > MAX_MESSAGES) {
        openai_error_add(error, 400, json_is_array(messages) ? "invalid_value" : "invalid_type", "messages",
                         "'messages' must be an array of 1 to %d messages", MAX_MESSAGES);
        return 0;
    }
    out->messages = json_array();
    if (!out->messages) return WEIR_E_NOMEM;
    for (size_t i = 0; i < count; i++) {
        char path[40];
        snprintf(path, sizeof path, "messages[%zu]", i);
        json_t *source = json_array_get(messages, i);
        if (!json_is_object(source)) {
            problem(error, "invalid_type", path, "", "must be an object with 'role' and 'content'");
            continue;
        }
        json_t *message = json_copy(source); /* shallow: the body stays as it came */
        if (!message) return WEIR_E_NOMEM;
        int result = convert_message(message, path, context, error);
        if (result == 0 && json_array_append(out->messages, message) < 0) result = WEIR_E_NOMEM;
        json_decref(message);
        TRY(result);
    }
    return 0;
}

/* ---- an answer that continues the last message --------------------------------------------------------------------------- */

static bool is_assistant(const json_t *message) {
    const char *role = json_string_value(json_object_get(message, "role"));
    return role && strcmp(role, "assistant") == 0;
}

/* A trailing assistant message is the beginning of the answer, unless the request says otherwise. */
static int take_prefill(openai_request *out, openai_error *error) {
    bool add = false, go_on = false;
    bool add_given = openai_get_bool(out->body, "add_generation_prompt", &add, error);
    bool go_on_given = openai_get_bool(out->body, "continue_final_message", &go_on, error);
    size_t count = json_array_size(out->messages);
    const json_t *last = json_array_get(out->messages, count - 1);
    bool trailing = count > 0 && is_assistant(last) && !json_array_size(json_object_get(last, "tool_calls"));
    if (add && go_on)
        openai_error_add(error, 400, "invalid_value", "continue_final_message",
                         "'continue_final_message' and 'add_generation_prompt' exclude each other");
    else if (go_on && count > 0 && !trailing)
        openai_error_add(error, 400, "invalid_value", "continue_final_message",
                         "'continue_final_message' needs an assistant message at the end");
    if (error->n_problems || !trailing || (add_given && add) || (go_on_given && !go_on)) return 0;
    if (count > 1 && is_assistant(json_array_get(out->messages, count - 2))) {
        openai_error_add(error, 400, "invalid_value", "messages", "'messages' must not end in two assistant messages");
        return 0;
    }
    const json_t *content = json_object_get(last, "content");
    buf text = BUF_INIT;
    if (json_is_string(content))
        buf_append(&text, json_string_value(content), json_string_length(content));
    else
        join_parts(content, "messages", &text, error);
    if (strlen(text.data ? text.data : "") != text.n_bytes)
        openai_error_add(error, 400, "invalid_value", "messages", "an answer cannot continue text that holds U+0000");
    buf_putc(&text, ' '); /* never empty, so that the memory exists */
    if (text.failed) return WEIR_E_NOMEM;
    text.data[text.n_bytes - 1] = 0;
    out->prefill = buf_take(&text, NULL);
    return out->prefill && json_array_remove(out->messages, count - 1) == 0 ? 0 : WEIR_E_NOMEM;
}

/* ---- entry points ------------------------------------------------------------------------------------------------------- */

int openai_chat_decode(openai_request *out, const openai_context *context, openai_error *error) {
    if (!context->chat) {
        openai_error_add(error, 400, "not_supported", "messages",
                         "the model has no chat template; use /v1/completions with a prompt");
        return 0;
    }
    TRY(convert_messages(out, context, error));
    openai_get_object(out->body, "chat_template_kwargs", error);
    openai_get_array(out->body, "documents", error);
    openai_get_string(out->body, "reasoning_effort", error);
    return take_prefill(out, error);
}

/* ---- rendering ----------------------------------------------------------------------------------------------------------- */

static json_t *template_variables(const openai_request *request) {
    static const char *const passed[] = {"documents", "reasoning_effort"};
    const json_t *body = request->body, *kwargs = openai_member(body, "chat_template_kwargs");
    const json_t *tools = openai_member(body, "tools");
    const char *choice = json_string_value(openai_member(body, "tool_choice"));
    const json_t *add = openai_member(body, "add_generation_prompt");
    json_t *variables = json_object();
    bool good = variables != NULL;
    for (size_t i = 0; i < sizeof passed / sizeof passed[0]; i++) {
        const json_t *value = openai_member(body, passed[i]);
        if (value) good = good && json_object_set(variables, passed[i], (json_t *)value) == 0;
    }
    if (kwargs) good = good && json_object_update(variables, (json_t *)kwargs) == 0;
    good = good && json_object_set(variables, "messages", request->messages) == 0;
    if (json_array_size(tools) && !(choice && strcmp(choice, "none") == 0))
        good = good && json_object_set(variables, "tools", (json_t *)tools) == 0;
    good = good && json_object_set_new(variables, "add_generation_prompt",
                                       json_boolean(!add || json_is_true(add) || request->prefill)) == 0;
    if (good) return variables;
    json_decref(variables);
    return NULL;
}

int openai_request_render(const openai_request *request, const openai_context *context, char **text, size_t *n_bytes,
                          openai_error *error) {
    weir_error cause = {0};
    *text = NULL;
    *n_bytes = 0;
    json_t *variables = template_variables(request);
    char *json = variables ? json_dumps(variables, JSON_COMPACT) : NULL;
    json_decref(variables);
    if (!json) return WEIR_E_NOMEM;
    int result = weir_chat_render(context->chat, json, strlen(json), text, n_bytes, &cause);
    free(json);
    if (result < 0) {
        cause.code = result;
        openai_error_add(error, weir_code_http_status(result), openai_error_code(result), "messages", "%s",
                         cause.message[0] ? cause.message : weir_code_text(result));
        return result;
    }
    if (!request->prefill) return 0;
    size_t more = strlen(request->prefill);
    char *longer = realloc(*text, *n_bytes + more + 1);
    if (!longer) {
        free(*text);
        *text = NULL;
        return WEIR_E_NOMEM;
    }
    memcpy(longer + *n_bytes, request->prefill, more + 1);
    *text = longer;
    *n_bytes += more;
    return 0;
}
