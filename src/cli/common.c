/* See commands.h. */
#include "cli/commands.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/nearest.h"
#include "chat/builtin.h"
#include "kern/kern.h"

int command_failed(const weir_error *err) {
    const char *message = err->message[0] ? err->message : weir_code_text(err->code);
    fprintf(stderr, "Error: %s%s%s\n", err->place, err->place[0] ? ": " : "", message);
    return EXIT_FAILED;
}

int command_misused(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("Error: ", stderr);
    vfprintf(stderr, format, args);
    fputs("\n", stderr);
    va_end(args);
    return EXIT_USAGE;
}

/* ---- model ------------------------------------------------------------------------------------------------------------ */

typedef struct progress {
    const char *what;
    int shown; /* percent */
    bool (*stop)(void);
} progress;

static bool show_progress(void *user, uint64_t done, uint64_t total) {
    progress *p = user;
    int percent = total ? (int)(100.0 * (double)done / (double)total) : 100;
    if (p->what && percent != p->shown) fprintf(stderr, "\r%s: %3d %%", p->what, percent);
    p->shown = percent;
    return !(p->stop && p->stop());
}

static void end_progress(const progress *p) {
    if (p->what && p->shown >= 0) fputs("\r\033[K", stderr);
}

weir_model_options command_model_options(const settings *s) {
    const char *cache = s->weights_cache, *mode = s->weights_mode;
    return (weir_model_options){
        .n_threads = (int32_t)s->threads,
        .quantise = s->quant,
        .weights_cache = cache == NULL || strcmp(cache, "off") == 0 ? NULL : strcmp(cache, "auto") == 0 ? "" : cache,
        .weights_mode = mode == NULL || strcmp(mode, "auto") == 0 ? WEIR_WEIGHTS_AUTO
                        : strcmp(mode, "map") == 0                ? WEIR_WEIGHTS_MAP
                                                                  : WEIR_WEIGHTS_READ,
    };
}

weir_model *command_open_model(const settings *s, const char *path, bool vocab_only) {
    weir_model *model = NULL;
    weir_error err = {0};
    const bool visible = !s->quiet && !vocab_only && isatty(STDERR_FILENO);
    progress p = {.what = visible ? "Loading the model" : NULL, .shown = -1};
    weir_model_options options = command_model_options(s);
    options.vocab_only = vocab_only;
    options.progress = visible ? show_progress : NULL;
    options.progress_user = &p;
    int result = weir_model_open(&model, path, &options, &err);
    end_progress(&p);
    if (result < 0) {
        command_failed(&err);
        return NULL;
    }
    const char *note = weir_model_get_info(model)->weights_cache_note;
    if (note) fprintf(stderr, "Warning: packed weights are made anew: %s\n", note);
    return model;
}

void command_save_weights(const settings *s, const weir_model *model, bool (*stop)(void)) {
    weir_error err = {0};
    progress p = {.what = !s->quiet && isatty(STDERR_FILENO) ? "Keeping the packed weights for the next start" : NULL,
                  .shown = -1,
                  .stop = stop};
    int result = weir_model_save_weights(model, show_progress, &p, &err);
    end_progress(&p);
    if (result < 0 && result != WEIR_E_CANCELLED)
        fprintf(stderr, "Warning: the packed weights are not kept for the next start: %s: %s\n", err.place, err.message);
}

weir_kv_type command_kv_type(const char *name) {
    int type = 0;
    while (name && type < KERN_N_KV_TYPES && strcmp(kern_kv_type_name((kern_kv_type)type), name) != 0) type++;
    return (weir_kv_type)type;
}

weir_engine_options command_engine_options(const settings *s) {
    return (weir_engine_options){
        .n_threads = (int32_t)s->threads,
        .n_ctx = (int32_t)s->ctx_size,
        .n_parallel = (int32_t)s->parallel,
        .n_batch = (int32_t)s->batch_size,
        .max_queue = (int32_t)s->max_queue,
        .max_queue_tokens = s->max_queue_tokens,
        .no_prefix_cache = s->no_prefix_cache,
        .prefix_cache_file = s->prefix_cache_file,
        .kv_cache_bytes = s->kv_cache_mib << 20,
        .cache_type_k = command_kv_type(s->cache_type_k),
        .cache_type_v = command_kv_type(s->cache_type_v),
        .n_draft = s->no_spec ? -1 : (int32_t)s->draft_max,
    };
}

int command_sampler_order(const settings *s, weir_sampling *sampling) {
    char name[32];
    for (const char *at = s->samplers, *end; at && *at; at = *end ? end + 1 : end) {
        end = strchrnul(at, ';');
        snprintf(name, sizeof name, "%.*s", (int)(end - at), at);
        int sampler = weir_sampler_named(name);
        if (sampler < 0 || sampling->n_chain == WEIR_MAX_CHAIN)
            return command_misused(sampler < 0 ? "--samplers: there is no sampler \"%s\"" : "--samplers: too many before \"%s\"", name);
        sampling->chain[sampling->n_chain++] = (uint8_t)sampler;
    }
    return 0;
}

weir_sampling command_sampling(const settings *s) {
    weir_request defaults;
    weir_request_init(&defaults);
    weir_sampling sampling = defaults.sampling;
    sampling.temperature = (float)s->temperature;
    sampling.top_k = (int32_t)s->top_k;
    sampling.top_p = (float)s->top_p;
    sampling.min_p = (float)s->min_p;
    sampling.repetition_penalty = (float)s->repeat_penalty;
    sampling.frequency_penalty = (float)s->frequency_penalty;
    sampling.presence_penalty = (float)s->presence_penalty;
    sampling.penalty_last_n = (int32_t)s->repeat_last_n;
    sampling.dynatemp_range = (float)s->dynatemp_range;
    sampling.dynatemp_exponent = (float)s->dynatemp_exponent;
    sampling.typical_p = (float)s->typical_p;
    sampling.top_n_sigma = (float)s->top_n_sigma;
    sampling.xtc_probability = (float)s->xtc_probability;
    sampling.xtc_threshold = (float)s->xtc_threshold;
    sampling.dry_multiplier = (float)s->dry_multiplier;
    sampling.dry_base = (float)s->dry_base;
    sampling.dry_allowed_length = (int32_t)s->dry_allowed_length;
    sampling.dry_penalty_last_n = (int32_t)s->dry_penalty_last_n;
    if (s->dry_breakers.n) {
        bool none = s->dry_breakers.n == 1 && strcmp(s->dry_breakers.items[0], "none") == 0;
        sampling.dry_breakers = s->dry_breakers.items;
        sampling.n_dry_breakers = none ? 0 : s->dry_breakers.n;
    }
    command_sampler_order(s, &sampling); /* what is wrong with it was said before */
    sampling.mirostat = (int32_t)s->mirostat;
    sampling.mirostat_tau = (float)s->mirostat_tau;
    sampling.mirostat_eta = (float)s->mirostat_eta;
    sampling.seed = s->seed < 0 ? (uint64_t)clock_unix_us() : (uint64_t)s->seed;
    return sampling;
}

char *command_token_text(const weir_model *model, int32_t token) {
    size_t n_bytes = 0;
    const char *bytes = token < 0 ? NULL : weir_token_bytes(model, token, true, &n_bytes);
    return strndup(bytes ? bytes : "", n_bytes);
}

/* ---- chat templates --------------------------------------------------------------------------------------------------- */

static int copy_template(const char *text, char **source, weir_error *err) {
    *source = strdup(text);
    FAIL_IF(*source == NULL, err, WEIR_E_NOMEM, "chat template", "no memory for the chat template");
    return 0;
}

static int read_template(const char *path, char **source, weir_error *err) {
    buf text = BUF_INIT;
    TRY(command_read_file(path, &text, err));
    if (text.data == NULL) return copy_template("", source, err);
    *source = buf_take(&text, NULL);
    return 0;
}

/* --chat-template: the name of a built-in one, Jinja text, or a file. */
static int given_template(const char *given, char **source, weir_error *err) {
    const char *builtin = chat_builtin_template(given);
    if (builtin) return copy_template(builtin, source, err);
    if (strstr(given, "{{") || strstr(given, "{%") || strstr(given, "{#")) return copy_template(given, source, err);
    if (access(given, R_OK) == 0) return read_template(given, source, err);
    nearest near;
    nearest_begin(&near, given, strlen(given));
    for (size_t i = 0; chat_builtin_name(i); i++) nearest_try(&near, chat_builtin_name(i));
    FAIL(err, WEIR_E_INVALID, "--chat-template",
         "\"%.64s\" is no built-in template (weir models lists them), no file and no Jinja text%s%s%s", given,
         near.best ? "; did you mean " : "", near.best ? near.best : "", near.best ? "?" : "");
}

static bool is_token(const weir_model *model, const char *text) {
    int32_t ids[2];
    return weir_tokenize(model, text, strlen(text), false, true, ids, 2) == 1;
}

const char *command_fallback_template(const weir_model *model) {
    static const struct {
        const char *marker, *name;
    } rows[] = {
        {"<|im_start|>", "chatml"},
        {"<start_of_turn>", "gemma"},
        {"<|start_header_id|>", "llama3"},
        {"<|header_start|>", "llama4"},
        {"<|start_of_role|>", "granite"},
        {"<|START_OF_TURN_TOKEN|>", "command-r"},
        {"[SYSTEM_PROMPT]", "mistral-v7-tekken"},
        {"[INST]", "mistral-v3"},
        {"<|channel|>", "gpt-oss"},
        {"<｜User｜>", "deepseek3"},
        {"<|end|>", "phi3"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (is_token(model, rows[i].marker)) return rows[i].name;
    return "chatml";
}

int command_chat_template(const settings *s, const weir_model *model, char **source, weir_error *err) {
    *source = NULL;
    if (s->chat_template_file) return read_template(s->chat_template_file, source, err);
    if (s->chat_template) return given_template(s->chat_template, source, err);
    const char *own = weir_model_get_info(model)->chat_template;
    if (own) return copy_template(own, source, err);
    const char *name = command_fallback_template(model);
    log_write(LOG_WARN,
              "the model has no chat template: conversations are written in the built-in format '%s'; --chat-template "
              "gives another",
              name);
    return copy_template(chat_builtin_template(name), source, err);
}

/* ---- files ------------------------------------------------------------------------------------------------------------ */

int command_read_file(const char *path, buf *out, weir_error *err) {
    bool is_stdin = strcmp(path, "-") == 0;
    FILE *file = is_stdin ? stdin : fopen(path, "rb");
    FAIL_IF(file == NULL, err, WEIR_E_IO, path, "cannot be opened: %s", strerror(errno));
    enum { PIECE = 65536 };
    out->limit = (size_t)1 << 30;
    size_t n = PIECE;
    errno = 0;
    while (n == PIECE && buf_reserve(out, PIECE + 1)) {
        n = fread(out->data + out->n_bytes, 1, PIECE, file);
        out->n_bytes += n;
        out->data[out->n_bytes] = '\0';
    }
    int reason = ferror(file) ? errno : 0;
    if (!is_stdin) fclose(file);
    bool failed = out->failed;
    if (reason || failed) buf_free(out);
    FAIL_IF(reason, err, WEIR_E_IO, path, "cannot be read: %s", strerror(reason));
    FAIL_IF(failed, err, WEIR_E_NOMEM, path, "does not fit into memory, or is longer than 1 GiB");
    return 0;
}

int command_write(const char *bytes, size_t n_bytes) {
    if (fwrite(bytes, 1, n_bytes, stdout) == n_bytes && fflush(stdout) == 0) return EXIT_OK;
    if (errno != EPIPE) fprintf(stderr, "Error: standard output: %s\n", strerror(errno));
    return EXIT_FAILED;
}
