/* Running the tests of weir bench: the engine alone, on pseudo-random tokens with a fixed seed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "cli/bench.h"

/* splitmix64 (Steele, Lea, Flood 2014). */
static int32_t random_token(bench *b) {
    uint64_t z = b->random += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (int32_t)((z ^ (z >> 31)) % (uint64_t)b->info->n_vocab);
}

/* The sequences of a test (one unless it is batched), and the tokens and items of a step. */
typedef struct runner {
    bench *b;
    const bench_test *t;
    int32_t n_seqs;
    engine_seq **seqs;  /* [n_seqs] */
    engine_item *items; /* [n_seqs] */
    int32_t *tokens;    /* [n_batch, at least n_seqs] */
} runner;

/* A prompt of n_tok tokens for each sequence; steps are filled across sequences. */
static int read_prompts(runner *r, int32_t n_tok, weir_error *err) {
    const int32_t n_batch = r->b->n_batch;
    int32_t n_rows = 0, n_items = 0;
    for (int32_t i = 0; i < r->n_seqs; i++) {
        for (int32_t left = n_tok; left > 0;) {
            const int32_t n = left < n_batch - n_rows ? left : n_batch - n_rows;
            for (int32_t k = 0; k < n; k++) r->tokens[n_rows + k] = random_token(r->b);
            left -= n;
            r->items[n_items++] =
                (engine_item){.seq = r->seqs[i], .tokens = r->tokens + n_rows, .n_tok = n, .n_logits = left == 0};
            n_rows += n;
            if (n_rows < n_batch && !(i == r->n_seqs - 1 && left == 0)) continue;
            TRY(engine_step(r->b->e, r->items, n_items, NULL, NULL, err));
            n_rows = n_items = 0;
        }
    }
    return 0;
}

static int generate(runner *r, int32_t n_tok, weir_error *err) {
    for (int32_t i = 0; i < n_tok; i++) {
        for (int32_t k = 0; k < r->n_seqs; k++) {
            r->tokens[k] = random_token(r->b);
            r->items[k] = (engine_item){.seq = r->seqs[k], .tokens = r->tokens + k, .n_tok = 1, .n_logits = true};
        }
        TRY(engine_step(r->b->e, r->items, r->n_seqs, NULL, NULL, err));
    }
    return 0;
}

static void close_sequences(runner *r) {
    for (int32_t i = 0; r->seqs && i < r->n_seqs; i++) engine_seq_close(r->b->e, &r->seqs[i]);
}

/* Brings all sequences to the test's depth. */
static int rewind_sequences(runner *r, weir_error *err) {
    const bench_test *t = r->t;
    bool possible = true;
    for (int32_t i = 0; i < r->n_seqs; i++)
        possible = possible && r->seqs[i] && engine_seq_length(r->seqs[i]) >= t->n_depth &&
                   engine_seq_can_truncate(r->seqs[i], t->n_depth);
    if (possible) {
        for (int32_t i = 0; i < r->n_seqs; i++) engine_seq_truncate(r->seqs[i], t->n_depth);
        return 0;
    }
    close_sequences(r);
    for (int32_t i = 0; i < r->n_seqs; i++)
        TRY(engine_seq_open(r->b->e, t->n_depth + t->n_prompt + t->n_gen, &r->seqs[i], err));
    return read_prompts(r, t->n_depth, err);
}

/* One run from the test's depth with an answer of n_gen tokens. With --profile op_ns[MODEL_N_OPS] (may be NULL) gets the
 * operations' time added: of the whole run, or of the answers if it is batched. */
static int run_once(runner *r, int32_t n_gen, double *prompt_us, double *gen_us, double *op_ns, weir_error *err) {
    const bool profiled = r->b->limits != NULL;
    TRY(rewind_sequences(r, err));
    if (profiled) TRY(engine_measure(r->b->e, err));
    const int64_t begin = clock_now_ns();
    TRY(read_prompts(r, r->t->n_prompt, err));
    const int64_t middle = clock_now_ns();
    if (profiled && r->t->n_parallel) TRY(engine_measure(r->b->e, err));
    TRY(generate(r, n_gen, err));
    *prompt_us = (double)(middle - begin) / 1000;
    *gen_us = (double)(clock_now_ns() - middle) / 1000;
    double ns[MODEL_N_OPS];
    engine_measured(r->b->e, ns);
    for (int op = 0; op_ns && op < MODEL_N_OPS; op++) op_ns[op] += ns[op];
    return 0;
}

/* What a run has to do, step by step as it is run; of a batched test only the answers. */
static void count_work(const bench *b, bench_outcome *o) {
    const bench_test *t = &o->t;
    const int32_t n_seqs = t->n_parallel ? t->n_parallel : 1;
    int32_t past = t->n_depth;
    for (int32_t left = t->n_prompt; left > 0 && t->n_parallel == 0; o->n_steps++) {
        const int32_t n = left < b->n_batch ? left : b->n_batch;
        left -= n;
        model_add_weights_work(b->model, n, left == 0, o->work);
        model_add_attention_work(b->model, engine_kv(b->e), past, n, o->work);
        past += n;
    }
    if (t->n_parallel) past += t->n_prompt;
    for (int32_t i = 0; i < t->n_gen; i++, past++, o->n_steps++) {
        model_add_weights_work(b->model, n_seqs, n_seqs, o->work);
        for (int32_t k = 0; k < n_seqs; k++) model_add_attention_work(b->model, engine_kv(b->e), past, 1, o->work);
    }
}

static void make_label(bench_outcome *o) {
    const bench_test *t = &o->t;
    if (t->n_parallel) {
        snprintf(o->label, sizeof o->label, "pp%d+tg%d x %d", t->n_prompt, t->n_gen, t->n_parallel);
        return;
    }
    int at = snprintf(o->label, sizeof o->label, "%s%d", t->n_prompt ? "pp" : "tg", t->n_prompt + t->n_gen);
    if (t->n_depth) snprintf(o->label + at, sizeof o->label - (size_t)at, " @ d%d", t->n_depth);
}

/* All runs of a test, and the mean time of its operations if asked for. */
static int run_all(runner *r, bench_outcome *o, double *prompt_us, double *gen_us, weir_error *err) {
    const int32_t n_gen = r->t->n_gen;
    double unused;
    if (!r->b->s->no_warmup) TRY(run_once(r, n_gen < 8 ? n_gen : 8, &unused, &unused, NULL, err));
    for (size_t i = 0; i < o->n; i++) TRY(run_once(r, n_gen, &prompt_us[i], &gen_us[i], o->op_ns, err));
    for (int op = 0; op < MODEL_N_OPS; op++) o->op_ns[op] /= (double)o->n;
    return 0;
}

int bench_measure(bench *b, const bench_test *t, weir_error *err) {
    bench_outcome o = {.t = *t, .n = (size_t)b->s->repetitions, .limits = b->limits};
    runner r = {.b = b, .t = t, .n_seqs = t->n_parallel ? t->n_parallel : 1};
    const size_t n_tokens = (size_t)(b->n_batch > r.n_seqs ? b->n_batch : r.n_seqs);
    double *us = calloc(2 * o.n, sizeof *us);
    r.seqs = calloc((size_t)r.n_seqs, sizeof(engine_seq *));
    r.items = calloc((size_t)r.n_seqs, sizeof *r.items);
    r.tokens = calloc(n_tokens, sizeof *r.tokens);
    int result = us && r.seqs && r.items && r.tokens ? 0 : error_set(err, WEIR_E_NOMEM, "", "no memory for the test");
    clock_rfc3339(o.time, sizeof o.time, 0, "Z");
    if (result >= 0) result = run_all(&r, &o, us, us + o.n, err);
    close_sequences(&r);
    if (result >= 0) {
        o.prompt_us = t->n_prompt ? us : NULL;
        o.gen_us = t->n_gen ? us + o.n : NULL;
        make_label(&o);
        count_work(b, &o);
        bench_print(b, &o);
    }
    free(us);
    free(r.seqs);
    free(r.items);
    free(r.tokens);
    return result;
}
