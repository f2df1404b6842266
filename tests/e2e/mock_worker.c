/* The real server and the real scheduler over a backend that needs no model file: the wire and the latencies of weir without the
 * arithmetic. Its model is in this file: the functions of weir.h about models are defined here instead of being linked.
 *
 * Tokens: 0..255 are bytes, END ends a generation, PIECES + k are the texts of `pieces`. What is said depends on the prompt alone:
 *   "say:TEXT"  TEXT, a byte for each token, then the end      "pieces"  every piece, then the end
 *   "fail"      the second step fails                          others    letters that are a hash of prompt and position, for ever
 * A step takes --delay-ms. SIGUSR1 closes the queue. The first line on stdout is the port. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api/server.h"
#include "base/buf.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "sched/sched.h"

enum { END = 256, PIECES = 257, N_PIECES = 5, N_VOCAB = PIECES + N_PIECES, N_CTX = 4096, MAX_ITEMS = 64 };

static const char *const pieces[N_PIECES] = {" [DONE]", "a \"quoted\" \\ line\n", "\x01\x1f\x7f", "[ERROR] or [CANCELLED]", "grün 🙂"};

/* ---- the model -------------------------------------------------------------------------------------------------------- */

struct weir_model {
    int32_t unused;
};
static weir_model model;

int64_t weir_tokenize(const weir_model *m, const char *text, size_t n_bytes, bool add_special, bool parse_special, int32_t *tokens,
                      size_t capacity) {
    (void)m, (void)add_special, (void)parse_special;
    for (size_t i = 0; i < n_bytes && i < capacity; i++) tokens[i] = (unsigned char)text[i];
    return (int64_t)n_bytes;
}

static const char *piece_of(int32_t token, size_t *n_bytes) {
    static char bytes[256];
    *n_bytes = 0;
    if (token < 0 || token >= N_VOCAB || token == END) return token == END ? "" : NULL;
    if (token >= PIECES) {
        *n_bytes = strlen(pieces[token - PIECES]);
        return pieces[token - PIECES];
    }
    if (bytes[1] == 0)
        for (int i = 1; i < 256; i++) bytes[i] = (char)i;
    *n_bytes = 1;
    return &bytes[token];
}

const char *weir_token_bytes(const weir_model *m, int32_t token, bool special, size_t *n_bytes) {
    (void)m, (void)special;
    return piece_of(token, n_bytes);
}

int weir_detokenize(const weir_model *m, const int32_t *tokens, size_t n, bool special, char **text, size_t *n_bytes, weir_error *err) {
    (void)m, (void)special;
    buf out = BUF_INIT;
    for (size_t i = 0; i < n; i++) {
        size_t n_piece;
        const char *piece = piece_of(tokens[i], &n_piece);
        if (piece == NULL) {
            buf_free(&out);
            FAIL(err, WEIR_E_INVALID, "tokens", "token %zu is out of range", i);
        }
        buf_append(&out, piece, n_piece);
    }
    buf_reserve(&out, 1);
    *text = buf_take(&out, n_bytes);
    return *text ? 0 : WEIR_E_NOMEM;
}

bool weir_token_is_eog(const weir_model *m, int32_t token) { return (void)m, token == END; }
int32_t weir_token_bos(const weir_model *m) { return (void)m, -1; }
int32_t weir_token_eos(const weir_model *m) { return (void)m, END; }
bool weir_model_adds_bos(const weir_model *m) { return (void)m, false; }
const weir_model_info *weir_model_get_info(const weir_model *m) {
    static const weir_model_info info = {.path = "mock", .architecture = "mock", .name = "mock", .file_type = "none", .cpu_level = "none",
                                         .n_vocab = N_VOCAB, .n_ctx_train = N_CTX};
    return (void)m, &info;
}

/* ---- the backend ------------------------------------------------------------------------------------------------------ */

typedef struct mock_seq {
    int32_t n, n_prompt, capacity;
    int32_t *tokens; /* [capacity] */
} mock_seq;

static struct {
    int64_t delay_us;
    float logits[MAX_ITEMS][N_VOCAB];
    int64_t used;
} mock;

static int seq_open(void *context, uint64_t salt, void **seq, weir_error *err) {
    (void)context, (void)salt;
    *seq = calloc(1, sizeof(mock_seq));
    FAIL_IF(*seq == NULL, err, WEIR_E_NOMEM, NULL, "no memory for a sequence");
    return 0;
}

static int seq_reserve(void *context, void *seq, int32_t n_tokens, weir_error *err) {
    (void)context;
    mock_seq *q = seq;
    if (n_tokens <= q->capacity) return 0;
    int32_t *tokens = realloc(q->tokens, (size_t)n_tokens * sizeof *tokens);
    FAIL_IF(tokens == NULL, err, WEIR_E_NOMEM, NULL, "no memory for a sequence");
    mock.used += n_tokens - q->capacity;
    q->tokens = tokens;
    q->capacity = n_tokens;
    return 0;
}

static void seq_close(void *context, void *seq) {
    (void)context;
    mock_seq *q = seq;
    mock.used -= q->capacity;
    free(q->tokens);
    free(q);
}

static bool prompt_is(const mock_seq *q, const char *text, bool whole) {
    int32_t n = (int32_t)strlen(text);
    if (q->n_prompt < n || (whole && q->n_prompt != n)) return false;
    for (int32_t i = 0; i < n; i++)
        if (q->tokens[i] != (unsigned char)text[i]) return false;
    return true;
}

static int32_t next_token(const mock_seq *q) {
    int32_t at = q->n - q->n_prompt;
    if (prompt_is(q, "pieces", true)) return at < N_PIECES ? PIECES + at : END;
    if (prompt_is(q, "say:", false)) return at + 4 < q->n_prompt ? q->tokens[at + 4] : END;
    uint32_t hash = 2166136261u;
    for (int32_t i = 0; i < q->n_prompt; i++) hash = (hash ^ (uint32_t)q->tokens[i]) * 16777619u;
    hash = (hash ^ (uint32_t)at) * 16777619u;
    return 'a' + (int32_t)((hash ^ hash >> 15) % 26);
}

static int step(void *context, const sched_item *items, int32_t n_items, sched_abort_fn abort, void *user, weir_error *err) {
    (void)context;
    for (int64_t end = clock_now_us() + mock.delay_us; clock_now_us() < end;) {
        if (abort && abort(user)) return WEIR_E_CANCELLED;
        int64_t left = end - clock_now_us();
        if (left > 0) clock_sleep_us(left < 1000 ? left : 1000);
    }
    for (int32_t i = 0; i < n_items; i++) {
        const mock_seq *q = items[i].seq;
        if (prompt_is(q, "fail", true) && q->n > q->n_prompt) FAIL(err, WEIR_E_INTERNAL, NULL, "made to fail");
    }
    for (int32_t i = 0; i < n_items; i++) {
        mock_seq *q = items[i].seq;
        memcpy(q->tokens + q->n, items[i].tokens, (size_t)items[i].n_tok * sizeof(int32_t));
        q->n += items[i].n_tok;
        if (!items[i].n_logits) continue;
        if (q->n_prompt == 0) q->n_prompt = q->n;
        for (int32_t t = 0; t < N_VOCAB; t++) mock.logits[i][t] = -20;
        mock.logits[i][next_token(q)] = 20;
    }
    return 0;
}

static const float *logits(void *context, int32_t i, int32_t row) { return (void)context, (void)row, mock.logits[i]; }
static int64_t kv_used(void *context) { return (void)context, mock.used; }
static const char *piece(void *context, int32_t token, bool special, size_t *n_bytes) {
    (void)context, (void)special;
    return piece_of(token, n_bytes);
}
static bool is_eog(void *context, int32_t token) { return (void)context, token == END; }
static int64_t now_us(void *context) { return (void)context, clock_now_us(); }
static void close_backend(void *context) { (void)context; }

/* ---- the program ------------------------------------------------------------------------------------------------------ */

static weir_engine *engine;
static api_server *server;
static int64_t loading_ms;
static int32_t n_parallel = 1;

static void *watch_signals(void *user) {
    const sigset_t *set = user;
    int number;
    while (sigwait(set, &number) == 0) {
        if (number != SIGUSR1) {
            api_server_stop(server);
            return NULL;
        }
        weir_engine_drain(engine);
    }
    return NULL;
}

static void *load(void *user) {
    weir_error err = {0};
    (void)user;
    for (int64_t ms = 0; ms < loading_ms; ms += 50) {
        api_server_set_progress(server, (uint64_t)ms << 20, (uint64_t)loading_ms << 20);
        clock_sleep_us(50 * 1000);
    }
    if (api_server_set_ready(server, &model, NULL, engine, n_parallel, &err) < 0) {
        fprintf(stderr, "Error: %s: %s\n", err.place, err.message);
        exit(1);
    }
    return NULL;
}

static const char *flag(int argc, char **argv, const char *name, const char *missing) {
    for (int i = 1; i + 1 < argc; i += 2)
        if (strcmp(argv[i], name) == 0) return argv[i + 1];
    return missing;
}

static int64_t number(int argc, char **argv, const char *name, int64_t missing) {
    const char *text = flag(argc, argv, name, NULL);
    return text ? strtoll(text, NULL, 10) : missing;
}

static int open_all(int argc, char **argv, weir_error *err) {
    const char *key = flag(argc, argv, "--api-key", NULL);
    api_server_options o = {.model_alias = "mock", .worker = number(argc, argv, "--worker", 1) != 0, .worker_id = "w-1", .backend = "cpu",
                            .hive_url = flag(argc, argv, "--hive-url", NULL), .queen_url = flag(argc, argv, "--queen-url", NULL),
                            .callback_url = flag(argc, argv, "--callback-url", NULL), .api_keys = &(api_key){.key = key}, .n_api_keys = key != NULL,
                            .heartbeat_ms = number(argc, argv, "--heartbeat-ms", 0), .job_ttl_ms = number(argc, argv, "--job-ttl-ms", 0),
                            .drain_ms = number(argc, argv, "--drain-ms", 0), .timeout_ms = number(argc, argv, "--timeout-ms", 0)};
    sched_backend backend = {.n_vocab = N_VOCAB, .n_ctx = N_CTX, .kv_tokens_total = (int64_t)N_CTX * MAX_ITEMS, .page_tokens = 32, .cache_type_k = "f16",
                             .cache_type_v = "q8_0", .seq_open = seq_open, .seq_reserve = seq_reserve,
                             .seq_close = seq_close, .step = step, .logits = logits, .kv_tokens_used = kv_used, .piece = piece,
                             .is_eog = is_eog, .now_us = now_us, .close = close_backend};
    n_parallel = (int32_t)number(argc, argv, "--parallel", 1);
    const weir_engine_options e = {.n_parallel = n_parallel, .max_queue = (int32_t)number(argc, argv, "--queue", -1)};
    mock.delay_us = number(argc, argv, "--delay-ms", 50) * 1000;
    loading_ms = number(argc, argv, "--loading-ms", 0);
    TRY(sched_open(&engine, &backend, &e, err));
    return api_server_open(&server, &o, err);
}

int main(int argc, char **argv) {
    weir_error err = {0};
    sigset_t set;
    pthread_t signals, loader;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    if (open_all(argc, argv, &err) < 0) {
        fprintf(stderr, "Error: %s: %s\n", err.place, err.message);
        return 1;
    }
    printf("%u\n", api_server_port(server));
    fflush(stdout);
    pthread_create(&signals, NULL, watch_signals, &set);
    pthread_create(&loader, NULL, load, NULL);
    int code = api_server_run(server, &err);
    pthread_kill(signals, SIGTERM); /* ends the watcher when a request has ended the server */
    pthread_join(signals, NULL);
    pthread_join(loader, NULL);
    api_server_close(&server);
    weir_engine_close(&engine);
    return code < 0;
}
