/* See inspect.h. */
#include "cli/inspect.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/utf8.h"

enum { SHORT_ARRAY = 6, SHORT_STRING = 96, SHORT_ITEM = 32 };

/* What all tensors of one type take together. */
typedef struct type_total {
    const quant_format *format;
    const gguf_tensor *first;
    uint64_t n_tensors, n_values, n_bytes, room_bytes;
} type_total;

enum { MAX_TYPES = 64 };

typedef struct totals {
    type_total types[MAX_TYPES]; /* largest first; more than these only a file has that makes types up */
    size_t n_types;
    uint64_t n_values, n_bytes;
} totals;

static int by_bytes(const void *a, const void *b) {
    const type_total *x = a, *y = b;
    return (x->n_bytes < y->n_bytes) - (x->n_bytes > y->n_bytes);
}

static totals count_types(const gguf *g) {
    totals sum = {0};
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const gguf_tensor *t = gguf_tensor_at(g, i);
        size_t k = 0;
        while (k < sum.n_types && sum.types[k].format->type != t->format->type) k++;
        sum.n_values += t->n_values;
        sum.n_bytes += t->n_bytes;
        if (k == MAX_TYPES) continue;
        if (k == sum.n_types) sum.types[sum.n_types++] = (type_total){.format = t->format, .first = t};
        sum.types[k].n_tensors++;
        sum.types[k].n_values += t->n_values;
        sum.types[k].n_bytes += t->n_bytes;
        sum.types[k].room_bytes += t->room_bytes;
    }
    qsort(sum.types, sum.n_types, sizeof sum.types[0], by_bytes);
    return sum;
}

/* A short decimal text that reads back as the same number. */
static void put_float(buf *out, double value, bool single) {
    char text[40];
    for (int digits = 7; digits <= (single ? 9 : 17); digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (single ? strtof(text, NULL) == (float)value : strtod(text, NULL) == value) break;
    }
    buf_puts(out, text);
}

/* What JSON lacks, or its parsers do not take (integers over 63 bits), gets quotes in JSON. */
static void put_number(buf *out, const gguf_key_value *kv, uint64_t i, bool json) {
    int64_t integer;
    double value = 0;
    if (kv->item_type == GGUF_BOOL) {
        buf_puts(out, kv->data[i] ? "true" : "false");
        return;
    }
    if (kv->item_type != GGUF_FLOAT32 && kv->item_type != GGUF_FLOAT64 && gguf_item_i64(kv, i, &integer) == 1) {
        buf_printf(out, "%" PRId64, integer);
        return;
    }
    if (kv->item_type == GGUF_UINT64) {
        uint64_t large;
        memcpy(&large, kv->data + i * sizeof large, sizeof large);
        buf_printf(out, json ? "\"%" PRIu64 "\"" : "%" PRIu64, large);
        return;
    }
    (void)gguf_item_f64(kv, i, &value);
    if (isfinite(value)) {
        put_float(out, value, kv->item_type == GGUF_FLOAT32);
    } else {
        const char *text = isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
        buf_printf(out, json ? "\"%s\"" : "%s", text);
    }
}

/* As gguf_printable, of any length unless max_bytes is set. An escape takes at most four times the bytes that it stands for. */
static void put_printable(buf *out, gguf_string s, size_t max_bytes) {
    size_t longest = 4 * s.n_bytes; /* cannot overflow: the string lies in a file that is mapped */
    if (max_bytes && longest > max_bytes) longest = max_bytes;
    if (!buf_reserve(out, longest + 1)) return;
    out->n_bytes += gguf_printable(s, out->data + out->n_bytes, longest + 1);
}

/* A JSON string of bytes that may be anything. */
static void put_json_string(buf *out, gguf_string s) {
    buf_putc(out, '"');
    for (size_t i = 0; i < s.n_bytes;) {
        uint32_t c;
        size_t taken = utf8_decode(s.text + i, s.n_bytes - i, &c);
        if (c == '"' || c == '\\') {
            buf_putc(out, '\\');
            buf_putc(out, (char)c);
        } else if (c < 0x20 || (c >= 0x7f && c < 0xa0)) {
            buf_printf(out, "\\u%04x", c);
        } else {
            char text[4];
            buf_append(out, text, utf8_encode(c, text));
        }
        i += taken;
    }
    buf_putc(out, '"');
}

void inspect_put_json(buf *out, const char *text) { put_json_string(out, (gguf_string){text, strlen(text)}); }

/* The printable form as a JSON string: tells apart any two names. */
static void put_json_name(buf *out, gguf_string name) {
    buf text = BUF_INIT;
    put_printable(&text, name, 0);
    put_json_string(out, (gguf_string){text.data, text.n_bytes});
    out->failed = out->failed || text.failed;
    buf_free(&text);
}

/* ---- text ------------------------------------------------------------------------------------------------------------- */

static void put_size(buf *out, uint64_t n_bytes) {
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB", "PB", "EB"};
    double size = (double)n_bytes;
    size_t unit = 0;
    for (; size >= 999.5 && unit + 1 < sizeof units / sizeof units[0]; unit++) size /= 1000;
    buf_printf(out, unit ? "%.3g %s" : "%.0f %s", size, units[unit]);
}

/* Pads what was written since `start` to `width` characters. */
static void pad(buf *out, size_t start, size_t width) {
    if (out->failed) return;
    for (size_t n = utf8_count(out->data + start, out->n_bytes - start); n < width; n++) buf_putc(out, ' ');
}

static void put_string_value(buf *out, gguf_string s, size_t max_bytes) {
    buf_putc(out, '"');
    put_printable(out, s, max_bytes);
    buf_putc(out, '"');
    if (max_bytes && s.n_bytes > max_bytes) buf_printf(out, " (%zu bytes)", s.n_bytes);
}

static void put_value(buf *out, const gguf_key_value *kv, bool full) {
    if (kv->type == GGUF_STRING) {
        put_string_value(out, kv->strings[0], full ? 0 : SHORT_STRING);
        return;
    }
    if (kv->type != GGUF_ARRAY) {
        put_number(out, kv, 0, false);
        return;
    }
    uint64_t n_shown = full || kv->n_items <= SHORT_ARRAY ? kv->n_items : SHORT_ARRAY;
    buf_putc(out, '[');
    for (uint64_t i = 0; i < n_shown; i++) {
        if (i) buf_puts(out, ", ");
        if (kv->strings) {
            put_string_value(out, kv->strings[i], full ? 0 : SHORT_ITEM);
        } else {
            put_number(out, kv, i, false);
        }
    }
    buf_puts(out, n_shown < kv->n_items ? ", ...]" : "]");
}

static void put_metadata(buf *out, const gguf *g, bool full) {
    enum { KEY_WIDTH = 44, TYPE_WIDTH = 16 };
    buf_puts(out, "\nMetadata\n");
    for (size_t i = 0; i < gguf_n_key_values(g); i++) {
        const gguf_key_value *kv = gguf_key_value_at(g, i);
        buf_puts(out, "  ");
        size_t start = out->n_bytes;
        put_printable(out, kv->key, full ? 0 : SHORT_STRING);
        pad(out, start, KEY_WIDTH);
        buf_putc(out, ' ');
        start = out->n_bytes;
        buf_puts(out, gguf_value_type_name(kv->item_type));
        if (kv->type == GGUF_ARRAY) buf_printf(out, "[%" PRIu64 "]", kv->n_items);
        pad(out, start, TYPE_WIDTH);
        buf_putc(out, ' ');
        put_value(out, kv, full);
        buf_putc(out, '\n');
    }
}

static void put_types(buf *out, const totals *sum, size_t n_tensors) {
    static const char row[] = "  %-8s %8" PRIu64 " %16" PRIu64 " %16" PRIu64 " %8.3f\n";
    buf_printf(out, "\nTensor types\n  %-8s %8s %16s %16s %8s\n", "type", "tensors", "values", "bytes", "bits");
    for (size_t i = 0; i < sum->n_types; i++) {
        const type_total *t = &sum->types[i];
        if (quant_is_known(t->format))
            buf_printf(out, row, t->format->name, t->n_tensors, t->n_values, t->n_bytes,
                       8.0 * t->format->block_bytes / t->format->block_size);
        else
            buf_printf(out, "  %-8s %8" PRIu64 " %16" PRIu64 " %16s %8s\n", t->format->name, t->n_tensors, t->n_values, "?", "?");
    }
    if (sum->n_values == 0) return;
    buf_printf(out, row, "total", (uint64_t)n_tensors, sum->n_values, sum->n_bytes,
               8.0 * (double)sum->n_bytes / (double)sum->n_values);
}

/* What is known of the types that the table of formats lacks. */
static void put_unknown_types(buf *out, const totals *sum) {
    char text[480];
    bool any = false;
    for (size_t i = 0; i < sum->n_types; i++) {
        const type_total *t = &sum->types[i];
        if (quant_is_known(t->format)) continue;
        buf_puts(out, any ? "" : "\nTypes that weir does not have\n");
        any = true;
        quant_explain_unknown((uint32_t)t->format->type, text, sizeof text);
        buf_printf(out, "  %s\n    first in ", text);
        put_printable(out, t->first->name, 0);
        buf_printf(out, "; the file has room for %.3f bits a value, padding included\n", 8 * (double)t->room_bytes / (double)t->n_values);
    }
}

static void put_shape(buf *out, const gguf_tensor *t, const char *separator) {
    for (uint32_t d = 0; d < t->n_dims; d++) buf_printf(out, "%s%" PRIu64, d ? separator : "", t->dims[d]);
}

static void put_tensors(buf *out, const gguf *g) {
    enum { NAME_WIDTH = 36, SHAPE_WIDTH = 20 };
    buf_puts(out, "\nTensors\n");
    buf_printf(out, "  %-*s %-8s %-*s %16s %16s\n", NAME_WIDTH, "name", "type", SHAPE_WIDTH, "shape", "bytes", "offset");
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const gguf_tensor *t = gguf_tensor_at(g, i);
        buf_puts(out, "  ");
        size_t start = out->n_bytes;
        put_printable(out, t->name, 0);
        pad(out, start, NAME_WIDTH);
        buf_printf(out, " %-8s ", t->format->name);
        start = out->n_bytes;
        put_shape(out, t, " x ");
        pad(out, start, SHAPE_WIDTH);
        if (quant_is_known(t->format)) buf_printf(out, " %16" PRIu64 " %16" PRIu64, t->n_bytes, t->file_offset);
        else buf_printf(out, " %16s %16" PRIu64, "?", t->file_offset);
        if (gguf_n_parts(g) > 1) buf_printf(out, "  part %u", t->part + 1u);
        buf_putc(out, '\n');
    }
}

static void put_memory(buf *out, const inspect_memory *m) {
    buf_puts(out, "\nMemory to run it\n");
    if (m->problem) {
        buf_puts(out, "  cannot be run: ");
        put_printable(out, (gguf_string){m->problem, strlen(m->problem)}, 0);
        buf_putc(out, '\n');
        return;
    }
    buf_puts(out, "  packed weights            ");
    put_size(out, m->weights_bytes);
    buf_puts(out, "\n  KV cache for each token   ");
    put_size(out, m->kv_token_bytes);
    buf_printf(out, "\n  one context of %-10d ", m->n_ctx_train);
    put_size(out, m->kv_token_bytes * (uint64_t)m->n_ctx_train);
    buf_printf(out, "\n  matrix products           %" PRIu64 " multiply-accumulates a token, %" PRIu64 " for its logits",
               m->matmul_params, m->head_params);
    buf_puts(out, "\n  weights read to decode    ");
    put_size(out, m->decode_bytes);
    buf_puts(out, " a token");
    if (m->state_bytes) {
        buf_puts(out, "\n  state of each sequence    ");
        put_size(out, m->state_bytes);
    }
    buf_putc(out, '\n');
}

static void render_text(const gguf *g, const inspect_options *options, const totals *sum, buf *out) {
    const char *path = gguf_path(g);
    put_printable(out, (gguf_string){path, strlen(path)}, 0);
    buf_printf(out, "\n  %s", gguf_container(g));
    if (gguf_version(g)) buf_printf(out, " version %u", gguf_version(g));
    buf_printf(out, ", %s, ", gguf_file_type_name(g));
    put_size(out, gguf_file_bytes(g));
    if (gguf_n_parts(g) > 1) buf_printf(out, " in %u parts", gguf_n_parts(g));
    buf_printf(out, ", %zu keys, %zu tensors, %" PRIu64 " values\n", gguf_n_key_values(g), gguf_n_tensors(g), sum->n_values);
    put_metadata(out, g, options->full);
    put_types(out, sum, gguf_n_tensors(g));
    put_unknown_types(out, sum);
    if (options->memory) put_memory(out, options->memory);
    if (options->tensors) put_tensors(out, g);
}

/* ---- JSON ------------------------------------------------------------------------------------------------------------- */

static void put_json_item(buf *out, const gguf_key_value *kv, uint64_t i) {
    if (kv->strings) {
        put_json_string(out, kv->strings[i]);
    } else {
        put_number(out, kv, i, true);
    }
}

static void put_json_metadata(buf *out, const gguf *g, bool full) {
    buf_puts(out, ", \"metadata\": {");
    for (size_t i = 0; i < gguf_n_key_values(g); i++) {
        const gguf_key_value *kv = gguf_key_value_at(g, i);
        buf_puts(out, i ? ",\n  " : "\n  ");
        put_json_name(out, kv->key);
        buf_printf(out, ": {\"type\": \"%s\", ", gguf_value_type_name(kv->type));
        if (kv->type != GGUF_ARRAY) {
            buf_puts(out, "\"value\": ");
            put_json_item(out, kv, 0);
            buf_putc(out, '}');
            continue;
        }
        uint64_t n_shown = full || kv->n_items <= SHORT_ARRAY ? kv->n_items : SHORT_ARRAY;
        buf_printf(out, "\"item_type\": \"%s\", \"n_items\": %" PRIu64 ", \"value\": [", gguf_value_type_name(kv->item_type),
                   kv->n_items);
        for (uint64_t k = 0; k < n_shown; k++) {
            if (k) buf_puts(out, ", ");
            put_json_item(out, kv, k);
        }
        buf_puts(out, "]}");
    }
    buf_puts(out, "}");
}

/* The bytes of data; of unknown types what they can take at most. */
static void put_json_bytes(buf *out, const quant_format *format, uint64_t n_bytes, uint64_t room_bytes) {
    if (quant_is_known(format)) buf_printf(out, ", \"n_bytes\": %" PRIu64, n_bytes);
    else buf_printf(out, ", \"n_bytes\": null, \"room_bytes\": %" PRIu64, room_bytes);
}

static void put_json_types(buf *out, const totals *sum) {
    buf_puts(out, ",\n \"types\": [");
    for (size_t i = 0; i < sum->n_types; i++) {
        const type_total *t = &sum->types[i];
        buf_printf(out, "%s{\"type\": \"%s\", \"n_tensors\": %" PRIu64 ", \"n_values\": %" PRIu64, i ? ", " : "", t->format->name,
                   t->n_tensors, t->n_values);
        put_json_bytes(out, t->format, t->n_bytes, t->room_bytes);
        if (!quant_is_known(t->format)) {
            char text[480];
            quant_explain_unknown((uint32_t)t->format->type, text, sizeof text);
            buf_puts(out, ", \"problem\": ");
            inspect_put_json(out, text);
        }
        buf_putc(out, '}');
    }
    buf_putc(out, ']');
}

static void put_json_tensors(buf *out, const gguf *g) {
    buf_puts(out, ",\n \"tensors\": [");
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const gguf_tensor *t = gguf_tensor_at(g, i);
        buf_puts(out, i ? ",\n  {\"name\": " : "\n  {\"name\": ");
        put_json_name(out, t->name);
        buf_printf(out, ", \"type\": \"%s\", \"shape\": [", t->format->name);
        put_shape(out, t, ", ");
        buf_printf(out, "], \"n_values\": %" PRIu64, t->n_values);
        put_json_bytes(out, t->format, t->n_bytes, t->room_bytes);
        buf_printf(out, ", \"offset\": %" PRIu64 ", \"part\": %u}", t->file_offset, t->part);
    }
    buf_putc(out, ']');
}

static void put_json_memory(buf *out, const inspect_memory *m) {
    buf_puts(out, ",\n \"memory\": {");
    if (m->problem) {
        buf_puts(out, "\"problem\": ");
        put_json_string(out, (gguf_string){m->problem, strlen(m->problem)});
    } else {
        buf_printf(out, "\"weights_bytes\": %" PRIu64 ", \"kv_token_bytes\": %" PRIu64 ", \"state_bytes\": %" PRIu64
                   ", \"matmul_params\": %" PRIu64 ", \"head_params\": %" PRIu64 ", \"decode_bytes\": %" PRIu64 ", \"n_ctx_train\": %d",
                   m->weights_bytes, m->kv_token_bytes, m->state_bytes, m->matmul_params, m->head_params, m->decode_bytes, m->n_ctx_train);
    }
    buf_putc(out, '}');
}

static void render_json(const gguf *g, const inspect_options *options, const totals *sum, buf *out) {
    const char *path = gguf_path(g);
    buf_puts(out, "{\"file\": ");
    put_json_string(out, (gguf_string){path, strlen(path)});
    buf_printf(out, ", \"version\": %u, \"parts\": %u, \"file_bytes\": %" PRIu64 ", \"file_type\": \"%s\"", gguf_version(g),
               gguf_n_parts(g), gguf_file_bytes(g), gguf_file_type_name(g));
    buf_printf(out, ", \"n_tensors\": %zu, \"n_values\": %" PRIu64 ", \"tensor_bytes\": %" PRIu64, gguf_n_tensors(g),
               sum->n_values, sum->n_bytes);
    put_json_metadata(out, g, options->full);
    put_json_types(out, sum);
    if (options->memory) put_json_memory(out, options->memory);
    if (options->tensors) put_json_tensors(out, g);
    buf_puts(out, "}\n");
}

int inspect_render(const gguf *g, const inspect_options *options, buf *out, weir_error *err) {
    totals sum = count_types(g);
    if (options->json) {
        render_json(g, options, &sum, out);
    } else {
        render_text(g, options, &sum, out);
    }
    FAIL_IF(out->failed, err, WEIR_E_NOMEM, gguf_path(g), "no memory for the description of the file");
    return 0;
}
