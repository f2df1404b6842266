/* What the files of weir bench share: tests, what they gave, running and printing them. Included by command_bench.c,
 * bench_run.c and bench_print.c only. Main thread. */
#ifndef WEIR_CLI_BENCH_H
#define WEIR_CLI_BENCH_H

#include "cli/commands.h"
#include "cli/limits.h"
#include "engine/engine.h"

/* A prompt or an answer of one sequence (one of n_prompt and n_gen is 0, n_parallel is 0), or, batched, n_parallel sequences
 * that each get a prompt and then an answer. */
typedef struct bench_test {
    int32_t n_prompt, n_gen, n_depth, n_parallel, n_threads, n_batch;
} bench_test;

/* What n runs of a test gave. Batched: times of the prompts and of the answers; else one of them is NULL. */
typedef struct bench_outcome {
    bench_test t;
    char label[48], time[48];
    size_t n;
    const double *prompt_us, *gen_us; /* [n] */
    model_work work[MODEL_N_OPS];     /* of one run; batched: of its answers, as n_steps and op_ns */
    int32_t n_steps;                  /* of one run */
    const limits *limits;             /* with --profile, else NULL */
    double op_ns[MODEL_N_OPS];        /* with --profile: of one run, on the average */
} bench_outcome;

typedef struct bench {
    const settings *s;
    const weir_model *model;
    const weir_model_info *info;
    engine *e;
    const limits *limits; /* with --profile: of the engine's threads */
    uint64_t random;
    int32_t n_batch; /* tokens in a step */
    size_t n_rows;   /* printed so far */
} bench;

/* Runs a test on b->e, repetitions times, and prints what it gave. */
int bench_measure(bench *b, const bench_test *t, weir_error *err);

void bench_print(bench *b, const bench_outcome *o);
/* After the last row. */
void bench_print_end(const bench *b);
/* The limits for n numbers of threads. */
void bench_print_limits(const settings *s, const kern_ops *ops, const limits_buffer *buffer, const limits *l, size_t n);

#endif
