/* The self-test: a worker of this very program is spawned and held against the wire contract. Shared by its parts: the worker's
 * life (selftest.c), the success criteria (selftest_criteria.c). Main thread, except where a function says otherwise. */
#ifndef WEIR_CLI_SELFTEST_H
#define WEIR_CLI_SELFTEST_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "cli/commands.h"
#include "cli/selftest_client.h"
#include "cli/selftest_hive.h"

typedef struct selftest {
    const settings *s;
    int port;
    hive *hive;
    int worker; /* process id; 0 = none */
    int output; /* the worker's standard output and error; read only when it failed */
    int n_passed, n_failed;
} selftest;

/* Prints the row "passed  NAME: figures" or "FAILED  NAME: figures" and counts it. Returns `ok`. */
bool selftest_check(selftest *t, bool ok, const char *name, const char *format, ...) __attribute__((format(printf, 4, 5)));

enum { SELFTEST_MAX_ARRIVALS = 2048 };

/* What one generation brought. */
typedef struct generation {
    buf text; /* of all tokens */
    size_t n_tokens, n_reads;
    bool started, done;                         /* the first event was "started"; [DONE] was the last thing */
    char stop_reason[32];                       /* of the "end" event, or the code of the "error" event */
    int64_t accepted_us;                        /* from the request to the JSON reply */
    int64_t started_us;                         /* from the stream's request to the event "started" */
    int64_t first_us, total_us;                 /* from the request to the first token and to [DONE] */
    int64_t arrivals_us[SELFTEST_MAX_ARRIVALS]; /* of the first tokens */
} generation;

/* POSTs `body` to `path` and reads its stream to the end: the reply's own stream when it is one, else the one that sse_url
 * names. Stops after `stop_after` tokens by closing the connection (0 = never). Any thread. The caller frees g->text. */
int selftest_generate(int port, const char *path, const char *body, size_t stop_after, generation *g, weir_error *err);
/* A metric of the worker, or -1. Any thread. */
double selftest_metric(int port, const char *name);

/* SC1 to SC8 of the contract, against the running worker. */
void selftest_criteria(selftest *t);

#endif
