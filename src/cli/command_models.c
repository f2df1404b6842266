/* weir models: what can be run, from the tables that the program itself uses; docs/models.md is its output. */
#include <inttypes.h>
#include <stdio.h>

#include "chat/builtin.h"
#include "cli/commands.h"
#include "kern/kern.h"
#include "model/model.h"
#include "tok/tok.h"

static void put_architectures(buf *out) {
    size_t n_rows;
    const model_arch *table = model_arch_table(&n_rows);
    buf_puts(out, "\n## Architectures\n\n`general.architecture` is one of:\n\n| name | feed-forward |\n|---|---|\n");
    for (size_t i = 0; i < n_rows; i++)
        buf_printf(out, "| `%s` | %s |\n", table[i].name, table[i].has_experts ? "dense or mixture of experts" : "dense");
}

/* What loading makes of a matrix of this type. */
static void put_path(buf *out, const quant_format *format) {
    kern_matrix w;
    const int64_t n_cols = format->block_size < 256 ? 256 : format->block_size;
    if (format->dequantise == NULL || kern_matrix_init(&w, format->type, 16, n_cols, NULL) < 0) {
        buf_puts(out, "not for weights");
        return;
    }
    if (w.layout->source == format->type)
        buf_printf(out, "its own kernels, packed as `%s`", w.layout->name);
    else
        buf_printf(out, "converted when loaded, packed as `%s`: %s", w.layout->name,
                   w.layout->bits ? "8-bit integers, a scale for each 16" : "floats");
}

static void put_formats(buf *out) {
    size_t n_rows;
    const quant_format *table = quant_format_table(&n_rows);
    buf_puts(
        out,
        "\n## Block formats\n\nThe types that a tensor may have, and what computes with them. Packed weights are interleaved "
        "by 16 rows; every layout has kernels\nin plain C, for AVX2 and for AVX-512.\n\n"
        "| type | values a block | bits a value | path | bits a value in memory |\n|---|---:|---:|---|---:|\n");
    for (size_t i = 0; i < n_rows; i++) {
        const quant_format *f = &table[i];
        kern_matrix w;
        buf_printf(out, "| `%s` | %d | %.4g | ", f->name, f->block_size, 8.0 * f->block_bytes / f->block_size);
        put_path(out, f);
        const int64_t n_cols = f->block_size < 256 ? 256 : f->block_size;
        if (f->dequantise && kern_matrix_init(&w, f->type, 16, n_cols, NULL) >= 0)
            buf_printf(out, " | %.4g |\n", 8.0 * w.layout->unit_bytes / (16.0 * w.layout->unit));
        else
            buf_puts(out, " | |\n");
    }
}

static void put_names(buf *out, const char *(*name)(size_t index)) {
    for (size_t i = 0; name(i); i++) buf_printf(out, "%s`%s`", i == 0 ? "" : i % 8 ? ", " : ",\n", name(i));
    buf_puts(out, ".\n");
}

int command_models(const settings *s) {
    (void)s;
    buf out = BUF_INIT;
    buf_puts(&out, "# What weir runs\n\nThis page is the output of `weir models`, made from the program's own tables.\n");
    put_architectures(&out);
    put_formats(&out);
    buf_puts(&out, "\n## Tokenisers\n\n`tokenizer.ggml.model` is one of ");
    put_names(&out, tok_model_name);
    buf_puts(&out, "`tokenizer.ggml.pre`, for byte-level BPE, is one of\n");
    put_names(&out, tok_pre_name);
    buf_puts(
        &out,
        "\n## Chat templates\n\nA model's own template (`tokenizer.chat_template`) is used unless `--chat-template` or "
        "`--chat-template-file` gives another. A model without one\ngets the built-in format whose turn marker is one of its "
        "tokens, else `chatml`, and the log has a warning. The built-in formats:\n");
    put_names(&out, chat_builtin_name);
    int code = out.failed ? command_failed(&(weir_error){.message = "no memory for the tables"})
                          : command_write(out.data, out.n_bytes);
    buf_free(&out);
    return code;
}
