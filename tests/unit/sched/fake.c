/* See fake.h. */
#include "fake.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/error.h"

/* In every build, on any thread. */
#define CHECK(condition) ((condition) ? (void)0 : broken(#condition, __LINE__))

static _Noreturn void broken(const char *condition, int line) {
    fprintf(stderr, "fake.c:%d: the scheduler broke: %s\n", line, condition);
    abort();
}

/* A sequence's tokens are in pages alone, so that a page in wrong hands changes what it says. */
typedef struct fake_seq {
    uint64_t salt;
    int32_t n, script_at; /* script_at: index of the last script token; -1 = none */
    uint64_t hash;        /* of all tokens */
    bool spoke, banned_all;
    int32_t n_pages, n_kept; /* the first n_kept are in the prefix tree */
    int32_t pages[];         /* [n_ctx / page_tokens + 1] */
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

static int32_t *token_at(const fake *f, const fake_seq *seq, int32_t i) {
    return &f->store[(size_t)seq->pages[i / f->page_tokens] * (size_t)f->page_tokens + (size_t)(i % f->page_tokens)];
}

static void count_used(fake *f) {
    atomic_store(&f->kv_used, (int64_t)pages_n_used(f->pages) * f->page_tokens);
}

static int seq_open(void *context, uint64_t salt, void **out, weir_error *err) {
    fake *f = context;
    on_engine_thread(f);
    int code = atomic_load(&f->open_error);
    if (code != 0) return error_set(err, code, NULL, "made to fail");
    fake_seq *seq = calloc(1, sizeof *seq + (size_t)(f->n_ctx / f->page_tokens + 1) * sizeof(int32_t));
    if (seq == NULL) return error_set(err, WEIR_E_NOMEM, NULL, "no memory for a sequence");
    seq->salt = salt;
    seq->script_at = -1;
    seq->hash = first_hash;
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
    while (seq->n_pages > 0) pages_drop(f->pages, seq->pages[--seq->n_pages]);
    count_used(f);
    atomic_fetch_sub(&f->n_open, 1);
    free(seq);
}

static int seq_reserve(void *context, void *handle, int32_t n_tokens, weir_error *err) {
    fake *f = context;
    fake_seq *seq = handle;
    on_engine_thread(f);
    CHECK(n_tokens <= f->n_ctx);
    int32_t n_pages = (n_tokens + f->page_tokens - 1) / f->page_tokens;
    if (n_pages - seq->n_pages > pages_n_available(f->pages)) return error_set(err, WEIR_E_LIMIT, NULL, "no room");
    while (seq->n_pages < n_pages) seq->pages[seq->n_pages++] = pages_take(f->pages);
    count_used(f);
    return 0;
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
static int32_t periodic(const fake *f, uint64_t hash, int32_t n) {
    if (f->surprise && (hash >> 20) % (uint64_t)f->surprise == 0) return letter_of(hash);
    return letter_of(add_to_hash(first_hash, n % f->period));
}

int32_t fake_says(const fake *f, const int32_t *tokens, int32_t n) {
    uint64_t hash = first_hash;
    for (int32_t i = 0; i < n; i++) hash = add_to_hash(hash, tokens[i]);
    return f->period ? periodic(f, hash, n) : letter_of(hash);
}

static int32_t choose(const fake *f, const fake_seq *seq) {
    if (seq->script_at < 0) return f->period ? periodic(f, seq->hash, seq->n) : letter_of(seq->hash);
    int32_t script = *token_at(f, seq, seq->script_at) - FAKE_SCRIPT, at = seq->n - seq->script_at - 1;
    if (at >= f->script_pieces[script]) return FAKE_EOG;
    const fake_piece *piece = &f->scripts[script][at];
    return piece->token ? piece->token : FAKE_PIECE + script * FAKE_SCRIPT_PIECES + at;
}

/* The sequence holds its next token, which is in its page already. */
static void count_in(const fake *f, fake_seq *seq) {
    int32_t token = *token_at(f, seq, seq->n);
    if (token >= FAKE_SCRIPT && token < FAKE_PIECE) seq->script_at = seq->n;
    if (token == FAKE_BANNED_ALL) seq->banned_all = true;
    seq->hash = add_to_hash(seq->hash, token);
    seq->n++;
}

static void feed(const fake *f, fake_seq *seq, int32_t token) {
    CHECK(seq->n < seq->n_pages * f->page_tokens);
    CHECK(!pages_shared(f->pages, seq->pages[seq->n / f->page_tokens]));
    *token_at(f, seq, seq->n) = token;
    count_in(f, seq);
}

static bool seq_can_truncate(void *context, void *handle, int32_t n_tokens) {
    fake *f = context;
    const fake_seq *seq = handle;
    on_engine_thread(f);
    return n_tokens >= 0 && (f->keeps_all ? n_tokens == seq->n : n_tokens <= seq->n);
}

static void count_anew(const fake *f, fake_seq *seq, int32_t n_tokens) {
    seq->n = 0;
    seq->script_at = -1;
    seq->hash = first_hash;
    seq->banned_all = false;
    while (seq->n < n_tokens) count_in(f, seq);
}

static void seq_truncate(void *context, void *handle, int32_t n_tokens) {
    if (!seq_can_truncate(context, handle, n_tokens)) abort();
    count_anew(context, handle, n_tokens);
}

/* ---- the prefix tree, as the engine uses it ---- */

static char ended_here; /* the snapshot of a length at which seq_keep was called */

static int32_t page_before(const fake_seq *seq, int32_t i) { return i ? seq->pages[i - 1] : PAGES_NONE; }

static void take_kept(fake *f, fake_seq *seq, int32_t i, int32_t page) {
    pages_hold(f->pages, page);
    if (i < seq->n_pages)
        pages_drop(f->pages, seq->pages[i]);
    else
        seq->n_pages++;
    seq->pages[i] = page;
}

/* How many whole pages of the text are of use: all that are kept, or up to the last at whose end something was kept. */
static int32_t n_adoptable(const fake *f, const fake_seq *seq, const int32_t *tokens, int32_t n_tok) {
    int32_t n = seq->n_kept, after = page_before(seq, n), best = n;
    while ((n + 1) * f->page_tokens <= n_tok) {
        after = pages_find(f->pages, seq->salt, after, tokens + n * f->page_tokens);
        if (after == PAGES_NONE) break;
        n++;
        if (!f->at_ends || pages_snapshot(f->pages, after)) best = n;
    }
    return best;
}

static int32_t seq_adopt(void *context, void *handle, const int32_t *tokens, int32_t n_tok) {
    fake *f = context;
    fake_seq *seq = handle;
    on_engine_thread(f);
    int32_t n_pages = n_adoptable(f, seq, tokens, n_tok), before = seq->n;
    for (int32_t i = 0; i < seq->n; i++) CHECK(*token_at(f, seq, i) == tokens[i]);
    while (seq->n_kept < n_pages) {
        int32_t i = seq->n_kept++;
        take_kept(f, seq, i, pages_find(f->pages, seq->salt, page_before(seq, i), tokens + i * f->page_tokens));
    }
    if (n_pages * f->page_tokens > seq->n) count_anew(f, seq, n_pages * f->page_tokens);
    count_used(f);
    return seq->n - before;
}

static void seq_keep(void *context, void *handle, const int32_t *tokens, int32_t n_tok, bool last) {
    fake *f = context;
    fake_seq *seq = handle;
    on_engine_thread(f);
    (void)last;
    CHECK(n_tok <= seq->n);
    for (int32_t i = 0; i < n_tok; i++) CHECK(*token_at(f, seq, i) == tokens[i]);
    while ((seq->n_kept + 1) * f->page_tokens <= n_tok) {
        int32_t i = seq->n_kept++, own = seq->pages[i];
        int32_t kept = pages_keep(f->pages, seq->salt, page_before(seq, i), own, tokens + i * f->page_tokens, f->page_tokens);
        if (kept != own) take_kept(f, seq, i, kept);
    }
    if (f->at_ends && seq->n_kept > 0 && seq->n == n_tok && seq->n_kept * f->page_tokens == n_tok)
        pages_attach(f->pages, seq->pages[seq->n_kept - 1], &ended_here);
    count_used(f);
}

static int64_t kv_tokens_kept(void *context) {
    const fake *f = context;
    return (int64_t)pages_n_kept(f->pages) * f->page_tokens;
}

static void drop_snapshot(void *user, void *snapshot) {
    (void)user;
    CHECK(snapshot == &ended_here);
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
    CHECK(n_items <= FAKE_MAX_ITEMS);
    for (int32_t i = 0; i < n_items; i++) {
        fake_seq *seq = items[i].seq;
        f->first_row[i] = row;
        CHECK(items[i].n_logits >= 0 && items[i].n_logits <= items[i].n_tok && row + items[i].n_logits <= FAKE_MAX_LOGITS);
        for (int32_t j = 0; j < items[i].n_tok; j++) {
            feed(f, seq, items[i].tokens[j]);
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
    CHECK(n_items > 0);
    fake_step record = {.n_items = n_items, .start_us = atomic_load(&f->clock_us)};
    for (int32_t i = 0; i < n_items; i++) {
        CHECK(items[i].n_tok > 0);
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
    CHECK(row >= 0 && f->first_row[i] + row < f->first_row[i + 1]);
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
    fake *f = context;
    atomic_fetch_add(&f->n_closes, 1);
    pages_close(&f->pages);
}

void fake_init(fake *f) {
    memset(f, 0, sizeof *f);
    f->n_ctx = 4096;
    f->kv_tokens_total = 1 << 20;
    f->page_tokens = 16;
    f->n_layers = 4;
    f->permits = -1;
    f->logits = malloc((size_t)FAKE_MAX_LOGITS * FAKE_N_VOCAB * sizeof *f->logits);
    f->steps = calloc(FAKE_MAX_STEPS, sizeof *f->steps);
    atomic_store(&f->clock_us, 1000000);
    pthread_mutex_init(&f->lock, NULL);
    pthread_cond_init(&f->change, NULL);
}

void fake_free(fake *f) {
    pages_close(&f->pages);
    free(f->store);
    free(f->steps);
    free(f->logits);
    pthread_mutex_destroy(&f->lock);
    pthread_cond_destroy(&f->change);
}

sched_backend fake_backend(fake *f) {
    int32_t n_pages = (int32_t)(f->kv_tokens_total / f->page_tokens);
    pages_close(&f->pages);
    free(f->store);
    if (pages_open(&f->pages, n_pages, f->page_tokens, drop_snapshot, NULL, NULL) < 0) abort();
    f->store = malloc((size_t)n_pages * (size_t)f->page_tokens * sizeof *f->store);
    if (f->store == NULL) abort();
    return (sched_backend){
        .context = f,
        .n_vocab = FAKE_N_VOCAB,
        .n_ctx = f->n_ctx,
        .n_logits = FAKE_MAX_LOGITS,
        .kv_tokens_total = (int64_t)n_pages * f->page_tokens,
        .page_tokens = f->page_tokens,
        .adopts_at_ends = f->at_ends,
        .seq_open = seq_open,
        .seq_reserve = seq_reserve,
        .seq_adopt = seq_adopt,
        .seq_keep = seq_keep,
        .seq_close = seq_close,
        .step = step,
        .logits = logits,
        .seq_can_truncate = seq_can_truncate,
        .seq_truncate = seq_truncate,
        .kv_tokens_used = kv_tokens_used,
        .kv_tokens_kept = kv_tokens_kept,
        .piece = piece,
        .is_eog = is_eog,
        .now_us = now_us,
        .close = close_backend,
    };
}

void fake_script_bytes(fake *f, int32_t script, const char *bytes, size_t n_bytes) {
    CHECK(f->script_pieces[script] < FAKE_SCRIPT_PIECES);
    f->scripts[script][f->script_pieces[script]++] = (fake_piece){.bytes = bytes, .n_bytes = n_bytes};
}

void fake_script_token(fake *f, int32_t script, int32_t token) {
    CHECK(f->script_pieces[script] < FAKE_SCRIPT_PIECES);
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
