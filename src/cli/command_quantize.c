/* weir quantize: a model file in a smaller format. Options and names of types are those of llama-quantize. Progress goes to
 * stderr, and only to a terminal; what was done goes to stdout. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cpu.h"
#include "cli/commands.h"
#include "model/quantise.h"

static volatile sig_atomic_t interrupted;

static void on_signal(int number) {
    (void)number;
    interrupted = 1;
}

/* ---- arguments -------------------------------------------------------------------------------------------------------- */

typedef struct job {
    const char *in, *out;
    const quant_mix *mix;
    quant_mix_options options;
    quant_override overrides[OPTIONS_MAX_LIST];
    char *patterns[OPTIONS_MAX_LIST]; /* owned */
    int64_t threads;
} job;

static const quant_mix *mix_argument(const char *name) {
    const quant_mix *m = quant_mix_named(name);
    if (m) return m;
    fprintf(stderr, "Error: \"%s\" is no type; possible are", name);
    const char *separator = " ";
    for (size_t i = 0; (m = quant_mix_at(i)) != NULL; i++) {
        if (quant_mix_format(m) && quant_mix_format(m)->quantise == NULL) continue;
        fprintf(stderr, "%s%s", separator, quant_mix_name(m));
        separator = ", ";
    }
    fputs("\n", stderr);
    return NULL;
}

/* The format that an option names; NULL, and a message, when there is none that can be written. */
static const quant_format *format_argument(const char *from, const char *name) {
    const quant_format *f = quant_format_named(name);
    if (f && f->quantise) return f;
    char targets[400];
    quantise_targets(targets, sizeof targets);
    command_misused("%s: weir cannot quantise to \"%s\"; possible are %s", from, name, targets);
    return NULL;
}

static bool parse_overrides(const settings *s, job *j) {
    for (size_t i = 0; i < s->tensor_types.n; i++) {
        const char *text = s->tensor_types.items[i], *equals = strrchr(text, '=');
        if (equals == NULL || equals == text) {
            command_misused("--tensor-type: \"%s\" is not of the form REGEX=FORMAT", text);
            return false;
        }
        const quant_format *format = format_argument("--tensor-type", equals + 1);
        j->patterns[i] = strndup(text, (size_t)(equals - text));
        if (format == NULL || j->patterns[i] == NULL) return false;
        j->overrides[i] = (quant_override){j->patterns[i], format};
    }
    j->options.overrides = j->overrides;
    j->options.n_overrides = s->tensor_types.n;
    return true;
}

/* False after a message about usage. */
static bool parse_arguments(const settings *s, job *j) {
    size_t n = s->n_arguments, names = s->dry_run && n == 2 ? 1 : 2; /* names of files before the type */
    if (n < names + 1 || n > names + 2) {
        command_misused("quantize needs IN OUT TYPE");
        return false;
    }
    j->in = s->arguments[0];
    j->out = names == 2 ? s->arguments[1] : NULL;
    j->threads = s->threads;
    if (n > names + 1) {
        char *end;
        j->threads = strtoll(s->arguments[names + 1], &end, 10);
        if (*end || j->threads < 1 || j->threads > 1024) {
            command_misused("THREADS: \"%s\" is not a number from 1 to 1024", s->arguments[names + 1]);
            return false;
        }
    }
    if ((j->mix = mix_argument(s->arguments[names])) == NULL) return false;
    j->options =
        (quant_mix_options){.pure = s->pure, .leave_output = s->leave_output_tensor, .has_imatrix = s->imatrix != NULL};
    if (s->output_tensor_type) {
        j->options.output = format_argument("--output-tensor-type", s->output_tensor_type);
        if (j->options.output == NULL) return false;
    }
    if (s->token_embedding_type) {
        j->options.embedding = format_argument("--token-embedding-type", s->token_embedding_type);
        if (j->options.embedding == NULL) return false;
    }
    return parse_overrides(s, j);
}

/* The input is mapped: writing over it would pull it away. */
static bool same_file(const char *a, const char *b) {
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* ---- output ----------------------------------------------------------------------------------------------------------- */

typedef struct display {
    const gguf *in;
    bool visible;
    int shown; /* what the line says, to write it only when it changes */
} display;

static bool show_progress(void *user, size_t tensor, uint64_t done, uint64_t total) {
    enum { WIDTH = 30 };
    display *d = user;
    int percent = total ? (int)(100.0 * (double)done / (double)total) : 100;
    if (d->visible && percent != d->shown) {
        char bar[WIDTH + 1], name[64];
        for (int i = 0; i < WIDTH; i++) bar[i] = i * 100 < percent * WIDTH ? '#' : '.';
        bar[WIDTH] = '\0';
        gguf_printable(gguf_tensor_at(d->in, tensor)->name, name, sizeof name);
        fprintf(stderr, "\r\033[K[%s] %3d %%  %s", bar, percent, name);
        d->shown = percent;
    }
    return !interrupted;
}

static int print_tensors(const quantise_plan *p) {
    static const char *const reasons[] = {[QUANT_REASON_TYPE] = "",
                                          [QUANT_REASON_RULE] = " (mix)",
                                          [QUANT_REASON_OPTION] = " (option)",
                                          [QUANT_REASON_FALLBACK] = " (rows do not fit the blocks of the wanted format)",
                                          [QUANT_REASON_KEPT] = " (kept)"};
    buf out = BUF_INIT;
    for (size_t i = 0; i < gguf_n_tensors(p->in); i++) {
        const gguf_tensor *t = gguf_tensor_at(p->in, i);
        char name[GGUF_MAX_NAME];
        gguf_printable(t->name, name, sizeof name);
        buf_printf(&out, "%-40s %llu", name, (unsigned long long)t->dims[0]);
        for (uint32_t d = 1; d < t->n_dims; d++) buf_printf(&out, " x %llu", (unsigned long long)t->dims[d]);
        buf_printf(&out, "  %s -> %s%s\n", t->format->name, p->choices[i].format->name, reasons[p->choices[i].reason]);
    }
    int code = out.failed ? EXIT_FAILED : command_write(out.data ? out.data : "", out.n_bytes);
    buf_free(&out);
    return code;
}

static int print_sums(const quantise_plan *p) {
    double values = p->n_values ? (double)p->n_values : 1, mib = 1.0 / (1 << 20);
    buf out = BUF_INIT;
    if (p->n_fallbacks) {
        buf_printf(&out, "%zu of %zu tensors have rows that do not fit the blocks of the wanted format and get another one\n",
                   p->n_fallbacks, gguf_n_tensors(p->in));
    }
    buf_printf(&out, "%s: %.2f MiB (%.2f bits per weight) -> %.2f MiB (%.2f bits per weight)\n", quant_mix_name(p->mix),
               (double)p->in_bytes * mib, 8 * (double)p->in_bytes / values, (double)p->out_bytes * mib,
               8 * (double)p->out_bytes / values);
    int code = out.failed ? EXIT_FAILED : command_write(out.data, out.n_bytes);
    buf_free(&out);
    return code;
}

/* ---- the command ------------------------------------------------------------------------------------------------------ */

static int carry_out(const settings *s, const job *j, const quantise_plan *plan, weir_error *err) {
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGINT, &action, NULL); /* so that no half of a file stays behind */
    sigaction(SIGTERM, &action, NULL);
    signal(SIGXFSZ, SIG_IGN); /* a limit on the size of files is an error like a full disk */
    pool *threads = NULL;
    display d = {.in = plan->in, .visible = !s->quiet && isatty(STDERR_FILENO), .shown = -1};
    TRY(pool_open(&threads, j->threads > 0 ? (int)j->threads : cpu_count_available(), err));
    int rc = quantise_run(plan, j->out, threads, show_progress, &d, err);
    if (d.visible && d.shown >= 0) fputs("\r\033[K", stderr);
    pool_close(&threads);
    return rc;
}

static int quantise(const settings *s, const job *j) {
    gguf *in = NULL;
    imatrix *im = NULL;
    quantise_plan plan = {0};
    weir_error err = {0};
    int code = EXIT_FAILED, rc = gguf_open(&in, j->in, &err);
    if (rc >= 0 && s->imatrix) rc = imatrix_open(&im, s->imatrix, &err);
    if (rc >= 0) rc = quantise_plan_make(&plan, in, j->mix, &j->options, s->allow_requantize, im, s->imatrix, &err);
    if (rc >= 0 && (s->dry_run || s->verbose)) rc = print_tensors(&plan) == EXIT_OK ? 0 : WEIR_E_IO;
    if (rc >= 0 && !s->dry_run) rc = carry_out(s, j, &plan, &err);
    if (rc >= 0) {
        code = print_sums(&plan);
    } else if (err.code) {
        command_failed(&err);
    }
    quantise_plan_free(&plan);
    imatrix_close(&im);
    gguf_close(&in);
    return code;
}

int command_quantize(const settings *s) {
    job j = {0};
    int code = EXIT_USAGE;
    if (parse_arguments(s, &j)) {
        code = j.out && same_file(j.in, j.out) ? command_misused("OUT is the same file as IN") : quantise(s, &j);
    }
    for (size_t i = 0; i < OPTIONS_MAX_LIST; i++) free(j.patterns[i]);
    return code;
}
