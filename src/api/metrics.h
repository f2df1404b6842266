/* What is measured of requests, and its Prometheus text (exposition format 0.0.4).
 * Counters of the engine come from weir_engine_get_stats; latencies are measured here, where clients feel them. Names are those
 * of llama-server (llamacpp:*) and vLLM (vllm:*) where they mean the same, so that dashboards and routers work as they are.
 * Knows nothing of routes. Owned by the event loop thread; nothing is locked. */
#ifndef WEIR_API_METRICS_H
#define WEIR_API_METRICS_H

#include "base/buf.h"
#include "weir/weir.h"

#define METRICS_MAX_BUCKETS 24

typedef struct metrics_histogram {
    uint64_t counts[METRICS_MAX_BUCKETS + 1]; /* per bucket, not cumulative; the last is +Inf */
    double sum;
} metrics_histogram;

typedef enum metrics_series {
    METRICS_FIRST_TOKEN,   /* seconds from the request's arrival to its first token */
    METRICS_INTER_TOKEN,   /* seconds between two token events of one job */
    METRICS_END_TO_END,    /* seconds from arrival to the terminal event */
    METRICS_QUEUE,         /* seconds in the queue */
    METRICS_PREFILL,       /* seconds of prefill */
    METRICS_DECODE,        /* seconds of decode */
    METRICS_INFERENCE,     /* seconds of prefill and decode */
    METRICS_TOKEN_MEAN,    /* seconds of decode for each token of one request after its first */
    METRICS_PROMPT_TOKENS, /* of one request */
    METRICS_OUTPUT_TOKENS, /* of one request */
    METRICS_N_SERIES
} metrics_series;

typedef struct metrics {
    metrics_histogram series[METRICS_N_SERIES];
    uint64_t finished[3]; /* by reason: stop, length, abort */
} metrics;                /* zero-initialised = nothing measured */

/* One job's times as seen by the loop; zero-initialise, then set arrived_us. */
typedef struct metrics_job {
    int64_t arrived_us;    /* clock_now_us() when the request was complete */
    int64_t last_token_us; /* 0 before the first token */
} metrics_job;

void metrics_observe(metrics *m, metrics_series series, double value);
/* Call for every event taken from a job, at `now_us` (clock_now_us()); NULL metrics are allowed. */
void metrics_event(metrics *m, metrics_job *job, const weir_event *event, int64_t now_us);
/* Call when a job is given up before its terminal event was taken. NULL is allowed. */
void metrics_abort(metrics *m);
/* Upper bounds of a series' buckets, ascending; *n gets how many, without +Inf. Static storage. */
const double *metrics_buckets(metrics_series series, size_t *n);
/* The whole text. `model` is the name in the label model_name; any UTF-8. */
void metrics_write(buf *out, const metrics *m, const weir_stats *stats, const char *model);

#endif
