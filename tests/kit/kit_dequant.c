/* The block formats: `index.json` lists, for each type, a file of raw blocks and a file of the float32 values that they stand
 * for. Every bit must agree. */
#include "kit.h"

#include <jansson.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "quant/quant.h"

/* Compares value by value; a type is one case. */
static void compare(kit_report *r, const quant_format *format, const char *blocks, const char *expected, size_t n_blocks) {
    size_t n_values = n_blocks * (size_t)format->block_size;
    float *values = malloc((n_values ? n_values : 1) * sizeof *values);
    if (values == NULL) {
        kit_fail(r, "%s: out of memory for %zu values", format->name, n_values);
        return;
    }
    format->dequantise(blocks, values, n_blocks);
    for (size_t i = 0; i < n_values; i++) {
        uint32_t got, want;
        memcpy(&got, &values[i], sizeof got);
        memcpy(&want, expected + 4 * i, sizeof want);
        if (got != want) {
            float wanted;
            memcpy(&wanted, &want, sizeof wanted);
            kit_fail(r, "%s: value %zu (block %zu): got %a, expected %a", format->name, i, i / (size_t)format->block_size,
                     (double)values[i], (double)wanted);
            free(values);
            return;
        }
    }
    free(values);
    kit_pass(r);
}

static void run_type(kit_report *r, const char *dir, json_t *entry) {
    const char *name = NULL, *blocks_name = NULL, *values_name = NULL;
    json_int_t type = 0, block_size = 0, type_size = 0, n_blocks = 0;
    if (json_unpack(entry, "{s:s, s:I, s:I, s:I, s:I, s:s, s:s}", "type", &name, "ggml_type", &type, "block_size", &block_size,
                    "type_size", &type_size, "n_blocks", &n_blocks, "blocks", &blocks_name, "values", &values_name) != 0 ||
        type < 0 || type > UINT32_MAX || n_blocks < 0) {
        kit_fail(r, "an entry of index.json lacks a member");
        return;
    }
    const quant_format *format = quant_format_of((uint32_t)type);
    if (format == NULL) {
        kit_fail(r, "%s: type %lld is unknown", name, (long long)type);
        return;
    }
    if (strcmp(format->name, name) != 0 || format->block_size != block_size || format->block_bytes != type_size) {
        kit_fail(r, "%s: type %lld is %s with %d values in %d bytes, expected %lld in %lld", name, (long long)type,
                 format->name, format->block_size, format->block_bytes, (long long)block_size, (long long)type_size);
        return;
    }
    if (format->dequantise == NULL) {
        kit_skip(r, "%s: cannot be dequantised", name);
        return;
    }
    size_t blocks_bytes = 0, values_bytes = 0;
    char *blocks = kit_read_file(kit_path(dir, "%s", blocks_name), &blocks_bytes);
    char *values = kit_read_file(kit_path(dir, "%s", values_name), &values_bytes);
    if (blocks == NULL || values == NULL) {
        kit_fail(r, "%s: cannot read %s and %s", name, blocks_name, values_name);
    } else if (blocks_bytes != (size_t)n_blocks * (size_t)type_size ||
               values_bytes != (size_t)n_blocks * (size_t)block_size * 4) {
        kit_fail(r, "%s: the files do not have the sizes that index.json says", name);
    } else {
        compare(r, format, blocks, values, (size_t)n_blocks);
    }
    free(blocks);
    free(values);
}

void kit_run_dequant(kit_report *r, const char *dir) {
    json_error_t error;
    json_t *index = json_load_file(kit_path(dir, "index.json"), 0, &error);
    if (!json_is_array(index)) {
        kit_fail(r, "index.json: %s", index ? "not an array" : error.text);
        json_decref(index);
        return;
    }
    size_t i;
    json_t *entry;
    json_array_foreach(index, i, entry) run_type(r, dir, entry);
    json_decref(index);
}
