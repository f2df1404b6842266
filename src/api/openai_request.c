/* Decoding of chat completions and completions; see openai_request.h. The conversation itself is openai_chat.c's. */
#include "api/openai_request.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "api/openai_decode.h"
#include "base/clock.h"
#include "base/error.h"

enum { MAX_STOPS = 16, MAX_STOP_BYTES = 1024, MAX_TOP_LOGPROBS = 20, MAX_N = 128, MAX_LOGIT_BIAS = 4096, MAX_TIMEOUT_S = 7 * 24 * 3600 };

/* OpenAI's documented default of the completions endpoint; a chat answer goes on until it ends. */
enum { COMPLETION_MAX_TOKENS = 16 };

/* ---- the body ---------------------------------------------------------------------------------------------------------- */

json_t *openai_parse_body(const char *body, size_t n_bytes, openai_error *error) {
    json_error_t at = {0};
    size_t flags = JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DECODE_ANY;
    json_t *parsed = json_loadb(body, n_bytes, flags, &at);
    /* An integer beyond 64 bits is only wrong if a field that matters holds it: read it as a real, its field says what is
     * wrong. */
    if (!parsed && json_error_code(&at) == json_error_numeric_overflow)
        parsed = json_loadb(body, n_bytes, flags | JSON_DECODE_INT_AS_REAL, &at);
    if (!parsed) {
        openai_error_add(error, 400, "invalid_json", NULL, "the body is not valid JSON: %s (line %d, column %d)", at.text,
                         at.line, at.column);
        return NULL;
    }
    if (json_is_object(parsed)) return parsed;
    openai_error_add(error, 400, "invalid_type", NULL, "the body must be a JSON object, not %s", openai_type_name(parsed));
    json_decref(parsed);
    return NULL;
}

static void no_memory(openai_error *error) {
    openai_error_add(error, 503, "out_of_memory", NULL, "out of memory while reading the request");
}

/* ---- fields that are numbers ------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    size_t offset; /* of the float in weir_sampling */
    double min, max;
    bool above; /* min itself is not allowed */
} float_fields[] = {
    {"temperature", offsetof(weir_sampling, temperature), 0, 2, false},
    {"top_p", offsetof(weir_sampling, top_p), 0, 1, false},
    {"min_p", offsetof(weir_sampling, min_p), 0, 1, false},
    {"presence_penalty", offsetof(weir_sampling, presence_penalty), -2, 2, false},
    {"frequency_penalty", offsetof(weir_sampling, frequency_penalty), -2, 2, false},
    {"dynatemp_range", offsetof(weir_sampling, dynatemp_range), 0, 2, false},
    {"dynatemp_exponent", offsetof(weir_sampling, dynatemp_exponent), 0, 100, false},
    {"typical_p", offsetof(weir_sampling, typical_p), 0, 1, false},
    {"top_n_sigma", offsetof(weir_sampling, top_n_sigma), -1, 1000, false},
    {"xtc_probability", offsetof(weir_sampling, xtc_probability), 0, 1, false},
    {"xtc_threshold", offsetof(weir_sampling, xtc_threshold), 0, 1, false},
    {"dry_multiplier", offsetof(weir_sampling, dry_multiplier), 0, 1000, false},
    {"dry_base", offsetof(weir_sampling, dry_base), 1, 1000, false},
    {"mirostat_tau", offsetof(weir_sampling, mirostat_tau), 0, 100, false},
    {"mirostat_eta", offsetof(weir_sampling, mirostat_eta), 0, 1, false},
    {"repeat_penalty", offsetof(weir_sampling, repetition_penalty), 0, 10, true},
    {"repetition_penalty", offsetof(weir_sampling, repetition_penalty), 0, 10, true},
};

static const struct {
    const char *name;
    size_t offset; /* of the int32_t in weir_request */
    int32_t min, max; /* max 0 = no bound */
} integer_fields[] = {
    {"top_k", offsetof(weir_request, sampling.top_k), -1},
    {"repeat_last_n", offsetof(weir_request, sampling.penalty_last_n), -1},
    {"dry_allowed_length", offsetof(weir_request, sampling.dry_allowed_length), 0},
    {"dry_penalty_last_n", offsetof(weir_request, sampling.dry_penalty_last_n), -1},
    {"mirostat", offsetof(weir_request, sampling.mirostat), 0, 2},
    {"n_predict", offsetof(weir_request, max_tokens), -1},
    {"max_tokens", offsetof(weir_request, max_tokens), -1},
    {"max_completion_tokens", offsetof(weir_request, max_tokens), -1}, /* the newer name wins */
};

static int random_seed(uint64_t *seed) {
    ssize_t got;
    do {
        got = getrandom(seed, sizeof *seed, 0);
    } while (got < 0 && errno == EINTR);
    return got == sizeof *seed ? 0 : WEIR_E_INTERNAL;
}

static void decode_numbers(openai_request *out, openai_error *error) {
    char *sampling = (char *)&out->job.sampling, *job = (char *)&out->job;
    for (size_t i = 0; i < sizeof float_fields / sizeof float_fields[0]; i++) {
        double value;
        if (openai_get_number(out->body, float_fields[i].name, float_fields[i].min, float_fields[i].max, float_fields[i].above,
                              &value, error))
            *(float *)(sampling + float_fields[i].offset) = (float)value;
    }
    for (size_t i = 0; i < sizeof integer_fields / sizeof integer_fields[0]; i++) {
        int64_t value;
        int32_t max = integer_fields[i].max ? integer_fields[i].max : INT32_MAX;
        if (openai_get_integer(out->body, integer_fields[i].name, integer_fields[i].min, max, &value, error))
            *(int32_t *)(job + integer_fields[i].offset) = (int32_t)value;
    }
    if (out->job.sampling.top_k < 0) out->job.sampling.top_k = 0;
    /* A positive number so small that it becomes 0 as a float would divide by zero. */
    if (out->job.sampling.repetition_penalty < 1e-6f) out->job.sampling.repetition_penalty = 1e-6f;
    if (out->endpoint == OPENAI_CHAT && out->job.max_tokens == 0)
        openai_error_add(error, 400, "invalid_value", "max_tokens",
                         "'max_tokens' must be at least 1 (or -1 for no limit), not 0");

    double seconds;
    if (openai_get_number(out->body, "timeout", 0, MAX_TIMEOUT_S, true, &seconds, error)) out->job.timeout_ms = (int64_t)ceil(seconds * 1000);

    int64_t value = -1;
    if (openai_get_integer(out->body, "priority", INT32_MIN, INT32_MAX, &value, error)) out->job.priority = (int32_t)value;
    value = -1;
    bool given = openai_get_integer(out->body, "seed", INT64_MIN, INT64_MAX, &value, error) && value != -1;
    out->job.sampling.seed = (uint64_t)value;
    out->seeded = given;
    if (!given && random_seed(&out->job.sampling.seed) < 0)
        openai_error_add(error, 500, "internal_error", NULL, "the system gives no random numbers");
    if (openai_get_integer(out->body, "n", 1, MAX_N, &value, error)) out->n = (int32_t)value;
    if (openai_get_integer(out->body, "best_of", 1, MAX_N, &value, error) && value != out->n)
        openai_error_add(error, 400, "not_supported", "best_of", "'best_of' other than 'n' is not supported");
}

/* ---- fields that are true or false, streaming, log probabilities --------------------------------------------------------- */

static void decode_output(openai_request *out, openai_error *error) {
    bool skip_special = true, wanted = false;
    int64_t top = 0;
    openai_get_bool(out->body, "stream", &out->stream, error);
    openai_get_bool(out->body, "ignore_eos", &out->job.ignore_eos, error);
    bool cache_prompt = true;
    if (openai_get_bool(out->body, "cache_prompt", &cache_prompt, error)) out->job.no_prefix_cache = !cache_prompt;
    out->job.cache_salt = json_string_value(openai_get_string(out->body, "cache_salt", error));
    if (openai_get_bool(out->body, "skip_special_tokens", &skip_special, error)) out->job.special = !skip_special;
    const json_t *options = openai_get_object(out->body, "stream_options", error);
    const json_t *usage = openai_member(options, "include_usage");
    if (usage && !json_is_boolean(usage))
        openai_error_add(error, 400, "invalid_type", "stream_options.include_usage",
                         "'stream_options.include_usage' must be true or false, not %s", openai_type_name(usage));
    out->include_usage = json_is_true(usage);

    if (out->endpoint == OPENAI_COMPLETION) {
        openai_get_bool(out->body, "echo", &out->echo, error);
        if (openai_get_integer(out->body, "logprobs", 0, MAX_TOP_LOGPROBS, &top, error)) out->n_top = (int32_t)top;
        if (out->echo && out->n_top >= 0)
            openai_error_add(error, 400, "not_supported", "echo",
                             "'echo' with 'logprobs' is not supported: log probabilities of the prompt are not computed");
    } else {
        openai_get_bool(out->body, "logprobs", &wanted, error);
        bool has_top = openai_get_integer(out->body, "top_logprobs", 0, MAX_TOP_LOGPROBS, &top, error);
        if (wanted) out->n_top = (int32_t)top;
        if (has_top && !wanted)
            openai_error_add(error, 400, "invalid_value", "top_logprobs", "'top_logprobs' needs 'logprobs' to be true");
    }
    out->job.n_top_logprobs = out->n_top;
}

/* ---- stop strings -------------------------------------------------------------------------------------------------------- */

static int decode_stop(openai_request *out, openai_error *error) {
    const json_t *stop = openai_member(out->body, "stop");
    if (!stop) return 0;
    bool single = json_is_string(stop);
    size_t count = single ? 1 : json_array_size(stop);
    if (!single && !json_is_array(stop)) {
        openai_error_add(error, 400, "invalid_type", "stop", "'stop' must be a string or an array of strings, not %s",
                         openai_type_name(stop));
        return 0;
    }
    if (count > MAX_STOPS) {
        openai_error_add(error, 400, "invalid_value", "stop", "'stop' must have at most %d strings, not %zu", MAX_STOPS, count);
        return 0;
    }
    const char **strings = arena_array(&out->memory, count, sizeof *strings);
    if (!strings) return WEIR_E_NOMEM;
    for (size_t i = 0; i < count; i++) {
        const json_t *item = single ? stop : json_array_get(stop, i);
        char param[32] = "stop";
        if (!single) snprintf(param, sizeof param, "stop[%zu]", i);
        const char *text = json_string_value(item);
        if (!text)
            openai_error_add(error, 400, "invalid_type", param, "'%s' must be a string, not %s", param, openai_type_name(item));
        else if (strlen(text) != json_string_length(item))
            openai_error_add(error, 400, "invalid_value", param, "'%s' must not contain U+0000", param);
        else if (json_string_length(item) > MAX_STOP_BYTES)
            openai_error_add(error, 400, "invalid_value", param, "'%s' must be at most %d bytes, not %zu", param,
                             MAX_STOP_BYTES, json_string_length(item));
        else if (text[0]) /* clients send "" to say none */
            strings[out->job.n_stop++] = text;
    }
    out->job.stop = strings;
    return 0;
}

/* ---- logit_bias ---------------------------------------------------------------------------------------------------------- */

typedef struct bias_list {
    weir_logit_bias *items;
    size_t n, capacity;
} bias_list;

static int add_bias(openai_request *out, bias_list *list, int32_t token, float bias) {
    if (list->n == list->capacity) {
        size_t capacity = list->capacity ? 2 * list->capacity : 16;
        weir_logit_bias *items = arena_array(&out->memory, capacity, sizeof *items);
        if (!items) return WEIR_E_NOMEM;
        if (list->n) memcpy(items, list->items, list->n * sizeof *items);
        list->items = items;
        list->capacity = capacity;
    }
    list->items[list->n++] = (weir_logit_bias){.token = token, .bias = bias};
    return 0;
}

/* -100..100, or false for "never"; as in OpenAI's API -100 bans as well. */
static bool read_bias(const json_t *value, const char *param, float *bias, openai_error *error) {
    double number = json_number_value(value);
    if (json_is_false(value)) number = -100;
    if (!json_is_false(value) && !json_is_number(value))
        openai_error_add(error, 400, "invalid_type", param, "the bias in '%s' must be a number or false, not %s", param,
                         openai_type_name(value));
    else if (!(number >= -100 && number <= 100))
        openai_error_add(error, 400, "invalid_value", param, "the bias in '%s' must be from -100 to 100, not %g", param,
                         number);
    else {
        *bias = number <= -100 ? -INFINITY : (float)number;
        return true;
    }
    return false;
}

static bool check_token(const openai_context *context, int64_t token, const char *param, openai_error *error) {
    if (token >= 0 && token < context->n_vocab) return true;
    openai_error_add(error, 400, "invalid_value", param, "token %lld in '%s' is not in the vocabulary (0 to %d)",
                     (long long)token, param, context->n_vocab - 1);
    return false;
}

/* {"15043": 1.5, ...} as in OpenAI's API. */
static int decode_bias_object(openai_request *out, const openai_context *context, const json_t *biases, bias_list *list,
                              openai_error *error) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)biases, key, value) {
        char param[128], *end;
        snprintf(param, sizeof param, "logit_bias.%.100s", key);
        errno = 0;
        long long token = strtoll(key, &end, 10);
        float bias;
        if (key[0] < '0' || key[0] > '9' || *end || errno)
            openai_error_add(error, 400, "invalid_value", param, "'%s' must be named by a token id", param);
        else if (check_token(context, token, param, error) && read_bias(value, param, &bias, error))
            TRY(add_bias(out, list, (int32_t)token, bias));
    }
    return 0;
}

/* [[15043, 1.5], ["text", false], ...] as in llama-server: a text stands for each of its tokens. */
static int decode_bias_pairs(openai_request *out, const openai_context *context, const json_t *biases, bias_list *list,
                             openai_error *error) {
    for (size_t i = 0; i < json_array_size(biases); i++) {
        const json_t *pair = json_array_get(biases, i), *what = json_array_get(pair, 0);
        char param[48];
        int64_t token;
        float bias;
        snprintf(param, sizeof param, "logit_bias[%zu]", i);
        bool whole = openai_to_integer(what, &token);
        if (json_array_size(pair) != 2 || !(whole || json_is_string(what))) {
            openai_error_add(error, 400, "invalid_type", param, "'%s' must be [token id or text, bias]", param);
        } else if (!read_bias(json_array_get(pair, 1), param, &bias, error)) {
            continue;
        } else if (whole) {
            if (check_token(context, token, param, error)) TRY(add_bias(out, list, (int32_t)token, bias));
        } else {
            int32_t *tokens = NULL;
            size_t n = 0;
            TRY(openai_tokenize(context, json_string_value(what), json_string_length(what), false, false, &tokens, &n));
            int result = 0;
            for (size_t k = 0; k < n && result == 0; k++) result = add_bias(out, list, tokens[k], bias);
            free(tokens);
            TRY(result);
        }
    }
    return 0;
}

static int decode_bias(openai_request *out, const openai_context *context, openai_error *error) {
    const json_t *biases = openai_member(out->body, "logit_bias");
    bias_list list = {0};
    size_t count = json_is_object(biases) ? json_object_size(biases) : json_array_size(biases);
    if (!biases) return 0;
    if (!json_is_object(biases) && !json_is_array(biases))
        openai_error_add(error, 400, "invalid_type", "logit_bias",
                         "'logit_bias' must be an object or an array of pairs, not %s", openai_type_name(biases));
    else if (count > MAX_LOGIT_BIAS)
        openai_error_add(error, 400, "invalid_value", "logit_bias", "'logit_bias' must have at most %d entries, not %zu",
                         MAX_LOGIT_BIAS, count);
    else if (json_is_object(biases))
        TRY(decode_bias_object(out, context, biases, &list, error));
    else
        TRY(decode_bias_pairs(out, context, biases, &list, error));
    out->job.sampling.logit_bias = list.items;
    out->job.sampling.n_logit_bias = list.n;
    return 0;
}

/* ---- the prompt of a completion ------------------------------------------------------------------------------------------ */

static bool check_prompt_item(const openai_context *context, const json_t *item, const char *param, openai_error *error) {
    int64_t token;
    if (json_is_string(item)) return true;
    if (openai_to_integer(item, &token)) return check_token(context, token, param, error);
    openai_error_add(error, 400, "invalid_type", param, "'%s' must hold strings or token ids, not %s", param,
                     openai_type_name(item));
    return false;
}

/* One prompt: a string, or an array of token ids and strings. */
static bool check_prompt(const openai_context *context, const json_t *prompt, const char *param, openai_error *error) {
    if (json_is_string(prompt)) return true;
    if (!json_is_array(prompt) || json_array_size(prompt) == 0) {
        openai_error_add(error, 400, json_is_array(prompt) ? "invalid_value" : "invalid_type", param,
                         "'%s' must be a string or an array of token ids, not %s", param,
                         json_is_array(prompt) ? "an empty array" : openai_type_name(prompt));
        return false;
    }
    for (size_t i = 0; i < json_array_size(prompt); i++)
        if (!check_prompt_item(context, json_array_get(prompt, i), param, error)) return false;
    return true;
}

static int decode_prompts(openai_request *out, const openai_context *context, openai_error *error) {
    const json_t *prompt = openai_member(out->body, "prompt");
    if (!prompt) {
        openai_error_add(error, 400, "missing_required_parameter", "prompt", "'prompt' is required");
        return 0;
    }
    /* An array that holds a number is one prompt; otherwise each of its items is one. */
    bool batch = json_is_array(prompt) && json_array_size(prompt) > 0;
    for (size_t i = 0; batch && i < json_array_size(prompt); i++) batch = !json_is_number(json_array_get(prompt, i));
    out->n_prompts = batch ? json_array_size(prompt) : 1;
    if (out->n_prompts > (size_t)(OPENAI_MAX_CHOICES / out->n)) {
        openai_error_add(error, 400, "invalid_value", "prompt", "%zu prompts with %d choices each are more than %d answers",
                         out->n_prompts, out->n, OPENAI_MAX_CHOICES);
        out->n_prompts = 0;
        return 0;
    }
    out->prompts = arena_array(&out->memory, out->n_prompts, sizeof *out->prompts);
    if (!out->prompts) return WEIR_E_NOMEM;
    for (size_t i = 0; i < out->n_prompts; i++) {
        char param[32] = "prompt";
        if (batch) snprintf(param, sizeof param, "prompt[%zu]", i);
        out->prompts[i].source = batch ? json_array_get(prompt, i) : prompt;
        check_prompt(context, out->prompts[i].source, param, error);
    }
    return 0;
}

/* ---- what is asked for but cannot be done -------------------------------------------------------------------------------- */

/* Fields that change what is generated: ignoring them would give a wrong answer silently. */
static const char *const unsupported_fields[] = {
    "functions", "function_call", "audio", "prompt_embeds", "structural_tag",
};

static void refuse_unsupported(const openai_request *out, openai_error *error) {
    for (size_t i = 0; i < sizeof unsupported_fields / sizeof unsupported_fields[0]; i++)
        if (openai_member(out->body, unsupported_fields[i]))
            openai_error_add(error, 400, "not_supported", unsupported_fields[i], "'%s' is not supported",
                             unsupported_fields[i]);

    const json_t *suffix = openai_get_string(out->body, "suffix", error);
    if (suffix && json_string_length(suffix))
        openai_error_add(error, 400, "not_supported", "suffix", "'suffix' is not supported");
}

/* ---- entry points -------------------------------------------------------------------------------------------------------- */

int openai_request_decode(openai_request *out, const openai_context *context, openai_endpoint endpoint, const char *body,
                          size_t n_bytes, openai_error *error) {
    *out = (openai_request){.endpoint = endpoint, .n = 1, .n_top = -1};
    weir_request_init(&out->job);
    if (endpoint == OPENAI_COMPLETION) out->job.max_tokens = COMPLETION_MAX_TOKENS;
    out->body = openai_parse_body(body, n_bytes, error);
    if (!out->body) return WEIR_E_INVALID;

    int result = endpoint == OPENAI_CHAT ? openai_chat_decode(out, context, error) : 0;
    openai_get_string(out->body, "model", error);
    decode_numbers(out, error);
    decode_output(out, error);
    if (result == 0 && endpoint == OPENAI_COMPLETION) result = decode_prompts(out, context, error);
    if (result == 0) result = decode_stop(out, error);
    if (result == 0) result = decode_bias(out, context, error);
    if (result == 0) result = openai_sampling_decode(out, error);
    refuse_unsupported(out, error);
    /* Last: nothing is compiled for a request that is refused anyway. */
    if (result == 0) result = openai_format_decode(out, context, error);
    if (result == 0 && endpoint == OPENAI_CHAT) result = openai_tools_decode(out, context, error);
    if (result == 0 && endpoint == OPENAI_CHAT) {
        out->n_prompts = 1;
        out->prompts = arena_array(&out->memory, 1, sizeof *out->prompts);
        if (!out->prompts) result = WEIR_E_NOMEM;
    }
    if (result < 0) {
        no_memory(error);
        return result;
    }
    return error->n_problems ? WEIR_E_INVALID : 0;
}

int openai_tokenize(const openai_context *context, const char *text, size_t n_bytes, bool add_special, bool parse_special,
                    int32_t **tokens, size_t *n_tokens) {
    if (add_special && parse_special && context->bos_bytes && n_bytes >= context->bos_bytes &&
        weir_model_adds_bos(context->model) && memcmp(text, context->bos, context->bos_bytes) == 0)
        add_special = false;
    /* A token is rarely shorter than a byte: one pass is nearly always enough. */
    size_t capacity = n_bytes + 4;
    for (;;) {
        int32_t *ids = malloc(capacity * sizeof *ids);
        int64_t count =
            ids ? weir_tokenize(context->model, text, n_bytes, add_special, parse_special, ids, capacity) : WEIR_E_NOMEM;
        if (count >= 0 && (size_t)count <= capacity) {
            *tokens = ids;
            *n_tokens = (size_t)count;
            return 0;
        }
        free(ids);
        if (count < 0) return (int)count;
        capacity = (size_t)count;
    }
}

static int append_tokens(openai_prompt *prompt, const int32_t *tokens, size_t n) {
    int32_t *all = realloc(prompt->tokens, (prompt->n_tokens + n + 1) * sizeof *all);
    if (!all) return WEIR_E_NOMEM;
    if (n) memcpy(all + prompt->n_tokens, tokens, n * sizeof *all);
    prompt->tokens = all;
    prompt->n_tokens += n;
    return 0;
}

/* An array of token ids and texts: special tokens are added only where a text comes first, as in llama-server. */
static int tokenize_array(openai_prompt *prompt, const openai_context *context) {
    size_t count = json_array_size(prompt->source);
    for (size_t i = 0; i < count;) {
        const json_t *item = json_array_get(prompt->source, i);
        int32_t *tokens = NULL;
        size_t n = 0;
        int64_t id;
        int result = 0;
        if (json_is_string(item)) {
            result = openai_tokenize(context, json_string_value(item), json_string_length(item), i == 0, true, &tokens, &n);
            i++;
        } else { /* a run of ids */
            tokens = malloc((count - i) * sizeof *tokens);
            if (!tokens) return WEIR_E_NOMEM;
            while (i < count && openai_to_integer(json_array_get(prompt->source, i), &id)) {
                tokens[n++] = (int32_t)id;
                i++;
            }
        }
        if (result == 0) result = append_tokens(prompt, tokens, n);
        free(tokens);
        TRY(result);
    }
    return 0;
}

static const char *prompt_field(const openai_request *request) {
    return request->endpoint == OPENAI_CHAT ? "messages" : "prompt";
}

static int refuse_long(const openai_request *request, const openai_context *context, const char *at_least, size_t n_tokens,
                       openai_error *error) {
    openai_error_add(error, 400, "context_length_exceeded", prompt_field(request),
                     "the prompt has %s%zu tokens, but the context holds %d with the answer; shorten the prompt or enlarge the "
                     "context",
                     at_least, n_tokens, context->n_ctx);
    error->type = "exceed_context_size_error";
    error->n_prompt_tokens = (int64_t)n_tokens;
    error->n_ctx = context->n_ctx;
    return WEIR_E_CONTEXT;
}

/* Refuses what cannot fit however it is tokenised: megabytes would hold up the other requests for nothing. The factor leaves
 * room for normalisations that shorten the text. */
static int check_length(const openai_request *request, const openai_context *context, size_t n_bytes, openai_error *error) {
    size_t least = n_bytes / (2 * context->longest_token);
    return least < (size_t)context->n_ctx ? 0 : refuse_long(request, context, "at least ", least, error);
}

/* Whether the text ends in `tag`, white space aside. */
static bool ends_in(const openai_prompt *prompt, const char *tag) {
    size_t n = prompt->text_bytes, length = strlen(tag);
    while (n && (prompt->text[n - 1] == '\n' || prompt->text[n - 1] == ' ')) n--;
    return n >= length && memcmp(prompt->text + n - length, tag, length) == 0;
}

static int tokenize_prompt(openai_request *request, openai_prompt *prompt, const openai_context *context, openai_error *error) {
    if (request->endpoint == OPENAI_CHAT) {
        TRY(openai_request_render(request, context, &prompt->text, &prompt->text_bytes, error));
        TRY(check_length(request, context, prompt->text_bytes, error));
        /* A prompt that opens a block of reasoning: the shape is that of the answer behind it. */
        request->in_reasoning = ends_in(prompt, "<think>");
        if (request->job.grammar && !request->job.grammar_after && request->in_reasoning) request->job.grammar_after = "</think>";
        return openai_tokenize(context, prompt->text, prompt->text_bytes, true, true, &prompt->tokens, &prompt->n_tokens);
    }
    if (json_is_array(prompt->source)) {
        TRY(tokenize_array(prompt, context));
        if (!request->echo) return 0;
        return weir_detokenize(context->model, prompt->tokens, prompt->n_tokens, false, &prompt->text, &prompt->text_bytes,
                               NULL);
    }
    prompt->text_bytes = json_string_length(prompt->source);
    TRY(check_length(request, context, prompt->text_bytes, error));
    prompt->text = malloc(prompt->text_bytes + 1);
    if (!prompt->text) return WEIR_E_NOMEM;
    memcpy(prompt->text, json_string_value(prompt->source), prompt->text_bytes + 1);
    return openai_tokenize(context, prompt->text, prompt->text_bytes, true, true, &prompt->tokens, &prompt->n_tokens);
}

int openai_request_tokenize(openai_request *request, const openai_context *context, openai_error *error) {
    const char *field = prompt_field(request);
    for (size_t i = 0; i < request->n_prompts; i++) {
        openai_prompt *prompt = &request->prompts[i];
        int result = tokenize_prompt(request, prompt, context, error);
        if (result < 0) {
            if (!error->n_problems) no_memory(error);
            return result;
        }
        if (prompt->n_tokens == 0) {
            openai_error_add(error, 400, "invalid_value", field, "'%s' holds no tokens: there is nothing to continue", field);
            return WEIR_E_INVALID;
        }
        if (prompt->n_tokens >= (size_t)context->n_ctx) return refuse_long(request, context, "", prompt->n_tokens, error);
    }
    return 0;
}

void openai_request_free(openai_request *request) {
    for (size_t i = 0; i < request->n_prompts && request->prompts; i++) {
        free(request->prompts[i].text);
        free(request->prompts[i].tokens);
    }
    weir_grammar_close(&request->job.grammar);
    json_decref(request->messages);
    json_decref(request->body);
    free(request->prefill);
    arena_free(&request->memory);
    *request = (openai_request){0};
}
