/* The results of weir bench: tables for people; JSON and CSV with the members that llama-bench and llama-batched-bench have,
 * too, under their names. */
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cli/bench.h"
#include "weir/weir_version.h"

/* Mean and standard deviation of times and of the speeds n_tok / time. */
typedef struct summary {
    double us, stddev_us, speed, stddev_speed; /* tokens per second */
} summary;

static summary summarise(const double *us, size_t n, double n_tok) {
    summary s = {0};
    double square_us = 0, square_speed = 0, count = (double)n;
    for (size_t i = 0; i < n; i++) {
        s.us += us[i] / count;
        s.speed += n_tok * 1e6 / us[i] / count;
    }
    for (size_t i = 0; i < n; i++) {
        square_us += pow(us[i] - s.us, 2);
        square_speed += pow(n_tok * 1e6 / us[i] - s.speed, 2);
    }
    if (n > 1) {
        s.stddev_us = sqrt(square_us / (count - 1));
        s.stddev_speed = sqrt(square_speed / (count - 1));
    }
    return s;
}

static model_work total_work(const bench_outcome *o) {
    model_work sum = {0};
    for (int op = 0; op < MODEL_N_OPS; op++) {
        sum.int8_macs += o->work[op].int8_macs;
        sum.f32_macs += o->work[op].f32_macs;
        sum.bytes += o->work[op].bytes;
    }
    return sum;
}

/* ---- tables ----------------------------------------------------------------------------------------------------------- */

static void print_model(const bench *b, const bench_test *t) {
    char name[64], size[32], params[32];
    snprintf(name, sizeof name, "%s %s", b->info->architecture, b->info->file_type);
    snprintf(size, sizeof size, "%.2f MiB", (double)b->info->weight_bytes / 1048576);
    snprintf(params, sizeof params, "%.2f M", (double)b->info->n_params / 1e6);
    printf("| %-30s | %10s | %10s | %-10s | %7d |", name, size, params, b->info->cpu_level, t->n_threads);
}

static void print_heading(const char *columns, const char *rule) {
    printf("| %-30s | %10s | %10s | %-10s | %7s |%s\n", "model", "size", "params", "cpu", "threads", columns);
    printf("| %.30s | %.9s: | %.9s: | %.10s | %.6s: |%s\n", "------------------------------", "---------", "---------",
           "----------", "------", rule);
}

/* The roofline: for each operation of a step how long it takes, what it achieves, and how near that is to the machine's limit.
 */
static void print_profile(const bench_outcome *o) {
    const limits *l = o->limits;
    double all_ns = 0, steps = o->n_steps;
    for (int op = 0; op < MODEL_N_OPS; op++) all_ns += o->op_ns[op];
    printf("\n%s: %d steps, %.3f ms each; limits on %d threads: %.1f GMAC/s int8, %.1f GMAC/s F32, %.2f GB/s\n\n", o->label,
           o->n_steps, all_ns / 1e6 / steps, l->n_threads, l->int8_macs / 1e9, l->f32_macs / 1e9, l->read_bytes / 1e9);
    printf("| %-18s | %10s | %7s | %8s | %8s | %8s |\n", "operation", "ms a step", "share", "GMAC/s", "GB/s", "of limit");
    printf("| %.18s | %.9s: | %.6s: | %.7s: | %.7s: | %.7s: |\n", "------------------", "---------", "------", "-------",
           "-------", "-------");
    for (int op = 0; op < MODEL_N_OPS; op++) {
        const model_work *w = &o->work[op];
        const double ns = o->op_ns[op], macs = w->int8_macs + w->f32_macs;
        if (ns == 0) continue;
        printf("| %-18s | %10.3f | %5.1f %% |", model_op_name(op), ns / 1e6 / steps, 100 * ns / all_ns);
        if (macs > 0)
            printf(" %8.2f |", macs / ns);
        else
            printf(" %8s |", "");
        if (w->bytes > 0)
            printf(" %8.2f | %6.1f %% |\n", w->bytes / ns, 100e9 * limits_seconds(l, w->int8_macs, w->f32_macs, w->bytes) / ns);
        else
            printf(" %8s | %8s |\n", "", "");
    }
    putchar('\n');
}

static void print_markdown(const bench *b, const bench_outcome *o) {
    const bench_test *t = &o->t;
    char speed[64];
    if (t->n_parallel) {
        const summary pp = o->prompt_us ? summarise(o->prompt_us, o->n, (double)t->n_prompt * t->n_parallel) : (summary){0};
        const summary tg = o->gen_us ? summarise(o->gen_us, o->n, (double)t->n_gen * t->n_parallel) : (summary){0};
        if (b->n_rows == 0 || o->limits)
            print_heading("     pp |     tg |   pl |    pp t/s |    tg t/s |",
                          " -----: | -----: | ---: | --------: | --------: |");
        print_model(b, t);
        printf(" %6d | %6d | %4d | %9.2f | %9.2f |\n", t->n_prompt, t->n_gen, t->n_parallel, pp.speed, tg.speed);
        if (o->limits) print_profile(o);
        return;
    }
    if (b->n_rows == 0 || o->limits)
        print_heading("            test |                  t/s |", " --------------: | -------------------: |");
    const summary s = summarise(o->prompt_us ? o->prompt_us : o->gen_us, o->n, t->n_prompt + t->n_gen);
    snprintf(speed, sizeof speed, "%.2f ± %.2f", s.speed, s.stddev_speed);
    print_model(b, t);
    printf(" %15s | %21s |\n", o->label, speed); /* one column more, since the sign takes two bytes */
    if (o->limits) print_profile(o);
}

static void print_csv(const bench *b, const bench_outcome *o) {
    const bench_test *t = &o->t;
    const double *us = o->gen_us ? o->gen_us : o->prompt_us;
    const int32_t n_seqs = t->n_parallel ? t->n_parallel : 1;
    if (b->n_rows == 0)
        puts("build_commit,cpu_info,model_filename,model_type,model_size,model_n_params,n_batch,n_threads,n_prompt,n_gen,n_"
             "depth,n_parallel,"
             "test_time,avg_ns,stddev_ns,avg_ts,stddev_ts");
    const summary s = summarise(us, o->n, (double)n_seqs * (o->gen_us ? t->n_gen : t->n_prompt));
    printf("\"weir %s\",\"%s\",\"", WEIR_VERSION, b->info->cpu_level);
    for (const char *c = b->info->path; *c; c++) printf(*c == '"' ? "\"\"" : "%c", *c);
    printf("\",\"%s %s\",\"%" PRIu64 "\",\"%" PRIu64
           "\",\"%d\",\"%d\",\"%d\",\"%d\",\"%d\",\"%d\",\"%s\",\"%.0f\",\"%.0f\",\"%.6f\",\"%.6f\"\n",
           b->info->architecture, b->info->file_type, b->info->weight_bytes, b->info->n_params, t->n_batch, t->n_threads,
           t->n_prompt, t->n_gen, t->n_depth, n_seqs, o->time, 1000 * s.us, 1000 * s.stddev_us, s.speed, s.stddev_speed);
}

/* ---- JSON ------------------------------------------------------------------------------------------------------------- */

static json_t *limits_json(const limits *l) {
    return json_pack("{s:i, s:f, s:f, s:f}", "n_threads", (int)l->n_threads, "int8_macs_per_s", l->int8_macs, "f32_macs_per_s",
                     l->f32_macs, "read_bytes_per_s", l->read_bytes);
}

static json_t *profile_json(const bench_outcome *o) {
    json_t *rows = json_array();
    double all_ns = 0;
    for (int op = 0; op < MODEL_N_OPS; op++) all_ns += o->op_ns[op];
    for (int op = 0; op < MODEL_N_OPS; op++) {
        const model_work *w = &o->work[op];
        const double ns = o->op_ns[op], least = limits_seconds(o->limits, w->int8_macs, w->f32_macs, w->bytes);
        if (ns == 0) continue;
        json_array_append_new(rows, json_pack("{s:s, s:f, s:f, s:f, s:f, s:f, s:f}", "op", model_op_name(op), "ms_per_step",
                                              ns / 1e6 / o->n_steps, "share", ns / all_ns, "int8_macs_per_s",
                                              w->int8_macs / ns * 1e9, "f32_macs_per_s", w->f32_macs / ns * 1e9, "bytes_per_s",
                                              w->bytes / ns * 1e9, "of_limit", least * 1e9 / ns));
    }
    return rows;
}

/* The members of one kind of measurement; `suffix` tells them apart where a row has two. */
static void put_samples(json_t *row, const double *us, size_t n, double n_tok, const char *suffix) {
    const summary s = summarise(us, n, n_tok);
    const struct {
        const char *name;
        double value;
    } figures[] = {{"avg_ns", round(1000 * s.us)},
                   {"stddev_ns", round(1000 * s.stddev_us)},
                   {"avg_ts", s.speed},
                   {"stddev_ts", s.stddev_speed}};
    char name[32];
    for (size_t i = 0; i < sizeof figures / sizeof figures[0]; i++) {
        snprintf(name, sizeof name, "%s%s", figures[i].name, suffix);
        json_object_set_new(row, name, json_real(figures[i].value));
    }
    json_t *ns = json_array(), *speeds = json_array();
    for (size_t i = 0; i < n; i++) {
        json_array_append_new(ns, json_integer((json_int_t)(1000 * us[i])));
        json_array_append_new(speeds, json_real(n_tok * 1e6 / us[i]));
    }
    snprintf(name, sizeof name, "samples_ns%s", suffix);
    json_object_set_new(row, name, ns);
    snprintf(name, sizeof name, "samples_ts%s", suffix);
    json_object_set_new(row, name, speeds);
}

static json_t *outcome_json(const bench *b, const bench_outcome *o) {
    const bench_test *t = &o->t;
    char path[4096];
    gguf_printable((gguf_string){b->info->path, strlen(b->info->path)}, path, sizeof path);
    json_t *row =
        json_pack("{s:s, s:s, s:s, s:s++, s:I, s:I, s:i, s:i, s:i, s:i, s:i, s:s, s:s}", "build_commit", "weir " WEIR_VERSION,
                  "cpu_info", b->info->cpu_level, "model_filename", path, "model_type", b->info->architecture, " ",
                  b->info->file_type, "model_size", (json_int_t)b->info->weight_bytes, "model_n_params",
                  (json_int_t)b->info->n_params, "n_batch", (int)t->n_batch, "n_threads", (int)t->n_threads, "n_prompt",
                  (int)t->n_prompt, "n_gen", (int)t->n_gen, "n_depth", (int)t->n_depth, "test", o->label, "test_time", o->time);
    json_object_set_new(row, "type_k", json_string(kern_kv_type_name(engine_kv(b->e)->k)));
    json_object_set_new(row, "type_v", json_string(kern_kv_type_name(engine_kv(b->e)->v)));
    if (t->n_parallel) {
        json_object_set_new(row, "n_parallel", json_integer(t->n_parallel));
        if (o->prompt_us) put_samples(row, o->prompt_us, o->n, (double)t->n_prompt * t->n_parallel, "_pp");
        if (o->gen_us) put_samples(row, o->gen_us, o->n, (double)t->n_gen * t->n_parallel, "_tg");
    }
    const double n_tok = t->n_parallel ? (double)t->n_gen * t->n_parallel : t->n_prompt + t->n_gen;
    if (t->n_parallel == 0) put_samples(row, o->prompt_us ? o->prompt_us : o->gen_us, o->n, n_tok, "");
    const model_work all = total_work(o), *attention = &o->work[MODEL_OP_ATTENTION];
    /* Per token, on the average over the run; batched, over its answers. */
    json_object_set_new(row, "work",
                        json_pack("{s:f, s:f, s:f, s:f}", "int8_macs", all.int8_macs / n_tok, "f32_macs",
                                  (all.f32_macs - attention->f32_macs) / n_tok, "attention_macs", attention->f32_macs / n_tok, "bytes",
                                  all.bytes / n_tok));
    if (o->limits) {
        json_object_set_new(row, "limits", limits_json(o->limits));
        json_object_set_new(row, "profile", profile_json(o));
    }
    return row;
}

static void print_json(const bench *b, const bench_outcome *o, bool lines) {
    json_t *row = outcome_json(b, o);
    if (!lines) fputs(b->n_rows ? ",\n" : "[\n", stdout);
    if (row == NULL || json_dumpf(row, stdout, JSON_REAL_PRECISION(9) | (lines ? JSON_COMPACT : JSON_INDENT(2))) != 0)
        fputs("null", stdout);
    if (lines) putchar('\n');
    json_decref(row);
}

void bench_print(bench *b, const bench_outcome *o) {
    const char *format = b->s->output;
    if (strcmp(format, "md") == 0) print_markdown(b, o);
    if (strcmp(format, "csv") == 0) print_csv(b, o);
    if (format[0] == 'j') print_json(b, o, strcmp(format, "jsonl") == 0);
    fflush(stdout);
    b->n_rows++;
}

void bench_print_end(const bench *b) {
    if (strcmp(b->s->output, "json") == 0) puts(b->n_rows ? "\n]" : "[]");
}

void bench_print_limits(const settings *s, const kern_ops *ops, const limits_buffer *buffer, const limits *l, size_t n) {
    if (s->output[0] == 'j') {
        json_t *rows = json_array();
        for (size_t i = 0; i < n; i++) json_array_append_new(rows, limits_json(&l[i]));
        json_t *all = json_pack("{s:s, s:I, s:I, s:o}", "cpu_level", ops->name, "cache_bytes", (json_int_t)buffer->cache_bytes,
                                "buffer_bytes", (json_int_t)buffer->n_bytes, "limits", rows);
        if (all == NULL ||
            json_dumpf(all, stdout,
                       JSON_REAL_PRECISION(9) | (strcmp(s->output, "jsonl") == 0 ? JSON_COMPACT : JSON_INDENT(2))) != 0)
            fputs("null", stdout);
        putchar('\n');
        json_decref(all);
        return;
    }
    const char *row = "| %-10s | %7d | %13.1f | %12.1f | %10.2f |\n";
    if (strcmp(s->output, "csv") == 0) {
        row = "%s,%d,%.1f,%.1f,%.2f\n";
        puts("cpu,threads,int8_gmacs,f32_gmacs,read_gbs");
    } else {
        printf("| %-10s | %7s | %13s | %12s | %10s |\n", "cpu", "threads", "int8 GMAC/s", "F32 GMAC/s", "read GB/s");
        puts("| ---------- | ------: | ------------: | -----------: | ---------: |");
    }
    for (size_t i = 0; i < n; i++)
        printf(row, ops->name, l[i].n_threads, l[i].int8_macs / 1e9, l[i].f32_macs / 1e9, l[i].read_bytes / 1e9);
}
