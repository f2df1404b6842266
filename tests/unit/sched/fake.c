/* See fake.h. */
#include "fake.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/error.h"

typedef struct fake_seq {
    int32_t n, capacity, script_at; /* script_at: index of the last script token; -1 = none */
    uint64_t hash;                  /* of all tokens */
    bool spoke, banned_all;
    int32_t tokens[];
} fake_seq;

static const uint64_t first_hash = 1469598103934665603u;

static uint64_t add_to_hash(uint64_t hash, int32_t token) {
    return (hash ^ (uint64_t)token) * 1099511628211u;
}

static int32_t letter_of(uint64_t hash) {
    return 'a' + (int32_t)((hash ^ hash >> 32) % 26);
}

int32_t fake_next(const int32_t *tokens, int32_t n) {
    uint64_t hash = first_hash;
    for (int32_t i = 0; i < n; i++) hash = add_to_hash(hash, tokens[i]);
    return letter_of(hash);
}

static void on_engine_thread(fake *f) {
    if (!f->thread_known) {
        f->thread = pthread_self();
        f->thread_known = true;
    }
    if (!pthread_equal(f->thread, pthread_self())) atomic_store(&f->wrong_thread, true);
}

static int seq_open(void *context, int32_t n_tokens, void **out, weir_error *err) {
    fake *f = context;
    on_engine_thread(f);
    int code = atomic_load(&f->open_error);
    if (code != 0) return error_set(err, code, NULL, "made to fail");
    if (atomic_load(&f->kv_used) + n_tokens > f->kv_tokens_total) return error_set(err, WEIR_E_LIMIT, NULL, "no room");
    fake_seq *seq = calloc(1, sizeof *seq + (size_t)n_tokens * sizeof(int32_t));
    if (seq == NULL) return error_set(err, WEIR_E_NOMEM, NULL, "no memory for a sequence");
    seq->capacity = n_tokens;
    seq->script_at = -1;
    seq->hash = first_hash;
    atomic_fetch_add(&f->kv_used, n_tokens);
    atomic_fetch_add(&f->n_opened, 1);
    int open = atomic_fetch_add(&f->n_open, 1) + 1;
    if (open > atomic_load(&f->most_open)) atomic_store(&f->most_open, open);
    *out = seq;
    return 0;
}

static void seq_close(void *context, void *handle) {
    fake *f = context;
    fake_seq *seq = handle;
    on_engine_thread(f);
    atomic_fetch_sub(&f->kv_used, seq->capacity);
    atomic_fetch_sub(&f->n_open, 1);
    free(seq);
}

/* Waits for a permit; false = aborted. */
static bool pass_gate(fake *f, sched_abort_fn abort, void *user) {
    bool passed = false;
    while (!passed) {
        if (abort && abort(user)) return false;
        pthread_mutex_lock(&f->lock);
        if (f->permits == 0) {
            atomic_store(&f->at_gate, true);
            struct timespec until;
            clock_gettime(CLOCK_REALTIME, &until);
            until.tv_nsec += 1000000;
            if (until.tv_nsec >= 1000000000) {
                until.tv_nsec -= 1000000000;
                until.tv_sec++;
            }
            pthread_cond_timedwait(&f->change, &f->lock, &until);
        }
        passed = f->permits != 0;
        if (f->permits > 0) f->permits--;
        pthread_mutex_unlock(&f->lock);
    }
    return true;
}

/* Letters that repeat themselves, with surprises that are a hash of the whole history. */
static int32_t periodic(const fake *f, const fake_seq *seq) {
    if (f->surprise && (seq->hash >> 20) % (uint64_t)f->surprise == 0) return letter_of(seq->hash);
    return letter_of(add_to_hash(first_hash, seq->n % f->period));
}

static int32_t choose(const fake *f, const fake_seq *seq) {
    if (seq->script_at < 0) return f->period ? periodic(f, seq) : letter_of(seq->hash);
    int32_t script = seq->tokens[seq->script_at] - FAKE_SCRIPT, at = seq->n - seq->script_at - 1;
    if (at >= f->script_pieces[script]) return FAKE_EOG;
    const fake_piece *piece = &f->scripts[script][at];
    return piece->token ? piece->token : FAKE_PIECE + script * FAKE_SCRIPT_PIECES + at;
}

static void feed(fake_seq *seq, int32_t token) {
    assert(seq->n < seq->capacity);
    if (token >= FAKE_SCRIPT && token < FAKE_PIECE) seq->script_at = seq->n;
    if (token == FAKE_BANNED_ALL) seq->banned_all = true;
    seq->hash = add_to_hash(seq->hash, token);
    seq->tokens[seq->n++] = token;
}

static bool seq_can_truncate(void *context, void *handle, int32_t n_tokens) {
    fake *f = context;
    const fake_seq *seq = handle;
    on_engine_thread(f);
    return n_tokens >= 0 && (f->keeps_all ? n_tokens == seq->n : n_tokens <= seq->n);
}

static void seq_truncate(void *context, void *handle, int32_t n_tokens) {
    fake_seq *seq = handle;
    if (!seq_can_truncate(context, handle, n_tokens)) abort();
    seq->n = 0;
    seq->script_at = -1;
    seq->hash = first_hash;
    seq->banned_all = false;
    for (int32_t i = 0; i < n_tokens; i++) feed(seq, seq->tokens[i]);
}

static bool poisonous(const sched_item *items, int32_t n_items) {
    for (int32_t i = 0; i < n_items; i++)
        for (int32_t j = 0; j < items[i].n_tok; j++)
            if (items[i].tokens[j] == FAKE_POISON) return true;
    return false;
}

static bool take_one(atomic_int *n) {
    int value = atomic_load(n);
    return value > 0 && atomic_compare_exchange_strong(n, &value, value - 1);
}

static void compute(fake *f, const sched_item *items, int32_t n_items) {
    int32_t row = 0;
    assert(n_items <= FAKE_MAX_ITEMS);
    for (int32_t i = 0; i < n_items; i++) {
        fake_seq *seq = items[i].seq;
        f->first_row[i] = row;
        assert(items[i].n_logits >= 0 && items[i].n_logits <= items[i].n_tok && row + items[i].n_logits <= FAKE_MAX_LOGITS);
        for (int32_t j = 0; j < items[i].n_tok; j++) {
            feed(seq, items[i].tokens[j]);
            if (j < items[i].n_tok - items[i].n_logits) continue;
            float *logits = f->logits + (size_t)row++ * FAKE_N_VOCAB;
            seq->spoke = true;
            for (int32_t t = 0; t < FAKE_N_VOCAB; t++) logits[t] = seq->banned_all ? -1.0f / 0.0f : -20.0f - (float)(t % 7);
            if (!seq->banned_all) logits[choose(f, seq)] = 10;
        }
    }
    f->first_row[n_items] = row;
}

static int step(void *context, const sched_item *items, int32_t n_items, sched_abort_fn abort, void *user, weir_error *err) {
    fake *f = context;
    on_engine_thread(f);
    assert(n_items > 0);
    fake_step record = {.n_items = n_items, .start_us = atomic_load(&f->clock_us)};
    for (int32_t i = 0; i < n_items; i++) {
        assert(items[i].n_tok > 0);
        if (((fake_seq *)items[i].seq)->spoke) {
            record.n_decode++;
            record.n_guessed += items[i].n_tok - 1;
        } else {
            record.n_prefill += items[i].n_tok;
        }
    }
    bool passed = pass_gate(f, abort, user);
    for (int32_t layer = 0; layer < f->n_layers && passed; layer++) passed = !abort || !abort(user);
    if (!passed) {
        atomic_fetch_add(&f->n_aborted, 1);
        return error_set(err, WEIR_E_CANCELLED, NULL, "abandoned");
    }
    if (take_one(&f->fail_steps)) return error_set(err, WEIR_E_IO, NULL, "made to fail");
    if (n_items > 1 && take_one(&f->fail_batches)) return error_set(err, WEIR_E_IO, NULL, "the batch was made to fail");
    if (poisonous(items, n_items)) return error_set(err, WEIR_E_FORMAT, NULL, "poison in the batch");
    compute(f, items, n_items);
    int32_t more_rows = record.n_decode ? record.n_decode + record.n_guessed - 1 : 0;
    atomic_fetch_add(&f->clock_us, (record.n_decode ? f->decode_cost_us : 0) + more_rows * f->row_cost_us +
                                       record.n_prefill * f->prefill_cost_us);
    pthread_mutex_lock(&f->lock);
    if (f->n_steps < FAKE_MAX_STEPS) f->steps[f->n_steps++] = record;
    pthread_mutex_unlock(&f->lock);
    return 0;
}

static const float *logits(void *context, int32_t i, int32_t row) {
    const fake *f = context;
    assert(row >= 0 && f->first_row[i] + row < f->first_row[i + 1]);
    return f->logits + (size_t)(f->first_row[i] + row) * FAKE_N_VOCAB;
}

static int64_t kv_tokens_used(void *context) {
    return atomic_load(&((fake *)context)->kv_used);
}

static const char *piece(void *context, int32_t token, bool special, size_t *n_bytes) {
    static char bytes[256];
    static const char control[] = "<control>";
    const fake *f = context;
    *n_bytes = 0;
    if (token >= 0 && token < 256) {
        bytes[token] = (char)token;
        *n_bytes = 1;
        return &bytes[token];
    }
    if (token == FAKE_CONTROL) {
        *n_bytes = special ? sizeof control - 1 : 0;
        return control;
    }
    if (token < FAKE_PIECE) return "";
    const fake_piece *p = &f->scripts[(token - FAKE_PIECE) / FAKE_SCRIPT_PIECES][(token - FAKE_PIECE) % FAKE_SCRIPT_PIECES];
    *n_bytes = p->n_bytes;
    return p->bytes;
}

static bool is_eog(void *context, int32_t token) {
    (void)context;
    return token == FAKE_EOG;
}

static int64_t now_us(void *context) {
    fake *f = context;
    return f->real_clock ? clock_now_us() : (int64_t)atomic_load(&f->clock_us);
}

static void close_backend(void *context) {
    atomic_fetch_add(&((fake *)context)->n_closes, 1);
}

void fake_init(fake *f) {
    memset(f, 0, sizeof *f);
    f->n_ctx = 4096;
    f->kv_tokens_total = 1 << 24;
    f->n_layers = 4;
    f->permits = -1;
    f->logits = malloc((size_t)FAKE_MAX_LOGITS * FAKE_N_VOCAB * sizeof *f->logits);
    f->steps = calloc(FAKE_MAX_STEPS, sizeof *f->steps);
    atomic_store(&f->clock_us, 1000000);
    pthread_mutex_init(&f->lock, NULL);
    pthread_cond_init(&f->change, NULL);
}

void fake_free(fake *f) {
    free(f->steps);
    free(f->logits);
    pthread_mutex_destroy(&f->lock);
    pthread_cond_destroy(&f->change);
}

sched_backend fake_backend(fake *f) {
    return (sched_backend){
        .context = f,
        .n_vocab = FAKE_N_VOCAB,
        .n_ctx = f->n_ctx,
        .n_logits = FAKE_MAX_LOGITS,
        .kv_tokens_total = f->kv_tokens_total,
        .seq_open = seq_open,
        .seq_close = seq_close,
        .step = step,
        .logits = logits,
        .seq_can_truncate = seq_can_truncate,
        .seq_truncate = seq_truncate,
        .kv_tokens_used = kv_tokens_used,
        .piece = piece,
        .is_eog = is_eog,
        .now_us = now_us,
        .close = close_backend,
    };
}

void fake_script_bytes(fake *f, int32_t script, const char *bytes, size_t n_bytes) {
    assert(f->script_pieces[script] < FAKE_SCRIPT_PIECES);
    f->scripts[script][f->script_pieces[script]++] = (fake_piece){.bytes = bytes, .n_bytes = n_bytes};
}

void fake_script_token(fake *f, int32_t script, int32_t token) {
    assert(f->script_pieces[script] < FAKE_SCRIPT_PIECES);
    f->scripts[script][f->script_pieces[script]++] = (fake_piece){.token = token};
}

void fake_script(fake *f, int32_t script, const char *const *pieces, int32_t n) {
    for (int32_t i = 0; i < n; i++) fake_script_bytes(f, script, pieces[i], strlen(pieces[i]));
}

void fake_gate(fake *f, int64_t permits) {
    pthread_mutex_lock(&f->lock);
    f->permits = permits;
    atomic_store(&f->at_gate, false);
    pthread_cond_broadcast(&f->change);
    pthread_mutex_unlock(&f->lock);
}

void fake_advance(fake *f, int64_t us) {
    atomic_fetch_add(&f->clock_us, us);
}

int32_t fake_n_steps(fake *f) {
    pthread_mutex_lock(&f->lock);
    int32_t n = f->n_steps;
    pthread_mutex_unlock(&f->lock);
    return n;
}

fake_step fake_step_at(fake *f, int32_t i) {
    pthread_mutex_lock(&f->lock);
    fake_step s = f->steps[i];
    pthread_mutex_unlock(&f->lock);
    return s;
}
