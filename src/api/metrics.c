/* Prometheus text; see metrics.h. */
#include "api/metrics.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])


/* ---- histograms ---------------------------------------------------------------------------------------------------------- */

static const double first_token_bounds[] = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                            1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
static const double inter_token_bounds[] = {.001, .0025, .005, .01, .025, .05, .075, .1, .15, .2, .3,
                                            .4,   .5,    .75,  1,   2.5,  5,   7.5,  10, 20,  40, 80};
static const double request_bounds[] = {.01, .05, .1, .3, .5, .8, 1,  1.5, 2,   2.5, 5,
                                        10,  15,  20, 30, 40, 50, 60, 120, 240, 480, 960};
static const double token_bounds[] = {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000};

static const struct {
    const char *name, *help;
    const double *bounds;
    size_t n_bounds;
} series_table[METRICS_N_SERIES] = {
    [METRICS_FIRST_TOKEN] = {"vllm:time_to_first_token_seconds", "Time from a request's arrival to its first token.",
                             first_token_bounds, COUNT(first_token_bounds)},
    [METRICS_INTER_TOKEN] = {"vllm:inter_token_latency_seconds", "Time between two tokens of one request.", inter_token_bounds,
                             COUNT(inter_token_bounds)},
    [METRICS_END_TO_END] = {"vllm:e2e_request_latency_seconds", "Time from a request's arrival to its end.", request_bounds,
                            COUNT(request_bounds)},
    [METRICS_QUEUE] = {"vllm:request_queue_time_seconds", "Time a request waited in the queue.", request_bounds,
                       COUNT(request_bounds)},
    [METRICS_PREFILL] = {"vllm:request_prefill_time_seconds", "Time from admission to the first token.", request_bounds,
                         COUNT(request_bounds)},
    [METRICS_DECODE] = {"vllm:request_decode_time_seconds", "Time from the first token to the last.", request_bounds,
                        COUNT(request_bounds)},
    [METRICS_INFERENCE] = {"vllm:request_inference_time_seconds", "Time from admission to the last token.", request_bounds,
                           COUNT(request_bounds)},
    [METRICS_TOKEN_MEAN] = {"vllm:request_time_per_output_token_seconds", "Time from the first token to the last, for each token after the first.",
                            inter_token_bounds, COUNT(inter_token_bounds)},
    [METRICS_PROMPT_TOKENS] = {"vllm:request_prompt_tokens", "Tokens in a request's prompt.", token_bounds,
                               COUNT(token_bounds)},
    [METRICS_OUTPUT_TOKENS] = {"vllm:request_generation_tokens", "Tokens generated for a request.", token_bounds,
                               COUNT(token_bounds)},
};

_Static_assert(COUNT(first_token_bounds) <= METRICS_MAX_BUCKETS && COUNT(inter_token_bounds) <= METRICS_MAX_BUCKETS &&
                   COUNT(request_bounds) <= METRICS_MAX_BUCKETS && COUNT(token_bounds) <= METRICS_MAX_BUCKETS,
               "METRICS_MAX_BUCKETS is too small");

const double *metrics_buckets(metrics_series series, size_t *n) {
    *n = series_table[series].n_bounds;
    return series_table[series].bounds;
}

void metrics_observe(metrics *m, metrics_series series, double value) {
    size_t i = 0;
    if (!m || isnan(value)) return;
    while (i < series_table[series].n_bounds && value > series_table[series].bounds[i]) i++;
    m->series[series].counts[i]++;
    m->series[series].sum += value;
}

enum { FINISHED_STOP, FINISHED_LENGTH, FINISHED_ABORT };
static const char *const finished_names[] = {"stop", "length", "abort"};

static double seconds(int64_t us) {
    return us > 0 ? (double)us / 1e6 : 0.0;
}

void metrics_event(metrics *m, metrics_job *job, const weir_event *event, int64_t now_us) {
    if (!m) return;
    if (event->type == WEIR_EVENT_TOKEN) {
        bool first = job->last_token_us == 0;
        metrics_observe(m, first ? METRICS_FIRST_TOKEN : METRICS_INTER_TOKEN,
                        seconds(now_us - (first ? job->arrived_us : job->last_token_us)));
        job->last_token_us = now_us;
        return;
    }
    const weir_timings *timings = &event->timings;
    bool ended = event->type == WEIR_EVENT_END;
    m->finished[!ended ? FINISHED_ABORT : event->stop_reason == WEIR_STOP_LENGTH ? FINISHED_LENGTH : FINISHED_STOP]++;
    metrics_observe(m, METRICS_QUEUE, seconds(timings->queue_us));
    if (!ended) return; /* half a request would only blur the other distributions */
    metrics_observe(m, METRICS_END_TO_END, seconds(now_us - job->arrived_us));
    metrics_observe(m, METRICS_PREFILL, seconds(timings->prefill_us));
    metrics_observe(m, METRICS_DECODE, seconds(timings->decode_us));
    metrics_observe(m, METRICS_INFERENCE, seconds(timings->prefill_us) + seconds(timings->decode_us));
    if (timings->n_output > 1) metrics_observe(m, METRICS_TOKEN_MEAN, seconds(timings->decode_us) / (timings->n_output - 1));
    metrics_observe(m, METRICS_PROMPT_TOKENS, timings->n_prompt);
    metrics_observe(m, METRICS_OUTPUT_TOKENS, timings->n_output);
}

void metrics_abort(metrics *m) {
    if (m) m->finished[FINISHED_ABORT]++;
}

/* ---- text ---------------------------------------------------------------------------------------------------------------- */

static void write_value(buf *out, double value) {
    if (value == floor(value) && fabs(value) < 0x1p63)
        buf_printf(out, "%lld", (long long)value);
    else
        buf_printf(out, "%.9g", isfinite(value) ? value : 0.0);
}

static void write_header(buf *out, const char *name, const char *type, const char *help) {
    buf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* `labels` is "" or {name="value",...}. */
static void write_sample(buf *out, const char *name, const char *labels, double value) {
    buf_printf(out, "%s%s ", name, labels);
    write_value(out, value);
    buf_putc(out, '\n');
}

static void write_label_value(buf *out, const char *text) {
    for (; *text; text++) {
        if (*text == '\n') {
            buf_puts(out, "\\n");
            continue;
        }
        if (*text == '"' || *text == '\\') buf_putc(out, '\\');
        buf_putc(out, *text);
    }
}

static double ratio(double part, double whole) {
    return whole > 0 ? part / whole : 0.0;
}

/* Resident memory in bytes; 0 where /proc is not there. */
static double resident_bytes(void) {
    unsigned long long total = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "re");
    if (!file) return 0;
    int read = fscanf(file, "%llu %llu", &total, &resident);
    fclose(file);
    return read == 2 ? (double)resident * (double)sysconf(_SC_PAGESIZE) : 0;
}

static double time_s(struct timeval t) { return (double)t.tv_sec + (double)t.tv_usec / 1e6; }

/* Of the process, all threads. */
static double cpu_seconds(void) {
    struct rusage usage;
    return getrusage(RUSAGE_SELF, &usage) == 0 ? time_s(usage.ru_utime) + time_s(usage.ru_stime) : 0;
}

/* X(name, type, help, labels, value); `s` is the engine's weir_stats. */
#define METRICS_TABLE(X)                                                                                                       \
    X("llamacpp:prompt_tokens_total", "counter", "Prompt tokens processed.", "", s->prompt_tokens)                             \
    X("llamacpp:prompt_tokens_cached_total", "counter", "Prompt tokens taken from the cache.", "", s->cached_tokens)           \
    X("llamacpp:prompt_seconds_total", "counter", "Engine time spent on prompts.", "", (double)s->prompt_us / 1e6)             \
    X("llamacpp:tokens_predicted_total", "counter", "Tokens generated.", "", s->output_tokens)                                 \
    X("llamacpp:tokens_predicted_seconds_total", "counter", "Engine time spent on generating.", "",                            \
      (double)s->output_us / 1e6)                                                                                              \
    X("llamacpp:n_decode_total", "counter", "Steps of the engine.", "", s->n_steps)                                            \
    X("llamacpp:spec_decode_num_drafts_total", "counter", "Times that tokens were guessed ahead.", "", s->n_drafts)             \
    X("llamacpp:spec_decode_num_draft_tokens_total", "counter", "Tokens guessed ahead.", "", s->draft_tokens)                  \
    X("llamacpp:spec_decode_num_accepted_tokens_total", "counter", "Guessed tokens that held.", "", s->draft_accepted)         \
    X("llamacpp:prompt_tokens_seconds", "gauge", "Average prompt tokens per second.", "",                                      \
      ratio(1e6 * (double)s->prompt_tokens, (double)s->prompt_us))                                                             \
    X("llamacpp:predicted_tokens_seconds", "gauge", "Average generated tokens per second.", "",                                \
      ratio(1e6 * (double)s->output_tokens, (double)s->output_us))                                                             \
    X("llamacpp:requests_processing", "gauge", "Requests that run.", "", s->n_running)                                         \
    X("llamacpp:requests_deferred", "gauge", "Requests that wait.", "", s->n_waiting)                                          \
    X("llamacpp:kv_cache_usage_ratio", "gauge", "Part of the KV cache in use, 0 to 1.", "",                                    \
      ratio((double)s->kv_tokens_used, (double)s->kv_tokens_total))                                                            \
    X("llamacpp:kv_cache_tokens", "gauge", "Tokens in the KV cache.", "", s->kv_tokens_used)                                   \
    X("vllm:num_requests_running", "gauge", "Requests that run.", model_label, s->n_running)                                   \
    X("vllm:num_requests_waiting", "gauge", "Requests that wait.", model_label, s->n_waiting)                                  \
    X("vllm:kv_cache_usage_perc", "gauge", "Part of the KV cache in use, 0 to 1.", model_label,                                \
      ratio((double)s->kv_tokens_used, (double)s->kv_tokens_total))                                                            \
    X("vllm:gpu_cache_usage_perc", "gauge", "The same under its older name.", model_label,                                     \
      ratio((double)s->kv_tokens_used, (double)s->kv_tokens_total))                                                            \
    X("vllm:prompt_tokens_total", "counter", "Prompt tokens processed.", model_label, s->prompt_tokens)                        \
    X("vllm:generation_tokens_total", "counter", "Tokens generated.", model_label, s->output_tokens)                           \
    X("vllm:prefix_cache_queries_total", "counter", "Prompt tokens looked up in the cache.", model_label,                      \
      s->queried_tokens)                                                                                                       \
    X("vllm:prefix_cache_hits_total", "counter", "Prompt tokens found in the cache.", model_label, s->cached_tokens)           \
    X("vllm:spec_decode_num_drafts_total", "counter", "Times that tokens were guessed ahead.", model_label, s->n_drafts)       \
    X("vllm:spec_decode_num_draft_tokens_total", "counter", "Tokens guessed ahead.", model_label, s->draft_tokens)             \
    X("vllm:spec_decode_num_accepted_tokens_total", "counter", "Guessed tokens that held.", model_label, s->draft_accepted)    \
    X("vllm:num_preemptions_total", "counter", "Times that a request gave its part of the KV cache to others.", model_label,   \
      s->n_preemptions)                                                                                                        \
    X("weir:recomputed_tokens_total", "counter", "Tokens computed again after that.", "", s->recomputed_tokens)                \
    X("weir:prefix_cache_tokens", "gauge", "Tokens kept for prompts that begin alike, in no request.", "", s->kv_tokens_kept)  \
    X("weir:waiting_tokens", "gauge", "Prompt tokens of requests that wait.", "", s->waiting_tokens)                           \
    X("weir:requests_submitted_total", "counter", "Requests accepted into the queue.", "", s->n_submitted)                     \
    X("weir:requests_finished_total", "counter", "Requests that ended well.", "", s->n_finished)                               \
    X("weir:requests_cancelled_total", "counter", "Requests cancelled, for example by a disconnect.", "", s->n_cancelled)      \
    X("weir:requests_failed_total", "counter", "Requests that ended with an error.", "", s->n_failed)                          \
    X("weir:requests_refused_total", "counter", "Requests refused at submission.", "", s->n_refused)                           \
    X("weir:kv_cache_capacity_tokens", "gauge", "Tokens that the KV cache can hold.", "", s->kv_tokens_total)                  \
    X("weir:log_lines_dropped_total", "counter", "Log lines that the log's reader did not take.", "", log_dropped())           \
    X("process_cpu_seconds_total", "counter", "Processor time of all threads.", "", cpu_seconds())                             \
    X("process_resident_memory_bytes", "gauge", "Resident memory.", "", resident_bytes())

static void write_scalars(buf *out, const weir_stats *s, const char *model_label) {
#define METRICS_WRITE(name, type, help, labels, value)                                                                         \
    write_header(out, name, type, help);                                                                                       \
    write_sample(out, name, labels, (double)(value));
    METRICS_TABLE(METRICS_WRITE)
#undef METRICS_WRITE
}

/* What the inference extension of the Kubernetes Gateway API reads beside the gauges: what the KV cache is, in labels, and that there are no
 * adapters. `label` as in write_histogram. */
static void write_infos(buf *out, const weir_stats *s, const char *label) {
    write_header(out, "vllm:lora_requests_info", "gauge", "Adapters: there are none; the value is the present time.");
    buf_printf(out, "vllm:lora_requests_info{%s,max_lora=\"0\",running_lora_adapters=\"\",waiting_lora_adapters=\"\"} %lld\n", label,
               (long long)(clock_unix_us() / 1000000));
    if (s->cache_type_k == NULL || s->kv_page_tokens == 0) return;
    const bool same = strcmp(s->cache_type_k, s->cache_type_v) == 0;
    write_header(out, "vllm:cache_config_info", "gauge", "The KV cache: tokens in a block, blocks, types.");
    buf_printf(out, "vllm:cache_config_info{%s,block_size=\"%u\",num_gpu_blocks=\"%llu\",cache_dtype=\"%s%s%s\"} 1\n", label, s->kv_page_tokens,
               (unsigned long long)(s->kv_tokens_total / s->kv_page_tokens), s->cache_type_k, same ? "" : "/", same ? "" : s->cache_type_v);
}

/* `label` is model_name="..." without braces. */
static void write_histogram(buf *out, const metrics *m, metrics_series series, const char *name, const char *label) {
    const metrics_histogram *histogram = &m->series[series];
    size_t n = series_table[series].n_bounds;
    uint64_t below = 0;
    write_header(out, name, "histogram", series_table[series].help);
    for (size_t i = 0; i <= n; i++) {
        below += histogram->counts[i];
        if (i < n)
            buf_printf(out, "%s_bucket{%s,le=\"%g\"} %llu\n", name, label, series_table[series].bounds[i],
                       (unsigned long long)below);
        else
            buf_printf(out, "%s_bucket{%s,le=\"+Inf\"} %llu\n", name, label, (unsigned long long)below);
    }
    buf_printf(out, "%s_sum{%s} ", name, label);
    write_value(out, histogram->sum);
    buf_printf(out, "\n%s_count{%s} %llu\n", name, label, (unsigned long long)below);
}

void metrics_write(buf *out, const metrics *m, const weir_stats *stats, const char *model) {
    buf label = BUF_INIT, braced = BUF_INIT;
    buf_puts(&label, "model_name=\"");
    write_label_value(&label, model ? model : "");
    buf_putc(&label, '"');
    if (!label.failed) buf_printf(&braced, "{%s}", label.data);
    if (label.failed || braced.failed) {
        out->failed = true;
    } else {
        write_scalars(out, stats, braced.data);
        write_infos(out, stats, label.data);
        write_header(out, "vllm:request_success_total", "counter", "Requests ended, by reason.");
        for (size_t i = 0; i < COUNT(finished_names); i++)
            buf_printf(out, "vllm:request_success_total{%s,finished_reason=\"%s\"} %llu\n", label.data, finished_names[i],
                       (unsigned long long)m->finished[i]);
        for (int i = 0; i < METRICS_N_SERIES; i++) write_histogram(out, m, (metrics_series)i, series_table[i].name, label.data);
        write_histogram(out, m, METRICS_INTER_TOKEN, "vllm:time_per_output_token_seconds", label.data); /* its older name */
    }
    buf_free(&label);
    buf_free(&braced);
}
