/* weir serve, and the worker llm-worker-rbee: one model behind the server of src/api. The main thread runs the server's loop;
 * the model loads on a second thread, while the server already says that it is not ready. SIGINT and SIGTERM end it in order; a
 * second one ends it at once. */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api/server.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "cli/commands.h"

enum { MAX_KEYS = 256, DEFAULT_PARALLEL = 64 };

typedef struct service {
    const settings *s;
    api_server *server;
    weir_model *model;
    weir_chat *chat;
    weir_engine *engine;
    bool with_chat, visible; /* progress on a terminal */
    int shown;               /* percent */
    int result;              /* of loading; written by the loader until it is joined */
    atomic_bool ending;      /* the loader, if it still keeps weights, is to stop */
    weir_error err;
} service;

/* For the signal handler. */
static api_server *stopping_server;
static atomic_int n_signals;

static void on_signal(int signal) {
    if (atomic_fetch_add(&n_signals, 1) > 0) _exit(128 + signal);
    if (stopping_server) api_server_stop(stopping_server);
}

static void catch_signals(api_server *server) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    stopping_server = server;
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

/* ---- loading ---------------------------------------------------------------------------------------------------------- */

static bool on_progress(void *user, uint64_t done, uint64_t total) {
    service *v = user;
    api_server_set_progress(v->server, done, total);
    int percent = total ? (int)(100.0 * (double)done / (double)total) : 100;
    if (v->visible && percent != v->shown) fprintf(stderr, "\rLoading the model: %3d %%", percent);
    v->shown = percent;
    return atomic_load(&n_signals) == 0;
}

static int open_chat(service *v, weir_error *err) {
    char *source = NULL;
    if (!v->with_chat) return 0;
    TRY(command_chat_template(v->s, v->model, &source, err));
    char *bos = command_token_text(v->model, weir_token_bos(v->model)),
         *eos = command_token_text(v->model, weir_token_eos(v->model));
    int result = bos && eos ? weir_chat_open(&v->chat, source, bos, eos, err)
                            : error_set(err, WEIR_E_NOMEM, "", "no memory for the chat template");
    bool given = v->s->chat_template || v->s->chat_template_file;
    if (result < 0 && !given) { /* the model can still complete text */
        log_write(LOG_WARN, "the model's chat template is not usable, so chat requests are refused: %s", err->message);
        result = 0;
    }
    free(bos);
    free(eos);
    free(source);
    return result;
}

static int load(service *v) {
    weir_model_options options = command_model_options(v->s);
    options.progress = on_progress;
    options.progress_user = v;
    int64_t begin_us = clock_now_us();
    int result = weir_model_open(&v->model, v->s->model, &options, &v->err);
    if (v->visible && v->shown >= 0) fputs("\r\033[K", stderr);
    TRY(result);
    weir_engine_options engine_options = command_engine_options(v->s);
    TRY(weir_engine_open(&v->engine, v->model, &engine_options, &v->err));
    TRY(open_chat(v, &v->err));
    const weir_model_info *info = weir_model_get_info(v->model);
    if (info->weights_cache_note) log_write(LOG_WARN, "packed weights are made anew: %s", info->weights_cache_note);
    log_field fields[] = {LOG_TEXT("model", info->name),
                          LOG_TEXT("architecture", info->architecture),
                          LOG_TEXT("type", info->file_type),
                          LOG_TEXT("cpu", info->cpu_level),
                          LOG_TEXT("weights", info->weights_cached ? info->weights_cache_path : "packed"),
                          LOG_NUMBER("n_ctx", weir_engine_n_ctx(v->engine)),
                          LOG_NUMBER("load_ms", (clock_now_us() - begin_us) / 1000)};
    log_event(LOG_INFO, "model loaded", fields, sizeof fields / sizeof fields[0]);
    int32_t n_parallel = engine_options.n_parallel > 0 ? engine_options.n_parallel : DEFAULT_PARALLEL;
    return api_server_set_ready(v->server, v->model, v->chat, v->engine, n_parallel, &v->err);
}

static bool goes_on(void *user, uint64_t done, uint64_t total) {
    service *v = user;
    (void)done;
    (void)total;
    return !atomic_load(&v->ending);
}

/* The model serves already; this thread takes what time the others leave. */
static void save_weights(service *v) {
    const struct sched_param none = {0};
    weir_error err = {0};
    int64_t begin_us = clock_now_us();
    (void)pthread_setschedparam(pthread_self(), SCHED_IDLE, &none);
    int result = weir_model_save_weights(v->model, goes_on, v, &err);
    if (result > 0) {
        const weir_model_info *info = weir_model_get_info(v->model);
        log_field fields[] = {LOG_TEXT("file", info->weights_cache_path), LOG_NUMBER("bytes", info->packed_bytes),
                              LOG_NUMBER("ms", (clock_now_us() - begin_us) / 1000)};
        log_event(LOG_INFO, "packed weights kept for the next start", fields, sizeof fields / sizeof fields[0]);
    } else if (result < 0 && result != WEIR_E_CANCELLED) {
        log_write(LOG_WARN, "the packed weights are not kept for the next start: %s: %s", err.place, err.message);
    }
}

static void *run_loader(void *arg) {
    service *v = arg;
    v->result = load(v);
    if (v->result < 0) api_server_stop(v->server);
    else save_weights(v);
    return NULL;
}

/* ---- serving ---------------------------------------------------------------------------------------------------------- */

static int serve(const settings *s, const api_server_options *options) {
    service v = {.s = s, .with_chat = true, .visible = !s->quiet && !options->worker && isatty(STDERR_FILENO), .shown = -1};
    weir_error err = {0};
    pthread_t loader;
    if (access(s->model, R_OK) != 0)
        return command_failed(&(weir_error){.code = WEIR_E_IO, .message = "the model cannot be read"});
    if (api_server_open(&v.server, options, &err) < 0) return command_failed(&err);
    catch_signals(v.server);
    log_field fields[] = {LOG_TEXT("host", options->host), LOG_NUMBER("port", api_server_port(v.server))};
    log_event(LOG_INFO, "listening", fields, 2);
    int result =
        pthread_create(&loader, NULL, run_loader, &v) == 0 ? 0 : error_set(&err, WEIR_E_INTERNAL, "", "no thread for loading");
    if (result >= 0) {
        result = api_server_run(v.server, &err);
        atomic_store(&v.ending, true);
        pthread_join(loader, NULL);
    }
    if (result >= 0 && v.result < 0 && !(v.result == WEIR_E_CANCELLED && atomic_load(&n_signals))) {
        result = v.result;
        err = v.err;
    }
    stopping_server = NULL;
    api_server_close(&v.server);
    weir_engine_close(&v.engine);
    weir_chat_close(&v.chat);
    weir_model_close(&v.model);
    if (result < 0) return command_failed(&err);
    log_write(LOG_INFO, "ended in order");
    return EXIT_OK;
}

/* What may stand behind a key in a file: name=NAME weight=X priority=N. */
static int read_attribute(api_key *key, const char *word, weir_error *err) {
    char *end = NULL;
    if (strncmp(word, "name=", 5) == 0 && word[5]) {
        key->name = word + 5;
        return 0;
    }
    if (strncmp(word, "weight=", 7) == 0) {
        key->weight = strtof(word + 7, &end);
        if (end > word + 7 && *end == '\0' && key->weight > 0 && key->weight <= 1e6f) return 0;
    } else if (strncmp(word, "priority=", 9) == 0) {
        const long value = strtol(word + 9, &end, 10);
        key->priority = (int32_t)value;
        if (end > word + 9 && *end == '\0' && value >= INT32_MIN && value <= INT32_MAX) return 0;
    }
    FAIL(err, WEIR_E_INVALID, "api keys", "'%s' is not name=NAME, weight=X (above 0) or priority=N", word);
}

/* The keys in `text`, cut in place at commas and line ends; in a file a line may go on behind its key, and # begins a remark. */
static int cut_keys(char *text, bool is_file, api_key *keys, size_t *n, weir_error *err) {
    char *rest = NULL;
    for (char *line = strtok_r(text, ",\r\n", &rest); line; line = strtok_r(NULL, ",\r\n", &rest)) {
        char *words = NULL, *word = is_file ? strtok_r(line, " \t", &words) : line;
        if (word == NULL || (is_file && *word == '#')) continue;
        FAIL_IF(*n == MAX_KEYS, err, WEIR_E_LIMIT, "api keys", "more than %d", MAX_KEYS);
        keys[*n] = (api_key){.key = word};
        while (is_file && (word = strtok_r(NULL, " \t", &words))) TRY(read_attribute(&keys[*n], word, err));
        ++*n;
    }
    return 0;
}

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

int command_serve(const settings *s) {
    if (s->model == NULL) return command_misused("serve needs --model FILE");
    log_setup(STDERR_FILENO, strcmp(s->log_format, "json") == 0, s->verbose ? LOG_DEBUG : LOG_INFO);
    api_key keys[MAX_KEYS];
    size_t n_keys = 0;
    weir_error err = {0};
    buf file = BUF_INIT;
    char *list = s->api_key ? strdup(s->api_key) : NULL;
    int result = s->api_key && list == NULL ? error_set(&err, WEIR_E_NOMEM, "--api-key", "no memory") : 0;
    if (list) result = cut_keys(list, false, keys, &n_keys, &err);
    if (result >= 0 && s->api_key_file) result = command_read_file(s->api_key_file, &file, &err);
    if (result >= 0 && file.data) result = cut_keys(file.data, true, keys, &n_keys, &err);
    if (result >= 0 && n_keys == 0 && (s->api_key || s->api_key_file)) {
        result = error_set(&err, WEIR_E_INVALID, s->api_key ? "--api-key" : s->api_key_file, "holds no key");
    }
    api_server_options options = {.host = s->host,
                                  .port = (uint16_t)s->port,
                                  .model_alias = s->alias ? s->alias : base_name(s->model),
                                  .api_keys = keys,
                                  .n_api_keys = n_keys,
                                  .drain_ms = (int64_t)(s->drain_timeout * 1000),
                                  .timeout_ms = (int64_t)(s->request_timeout * 1000)};
    int code = result < 0 ? command_failed(&err) : serve(s, &options);
    buf_free(&file);
    free(list);
    return code;
}

/* ---- the worker ------------------------------------------------------------------------------------------------------- */

static int serve_worker(const settings *s, const char *host, const char *token) {
    if (s->hive_url == NULL && s->queen_url == NULL && s->callback_url == NULL)
        return command_misused("--hive-url URL is missing");
    const api_key keys[1] = {{.key = token}};
    api_server_options options = {.host = host,
                                  .port = (uint16_t)s->port,
                                  .model_alias = s->model_ref ? s->model_ref : s->model,
                                  .api_keys = keys,
                                  .n_api_keys = token ? 1 : 0,
                                  .worker = true,
                                  .worker_id = s->worker_id,
                                  .backend = s->backend,
                                  .device = (int32_t)s->device,
                                  .hive_url = s->hive_url,
                                  .queen_url = s->queen_url,
                                  .callback_url = s->callback_url};
    return serve(s, &options);
}

static int refuse(const char *reason) {
    fprintf(stderr, "Error: %s\n", reason);
    return EXIT_FAILED;
}

int command_worker(const settings *s) {
    const char *format = getenv("LLORCH_LOG_FORMAT"), *token = getenv("LLORCH_API_TOKEN");
    log_setup(STDOUT_FILENO, format && strcmp(format, "json") == 0, LOG_INFO);
    if (s->local_mode) {
        if (token && *token) return refuse("--local-mode cannot use LLORCH_API_TOKEN; unset it, or leave --local-mode out");
        return serve_worker(s, "127.0.0.1", NULL);
    }
    if (token == NULL) return refuse("Network mode requires LLORCH_API_TOKEN; set it, or use --local-mode");
    if (*token == '\0') return refuse("LLORCH_API_TOKEN cannot be empty in network mode");
    return serve_worker(s, "0.0.0.0", token);
}

int command_worker_variant(const settings *s) {
    const char *token = getenv("LLORCH_API_TOKEN");
    log_setup(STDOUT_FILENO, true, LOG_INFO);
    return serve_worker(s, "0.0.0.0", token && *token ? token : NULL);
}
