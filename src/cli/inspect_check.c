/* See inspect_check.h. */
#include "cli/inspect_check.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/pool.h"
#include "cli/inspect.h"
#include "model/model.h"
#include "model/vocab.h"
#include "weir/weir.h"

/* Weights beyond this are taken for damage: the largest of real models are some thousands. */
#define LARGEST_WEIGHT 1e8f

enum { UNIT_VALUES = 1 << 20, PIECE_VALUES = 8192 };

static void add(inspect_findings *f, bool warning, const char *place, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static void add(inspect_findings *f, bool warning, const char *place, const char *format, ...) {
    if (warning)
        f->n_warnings++;
    else
        f->n_problems++;
    if (f->n_items == INSPECT_MAX_FINDINGS) return;
    inspect_finding *item = &f->items[f->n_items++];
    va_list args;
    va_start(args, format);
    *item = (inspect_finding){.warning = warning};
    snprintf(item->what.place, sizeof item->what.place, "%s", place);
    vsnprintf(item->what.message, sizeof item->what.message, format, args);
    va_end(args);
}

/* ---- values ------------------------------------------------------------------------------------------------------------- */

/* A run of blocks of one tensor, and what was found in it. */
typedef struct unit {
    const gguf_tensor *tensor;
    uint64_t first, n;         /* blocks */
    uint64_t n_bad, first_bad; /* values that are not finite or too large; the first of them, counted in the tensor */
    float bad;
} unit;

typedef struct scan {
    unit *units;
    int64_t n_units;
    atomic_int_fast64_t next;
    atomic_uint_fast64_t done; /* values */
    uint64_t n_values;
    const inspect_check_options *options;
} scan;

static void scan_unit(unit *u) {
    const quant_format *format = u->tensor->format;
    float values[PIECE_VALUES];
    const uint64_t piece = PIECE_VALUES / (uint64_t)format->block_size;
    for (uint64_t at = 0; at < u->n; at += piece) {
        const uint64_t first = u->first + at, n = u->n - at < piece ? u->n - at : piece;
        const size_t n_values = (size_t)n * (size_t)format->block_size;
        format->dequantise(u->tensor->data + first * (uint64_t)format->block_bytes, values, (size_t)n);
        for (size_t i = 0; i < n_values; i++) {
            if (fabsf(values[i]) <= LARGEST_WEIGHT) continue; /* false for NaN, too */
            if (u->n_bad++ == 0) {
                u->first_bad = first * (uint64_t)format->block_size + i;
                u->bad = values[i];
            }
        }
    }
}

static void scan_values(void *arg, int thread) {
    scan *s = arg;
    for (int64_t i; (i = pool_take(&s->next, 1, s->n_units)) < s->n_units;) {
        unit *u = &s->units[i];
        scan_unit(u);
        /* Relaxed: only for the display. */
        const uint64_t n = u->n * (uint64_t)u->tensor->format->block_size;
        const uint64_t done = n + atomic_fetch_add_explicit(&s->done, n, memory_order_relaxed);
        if (thread == 0 && s->options->progress) s->options->progress(s->options->user, done, s->n_values);
    }
}

/* Cuts the tensors into units; NULL without memory. */
static unit *make_units(const gguf *g, inspect_findings *out, int64_t *n_units, uint64_t *n_values) {
    uint64_t total = 0;
    for (size_t i = 0; i < gguf_n_tensors(g); i++) total += gguf_tensor_at(g, i)->n_values / UNIT_VALUES + 1;
    unit *units = calloc((size_t)total + 1, sizeof *units); /* fewer than the bytes of the file */
    *n_units = 0;
    *n_values = 0;
    for (size_t i = 0; units && i < gguf_n_tensors(g); i++) {
        const gguf_tensor *t = gguf_tensor_at(g, i);
        if (t->format->dequantise == NULL) {
            char name[GGUF_MAX_NAME * 4];
            gguf_printable(t->name, name, sizeof name);
            char text[480];
            const bool known = quant_is_known(t->format);
            if (known) snprintf(text, sizeof text, "values of type %s are not checked", t->format->name);
            else quant_explain_unknown((uint32_t)t->format->type, text, sizeof text);
            add(out, known, name, "%s", text);
            continue;
        }
        const uint64_t n_blocks = t->n_values / (uint64_t)t->format->block_size;
        const uint64_t step = UNIT_VALUES / (uint64_t)t->format->block_size;
        for (uint64_t first = 0; first < n_blocks; first += step)
            units[(*n_units)++] = (unit){.tensor = t, .first = first, .n = n_blocks - first < step ? n_blocks - first : step};
        *n_values += t->n_values;
        out->n_tensors++;
    }
    out->n_values = *n_values;
    return units;
}

/* Adds up the units of each tensor, which follow each other. */
static void report_values(const scan *s, inspect_findings *out) {
    for (int64_t i = 0, next; i < s->n_units; i = next) {
        const gguf_tensor *t = s->units[i].tensor;
        const unit *first = NULL;
        uint64_t n_bad = 0;
        for (next = i; next < s->n_units && s->units[next].tensor == t; next++) {
            if (s->units[next].n_bad && first == NULL) first = &s->units[next];
            n_bad += s->units[next].n_bad;
        }
        if (n_bad == 0) continue;
        char name[GGUF_MAX_NAME * 4];
        gguf_printable(t->name, name, sizeof name);
        const uint64_t block = first->first_bad / (uint64_t)t->format->block_size;
        add(out, false, name,
            "%" PRIu64 " of %" PRIu64 " values are not finite numbers of at most %g; the first is %g in row %" PRIu64
            ", column %" PRIu64 " (%s block at byte %" PRIu64 " of the file)",
            n_bad, t->n_values, (double)LARGEST_WEIGHT, (double)first->bad, first->first_bad / t->dims[0],
            first->first_bad % t->dims[0], t->format->name, t->file_offset + block * (uint64_t)t->format->block_bytes);
    }
}

static int check_values(const gguf *g, const inspect_check_options *options, inspect_findings *out, weir_error *err) {
    scan s = {.options = options};
    pool *p = NULL;
    s.units = make_units(g, out, &s.n_units, &s.n_values);
    FAIL_IF(s.units == NULL, err, WEIR_E_NOMEM, gguf_path(g), "no memory for checking the tensors");
    int rc = pool_open(&p, options->n_threads, err);
    if (rc >= 0) {
        pool_run(p, scan_values, &s);
        report_values(&s, out);
    }
    pool_close(&p);
    free(s.units);
    return rc;
}

/* ---- vocabulary --------------------------------------------------------------------------------------------------------- */

static void check_duplicates(const tok *t, const gguf_key_value *tokens, inspect_findings *out) {
    uint64_t n = 0, first = 0;
    int32_t earlier = 0;
    for (uint64_t i = 0; i < tokens->n_items; i++) {
        const int32_t id = tok_find(t, tokens->strings[i].text, tokens->strings[i].n_bytes);
        if (id < 0 || (uint64_t)id == i || n++ > 0) continue;
        first = i;
        earlier = id;
    }
    if (n == 0) return;
    char text[96];
    gguf_printable(tokens->strings[first], text, sizeof text);
    add(out, true, "tokenizer.ggml.tokens",
        "%" PRIu64 " tokens repeat the text of others; the first is %" PRIu64 ", '%s', as %d", n, first, text, earlier);
}

/* A merge "left right" should join two tokens to a third. */
static bool resolves(const tok *t, gguf_string merge) {
    const char *space = merge.n_bytes > 1 ? memchr(merge.text + 1, ' ', merge.n_bytes - 1) : NULL;
    const size_t n_left = space ? (size_t)(space - merge.text) : 0, n_right = space ? merge.n_bytes - n_left - 1 : 0;
    char joined[1024];
    if (n_right == 0 || n_left + n_right > sizeof joined) return false;
    memcpy(joined, merge.text, n_left);
    memcpy(joined + n_left, space + 1, n_right);
    return tok_find(t, joined, n_left) >= 0 && tok_find(t, joined + n_left, n_right) >= 0 &&
           tok_find(t, joined, n_left + n_right) >= 0;
}

static void check_merges(const tok *t, const gguf_key_value *merges, inspect_findings *out) {
    uint64_t n = 0, first = 0;
    for (uint64_t i = 0; i < merges->n_items; i++)
        if (!resolves(t, merges->strings[i]) && n++ == 0) first = i;
    if (n == 0) return;
    char text[96];
    gguf_printable(merges->strings[first], text, sizeof text);
    add(out, true, "tokenizer.ggml.merges",
        "%" PRIu64 " merges do not join two tokens to a third; the first is %" PRIu64 ", '%s'", n, first, text);
}

static void check_rows(const gguf *g, uint64_t n_tokens, const char *name, inspect_findings *out) {
    const gguf_tensor *t = gguf_find_tensor(g, name);
    if (t == NULL || t->dims[1] == n_tokens) return;
    add(out, t->dims[1] > n_tokens, name, "%" PRIu64 " rows for %" PRIu64 " tokens", t->dims[1], n_tokens);
}

static void check_vocabulary(const gguf *g, inspect_findings *out) {
    tok *t = NULL;
    weir_error err = {0};
    if (gguf_find(g, "tokenizer.ggml.model") == NULL) {
        add(out, true, "tokenizer.ggml.model", "the file has no vocabulary");
        return;
    }
    if (model_vocab_open(&t, g, &err) < 0) {
        add(out, err.code == WEIR_E_UNSUPPORTED, err.place, "%s", err.message);
        return;
    }
    const gguf_key_value *tokens = gguf_find(g, "tokenizer.ggml.tokens"), *merges = gguf_find(g, "tokenizer.ggml.merges");
    check_duplicates(t, tokens, out);
    if (merges && merges->strings) check_merges(t, merges, out);
    check_rows(g, tokens->n_items, "token_embd.weight", out);
    check_rows(g, tokens->n_items, "output.weight", out);
    if (tok_eos(t) < 0) add(out, true, "tokenizer.ggml.eos_token_id", "there is no end-of-text token");
    tok_close(&t);
}

/* ---- chat template ------------------------------------------------------------------------------------------------------ */

#define QUESTION "What is a GGUF file?"
#define USER_MESSAGE "{\"role\":\"user\",\"content\":\"" QUESTION "\"}"
#define CONVERSATION(messages) "{\"messages\":[" messages "],\"add_generation_prompt\":true,\"tools\":null,\"documents\":null}"

static int try_conversation(const weir_chat *chat, const char *json, bool *shown, weir_error *err) {
    char *text = NULL;
    int rc = weir_chat_render(chat, json, strlen(json), &text, NULL, err);
    *shown = rc >= 0 && strstr(text, QUESTION);
    free(text);
    return rc;
}

static void check_template(const gguf *g, inspect_findings *out) {
    static const char key[] = "tokenizer.chat_template";
    gguf_string source = {0};
    weir_error err = {0};
    weir_chat *chat = NULL;
    bool shown = false;
    const int found = gguf_get_string(g, key, &source, &err);
    if (found == 0) add(out, true, key, "the file has no chat template");
    if (found < 0) add(out, false, err.place, "%s", err.message);
    char *text = found > 0 ? strndup(source.text, source.n_bytes) : NULL;
    if (text == NULL) return;
    if (weir_chat_open(&chat, text, "<s>", "</s>", &err) < 0) {
        add(out, false, key, "does not compile: %s: %s", err.place, err.message);
    } else if (try_conversation(chat, CONVERSATION(USER_MESSAGE), &shown, &err) < 0) {
        add(out, false, key, "does not render a conversation: %s: %s", err.place, err.message);
    } else if (!shown) {
        add(out, false, key, "does not show the text of a user's message");
    } else if (try_conversation(chat, CONVERSATION("{\"role\":\"system\",\"content\":\"Be brief.\"}," USER_MESSAGE), &shown,
                                &err) < 0) {
        add(out, true, key, "refuses a system message: %s", err.message);
    }
    weir_chat_close(&chat);
    free(text);
}

/* ---- the whole ---------------------------------------------------------------------------------------------------------- */

static void check_model(gguf *g, inspect_findings *out) {
    model_memory needed;
    weir_error err = {0};
    if (model_memory_needed(g, &needed, &err) >= 0) return;
    add(out, err.code != WEIR_E_FORMAT, err.place, "%s", err.message);
}

int inspect_check(gguf *g, const inspect_check_options *options, inspect_findings *out, weir_error *err) {
    *out = (inspect_findings){0};
    if (gguf_find(g, "general.architecture") == NULL) {
        add(out, true, "general.architecture", "the file names no architecture: it is no model");
    } else if (gguf_n_tensors(g) > 0) {
        check_model(g, out);
    }
    check_vocabulary(g, out);
    check_template(g, out);
    return check_values(g, options, out, err);
}

static void put_text(const inspect_findings *f, buf *out) {
    for (size_t i = 0; i < f->n_items; i++) {
        const weir_error *e = &f->items[i].what;
        buf_printf(out, "%s  %s: %s\n", f->items[i].warning ? "warning" : "PROBLEM", e->place, e->message);
    }
    if (f->n_problems + f->n_warnings > f->n_items)
        buf_printf(out, "and %" PRIu64 " more\n", f->n_problems + f->n_warnings - f->n_items);
    buf_printf(out, "%" PRIu64 " problems, %" PRIu64 " warnings; %" PRIu64 " values in %" PRIu64 " tensors looked at\n",
               f->n_problems, f->n_warnings, f->n_values, f->n_tensors);
}

void inspect_check_render(const gguf *g, const inspect_findings *f, bool json, buf *out) {
    if (!json) {
        put_text(f, out);
        return;
    }
    buf_puts(out, "{\"file\": ");
    inspect_put_json(out, gguf_path(g));
    buf_printf(out,
               ", \"n_problems\": %" PRIu64 ", \"n_warnings\": %" PRIu64 ", \"n_tensors\": %" PRIu64 ", \"n_values\": %" PRIu64
               ", \"findings\": [",
               f->n_problems, f->n_warnings, f->n_tensors, f->n_values);
    for (size_t i = 0; i < f->n_items; i++) {
        buf_printf(out, "%s\n  {\"kind\": \"%s\", \"place\": ", i ? "," : "", f->items[i].warning ? "warning" : "problem");
        inspect_put_json(out, f->items[i].what.place);
        buf_puts(out, ", \"message\": ");
        inspect_put_json(out, f->items[i].what.message);
        buf_putc(out, '}');
    }
    buf_puts(out, "]}\n");
}
