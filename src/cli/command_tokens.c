/* weir inspect, tokenize and detokenize. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/cpu.h"
#include "cli/commands.h"
#include "cli/inspect.h"
#include "cli/inspect_check.h"
#include "hf/hf.h"
#include "model/model.h"

/* Shows how far a check is, once it takes more than two seconds. */
typedef struct check_progress {
    int64_t begin_us;
    int shown;
} check_progress;

static void on_check(void *user, uint64_t done, uint64_t all) {
    check_progress *p = user;
    const int percent = all ? (int)(100.0 * (double)done / (double)all) : 100;
    if (percent == p->shown || clock_now_us() - p->begin_us < 2000000) return;
    fprintf(stderr, "\rChecking: %3d %%", percent);
    p->shown = percent;
}

static int check_file(const settings *s, gguf *g, buf *out) {
    weir_error err = {0};
    check_progress shown = {clock_now_us(), -1};
    inspect_check_options options = {.n_threads = s->threads ? (int)s->threads : cpu_count_available(), .user = &shown};
    if (!s->quiet && isatty(STDERR_FILENO)) options.progress = on_check;
    inspect_findings *findings = malloc(sizeof *findings);
    int result =
        findings ? inspect_check(g, &options, findings, &err) : error_set(&err, WEIR_E_NOMEM, "", "no memory for the findings");
    if (shown.shown >= 0) fputs("\r\033[K", stderr);
    if (result >= 0) inspect_check_render(g, findings, s->json, out);
    int code = result < 0 ? command_failed(&err) : command_write(out->data, out->n_bytes);
    if (code == EXIT_OK && findings->n_problems) code = EXIT_FAILED;
    free(findings);
    return code;
}

static int show_file(const settings *s, gguf *g, buf *out) {
    weir_error err = {0}, problem = {0};
    inspect_options options = {.json = s->json, .tensors = s->tensors, .full = s->full};
    model_memory needed = {0};
    char reason[sizeof problem.place + sizeof problem.message + 2];
    inspect_memory memory = {0};
    if (model_memory_needed(g, &needed, &problem) < 0) {
        snprintf(reason, sizeof reason, "%s: %s", problem.place, problem.message);
        memory.problem = reason;
    }
    memory.weights_bytes = needed.weights_bytes;
    memory.kv_token_bytes = needed.kv_token_bytes;
    memory.matmul_params = needed.matmul_params;
    memory.head_params = needed.head_params;
    memory.decode_bytes = needed.decode_bytes;
    memory.state_bytes = needed.state_bytes;
    memory.n_ctx_train = needed.n_ctx_train;
    options.memory = &memory;
    return inspect_render(g, &options, out, &err) < 0 ? command_failed(&err) : command_write(out->data, out->n_bytes);
}

int command_inspect(const settings *s) {
    const char *path = s->n_arguments ? s->arguments[0] : s->model;
    if (path == NULL || s->n_arguments > 1) return command_misused("inspect needs one FILE");
    gguf *g = NULL;
    weir_error err = {0};
    buf out = BUF_INIT;
    int code;
    if (hf_open(&g, path, &err) < 0)
        code = command_failed(&err);
    else
        code = s->check ? check_file(s, g, &out) : show_file(s, g, &out);
    buf_free(&out);
    gguf_close(&g);
    return code;
}

/* The text of --prompt, --file, the arguments joined by spaces, or standard input. */
static int read_text(const settings *s, buf *out, weir_error *err) {
    if (s->prompt) {
        buf_puts(out, s->prompt);
    } else if (s->file || s->n_arguments == 0) {
        return command_read_file(s->file ? s->file : "-", out, err);
    }
    for (size_t i = 0; s->prompt == NULL && i < s->n_arguments; i++) {
        if (i) buf_putc(out, ' ');
        buf_puts(out, s->arguments[i]);
    }
    FAIL_IF(out->failed, err, WEIR_E_NOMEM, "", "no memory for the text");
    return 0;
}

/* A line for each token: its id and its text, with what a terminal would not show escaped. */
static void put_token_line(const weir_model *model, int32_t token, buf *out) {
    size_t n_bytes;
    const char *bytes = weir_token_bytes(model, token, true, &n_bytes);
    buf_printf(out, "%8" PRId32 "  '", token);
    for (size_t i = 0; i < n_bytes; i++) {
        unsigned char c = (unsigned char)bytes[i];
        if (c == '\n') {
            buf_puts(out, "\\n");
        } else if (c < 0x20 || c == 0x7f) {
            buf_printf(out, "\\x%02x", c);
        } else {
            buf_putc(out, (char)c);
        }
    }
    buf_puts(out, "'\n");
}

static int print_tokens(const settings *s, const weir_model *model, const int32_t *tokens, size_t n) {
    buf out = BUF_INIT;
    if (s->ids) buf_putc(&out, '[');
    for (size_t i = 0; i < n; i++) {
        if (s->ids) {
            buf_printf(&out, "%s%" PRId32, i ? ", " : "", tokens[i]);
        } else {
            put_token_line(model, tokens[i], &out);
        }
    }
    if (s->ids) buf_puts(&out, "]\n");
    int code = EXIT_FAILED;
    if (out.failed) {
        fputs("Error: no memory for the tokens\n", stderr);
    } else {
        code = out.n_bytes ? command_write(out.data, out.n_bytes) : EXIT_OK;
    }
    buf_free(&out);
    return code;
}

int command_tokenize(const settings *s) {
    if (s->model == NULL) return command_misused("tokenize needs --model FILE");
    weir_error err = {0};
    buf text = BUF_INIT;
    if (read_text(s, &text, &err) < 0) {
        buf_free(&text);
        return command_failed(&err);
    }
    int code = EXIT_FAILED;
    int32_t *tokens = NULL;
    weir_model *model = command_open_model(s, s->model, true);
    if (model == NULL) goto done;
    const char *bytes = text.data ? text.data : "";
    int64_t n = weir_tokenize(model, bytes, text.n_bytes, !s->no_bos, !s->no_parse_special, NULL, 0);
    if (n >= 0) tokens = calloc((size_t)n + 1, sizeof *tokens);
    if (tokens) n = weir_tokenize(model, bytes, text.n_bytes, !s->no_bos, !s->no_parse_special, tokens, (size_t)n);
    if (tokens == NULL || n < 0) {
        fputs("Error: no memory for the tokens\n", stderr);
        goto done;
    }
    code = print_tokens(s, model, tokens, (size_t)n);
done:
    free(tokens);
    weir_model_close(&model);
    buf_free(&text);
    return code;
}

/* Numbers in `text`, whatever lies between them. Returns how many, or a negative code. */
static int64_t read_ids(const char *text, int32_t **ids, weir_error *err) {
    size_t n = 0, capacity = strlen(text) / 2 + 1;
    *ids = calloc(capacity, sizeof **ids);
    FAIL_IF(*ids == NULL, err, WEIR_E_NOMEM, "", "no memory for the ids");
    for (const char *at = text + strcspn(text, "0123456789"); *at; at += strcspn(at, "0123456789")) {
        char *end;
        long long id = strtoll(at, &end, 10);
        FAIL_IF(id > INT32_MAX || (at > text && at[-1] == '-'), err, WEIR_E_INVALID, "", "%s%.*s is no token id",
                at > text && at[-1] == '-' ? "-" : "", (int)(end - at < 40 ? end - at : 40), at);
        (*ids)[n++] = (int32_t)id;
        at = end;
    }
    return (int64_t)n;
}

int command_detokenize(const settings *s) {
    if (s->model == NULL) return command_misused("detokenize needs --model FILE");
    weir_error err = {0};
    buf input = BUF_INIT;
    int32_t *ids = NULL;
    char *text = NULL;
    size_t n_bytes = 0;
    weir_model *model = NULL;
    int code = EXIT_FAILED;
    int64_t n = read_text(s, &input, &err);
    if (n >= 0) n = read_ids(input.data ? input.data : "", &ids, &err);
    if (n < 0) {
        command_failed(&err);
        goto done;
    }
    model = command_open_model(s, s->model, true);
    if (model == NULL) goto done;
    if (weir_detokenize(model, ids, (size_t)n, s->special, &text, &n_bytes, &err) < 0) {
        command_failed(&err);
        goto done;
    }
    code = command_write(text, n_bytes);
    if (code == EXIT_OK) code = command_write("\n", 1);
done:
    free(text);
    free(ids);
    weir_model_close(&model);
    buf_free(&input);
    return code;
}
